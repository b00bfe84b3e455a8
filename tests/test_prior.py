"""The n-gram prior: its counts, its formula, its table, and that a runtime with it keeps the laws."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoints_for_tests as tiny
import numpy as np
import pytest
import safetensors.numpy
from typer.testing import CliRunner

from model import counting, data, prior
from model.batches import encode
from model.checkpoint import Checkpoint, CheckpointError
from model.evaluate import by_depth
from model.prior import Prior
from model.runtime import states
from model.runtime.base import Draw, Job, StateError
from model.runtime.choice import native_is_built, open_runtime
from model.sampling import SamplingParams, log_softmax
from model.tokenizer import Bytes
from service.cli import app

TEXT = "the cat sat on the mat, the rat sat on the cat; that is that. " * 3 + "a bat!"
IDS = encode(TEXT.encode(), Bytes())


def counted(order: int = 3, least: int = 1, ids: Any = IDS) -> Prior:
    """A prior with gates that differ."""
    gates = np.linspace(0.1, 0.6, order + 1, dtype=np.float32)
    return replace(counting.count(ids, order, least), gates=gates)


def kneser_ney(context: list[int], order: int, least: int) -> tuple[dict[int, float], int]:
    """Interpolated Kneser-Ney from its definition, with dictionaries; and the length of the longest seen context."""
    ids = IDS.tolist()
    q, longest = dict.fromkeys(set(ids), 0.0), 0
    for length in range(min(order, len(context)) + 1):
        rows: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        if length == order:
            for i in range(length, len(ids)):
                rows[tuple(ids[i - length : i])][ids[i]] += 1
        else:  # after how many different tokens
            for gram in {tuple(ids[i - length - 1 : i + 1]) for i in range(length + 1, len(ids))}:
                rows[gram[1:-1]][gram[-1]] += 1
        row = rows.get(tuple(context[len(context) - length :]))
        if row is None or (length >= counting.PRUNED_FROM and row.total() < least):
            break
        longest, total = length, row.total()
        discount = counting.DISCOUNT if length else 0.0
        left = discount * len(row) / total
        q = {token: left * share + max(row[token] - discount, 0) / total for token, share in q.items()}
    return q, longest


@pytest.mark.parametrize(("order", "least"), [(1, 1), (3, 1), (6, 1), (6, 3)])
def test_counts_are_kneser_ney(order: int, least: int) -> None:
    """Every context of the text, and some that it has not, against the definition; stored in 16 bits."""
    made = counted(order, least)
    for context in [IDS[max(0, i - 8) : i].tolist() for i in range(len(IDS))] + [[0], [116, 104, 0], [0, 116, 104]]:
        q, longest = made.next(context)
        wanted, wanted_longest = kneser_ney(context, order, least)
        assert longest == wanted_longest
        assert q == pytest.approx([wanted[int(token)] for token in made.alphabet], abs=4e-5)
        assert q.sum() == pytest.approx(1, abs=1e-12)
        assert (q > 0).all()


def test_the_vectorised_search_is_the_plain_one() -> None:
    """Of every token of a text with foreign tokens in it, beginning at any place."""
    made = counted()
    ids = np.concatenate([IDS[:40], np.array([256, 0, 7], np.int32), IDS[:60]])
    for start in (1, 2, 44):
        q, longest = made.targets(ids, start)
        for i in range(start, len(ids)):
            known, length = made.next(ids[max(0, i - 3) : i].tolist())
            place = np.flatnonzero(made.alphabet == ids[i])
            assert q[i - start] == pytest.approx(known[place[0]] if len(place) else 0.0, abs=1e-15)
            assert longest[i - start] == length


def test_a_letter_that_only_begins_the_text() -> None:
    """It follows nothing, and still has a share: the empty context must know it, or the file cannot be loaded."""
    made = counted(ids=encode(b"#" + TEXT.encode(), Bytes()))
    prior.check(made, "made")
    q, _ = made.next([])
    assert 0 < q[made.alphabet.tolist().index(ord("#"))] < 0.1


def test_mixed_logits_are_the_mixture() -> None:
    """(1 - g) softmax + g q, whatever the scale of the logits; what the prior does not know keeps its share."""
    made = counted()
    logits = np.random.default_rng(0).normal(0, 3, 258).astype(np.float32) + 500
    for context in ([], [116], [116, 104, 101], [0, 0]):
        q, longest = made.next(context)
        gate = float(made.gates[longest])
        wanted = (1 - gate) * np.exp(log_softmax(logits[None])[0])
        wanted[made.alphabet] += gate * q
        assert np.exp(made.mixed(logits, context).astype(np.float64)) == pytest.approx(wanted, rel=1e-5)
    assert wanted.sum() == pytest.approx(1)


def test_mixed_bits_are_those_of_the_mixed_logits() -> None:
    """One by one."""
    made, rng = counted(), np.random.default_rng(1)
    logits = rng.normal(0, 2, (len(IDS), 258)).astype(np.float32)
    bits = -log_softmax(logits[5:])[np.arange(len(IDS) - 5), IDS[5:]] / math.log(2)
    mixed = made.mixed_bits(bits, IDS, 5)
    for i in range(5, len(IDS)):
        row = made.mixed(logits[i], IDS[i - 3 : i].tolist())
        assert mixed[i - 5] == pytest.approx(-log_softmax(row[None])[0][IDS[i]] / math.log(2), abs=1e-5)


def test_gates_are_the_likeliest() -> None:
    """Of a grid for each length that hundreds of places have, none is better by a hundredth of a per cent."""
    made, held_out = counted(), encode(b"the bat sat on the rat, that cat is a mat. " * 12, Bytes())
    bits = np.random.default_rng(0).uniform(0, 4, len(held_out) - 1)
    fitted = counting.fit_gates(made, bits, held_out, 1)
    best = fitted.mixed_bits(bits, held_out, 1).sum()
    assert best < bits.sum()
    lengths = np.bincount(fitted.targets(held_out, 1)[1])
    often = np.flatnonzero(lengths > 100)
    assert len(often)
    for length in often:
        for gate in np.linspace(0.01, 0.98, 98):
            gates = fitted.gates.copy()
            gates[length] = gate
            assert replace(fitted, gates=gates).mixed_bits(bits, held_out, 1).sum() > 0.9999 * best


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((IDS, 0, 1), "order must be 1 to 8"), ((IDS, 9, 1), "order must be"), ((np.arange(257), 2, 1), "at most 256")],
)
def test_texts_that_cannot_be_counted(arguments: tuple[Any, int, int], words: str) -> None:
    """Orders and alphabets that the format has no room for."""
    with pytest.raises(ValueError, match=words):
        counting.count(*arguments)


def test_round_trip(tmp_path: Path) -> None:
    """What is stored is what is loaded."""
    path = tmp_path / "prior.safetensors"
    path.write_bytes(counted().save())
    loaded = prior.load(path)
    for name, column in counted().columns().items():
        assert np.array_equal(loaded.columns()[name], column)


def full(columns: dict[str, Any]) -> None:
    """No empty place."""
    columns["keys"][columns["keys"] == 0] = 1


def far(columns: dict[str, Any]) -> None:
    """An entry beyond the end."""
    columns["first"][np.flatnonzero(columns["keys"])[0]] = 2**31


def homeless(columns: dict[str, Any]) -> None:
    """No empty context."""
    columns["keys"][Prior(**columns).find([])] = 0


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a column less": (lambda c: c.pop("left"), "no stored prior"),
    "a column more": (lambda c: c.update(more=c["left"]), "no stored prior"),
    "another type": (lambda c: c.update(keys=c["keys"].astype(np.int64)), "keys has another type"),
    "another shape": (lambda c: c.update(gates=c["gates"][None]), "gates has another type or shape"),
    "a gate of 1": (lambda c: c.update(gates=np.ones(4, np.float32)), "gates are"),
    "no number": (lambda c: c.update(gates=np.full(4, np.nan, np.float32)), "gates are"),
    "too many gates": (lambda c: c.update(gates=np.zeros(10, np.float32)), "gates are"),
    "a short column": (lambda c: c.update(first=c["first"][:-1]), "columns differ"),
    "an odd table": (lambda c: c.update({n: c[n][:3] for n in ("keys", "first", "count", "left")}), "power of two"),
    "a full table": (full, "no empty place"),
    "entries": (lambda c: c.update(shares=c["shares"][:-1]), "impossible lengths"),
    "far entries": (far, "one after the other"),
    "shared entries": (lambda c: c["count"].__setitem__(np.flatnonzero(c["keys"])[0], 60_000), "one after the other"),
    "an entry of nobody's": (
        lambda c: c.update({n: np.append(c[n], c[n][-1:]) for n in ("letters", "shares")}),
        "one after",
    ),
    "a strange letter": (lambda c: c.update(letters=c["letters"] + np.uint8(200)), "outside the alphabet"),
    "letters out of order": (lambda c: c.update(letters=np.zeros_like(c["letters"])), "out of order"),
    "a letter twice": (lambda c: c.update(alphabet=np.zeros_like(c["alphabet"])), "token twice"),
    "no empty context": (homeless, "one after the other"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_priors_are_refused(tmp_path: Path, damage: str) -> None:
    """Before a runtime follows an offset of theirs; a checkpoint names its folder too."""
    change, words = DAMAGES[damage]
    columns = {name: column.copy() for name, column in counted().columns().items()}
    change(columns)
    path = tmp_path / "prior.safetensors"
    path.write_bytes(safetensors.numpy.save({name: np.ascontiguousarray(c) for name, c in columns.items()}))
    with pytest.raises(ValueError, match=words):
        prior.load(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of bytes with a prior."""
    return tiny.with_prior(tiny.plain_bytes(tmp_path_factory.mktemp("priors") / "both"))


