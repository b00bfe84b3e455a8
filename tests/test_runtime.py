"""The contract of a runtime, on the torch runtime: jobs, slots, bursts, stops, errors, and states as bytes."""

from __future__ import annotations

import dataclasses
import json
import math
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import checkpoints_for_tests as tiny
import numpy as np
import pytest
import torch
from jobs_for_tests import BAD, PENALISED, forge, one, prompt, rehash, same

from model import weights
from model.automaton import ACCEPT, Automaton, stops
from model.runtime import states
from model.runtime.base import Done, Draw, Job, JobError, StateError, Stop
from model.runtime.eager import EagerRuntime
from model.sampling import SamplingParams, draw, log_softmax, penalised

SLOTS = 20  # two tiles, the second one partly used
LATER = [3, 1, 4, 1, 5, 9, 2, 6, 5, 35]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An endless model of bytes."""
    return tiny.plain_bytes(tmp_path_factory.mktemp("runtime") / "endless")


@pytest.fixture(scope="module")
def ending_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that ends."""
    return tiny.ending(tmp_path_factory.mktemp("runtime") / "ending")


@pytest.fixture(scope="module")
def shared(folder: Path) -> EagerRuntime:
    """One runtime for many tests; its slots hold what earlier tests left, as a server's do."""
    return EagerRuntime(tiny.opened(folder), SLOTS)


@pytest.fixture
def runtime(shared: EagerRuntime) -> EagerRuntime:
    """The shared one, every slot reset."""
    for slot in range(SLOTS):
        shared.reset(slot)
    return shared


@pytest.fixture
def ending(ending_folder: Path) -> EagerRuntime:
    """A runtime whose streams end."""
    return EagerRuntime(tiny.opened(ending_folder), 3)


def mixed_jobs(order: Sequence[int]) -> list[Job]:
    """One job of every kind, on the given slots."""
    automaton = stops(BYTES, [b"a", b"e"], 257, ignore_end=True)
    kinds = [
        Job(0, prompt(70, 1), logits="last", draw=Draw(PENALISED, 12, automaton, top=3)),
        Job(0, prompt(9, 2), targets=prompt(9, 3)),
        Job(0, [7], targets=[8], logits="all", draw=Draw(SamplingParams(temperature=0), 5)),
        Job(0, prompt(2, 4), logits="all"),
        Job(0, [200], draw=Draw(SamplingParams(seed=-1), 7)),
    ]
    return [dataclasses.replace(job, slot=slot) for job, slot in zip(kinds, order, strict=True)]


BYTES = [bytes([value]) for value in range(256)] + [b"", b""]


def poison(runtime: EagerRuntime, slot: int) -> None:
    """A state of NaN, by the front door: an exported state, changed, with its hash made right."""
    state = bytearray(runtime.export(slot)[:-32])
    head = 12 + struct.unpack_from("<I", state, 8)[0]
    size = 4 * 32  # the last layer's sums lie just before the sampler's part
    end = len(state) - 5 * runtime.vocab_size
    assert end - size > head
    state[end - size : end] = np.full(32, np.nan, np.float32).tobytes()
    runtime.restore(slot, bytes(state) + sha256(state).digest())


def test_slots_outside(runtime: EagerRuntime, folder: Path) -> None:
    """Negative ones, too, are no slots; a copy to some of which one is none copies nothing."""
    with pytest.raises(ValueError, match="0 slots"):
        EagerRuntime(tiny.opened(folder), 0)
    runtime.run([Job(0, [1])])
    for call in (runtime.reset, runtime.position, runtime.export, runtime.restart_automaton):
        for slot in (-1, SLOTS):
            with pytest.raises(IndexError, match=rf"slot {slot} is outside 0 \.\.\. {SLOTS - 1}"):
                call(slot)
    with pytest.raises(IndexError, match="slot 99 is outside"):
        runtime.copy(0, [1, 99])
    with pytest.raises(IndexError, match="slot -1 is outside"):
        runtime.restore(-1, runtime.export(0))
    assert [runtime.position(slot) for slot in (0, 1, SLOTS - 1)] == [1, 0, 0]


