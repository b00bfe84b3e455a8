"""The match model: what it finds, its formula, its fit, and that a runtime with it keeps the laws."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import checkpoints_for_tests as tiny
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from typer.testing import CliRunner

from model import calibration, data, images, runs, weights
from model.batches import encode
from model.checkpoint import Checkpoint, CheckpointError
from model.evaluate import windows
from model.match import Match
from model.runtime import states
from model.runtime.base import Draw, Job, Runtime, StateError
from model.runtime.choice import native_is_built, open_runtime
from model.sampling import SamplingParams, log_softmax
from model.tokenizer import Bytes
from service.cli import app

TEXT = "the cat sat on the mat, the rat sat on the cat; that is that. " * 3 + "a bat!"
IDS = encode(TEXT.encode(), Bytes())
SHAPES = {
    "short": Match(window=40, shortest=1, most=5, masses=[0.3, 0.7, 1.5, 2.0]),
    "one length": Match(window=64, shortest=3, most=64, masses=[0.5]),
    "one match": Match(window=1000, shortest=2, most=1, masses=[0.1, 0.2, 0.4, 0.8, 1.6]),
    "a window of one": Match(window=1, shortest=1, most=3, masses=[1.0]),
}
every_shape = pytest.mark.parametrize("match", SHAPES.values(), ids=SHAPES)


def recent(ids: NDArray[np.int32]) -> NDArray[np.uint16]:
    """As a stream remembers them."""
    return ids.astype(np.uint16)


def plain(match: Match, ids: list[int]) -> dict[int, float]:
    """m by its definition, a place at a time."""
    ids = ids[max(0, len(ids) - match.window) :]
    found: dict[int, float] = {}
    matches = 0
    for place in range(len(ids) - 1, 0, -1):
        length = 0
        while length < min(place, match.longest) and ids[place - 1 - length] == ids[len(ids) - 1 - length]:
            length += 1
        if length >= match.shortest and matches < match.most:
            matches += 1
            found[ids[place]] = found.get(ids[place], 0.0) + match.masses[length - match.shortest]
    return found


@every_shape
def test_matches_are_the_definitions(match: Match) -> None:
    """After every character of a text that repeats itself, and after numbers of few kinds."""
    rng = np.random.default_rng(0)
    for ids in (IDS, rng.integers(0, 3, 300).astype(np.int32), np.zeros(50, np.int32)):
        for end in range(len(ids) + 1):
            assert match.find(recent(ids[:end])) == pytest.approx(plain(match, ids[:end].tolist()))


@every_shape
def test_mixed_logits_are_the_mixture(match: Match) -> None:
    """(softmax + m) / (1 + sum m), whatever the scale of the logits; logits of other tokens are the network's own."""
    logits = np.random.default_rng(0).normal(0, 3, 258).astype(np.float32) + 500
    for end in (0, 1, 30, 70, len(IDS)):
        mass = plain(match, IDS[:end].tolist())
        wanted = np.exp(log_softmax(logits[None])[0])
        for token, value in mass.items():
            wanted[token] += value
        mixed = match.mixed(logits, recent(IDS[:end]))
        assert np.exp(log_softmax(mixed[None])[0]) == pytest.approx(wanted / (1 + sum(mass.values())), rel=2e-4)
        others = [token for token in range(258) if token not in mass]
        assert (mixed[others] == logits[others]).all()


@every_shape
@pytest.mark.parametrize("start", [1, 2, 44])
def test_mixed_bits_are_those_of_the_mixed_logits(match: Match, start: int) -> None:
    """One by one."""
    logits = np.random.default_rng(1).normal(0, 2, (len(IDS), 258)).astype(np.float32)
    bits = -log_softmax(logits[start:])[np.arange(len(IDS) - start), IDS[start:]] / math.log(2)
    mixed = match.mixed_bits(bits, IDS, start)
    for i in range(start, len(IDS)):
        row = match.mixed(logits[i], recent(IDS[:i]))
        assert mixed[i - start] == pytest.approx(-log_softmax(row[None])[0][IDS[i]] / math.log(2), abs=1e-5)


def test_no_number_stays_no_number() -> None:
    """Where the network fails, the match model must not hide it."""
    with np.errstate(invalid="ignore"):
        mixed = SHAPES["short"].mixed(np.full(258, np.nan, np.float32), recent(IDS))
    assert np.isnan(mixed).all()


# --- the fit -----------------------------------------------------------------------------------------------------


