"""Text and images in process: one stream of one checkpoint, without HTTP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from model.automaton import FORBIDDEN, Automaton, stops
from model.checkpoint import Checkpoint
from model.pixels import NUM_VALUES, PixelCodec, Pixels
from model.runtime.base import Draw, Job, Runtime
from model.runtime.choice import Wanted, open_runtime
from model.sampling import SamplingParams
from model.tokenizer import IncrementalDecoder

BURST = 16  # tokens between two pieces of text


def generate(
    folder: Path, prompt: str, max_tokens: int, *, temperature: float = 1.0, seed: int = 0, runtime: Wanted = "auto"
) -> Iterator[str]:
    """Pieces of text that follow the prompt. CheckpointError, or ValueError for a prompt that is no text."""
    checkpoint = Checkpoint(folder)
    opened = open_runtime(checkpoint, num_slots=1, wanted=runtime)
    tokenizer = checkpoint.tokenizer
    automaton = stops(tokenizer.token_bytes, [], tokenizer.end, ignore_end=False)
    params = SamplingParams(temperature=temperature, seed=seed)
    tokens, decoder, left = (
        [tokenizer.begin, *tokenizer.encode(prompt)],
        IncrementalDecoder(tokenizer.token_bytes),
        max_tokens,
    )
    while left > 0:
        (done,) = opened.run([Job(0, tokens, draw=Draw(params, min(BURST, left), automaton))])
        yield decoder.feed(done.drawn)
        tokens, left = done.drawn[-1:], left - len(done.drawn)
        if done.stopped is not None:
            break
    yield decoder.finish()


def values_only(codec: PixelCodec) -> Automaton:
    """The automaton of an image: values may be drawn, conditions may not; nothing stops it but its size."""
    table = np.zeros((2, codec.vocab_size), np.int32)
    table[:, NUM_VALUES:] = FORBIDDEN
    return Automaton(table)


def draw(
    folder: Path,
    label: str = "",
    style: str = "",
    name: str = "",
    *,
    temperature: float = 1.0,
    seed: int = 0,
    sample: int = 0,
    runtime: Wanted = "auto",
) -> Iterator[Pixels]:
    """An image (H, W, 3) row by row: each is the one before with one more row; the rest is white.

    CheckpointError for a text model, ValueError for a label, style or name that the model does not know.
    """
    checkpoint = Checkpoint(folder)
    codec = checkpoint.pixels
    opened = open_runtime(checkpoint, num_slots=1, wanted=runtime)
    params = SamplingParams(temperature=temperature, seed=seed, sample=sample)
    tokens, values, automaton = codec.prompt(label, style, name), list[int](), values_only(codec)
    while len(values) < codec.raster.size:
        (done,) = opened.run([Job(0, tokens, draw=Draw(params, codec.raster.row, automaton))])
        values += done.drawn
        tokens = done.drawn[-1:]
        yield codec.decode(values)


def draw_together(runtime: Runtime, codec: PixelCodec, prompts: Sequence[Sequence[int]]) -> list[Pixels]:
    """The images (H, W, 3) that begin with each prompt (``codec.prompt``, perhaps some values); seeds count from 0."""
    jobs, before = [], 1 + codec.raster.name_length
    for slot, prompt in enumerate(prompts):
        runtime.reset(slot)
        left = codec.raster.size + before - len(prompt)
        jobs.append(Job(slot, prompt, draw=Draw(SamplingParams(seed=slot), left, values_only(codec))))
    return [codec.decode([*p[before:], *d.drawn]) for p, d in zip(prompts, runtime.run(jobs), strict=True)]