def test_run_equals_each_job_alone(runtime: EagerRuntime) -> None:
    """Every kind of job, in one call and one by one: equal results, equal states."""
    together = runtime.run(mixed_jobs([0, 1, 2, 3, 17]))
    states = [runtime.export(slot) for slot in (0, 1, 2, 3, 17)]
    for slot in range(SLOTS):
        runtime.reset(slot)
    for job, done, state in zip(mixed_jobs([0, 1, 2, 3, 17]), together, states, strict=True):
        same(one(runtime, job), done)
        assert runtime.export(job.slot) == state


def test_any_slot_gives_the_same_bits(runtime: EagerRuntime) -> None:
    """First, middle and last slot of both tiles; whoever held the slot before; in any order of jobs."""
    first = runtime.run(mixed_jobs([0, 1, 2, 3, 4]))
    states = [runtime.export(slot) for slot in range(5)]
    for order in ([4, 3, 2, 1, 0], [15, 16, 19, 7, 8]):
        for slot in order:
            runtime.reset(slot)
        for a, b in zip(first, runtime.run(mixed_jobs(order)), strict=True):
            same(a, b)
        assert [runtime.export(slot) for slot in order] == states


@pytest.mark.parametrize("company", [1, 14, 15, 19])
def test_company_changes_nothing(runtime: EagerRuntime, company: int) -> None:
    """Alone, and beside others that fill the tile, or both: equal bits, although whole tiles take another path."""
    job = Job(0, prompt(20), logits="last", draw=Draw(SamplingParams(seed=1), 30, top=2))
    alone = one(runtime, job)
    state = runtime.export(0)
    runtime.reset(0)
    others = [Job(slot, prompt(slot, slot), draw=Draw(SamplingParams(seed=slot), 25)) for slot in range(1, company + 1)]
    done, *_ = runtime.run([job, *others])
    same(done, alone)
    assert runtime.export(0) == state


def test_a_mate_of_nan_changes_nothing(runtime: EagerRuntime) -> None:
    """A neighbour whose state is not a number, at work in the same steps or idle."""
    job = Job(0, [65], logits="all", draw=Draw(SamplingParams(seed=1), 20))
    alone = one(runtime, job)
    state = runtime.export(0)
    for slot in (1, 2):
        runtime.run([Job(slot, prompt(5))])
        poison(runtime, slot)
    runtime.reset(0)
    done, sick = runtime.run([job, Job(1, [66], logits="all")])
    assert sick.logits is not None
    assert np.isnan(sick.logits).all()
    same(done, alone)
    assert runtime.export(0) == state
    runtime.reset(1)  # and who takes the slot afterwards does not notice
    same(one(runtime, dataclasses.replace(job, slot=1)), alone)


def test_a_mate_of_nan_that_draws_changes_nothing(runtime: EagerRuntime) -> None:
    """A job that finds nothing to draw must not take its batch mates' results along."""
    job = Job(0, [65], draw=Draw(SamplingParams(seed=1), 20))
    alone = one(runtime, job)
    state = runtime.export(0)
    runtime.reset(0)
    runtime.run([Job(1, prompt(5))])
    poison(runtime, 1)
    done, _ = runtime.run([job, Job(1, [66], draw=Draw(SamplingParams(), 3))])
    same(done, alone)
    assert runtime.export(0) == state


def test_logits_and_targets_are_the_networks(runtime: EagerRuntime, folder: Path) -> None:
    """None, last and all; a target's log-probability is the network's log_softmax, in chunks too."""
    tokens, targets = prompt(77), prompt(77, 1)
    network = weights.load(tiny.opened(folder))
    with torch.no_grad():
        expected = network(torch.tensor([tokens]))[0][0]
    logprobs = expected.double().log_softmax(-1)[torch.arange(77), torch.tensor(targets)].numpy()
    every = one(runtime, Job(0, tokens, targets, logits="all"))
    assert every.logits is not None
    np.testing.assert_allclose(every.logits, expected.numpy(), atol=2e-5)
    np.testing.assert_allclose(every.target_logprobs, logprobs, atol=2e-5)
    assert every.logits.shape == (77, 258)
    last = one(runtime, Job(1, tokens, logits="last"))
    assert last.logits is not None
    np.testing.assert_allclose(last.logits, every.logits[-1], atol=2e-5)
    assert last.logits.shape == (258,)
    assert last.target_logprobs == []
    none = one(runtime, Job(2, tokens, targets))
    assert none.logits is None
    assert none.target_logprobs == every.target_logprobs
    drawing = Draw(SamplingParams(temperature=0), 1)  # from the last position, whatever else is asked for
    for slot, asked in ((4, "none"), (5, "last"), (6, "all")):
        done = one(runtime, Job(slot, tokens, targets, logits=asked, draw=drawing))  # type: ignore[arg-type]
        assert done.drawn == [every.logits[-1].argmax()]
        assert done.target_logprobs == every.target_logprobs
        if done.logits is not None:
            np.testing.assert_array_equal(done.logits, every.logits if asked == "all" else every.logits[-1])
    pieces = [one(runtime, Job(3, tokens[a:b], targets[a:b])) for a, b in ((0, 1), (1, 40), (40, 77))]
    np.testing.assert_allclose(sum((piece.target_logprobs for piece in pieces), []), logprobs, atol=2e-5)  # noqa: RUF017