def test_masses_are_the_likeliest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is added to what was seen: no mass of a grid is better by a hundredth of a per cent."""
    monkeypatch.setattr(calibration, "EXTRA_HITS", 1e-9)
    monkeypatch.setattr(calibration, "EXTRA_MATCHES", 1e-9)
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice([*"abc"], rng.integers(2, 6))) for _ in range(30)]
    ids = encode("".join(rng.choice(words, 1500)).encode(), Bytes())
    bits = rng.uniform(0, 3, len(ids) - 1)
    shape = Match(window=500, shortest=2, most=4, masses=[0.1] * 4)
    seen = calibration.evidence(shape, ids, 1)
    fitted = calibration.fit_masses(shape, bits, seen)
    best = fitted.mixed_bits(bits, ids, 1).sum()
    assert best < 0.995 * bits.sum()
    assert seen.matched.sum(0).min() > 500
    for place in range(4):
        for factor in (0.5, 0.8, 1.25, 2.0):
            masses = [mass * (factor if at == place else 1) for at, mass in enumerate(fitted.masses)]
            other = fitted.model_copy(update={"masses": masses})
            assert other.mixed_bits(bits, ids, 1).sum() > 0.9999 * best


def test_a_length_that_was_never_seen_keeps_what_it_was_given() -> None:
    """A small mass, not one that a division by nothing makes."""
    shape = Match(window=500, shortest=2, most=4, masses=[0.1] * 60)
    fitted = calibration.fit_masses(shape, np.ones(99), calibration.evidence(shape, np.arange(100, dtype=np.int32), 1))
    assert fitted.masses == pytest.approx([calibration.EXTRA_HITS / calibration.EXTRA_MATCHES] * 60, rel=0.01)


def test_a_mass_of_nothing() -> None:
    """Many short matches that are wrong: their mass goes to 0, and the fits that begin there give numbers."""
    ids = np.random.default_rng(0).integers(0, 60, 50_000).astype(np.int32)
    logits = np.zeros((len(ids) - 1, 60), np.float32)
    found = calibration.fit(logits, ids, 1, Match.unfitted(longest=4))
    assert found.match is not None
    assert found.match.masses[0] < 2e-3
    assert found.bits == pytest.approx(math.log2(60), abs=1e-3)
    again = found.match.model_copy(update={"masses": [0.0] * 3})
    bits = np.full(len(ids) - 1, 2000.0)  # of which exp2 is 0
    assert np.isfinite(calibration.fit_masses(again, bits, calibration.evidence(again, ids, 1)).masses).all()
    with pytest.raises(ValueError, match="no numbers"):
        calibration.fit(logits + np.float32(np.nan), ids, 1, found.match)


def drawn(factor: float) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Logits, and ids that were drawn from them times a factor."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (20_000, 20)).astype(np.float32)
    p = np.exp(log_softmax(logits * factor))
    return logits, (p.cumsum(1) > rng.random((len(p), 1))).argmax(1).astype(np.int32)


@pytest.mark.parametrize(("true", "nearest"), [(0.3, 0.5), (2.0, 1.5)])
def test_a_factor_beyond_those_that_are_tried_is_said(true: float, nearest: float) -> None:
    """The last one that is tried comes out, and is known as that."""
    found = calibration.fit(*drawn(true), 0, None)
    assert found.factor == pytest.approx(nearest, abs=0.02)
    assert calibration.is_at_limit(found.factor)


@pytest.mark.parametrize("true", [0.7, 1.0, 1.3])
def test_the_factor_is_found(true: float) -> None:
    """Tokens drawn from logits times a factor: that factor comes out; without matches and with some."""
    logits, ids = drawn(true)
    found = calibration.fit(logits, ids, 0, None)
    assert found.factor == pytest.approx(true, abs=0.03)
    assert not calibration.is_at_limit(found.factor)
    assert found.match is None
    before = np.concatenate([ids[:1], ids])
    with_matches = calibration.fit(logits, before, 1, Match.unfitted(window=100, shortest=3, longest=3))
    assert with_matches.match is not None
    assert with_matches.factor == pytest.approx(true, abs=0.03)
    assert with_matches.match.masses[0] < 0.05  # numbers that were drawn at random: a match says nothing


# --- a part of a checkpoint --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of bytes with a match model."""
    return tiny.with_match(tiny.plain_bytes(tmp_path_factory.mktemp("matches") / "both"))


