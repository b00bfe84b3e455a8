"""lm-eval's local-completions finds, over HTTP, the numbers that the model has in process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from installed import HERE, PYTHON, ROOT, run
from live import Process

import model
from model.library import Stream, Text
from model.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0)
STOPS = ["\n", "."]  # as until.yaml has them
Samples = dict[str, list[dict[str, Any]]]  # by task


@pytest.fixture(scope="module")
def found(server: Process, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Samples]:
    """Samples by batch size and task. Data sets are files, so no hub is asked."""
    return run(
        PYTHON,
        str(HERE / "lm_eval_run.py"),
        server.url,
        cwd=HERE / "lm_eval_task",
        HF_HOME=str(tmp_path_factory.mktemp("cache")),
        HF_HUB_OFFLINE="1",
        HF_DATASETS_OFFLINE="1",
    )


@pytest.fixture(params=["1", "8"], ids="batch-{}".format)
def samples(request: pytest.FixtureRequest, found: dict[str, Samples]) -> Samples:
    """Of one batch size."""
    return found[request.param]


@pytest.fixture(scope="module")
def shakespeare() -> Text:
    """The same model in this process."""
    return model.load("shakespeare", num_streams=1, threads=1, runtime="native", checkpoints=ROOT / "checkpoints")


@contextlib.contextmanager
def after(shakespeare: Text, context: str) -> Iterator[Stream]:
    """A stream that has read the context."""
    stream = shakespeare.stream()
    stream.feed(context)
    yield stream
    stream.close()


def test_likelihoods(samples: Samples, shakespeare: Text) -> None:
    """Of each choice after its context, an empty one too; and whether greedy decoding would write it."""
    seen = set()
    for sample in samples["choice"]:
        for (context, choice), (answer,) in zip(sample["arguments"], sample["resps"], strict=True):
            kept = context.rstrip()  # lm-eval counts spaces at a context's end with what follows
            target = context[len(kept) :] + choice
            ids = shakespeare.tokenizer.encode(target)
            with after(shakespeare, kept) as stream:
                logprob = sum(stream.logprobs(target))
                is_greedy = stream.write(len(ids), params=GREEDY) == ids
            assert answer == [pytest.approx(logprob, rel=0, abs=1e-5), is_greedy], (context, choice)
            seen.add(is_greedy)
    assert seen == {True, False}


def test_rolling(samples: Samples, shakespeare: Text) -> None:
    """Of a whole text: what the begin symbol's name stands for is not read twice."""
    for sample in samples["rolling"]:
        with after(shakespeare, "") as stream:
            logprob = sum(stream.logprobs(sample["doc"]["text"]))
        assert sample["resps"] == [[pytest.approx(logprob, rel=0, abs=1e-5)]]


def test_until(samples: Samples, shakespeare: Text) -> None:
    """Greedy text, without the stop that ended it if one did."""
    stopped = []
    for sample in samples["until"]:
        with after(shakespeare, sample["doc"]["context"]) as stream:
            text = shakespeare.tokenizer.decode(stream.write(60, params=GREEDY, stop=STOPS))
        stopped.append(text[-1] in STOPS)
        assert sample["resps"] == [[text[:-1] if stopped[-1] else text]]
    assert any(stopped)