def test_prefill_in_multiples_of_512_is_exact(runtime: EagerRuntime) -> None:
    """1,101 positions in one call and in three: equal bits, and an equal continuation."""
    tokens = prompt(1101)
    then = Draw(PENALISED, 10)
    whole = one(runtime, Job(0, tokens, logits="last", draw=then))
    runtime.run([Job(1, tokens[:512])])
    runtime.run([Job(1, tokens[512:1024])])
    same(one(runtime, Job(1, tokens[1024:], logits="last", draw=then)), whole)
    assert runtime.export(0) == runtime.export(1)
    assert runtime.position(0) == 1110


@pytest.mark.parametrize("cut", [1, 2, 7, 8, 63, 64, 65, 100, 510, 512, 573])
def test_prefill_cut_anywhere_is_close(runtime: EagerRuntime, cut: int) -> None:
    """Other cuts add up in another order: the same to 1e-4."""
    tokens = prompt(575)
    whole = one(runtime, Job(0, tokens, logits="last")).logits
    runtime.run([Job(1, tokens[:cut])])
    rest = one(runtime, Job(1, tokens[cut:], logits="last")).logits
    assert whole is not None
    assert rest is not None
    np.testing.assert_allclose(rest, whole, atol=1e-4)


def test_a_reset_slot_is_as_new(runtime: EagerRuntime) -> None:
    """Nothing of the last holder is left: state, position, counts, automaton."""
    new = runtime.export(0)
    runtime.run(mixed_jobs([0, 1, 2, 3, 4]))
    for slot in range(5):
        assert runtime.export(slot) != new
        assert runtime.position(slot) > 0
        runtime.reset(slot)
        assert runtime.export(slot) == new
        assert runtime.position(slot) == 0


def test_the_last_drawn_token_is_not_consumed(runtime: EagerRuntime) -> None:
    """The next job begins with it: so its own successor is drawn after it."""
    params = SamplingParams(seed=2)
    done = one(runtime, Job(0, prompt(6), draw=Draw(params, 4)))
    assert runtime.position(0) == 6 + 3
    runtime.run([Job(1, prompt(6))])
    for token in done.drawn[:-1]:
        runtime.run([Job(1, [token])])
    scored = [one(runtime, Job(slot, done.drawn[-1:], logits="last")).logits for slot in (0, 1)]
    np.testing.assert_array_equal(scored[0], scored[1])
    assert runtime.position(0) == runtime.position(1) == 10


@pytest.mark.parametrize("params", [SamplingParams(seed=3), SamplingParams(temperature=0), PENALISED])
def test_a_burst_is_single_steps(runtime: EagerRuntime, params: SamplingParams) -> None:
    """Ten tokens in one burst, in ten bursts of one, and by hand from the logits with the sampler's oracle."""
    automaton = stops(BYTES, [b"no such text"], 257, ignore_end=True)
    burst = one(runtime, Job(0, prompt(8), draw=Draw(params, 10, automaton, top=258)))
    assert len(burst.drawn) == 10
    singles = [one(runtime, Job(1, prompt(8), draw=Draw(params, 1, automaton, top=258)))]
    while len(singles) < 10:
        singles.append(one(runtime, Job(1, singles[-1].drawn, draw=Draw(params, 1, automaton, top=258))))
    assert [done.drawn[0] for done in singles] == burst.drawn
    assert [done.logprobs[0] for done in singles] == burst.logprobs
    assert [done.top[0] for done in singles] == burst.top
    assert runtime.export(0) == runtime.export(1)
    tokens, counts, seen = prompt(8), np.zeros(258, np.int32), np.zeros(258, np.bool_)
    position = 0
    for token, logprob, top in zip(burst.drawn, burst.logprobs, burst.top, strict=True):
        logits = one(runtime, Job(2, tokens, logits="last")).logits
        assert logits is not None
        position += len(tokens)
        seen[tokens] = True
        scores = penalised(logits, params, counts, seen)
        scores[[256, 257]] = -math.inf
        assert draw(scores, params, position) == token
        logprobs = log_softmax(logits)
        assert logprob == logprobs[token]
        assert top == sorted(enumerate(logprobs.tolist()), key=lambda pair: (-pair[1], pair[0]))
        counts[token] += 1
        seen[token] = True
        tokens = [token]