def test_a_checkpoint_with_a_match_model(folder: Path) -> None:
    """It is part of the fingerprint; without it the fingerprint is the network's."""
    source = Checkpoint(folder)
    assert source.match == tiny.MATCH
    assert source.fingerprint != source.fingerprint_with(match=False)
    alone = Checkpoint(tiny.plain_bytes(folder.parent / "alone"))
    assert alone.match is None
    assert alone.fingerprint == alone.fingerprint_with(match=False) == source.fingerprint_with(match=False)


WRONG: dict[str, dict[str, Any]] = {
    "no window": {"window": 0},
    "a large window": {"window": 2**20 + 1},
    "no length": {"shortest": 0},
    "no matches": {"most": 0},
    "many matches": {"most": 65},
    "no masses": {"masses": []},
    "many masses": {"masses": [0.1] * 65},
    "a negative mass": {"masses": [0.1, -0.1]},
    "no number": {"masses": [math.nan]},
    "infinite": {"masses": [math.inf]},
    "another field": {"more": 1},
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_shapes_that_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    """Before a runtime follows them; a checkpoint names the field."""
    with pytest.raises(ValidationError):
        Match(**{**tiny.MATCH.model_dump(), **change})
    folder = tiny.with_match(tiny.plain_bytes(tmp_path / "m"))
    config = json.loads((folder / "config.json").read_text())
    config["match"].update(change)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"m: config\.json: match\.{next(iter(change))}"):
        Checkpoint(folder)


def test_an_image_model_has_none(tmp_path: Path) -> None:
    """Its pictures are shorter than what would repeat."""
    with pytest.raises(CheckpointError, match="a match model needs text"):
        Checkpoint(tiny.with_match(tiny.pictures(tmp_path / "m")))


# --- runtimes ----------------------------------------------------------------------------------------------------

RUNTIMES = ["torch", *(["native"] if native_is_built() else [])]
TOKENS = [256, 3, 7, 7, 65, 200, 12, 3, 7, 99, 3, 7, 7, 65, 200, 3, 7]


@pytest.mark.parametrize("kind", RUNTIMES)
def test_a_runtime_mixes(folder: Path, kind: Any) -> None:
    """Logits, targets and draws of a runtime with a match model, against one without and the formula."""
    source = Checkpoint(folder)
    assert source.match is not None
    tokens = TOKENS * 5  # longer than the window
    with_it, without = (open_runtime(source, 2, threads=1, wanted=kind, match=use) for use in (True, False))
    assert with_it.fingerprint != without.fingerprint
    assert with_it.state_bytes - without.state_bytes == with_it.recent_bytes == source.match.state_bytes
    (mixed,), (plain,) = (r.run([Job(0, tokens, targets=tokens, logits="all")]) for r in (with_it, without))
    assert mixed.logits is not None
    assert plain.logits is not None
    assert (mixed.logits != plain.logits).any(1).sum() > 50
    for i, row in enumerate(plain.logits):
        wanted = source.match.mixed(row, np.array(tokens[: i + 1], np.uint16))
        assert mixed.logits[i] == pytest.approx(wanted, abs=2e-5)
        assert mixed.target_logprobs[i] == pytest.approx(log_softmax(wanted[None])[0][tokens[i]], abs=2e-5)
    draw = Draw(SamplingParams(seed=3), 40)
    (drawn,) = with_it.run([Job(0, [3], draw=draw)])
    (again,) = with_it.run([Job(1, [*tokens, 3], draw=draw)])
    assert drawn.drawn == again.drawn
    assert drawn.drawn != without.run([Job(1, [*tokens, 3], draw=draw)])[0].drawn


@pytest.mark.parametrize(
    "match",
    [
        tiny.MATCH,
        Match.unfitted(33, 1, 3, 64),
        Match.unfitted(34, 2, 2, 64),
        Match.unfitted(120, 32, 40, 64),
        Match.unfitted(300, 2, 20, 8),
        Match.unfitted(1000, 5, 9, 3),
    ],
    ids=lambda match: f"{match.window}-{match.shortest}-{match.most}",
)
@pytest.mark.parametrize("kind", RUNTIMES)
def test_one_text_at_any_depth(tmp_path: Path, kind: Any, match: Match) -> None:
    """A stream of thousands of characters remembers its window, and no more: bits are those of the formula.

    Windows, lengths and counts around what the native search takes at a time, on each instruction set.
    """
    source = Checkpoint(tiny.with_match(tiny.plain_bytes(tmp_path / "m"), match))
    rng = np.random.default_rng(0)
    ids = rng.choice([3, 7, 65, 200, 12, 99], 2000).astype(np.int32)
    for at in range(200, 2000, 100):  # passages that were there before
        back = int(rng.integers(50, 85))
        ids[at : at + 50] = ids[at - back : at - back + 50]
    alone = _bits(open_runtime(source, 1, threads=1, wanted=kind, match=False), ids)
    wanted = match.mixed_bits(alone, ids, 1)
    assert (wanted != alone).sum() > 200
    for runtime in _every(kind, source):
        assert _bits(runtime, ids) == pytest.approx(wanted, abs=1e-4)