def test_a_checkpoint_with_a_prior(folder: Path) -> None:
    """It is hashed and part of the fingerprint; without it the fingerprint is the network's."""
    source = Checkpoint(folder)
    assert source.prior is not None
    assert source.prior.order == 4
    assert source.fingerprint != source.fingerprint_with(prior=False)
    alone = Checkpoint(tiny.plain_bytes(folder.parent / "alone"))
    assert alone.prior is None
    assert alone.fingerprint == alone.fingerprint_with(prior=False) == source.fingerprint_with(prior=False)


def test_a_foreign_prior_is_refused(tmp_path: Path) -> None:
    """One with tokens that the model lacks, one that another file replaced, one of an image model."""
    path = tiny.with_prior(tiny.plain_bytes(tmp_path / "model"))
    (path / prior.FILE).write_bytes(counted().save())
    with pytest.raises(CheckpointError, match=r"prior\.safetensors is damaged or foreign"):
        Checkpoint(path)
    strange = replace(counted(), alphabet=counted().alphabet + 300)
    for name, make in (("bytes", tiny.plain_bytes), ("pictures", tiny.pictures)):
        folder = make(tmp_path / name)
        config = json.loads((folder / "config.json").read_text())
        (folder / prior.FILE).write_bytes(strange.save())
        config["files"][prior.FILE] = hashlib.sha256(strange.save()).hexdigest()
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match="belongs to another vocabulary"):
            Checkpoint(folder)