def test_top_reports_as_many_as_asked(runtime: EagerRuntime) -> None:
    """Of each drawn token; none where none is asked for."""
    done = one(runtime, Job(0, [1, 2], draw=Draw(SamplingParams(), 3, top=4)))
    assert [len(top) for top in done.top] == [4, 4, 4]
    assert one(runtime, Job(1, [1, 2], draw=Draw(SamplingParams(), 3))).top == []


def test_bursts_of_different_lengths(runtime: EagerRuntime) -> None:
    """Each job draws its own max_new and not one more; positions show what was consumed."""
    lengths = [1, 2, 7, 7, 13]
    done = runtime.run([Job(i, [65, 66], draw=Draw(SamplingParams(seed=9), n)) for i, n in enumerate(lengths)])
    assert [len(each.drawn) for each in done] == lengths
    assert [each.stopped for each in done] == [None] * 5
    assert [runtime.position(i) for i in range(5)] == [2 + n - 1 for n in lengths]
    for each, length in zip(done, lengths, strict=True):
        assert each.drawn == done[-1].drawn[:length]


def test_an_automaton_stops(runtime: EagerRuntime) -> None:
    """With the token that completes the string, across bursts and not one later; forbidden tokens are not drawn."""
    params = SamplingParams(seed=4)
    free = one(runtime, Job(0, [256], draw=Draw(params, 40, stops(BYTES, [], 257, ignore_end=True))))
    assert free.stopped is None
    assert not {256, 257} & set(free.drawn)
    word = bytes(free.drawn[20:23])
    first = bytes(free.drawn).index(word)
    automaton = stops(BYTES, [word], 257, ignore_end=True)
    stopped = one(runtime, Job(1, [256], draw=Draw(params, 40, automaton)))
    assert stopped.drawn == free.drawn[: first + 3]
    assert stopped.logprobs == free.logprobs[: first + 3]
    assert stopped.stopped is Stop.ACCEPT
    drawn = one(runtime, Job(2, [256], draw=Draw(params, first + 1, automaton))).drawn  # the burst ends inside the word
    rest = one(runtime, Job(2, drawn[-1:], draw=Draw(params, 40, automaton)))
    assert (drawn + rest.drawn, rest.stopped) == (stopped.drawn, Stop.ACCEPT)
    assert runtime.export(1) == runtime.export(2)


def test_end_stops_or_is_never_drawn(runtime: EagerRuntime) -> None:
    """The end symbol made all but certain: drawn at once, or not at all."""
    params = SamplingParams(logit_bias={257: 99.0})
    ended = one(runtime, Job(0, [256], draw=Draw(params, 9, stops(BYTES, [], 257, ignore_end=False))))
    assert (ended.drawn, ended.stopped) == ([257], Stop.ACCEPT)
    ignored = one(runtime, Job(1, [256], draw=Draw(params, 9, stops(BYTES, [], 257, ignore_end=True))))
    assert (len(ignored.drawn), ignored.stopped) == (9, None)
    assert 257 not in ignored.drawn