def _every(kind: str, source: Checkpoint) -> list[Runtime]:
    """The torch runtime, or the native one on each instruction set."""
    if kind == "torch":
        return [open_runtime(source, 1, threads=1, wanted="torch")]
    from model.runtime.native.runtime import NativeRuntime, targets

    return [NativeRuntime(source, 1, target=target) for target in targets()]


def _bits(runtime: Any, ids: NDArray[np.int32]) -> NDArray[np.float64]:
    """Of ids[1:] in one stream, read in parts of odd sizes."""
    found: list[float] = []
    at, sizes = 0, iter(np.random.default_rng(1).integers(1, 300, 1000).tolist())
    while at < len(ids) - 1:
        end = min(at + next(sizes), len(ids) - 1)
        (done,) = runtime.run([Job(0, ids[at:end].tolist(), targets=ids[at + 1 : end + 1].tolist())])
        found += done.target_logprobs
        at = end
    return np.array(found) / -math.log(2)


@pytest.mark.parametrize("kind", RUNTIMES)
def test_a_state_has_what_the_match_model_reads(folder: Path, kind: Any) -> None:
    """An export goes on as the stream does, at any length; a copy too; states of the network alone are others."""
    source = Checkpoint(folder)
    runtime = open_runtime(source, 3, threads=1, wanted=kind)
    draw = Draw(SamplingParams(seed=1), 30)
    sizes = set()
    for length in (0, 1, 3, 4, 49, 50, 51, 120):
        runtime.reset(0)
        if length:
            runtime.run([Job(0, (TOKENS * 8)[:length])])
        state = runtime.export(0)
        sizes.add(len(state) - len(str(length)))
        runtime.restore(1, state)
        assert runtime.export(1) == state
        runtime.copy(0, [2])
        texts = [runtime.run([Job(slot, [4], draw=draw)])[0].drawn for slot in range(3)]
        assert texts[0] == texts[1] == texts[2]
        assert runtime.export(0) == runtime.export(1) == runtime.export(2)
    assert len(sizes) == 1  # but for the digits of the position
    alone = open_runtime(source, 1, threads=1, wanted=kind, match=False)
    with pytest.raises(StateError, match="another model"):
        alone.restore(0, runtime.export(0))