RUNTIMES = ["torch", *(["native"] if native_is_built() else [])]


@pytest.mark.parametrize("kind", RUNTIMES)
def test_a_runtime_mixes(folder: Path, kind: Any) -> None:
    """Logits, targets and draws of a runtime with a prior, against one without and the formula."""
    source = Checkpoint(folder)
    assert source.prior is not None
    tokens = [256, 3, 7, 7, 65, 200, 12, 3, 7, 99]
    with_it, without = (open_runtime(source, 2, threads=1, wanted=kind, prior=use) for use in (True, False))
    assert with_it.fingerprint != without.fingerprint
    (mixed,), (plain,) = (r.run([Job(0, tokens, targets=tokens, logits="all")]) for r in (with_it, without))
    assert mixed.logits is not None
    assert plain.logits is not None
    for i, row in enumerate(plain.logits):
        wanted = source.prior.mixed(row, tokens[: i + 1])
        assert mixed.logits[i] == pytest.approx(wanted, abs=2e-5)
        assert mixed.target_logprobs[i] == pytest.approx(log_softmax(wanted[None])[0][tokens[i]], abs=2e-5)
    draw = Draw(SamplingParams(seed=3), 40)
    (drawn,) = with_it.run([Job(0, [3], draw=draw)])
    (again,) = with_it.run([Job(1, [*tokens, 3], draw=draw)])
    assert drawn.drawn == again.drawn
    assert drawn.drawn != without.run([Job(1, [*tokens, 3], draw=draw)])[0].drawn