def test_a_stream_ends_at_the_last_position(ending: EagerRuntime) -> None:
    """max_position tokens are consumed; the token drawn after the last one is the stream's last."""
    assert ending.max_position == tiny.MAX_LEN
    params = SamplingParams(seed=1)
    done = one(ending, Job(0, [1, 2, 3, 4], draw=Draw(params, 200)))
    assert (len(done.drawn), done.stopped) == (tiny.MAX_LEN - 4 + 1, Stop.LENGTH)
    assert ending.position(0) == tiny.MAX_LEN
    exact = one(ending, Job(1, [1, 2, 3, 4], draw=Draw(params, tiny.MAX_LEN - 4)))
    assert (exact.drawn, exact.stopped) == (done.drawn[:-1], None)
    last = one(ending, Job(1, exact.drawn[-1:], draw=Draw(params, 5)))
    assert (last.drawn, last.stopped) == (done.drawn[-1:], Stop.LENGTH)
    full = one(ending, Job(2, (prompt(tiny.MAX_LEN))))
    assert full.stopped is None
    with pytest.raises(JobError, match="slot 0: 1 tokens, but the model ends after 0 more"):
        ending.run([Job(0, [1])])


@pytest.mark.parametrize("bias_rank", [0, 3])
def test_an_ended_stream_leaves_its_mates_alone(tmp_path: Path, bias_rank: int) -> None:
    """With weights for each position, of which there is none after the last."""
    changes = {"bias": "absolute", "bias_rank": bias_rank, "num_heads": 1, "decay": False, "max_model_len": 16}
    runtime = EagerRuntime(tiny.opened(tiny.plain_bytes(tmp_path / "m", **changes)), 3)
    job = Job(0, [1, 2], draw=Draw(SamplingParams(seed=1), 9))
    alone = one(runtime, job)
    assert one(runtime, Job(1, [1, 2], draw=Draw(SamplingParams(seed=1), 99))).stopped is Stop.LENGTH
    runtime.reset(0)
    same(one(runtime, job), alone)
    runtime.reset(0)
    runtime.reset(1)
    done, longer = runtime.run([job, Job(1, prompt(12), draw=Draw(SamplingParams(seed=1), 99))])
    same(done, alone)
    assert (len(longer.drawn), longer.stopped) == (5, Stop.LENGTH)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_job_changes_no_slot(runtime: EagerRuntime, name: str) -> None:
    """Beside a good one, before or after it: JobError says what is wrong, and nothing has happened."""
    runtime.run([Job(0, prompt(5)), Job(1, prompt(3))])
    before = [runtime.export(slot) for slot in range(SLOTS)]
    bad, message = BAD[name]
    for jobs in ([Job(0, [5, 6]), bad], [bad, Job(0, [5, 6])], [Job(0, [5]), bad]):
        with pytest.raises(JobError) as caught:
            runtime.run(jobs)
        assert message in str(caught.value)
        assert [runtime.export(slot) for slot in range(SLOTS)] == before


def test_too_many_tokens_change_no_slot(ending: EagerRuntime) -> None:
    """Of a model that ends: the limit counts what the slot has consumed."""
    ending.run([Job(0, prompt(60))])
    before = [ending.export(slot) for slot in range(3)]
    with pytest.raises(JobError, match="slot 0: 5 tokens, but the model ends after 4 more"):
        ending.run([Job(1, [1]), Job(0, [1] * 5)])
    assert [ending.export(slot) for slot in range(3)] == before


def test_an_automaton_without_the_slots_state_is_a_bad_job(runtime: EagerRuntime) -> None:
    """A slot inside a long stop string cannot go on with an automaton of fewer states."""
    first = one(runtime, Job(0, [256], draw=Draw(SamplingParams(temperature=0), 6))).drawn
    runtime.reset(0)
    long = stops(BYTES, [bytes(first) + b"more"], 257, ignore_end=True)
    drawn = one(runtime, Job(0, [256], draw=Draw(SamplingParams(temperature=0), 5, long))).drawn
    assert drawn == first[:5]
    before = runtime.export(0)
    short = stops(BYTES, [], 257, ignore_end=True)
    with pytest.raises(JobError):
        runtime.run([Job(0, drawn[-1:], draw=Draw(SamplingParams(), 1, short))])
    assert runtime.export(0) == before


def test_nothing_to_run(runtime: EagerRuntime) -> None:
    """No jobs, no results."""
    assert runtime.run([]) == []


def test_copies_go_their_own_ways(runtime: EagerRuntime) -> None:
    """Equal at first, sampler included; what one does the other does not see."""
    start = one(runtime, Job(0, prompt(30), draw=Draw(PENALISED, 10))).drawn
    runtime.copy(0, [5, 18])
    state = runtime.export(0)
    assert [runtime.export(slot) for slot in (5, 18)] == [state, state]
    again = Draw(PENALISED, 10)
    done = [one(runtime, Job(slot, start[-1:], draw=again)) for slot in (5, 18)]
    same(done[0], done[1])
    assert runtime.export(0) == state
    same(one(runtime, Job(0, start[-1:], draw=again)), done[0])
    other = dataclasses.replace(PENALISED, sample=1)
    runtime.restore(5, state)
    assert one(runtime, Job(5, start[-1:], draw=Draw(other, 10))).drawn != done[0].drawn


