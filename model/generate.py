"""Text in process: one stream of one checkpoint, without HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from model.automaton import stops
from model.checkpoint import Checkpoint
from model.runtime.base import Draw, Job, Runtime
from model.sampling import SamplingParams
from model.tokenizer import IncrementalDecoder

BURST = 16  # tokens between two pieces of text


def generate(folder: Path, prompt: str, max_tokens: int, *, temperature: float = 1.0, seed: int = 0) -> Iterator[str]:
    """Pieces of text that follow the prompt. CheckpointError, or ValueError for a prompt that is no text."""
    from model.runtime.eager import EagerRuntime

    checkpoint = Checkpoint(folder)
    runtime: Runtime = EagerRuntime(checkpoint, num_slots=1)
    tokenizer = checkpoint.tokenizer
    automaton = stops(tokenizer.token_bytes, [], tokenizer.end, ignore_end=False)
    params = SamplingParams(temperature=temperature, seed=seed)
    tokens, decoder, left = (
        [tokenizer.begin, *tokenizer.encode(prompt)],
        IncrementalDecoder(tokenizer.token_bytes),
        max_tokens,
    )
    while left > 0:
        (done,) = runtime.run([Job(0, tokens, draw=Draw(params, min(BURST, left), automaton))])
        yield decoder.feed(done.drawn)
        tokens, left = done.drawn[-1:], left - len(done.drawn)
        if done.stopped is not None:
            break
    yield decoder.finish()