@pytest.mark.parametrize("kind", RUNTIMES)
def test_a_state_has_what_the_prior_reads(folder: Path, kind: Any) -> None:
    """An export goes on as the stream does, at any length; a copy too; states of the network alone are others."""
    source = Checkpoint(folder)
    runtime = open_runtime(source, 3, threads=1, wanted=kind)
    draw = Draw(SamplingParams(seed=1), 30)
    for length in (0, 1, 3, 4, 9):
        runtime.reset(0)
        if length:
            runtime.run([Job(0, [256, 5, 6, 7, 8, 9, 65, 3, 29][:length])])
        state = runtime.export(0)
        runtime.restore(1, state)
        assert runtime.export(1) == state
        runtime.copy(0, [2])
        texts = [runtime.run([Job(slot, [4], draw=draw)])[0].drawn for slot in range(3)]
        assert texts[0] == texts[1] == texts[2]
        assert runtime.export(0) == runtime.export(1) == runtime.export(2)
    alone = open_runtime(source, 1, threads=1, wanted=kind, prior=False)
    with pytest.raises(StateError, match="another model"):
        alone.restore(0, runtime.export(0))


@pytest.mark.parametrize(
    "recent", [None, [], [1, 2], [1, 2, 3, 4, 5], [1, 2, 3, -1], [1, 2, 3, 258], [1, 2, 3, True], "abcd"]
)
@pytest.mark.parametrize("kind", RUNTIMES)
def test_forged_last_tokens(folder: Path, kind: Any, recent: object) -> None:
    """They would be looked up in a table: only tokens of this model, as many as there must be."""
    runtime = open_runtime(Checkpoint(folder), 1, threads=1, wanted=kind)
    runtime.run([Job(0, [256, 5, 6, 7, 8, 9])])
    before = runtime.export(0)
    facts, body = states.unpack(before)
    assert facts["recent"] == [9, 8, 7, 6]
    facts = {**facts, "recent": recent}
    forged = states.pack({k: v for k, v in facts.items() if v is not None}, [np.frombuffer(body, np.uint8)])
    with pytest.raises(StateError, match="last tokens"):
        runtime.restore(0, forged)
    assert runtime.export(0) == before


def test_no_number_stays_no_number(folder: Path) -> None:
    """Where the network fails, the prior must not hide it."""
    made = Checkpoint(folder).prior
    assert made is not None
    with np.errstate(invalid="ignore"):
        assert np.isnan(made.mixed(np.full(258, np.nan, np.float32), [3])).all()


def test_the_command(tmp_path: Path) -> None:
    """``aft prior`` counts the corpus of a model; ``aft eval`` scores with it and without."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("".join(f"line {i % 10} of the song, and {i % 7} more.\n" for i in range(900)))
    tiny.plain_bytes(tmp_path / "models" / "song")
    where = ["--checkpoints", str(tmp_path / "models")]
    done = CliRunner().invoke(app, ["prior", "song", "--corpus", str(corpus), "--order", "5", *where])
    assert done.exit_code == 0, done.output
    assert " contexts, " in done.output
    known = Checkpoint(tmp_path / "models" / "song")
    assert known.prior is not None
    assert known.config.training["prior"]["order"] == 5
    # gates from counts that saw nothing of the validation split; then it is counted, too
    train, held_out, _ = data.split(corpus.read_text())
    ids = [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in (train, train + held_out)]
    both, alone = (counting.count(part, 5, 3) for part in reversed(ids))
    assert all((known.prior.columns()[k] == v).all() for k, v in both.columns().items() if k != "gates")
    assert any(len(v) != len(alone.columns()[k]) or (v != alone.columns()[k]).any() for k, v in both.columns().items())
    last = np.concatenate([ids[0][-10_000:], ids[1][len(ids[0]) :]])
    start = len(last) - len(held_out)
    alone_bits = by_depth(open_runtime(known, 1, prior=False), last, start, start)
    assert (known.prior.gates == counting.fit_gates(alone, alone_bits, last, start).gates).all()
    bits = []
    for flag in ("--prior", "--no-prior"):
        out = tmp_path / "eval.json"
        common = ["--corpus", str(corpus), "--depths", "100", "--json", str(out), flag, *where]
        done = CliRunner().invoke(app, ["eval", "song", *common])
        assert done.exit_code == 0, done.output
        found = json.loads(out.read_text())
        assert found["prior"] is (flag == "--prior")
        assert found["by_depth"][0]["bits"] == pytest.approx(found["bits_per_character"], abs=0.1)
        bits.append(found["bits_per_character"])
    assert bits[0] < bits[1] - 1  # the network is not trained
    for arguments, words in ((["prior", "song"], "name a corpus"), (["prior", "no"], "no readable config")):
        done = CliRunner().invoke(app, [*arguments, *where])
        assert done.exit_code == 1
        assert words in done.output