def history(runtime: EagerRuntime, slot: int) -> tuple[Automaton, Done]:
    """Prompt and ten tokens, with penalties; the next two complete a stop string."""
    tokens = [256, *prompt(20)]
    free = one(runtime, Job(slot, tokens, draw=Draw(PENALISED, 12, stops(BYTES, [], 257, ignore_end=True))))
    runtime.reset(slot)
    automaton = stops(BYTES, [bytes(free.drawn[7:12])], 257, ignore_end=True)
    done = one(runtime, Job(slot, tokens, draw=Draw(PENALISED, 10, automaton)))
    assert done.drawn == free.drawn[:10]
    return automaton, done


def test_resume_in_any_slot_and_runtime(runtime: EagerRuntime, folder: Path) -> None:
    """Law "resume": the continuation is the same, the penalties' counts and the automaton's state included."""
    automaton, done = history(runtime, 0)
    state = runtime.export(0)
    then = Draw(PENALISED, 20, automaton, top=2)
    expected = one(runtime, Job(0, done.drawn[-1:], logits="last", draw=then))
    assert (len(expected.drawn), expected.stopped) == (2, Stop.ACCEPT)
    after = runtime.export(0)
    fresh = EagerRuntime(tiny.opened(folder), SLOTS)
    for target, slot in ((runtime, 0), (runtime, 13), (runtime, 19), (fresh, 3)):
        target.restore(slot, state)
        assert target.export(slot) == state
        assert target.position(slot) == 21 + 9
        same(one(target, Job(slot, done.drawn[-1:], logits="last", draw=then)), expected)
        assert target.export(slot) == after


def test_a_state_carries_the_counts(runtime: EagerRuntime) -> None:
    """Tokens that were drawn count, tokens that were consumed do not: greedy with a reward for repetition shows it."""
    _, done = history(runtime, 0)
    runtime.restore(7, runtime.export(0))
    runtime.run([Job(1, [256, *prompt(20)])])
    for token in done.drawn[:-1]:
        runtime.run([Job(1, [token])])
    job = Job(7, done.drawn[-1:], logits="last", draw=Draw(SamplingParams(temperature=0, frequency_penalty=-9.0), 1))
    counted, bare = one(runtime, job), one(runtime, dataclasses.replace(job, slot=1))
    np.testing.assert_array_equal(counted.logits, bare.logits)
    assert counted.logits is not None
    assert bare.drawn == [counted.logits.argmax()]
    assert counted.drawn == [(counted.logits + 9.0 * np.bincount(done.drawn, minlength=258)).argmax()]
    assert counted.drawn != bare.drawn


CONTINUE = """
import json, sys
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
from model.automaton import Automaton
from model.checkpoint import Checkpoint
from model.runtime.base import Draw, Job
from model.runtime.eager import EagerRuntime
from model.sampling import SamplingParams
folder, token, params = Path(sys.argv[1]), int(sys.argv[2]), SamplingParams(**json.loads(sys.argv[3]))
runtime = EagerRuntime(Checkpoint(folder), int(sys.argv[4]))
runtime.restore(2, (folder.parent / "state").read_bytes())
automaton = Automaton(np.load(folder.parent / "automaton.npy"))
done, = runtime.run([Job(2, [token], draw=Draw(params, 20, automaton))])
(folder.parent / "after").write_bytes(runtime.export(2))
print(json.dumps([done.drawn, done.logprobs, done.stopped.value]))
"""


