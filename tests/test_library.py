"""Models in process: the documented page runs, and streams are what a runtime says they are."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import checkpoints_for_tests as tiny
import numpy as np
import pytest

import model
from model.checkpoint import CheckpointError
from model.runtime.base import Done, Job, StateError
from model.runtime.choice import open_runtime
from model.sampling import NothingToDrawError, SamplingParams, log_softmax

ROOT = Path(__file__).parents[1]
GREEDY = SamplingParams(temperature=0)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> model.Text:
    """A tiny model with three places."""
    return model.load(tiny.characters(tmp_path_factory.mktemp("library") / "tiny"), num_streams=3)


@pytest.fixture
def stream(loaded: model.Text) -> Iterator[model.Stream]:
    """A stream with a past."""
    made = loaded.stream()
    made.feed("Speak, ")
    yield made
    made.close()


def test_the_page_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """docs/library.md, block after block."""
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs/library.md").read_text(), re.DOTALL):
        exec(block, names)
    assert "bits for 'the'" in capsys.readouterr().out


def test_logits_and_logprobs_are_the_runtimes(loaded: model.Text, stream: model.Stream) -> None:
    """Those of one job with the whole text; looking moves nothing."""
    ids = [loaded.tokenizer.begin, *loaded.tokenizer.encode("Speak, ")]
    more = loaded.tokenizer.encode("all")
    wanted = log_softmax(stream.logits())
    assert stream.position == len(ids)
    first, *others = stream.logprobs("all")
    assert first == pytest.approx(wanted[more[0]], abs=1e-9)
    loaded.runtime.reset(0)
    (done,) = loaded.runtime.run([Job(0, [*ids, *more[:-1]], logits="all")])
    assert done.logits is not None
    rows = log_softmax(done.logits)[len(ids) - 1 :]
    assert [first, *others] == pytest.approx([rows[i, token] for i, token in enumerate(more)], abs=1e-9)
    assert stream.logprobs("") == []


def test_a_stream_forks_and_moves(loaded: model.Text, stream: model.Stream) -> None:
    """Its twin and its copy in another place write what it writes; what was written is part of it."""
    written = stream.write(5, params=GREEDY)
    twin, state = stream.fork(), stream.export()
    assert stream.position == twin.position
    assert stream.write(7, params=GREEDY) == twin.write(7, params=GREEDY)
    twin.close()
    later = loaded.stream(state)
    whole = loaded.stream()
    whole.feed("Speak, ")
    assert later.write(7, params=GREEDY) == whole.write(12, params=GREEDY)[5:]
    assert len(written) == 5
    later.close()
    whole.close()


def test_draws_after_the_end_and_with_other_stops(loaded: model.Text, stream: model.Stream) -> None:
    """A stop that was met, or begun, is none of the next call's business, unless that has the same ones."""
    others = {token: -100.0 for token, raw in enumerate(loaded.tokenizer.token_bytes) if not raw.isalpha()}
    letters = SamplingParams(temperature=0, logit_bias=others)
    whole = stream.fork()
    text = loaded.tokenizer.decode(whole.write(30, params=letters))
    whole.close()
    assert len(text) == 30
    stop = text[:3]

    def written(*calls: tuple[int, list[str]]) -> str:
        """What the last of some calls to a fork gives."""
        fork = stream.fork()
        drawn = [fork.write(count, params=letters, stop=stops) for count, stops in calls]
        fork.close()
        return loaded.tokenizer.decode(drawn[-1])

    assert written((20, [stop])) == stop
    assert written((20, [stop]), (9, [])) == text[3:12]
    assert written((20, [stop]), (9, [stop])) == text[3:12]  # unless it says the same again
    assert written((2, [stop]), (9, [])) == text[2:11]  # the stop has begun
    assert written((2, [stop]), (9, ["never" * 9])) == text[2:11]
    assert written((2, [stop]), (9, [stop])) == text[2]

    def after(change: Callable[[model.Stream], model.Stream]) -> str:
        """What is written with the same stop once it has begun, and something else has happened."""
        begun = stream.fork()
        begun.write(2, params=letters, stop=[stop])
        other = change(begun)
        drawn = other.write(9, params=letters, stop=[stop])
        for each in {begun, other}:
            each.close()
        return loaded.tokenizer.decode(drawn)

    assert after(lambda begun: begun.fork()) == text[2]
    assert after(lambda begun: loaded.stream(begun.export())) == text[2]

    def fed(begun: model.Stream) -> model.Stream:
        begun.feed(text[2])  # it stands in the text, but it was not drawn
        return begun

    assert after(fed) == text[3:12]