@pytest.mark.parametrize(("place", "token"), [(0, 258), (5, 65_535), (6, 1), (49, 3)])
@pytest.mark.parametrize("kind", RUNTIMES)
def test_forged_last_tokens(folder: Path, kind: Any, place: int, token: int) -> None:
    """Logits would be looked up by them: only tokens of this model, and no more than the stream has read."""
    runtime = open_runtime(Checkpoint(folder), 1, threads=1, wanted=kind)
    runtime.run([Job(0, [256, 5, 6, 7, 8, 9])])
    before = runtime.export(0)
    facts, body = states.unpack(before)
    at = len(body) - 5 * runtime.vocab_size - runtime.recent_bytes
    stored = np.frombuffer(body, np.uint16, runtime.recent_bytes // 2, at).copy()
    assert stored[:7].tolist() == [256, 5, 6, 7, 8, 9, 0]
    stored[place] = token
    forged = body[:at] + stored.tobytes() + body[at + runtime.recent_bytes :]
    with pytest.raises(StateError, match="last tokens"):
        runtime.restore(0, states.pack(facts, [np.frombuffer(forged, np.uint8)]))
    assert runtime.export(0) == before


# --- the command -------------------------------------------------------------------------------------------------


def test_the_command(tmp_path: Path) -> None:
    """``aft calibrate`` fits to the corpus of a model; ``aft eval`` scores with the match model and without."""
    corpus = tmp_path / "song.txt"
    rng = np.random.default_rng(0)
    corpus.write_text(" ".join(rng.choice(["the cat sat", "on a mat", "that is", "who was it"], 1500)))
    folder, where = tiny.plain_bytes(tmp_path / "song"), ["--checkpoints", str(tmp_path)]
    before = weights.load(Checkpoint(folder)).freeze()
    command = ["calibrate", "song", "--corpus", str(corpus), "--window", "300", "--longest", "8", *where]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "masses of matches of 2 to 8 tokens" in done.output
    known = Checkpoint(folder)
    assert known.match is not None
    assert (known.match.window, known.match.shortest, len(known.match.masses)) == (300, 2, 7)
    factor = known.config.training["calibration"]["factor"]
    ids = encode(data.split(corpus.read_text().encode()).test, Bytes())
    network = weights.load(known).freeze()
    with torch.no_grad():
        told = [n(torch.from_numpy(ids[None, :200].astype(np.int64)))[0].numpy() for n in (before, network)]
    assert told[1] == pytest.approx(told[0] * factor, rel=1e-3, abs=1e-3)
    bits = []
    for flag in ("--match", "--no-match"):
        found = tmp_path / "found.json"
        arguments = ["eval", "song", "--corpus", str(corpus), "--depths", "100", "--json", str(found), flag, *where]
        assert CliRunner().invoke(app, arguments).exit_code == 0
        result = json.loads(found.read_text())
        assert result["match"] is (flag == "--match")
        bits.append(result["bits_per_character"])
    assert bits[0] < bits[1] / 2  # a network that knows nothing, and a text of four phrases
    alone = windows(network, np.concatenate([[256], ids]).astype(np.int32), 1, 512, 256).mean()
    assert bits[1] == pytest.approx(alone, abs=0.1)
    short = tmp_path / "short.txt"
    short.write_text("abc" * 1000)
    for arguments, words in (
        (["calibrate", "song"], "name it with --corpus"),
        (["calibrate", "no"], "no readable config"),
        (["calibrate", "song", "--corpus", str(short)], "the validation split has 150 tokens"),
        (["calibrate", "song", "--longest", "1"], "the longest match, 1, is shorter than the shortest, 2"),
    ):
        refused = CliRunner().invoke(app, [*arguments, *where])
        assert refused.exit_code == 1
        assert words in refused.output


def test_calibrating_twice(tmp_path: Path) -> None:
    """What is stored is the product of both factors."""
    corpus = tmp_path / "song.txt"
    corpus.write_text("the cat sat on the mat, and that was that. " * 300)
    folder = tiny.plain_bytes(tmp_path / "song")
    product = 1.0
    for _ in range(2):
        command = ["calibrate", "song", "--corpus", str(corpus), "--checkpoints", str(tmp_path)]
        said = CliRunner().invoke(app, command).output
        product *= float(said.split("logits times ")[1].split()[0])
        assert Checkpoint(folder).config.training["calibration"]["factor"] == pytest.approx(product, rel=2e-3)


def test_calibrating_pictures(tmp_path: Path) -> None:
    """Only the factor: no match model."""
    folder = tiny.pictures(tmp_path / "m")
    network = folder / "model.safetensors"
    before = network.read_bytes()
    pictures = tmp_path / "pictures"
    _write_pictures(pictures)
    done = CliRunner().invoke(app, ["calibrate", "m", "--corpus", str(pictures), "--checkpoints", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert network.read_bytes() != before
    assert Checkpoint(folder).match is None
    assert "masses" not in done.output
    shaped = ["calibrate", "m", "--corpus", str(pictures), "--checkpoints", str(tmp_path), "--window", "300"]
    refused = CliRunner().invoke(app, shaped)
    assert refused.exit_code == 1
    assert "no match model" in refused.output


def test_pictures_of_all_kinds_are_calibrated_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are more than can be read, they are taken from the whole split: it stands label by label."""
    source = Checkpoint(tiny.pictures(tmp_path / "m"))
    pictures = tmp_path / "pictures"
    _write_pictures(pictures)
    held_out = images.load(str(pictures), 4).subset(1)
    monkeypatch.setattr(runs, "MOST_HELD_OUT", 2 * source.pixels.raster.size)
    _, ids, _ = runs._held_out_pictures(source, str(pictures))
    assert ids.reshape(2, -1).tolist() == [held_out.images[place].flatten().tolist() for place in (0, -1)]


def _write_pictures(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for label in ("blue", "red"):
        (folder / label).mkdir(parents=True)
        for i in range(30):
            pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