def test_resume_in_another_process(runtime: EagerRuntime, folder: Path) -> None:
    """Law "resume", across processes: the same tokens, log-probabilities, stop and state bytes."""
    automaton, done = history(runtime, 0)
    (folder.parent / "state").write_bytes(runtime.export(0))
    np.save(folder.parent / "automaton.npy", automaton.next)
    params = json.dumps(dataclasses.asdict(PENALISED))
    command = [sys.executable, "-c", CONTINUE, str(folder), str(done.drawn[-1]), params, str(SLOTS)]
    root = Path(__file__).parent.parent
    drawn, logprobs, stopped = json.loads(subprocess.run(command, cwd=root, check=True, capture_output=True).stdout)
    expected = one(runtime, Job(0, done.drawn[-1:], draw=Draw(PENALISED, 20, automaton)))
    assert (drawn, logprobs, Stop(stopped)) == (expected.drawn, expected.logprobs, expected.stopped)
    assert (folder.parent / "after").read_bytes() == runtime.export(0)


def test_equal_histories_give_equal_bytes(runtime: EagerRuntime) -> None:
    """By run, by copy, by restore and by another burst length; another history gives other bytes."""
    params = SamplingParams(seed=8)
    drawn = one(runtime, Job(0, prompt(9), draw=Draw(params, 6))).drawn
    first = one(runtime, Job(1, prompt(9), draw=Draw(params, 2)))
    runtime.copy(1, [2])
    runtime.restore(16, runtime.export(2))
    rest = one(runtime, Job(16, first.drawn[-1:], draw=Draw(params, 4)))
    assert first.drawn + rest.drawn == drawn
    assert runtime.export(16) == runtime.export(0)
    one(runtime, Job(3, [*prompt(8), 0], draw=Draw(params, 6)))
    assert runtime.export(3) != runtime.export(0)


def test_state_bytes_say_what_a_state_holds(runtime: EagerRuntime) -> None:
    """Tensors of both layers; the export adds the sampler's counts, a head and a hash."""
    channels, heads, window = 32, 4, 8
    layer = 8 + 4 * (4 * channels + 2 * window * channels)  # position; peak, frame, two sums; two rings
    assert heads * 8 == channels
    assert runtime.state_bytes == 2 * layer
    exported = len(runtime.export(0)) - 5 * runtime.vocab_size
    assert runtime.state_bytes < exported < runtime.state_bytes + 512
    runtime.run([Job(0, prompt(900))])
    assert abs(len(runtime.export(0)) - 5 * runtime.vocab_size - exported) < 8  # more digits of the position


def test_forge_changes_nothing_by_itself(runtime: EagerRuntime) -> None:
    """So what the next tests refuse is refused for what they change."""
    runtime.run([Job(0, prompt(5))])
    state = runtime.export(0)
    assert forge(state, dict.copy) == state
    runtime.restore(1, state)


FORGED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "other bytes": lambda _: b"not a state" * 20,
    "only a head": lambda state: state[:12],
    "magic": lambda state: rehash(b"AFTSTATF" + state[8:-32]),
    "format": lambda state: forge(state, lambda facts: facts.update(format=2)),
    "no format": lambda state: forge(state, lambda facts: facts.pop("format")),
    "foreign": lambda state: forge(state, lambda facts: facts.update(fingerprint="0" * 64)),
    "no fingerprint": lambda state: forge(state, lambda facts: facts.pop("fingerprint")),
    "no position": lambda state: forge(state, lambda facts: facts.pop("position")),
    "position as text": lambda state: forge(state, lambda facts: facts.update(position="5")),
    "no automaton": lambda state: forge(state, lambda facts: facts.pop("automaton_state")),
    "short arrays": lambda state: rehash(state[:-33]),
    "long arrays": lambda state: rehash(state[:-32] + b"\0"),
    "no arrays": lambda state: forge(state, dict.copy, b""),
    "head longer than all": lambda state: rehash(state[:8] + struct.pack("<I", 2**32 - 1) + state[12:-32]),
    "head of no JSON": lambda state: rehash(state[:12] + b"x" + state[13:-32]),
    "head of no UTF-8": lambda state: rehash(state[:12] + b"\xff" + state[13:-32]),
    "head of a list": lambda state: rehash(state[:8] + struct.pack("<I", 2) + b"[]" + state[14:-32]),
}


@pytest.mark.parametrize("name", FORGED)
def test_no_state_of_this_runtime(runtime: EagerRuntime, name: str) -> None:
    """StateError, and the slot is as it was."""
    runtime.run([Job(0, prompt(5)), Job(1, prompt(9))])
    bad, before = FORGED[name](runtime.export(0)), runtime.export(1)
    with pytest.raises(StateError):
        runtime.restore(1, bad)
    assert runtime.export(1) == before
    assert runtime.position(1) == 9