def test_where_nothing_may_be_drawn(loaded: model.Text, stream: model.Stream) -> None:
    """An error, and the stream is as it was."""
    before = stream.export()
    nothing = SamplingParams(logit_bias=dict.fromkeys(range(loaded.runtime.vocab_size), -100.0))
    with pytest.raises(NothingToDrawError):
        stream.write(5, params=nothing)
    assert stream.export() == before


def test_a_closed_stream(loaded: model.Text) -> None:
    """Says so, whatever it is asked."""
    closed = loaded.stream()
    closed.close()
    for use in (closed.export, closed.fork, closed.logits, lambda: closed.write(1), lambda: closed.logprobs("a")):
        with pytest.raises(RuntimeError, match="the stream is closed"):
            use()


def test_places(loaded: model.Text) -> None:
    """So many and no more; a closed one is free, once."""
    others = [loaded.stream() for _ in range(3)]
    with pytest.raises(RuntimeError, match="all 3 streams"):
        loaded.stream()
    others[0].close()
    others[0].close()
    others[0] = loaded.stream()
    with pytest.raises(RuntimeError, match="all 3 streams"):
        loaded.stream()
    for other in others:
        other.close()


@pytest.mark.parametrize(
    "damage", [b"", b"\xff\xff\xff\xff", b"\x02\0\0\0[]", b"\x0c\0\0\0[[999], null]", b"\x0a\0\0\0[[1],null]rest"]
)
@pytest.mark.parametrize("signed", [False, True])
def test_damaged_states(loaded: model.Text, damage: bytes, *, signed: bool) -> None:
    """Refused by name, and no place is lost; so is what has a hash and is no stream of this model."""
    free = len(loaded.free)
    with pytest.raises(StateError):
        loaded.stream(damage + hashlib.sha256(damage).digest() if signed else damage)
    assert len(loaded.free) == free


def test_a_flipped_bit_anywhere_is_damage(loaded: model.Text, stream: model.Stream) -> None:
    """In the head as in the numbers: another stop or another last token would be another text."""
    stream.write(3, params=GREEDY, stop=["#"])
    state = bytearray(stream.export())
    head = int.from_bytes(state[:4], "little")
    for place in [*range(4 + head), *range(4 + head, len(state), 997), len(state) - 1]:
        state[place] ^= 1
        with pytest.raises(StateError):
            loaded.stream(bytes(state))
        state[place] ^= 1
    later = loaded.stream(bytes(state))
    assert later.write(5, params=GREEDY, stop=["#"]) == stream.write(5, params=GREEDY, stop=["#"])
    later.close()


def test_what_is_fed_is_read_once(loaded: model.Text, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often one looks ahead, forks or exports after it; a state is no larger for it."""
    stream, read = loaded.stream(), list[int]()
    empty = len(stream.export())
    run = loaded.runtime.run

    def counted(jobs: list[Job]) -> list[Done]:
        read.extend(len(job.tokens) for job in jobs)
        return run(jobs)

    monkeypatch.setattr(loaded.runtime, "run", counted)
    stream.feed("Speak, " * 10)
    for _ in range(3):
        stream.logits()
        stream.logprobs("all")
    stream.fork().close()
    assert len(stream.export()) < empty + 16  # numbers of more digits
    assert sum(read) == 70 + 3 * (1 + 3)
    assert stream.position == 71
    stream.close()


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    """A name that nobody has, a model of images."""
    with pytest.raises(CheckpointError, match="absent"):
        model.load("absent", checkpoints=tmp_path)
    tiny.pictures(tmp_path / "pics")
    with pytest.raises(CheckpointError, match="image model"):
        model.load("pics", checkpoints=tmp_path)


def test_a_runtime_of_choice(tmp_path: Path) -> None:
    """Torch where it is asked for: the same logits but for rounding."""
    folder = tiny.characters(tmp_path / "tiny")
    rows = [log_softmax(model.load(folder, runtime=name).stream().logits()) for name in ("auto", "torch")]
    assert np.abs(rows[0] - rows[1]).max() < 0.1
    assert open_runtime(tiny.opened(folder), 1, wanted="torch").name == "torch"
