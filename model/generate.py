"""Text and images in process: one stream of one checkpoint, without HTTP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from model.automaton import FORBIDDEN, Automaton, stops
from model.checkpoint import Checkpoint
from model.pixels import NUM_VALUES, PixelCodec, Pixels
from model.runtime.base import Draw, Guide, Job, Runtime
from model.runtime.choice import Wanted, open_runtime
from model.sampling import SamplingParams
from model.tokenizer import IncrementalDecoder

BURST = 16  # tokens between two pieces of text


def generate(
    folder: Path, prompt: str, max_tokens: int, *, temperature: float = 1.0, seed: int = 0, runtime: Wanted = "auto"
) -> Iterator[str]:
    """Pieces of text that follow the prompt.

    CheckpointError, ValueError for a prompt that is no text, NothingToDrawError where the logits are no numbers.
    """
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
        done.check_drawn()
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
    guidance: float = 1.0,
    seed: int = 0,
    sample: int = 0,
    runtime: Wanted = "auto",
) -> Iterator[Pixels]:
    """An image (H, W, 3) row by row: each is the one before with one more row; the rest is white.

    ``guidance``: how strongly label and name count (``Guide`` in runtime/base.py); other than 1 it is twice the work.
    CheckpointError for a text model, ValueError for a label, style or name that the model does not know,
    NothingToDrawError where the logits are no numbers.
    """
    checkpoint = Checkpoint(folder)
    codec = checkpoint.pixels
    params = SamplingParams(temperature=temperature, seed=seed, sample=sample)
    tokens, values, automaton = codec.prompt(label, style, name), list[int](), values_only(codec)
    less = codec.guide(tokens)
    guided = guidance != 1 and less != tokens
    opened = open_runtime(checkpoint, num_slots=2 if guided else 1, wanted=runtime)
    while len(values) < codec.raster.size:
        guide = Guide(1, less, guidance) if guided else None
        (done,) = opened.run([Job(0, tokens, draw=Draw(params, codec.raster.row, automaton, guide=guide))])
        done.check_drawn()
        values += done.drawn
        tokens = less = done.drawn[-1:]
        yield codec.decode(values)


def draw_together(
    runtime: Runtime, codec: PixelCodec, prompts: Sequence[Sequence[int]], guidance: float = 1.0
) -> list[Pixels]:
    """The images (H, W, 3) that begin with each prompt (``codec.prompt``, perhaps some values); seeds count from 0.

    With a ``guidance`` other than 1 each takes a second slot. NothingToDrawError where the logits are no numbers.
    """
    jobs, before = [], 1 + codec.raster.name_length
    for slot, prompt in enumerate(prompts):
        guide = Guide(len(prompts) + slot, codec.guide(prompt), guidance) if guidance != 1 else None
        for each in (slot,) if guide is None else (slot, guide.slot):
            runtime.reset(each)
        left = codec.raster.size + before - len(prompt)
        jobs.append(Job(slot, prompt, draw=Draw(SamplingParams(seed=slot), left, values_only(codec), guide=guide)))
    results = runtime.run(jobs)
    for done in results:
        done.check_drawn()
    return [codec.decode([*p[before:], *d.drawn]) for p, d in zip(prompts, results, strict=True)]