@pytest.mark.parametrize(
    "facts",
    [{"position": -1}, {"position": 64}, {"automaton_state": -1}],
    ids=["negative position", "position that the arrays deny", "negative automaton"],
)
def test_a_head_that_its_arrays_deny(runtime: EagerRuntime, facts: dict[str, int]) -> None:
    """A position that is none, or another one than the arrays': StateError although the hash is right."""
    runtime.run([Job(0, prompt(5))])
    state, before = runtime.export(0), runtime.export(1)
    with pytest.raises(StateError):
        runtime.restore(1, forge(state, lambda known: known.update(facts)))
    assert runtime.export(1) == before


def test_last_tokens_that_are_none_are_refused(tmp_path: Path) -> None:
    """Of a network that looks back: ids outside the vocabulary, although the hash is right."""
    runtime = EagerRuntime(tiny.opened(tiny.plain_bytes(tmp_path / "m", lookback=(2, 5))), 2)
    runtime.run([Job(0, prompt(3))])
    state, before = runtime.export(0), runtime.export(1)
    _, body = states.unpack(state)
    at = sum(part.numel() * part.element_size() for part in runtime._empty[0][:-1])
    assert struct.unpack_from("<4q", body, at) == (-1, *prompt(3))
    for token in (-2, runtime.vocab_size):
        with pytest.raises(StateError, match="no tokens of this model"):
            runtime.restore(1, forge(state, dict.copy, body[:at] + struct.pack("<q", token) + body[at + 8 :]))
    assert runtime.export(1) == before
    runtime.restore(1, state)
    assert runtime.export(1) == state


def test_damage_anywhere_is_refused(runtime: EagerRuntime) -> None:
    """200 single bits, 100 cuts, and bytes added at either end: StateError, and the slot is as it was."""
    runtime.run([Job(0, prompt(5)), Job(1, prompt(9))])
    state, before = runtime.export(0), runtime.export(1)
    rng = np.random.default_rng(0)
    damaged = [state + b"\0", b"\0" + state, state[1:], state * 2]
    for at in [*range(60), *rng.integers(0, len(state), 140)]:
        changed = bytearray(state)
        changed[at] ^= 1 << int(rng.integers(8))
        damaged.append(bytes(changed))
    damaged += [state[:cut] for cut in [*range(50), *rng.integers(50, len(state), 50).tolist()]]
    for bad in damaged:
        with pytest.raises(StateError):
            runtime.restore(1, bad)
    assert runtime.export(1) == before


def test_a_state_moves_to_a_pool_of_another_size(runtime: EagerRuntime, folder: Path) -> None:
    """Two slots are a smaller tile than twenty: the same model all the same, and its numbers but for the last bits."""
    done = one(runtime, Job(7, prompt(30), logits="last"))
    small = EagerRuntime(tiny.opened(folder), 2)
    small.restore(1, runtime.export(7))
    assert small.position(1) == 30
    here, there = (one(each, Job(slot, [65], logits="last")) for each, slot in ((runtime, 7), (small, 1)))
    assert done.logits is not None
    assert here.logits is not None
    assert there.logits is not None
    np.testing.assert_allclose(here.logits, there.logits, atol=1e-5)
    assert np.abs(here.logits - done.logits).max() > 1e-3


def test_another_models_state_is_refused(runtime: EagerRuntime, tmp_path: Path) -> None:
    """Same shape, other weights: the fingerprints differ."""
    other = EagerRuntime(tiny.opened(tiny.plain_bytes(tmp_path / "other", seed=1)), 1)
    assert other.fingerprint != runtime.fingerprint
    other.run([Job(0, prompt(5))])
    before = runtime.export(0)
    with pytest.raises(StateError, match="another model"):
        runtime.restore(0, other.export(0))
    assert runtime.export(0) == before


def test_facts_of_the_runtime(runtime: EagerRuntime, folder: Path) -> None:
    """What the service shows of it."""
    config = tiny.opened(folder).config.model
    assert (runtime.vocab_size, runtime.num_slots, runtime.max_position) == (258, SLOTS, None)
    assert (runtime.name, runtime.exact) == ("torch", False)
    assert runtime.weight_bytes == 4 * sum(p.numel() for p in weights.load(tiny.opened(folder)).parameters())
    assert config.vocab_size == runtime.vocab_size
    assert ACCEPT == 1
