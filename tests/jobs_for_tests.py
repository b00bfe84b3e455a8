"""What tests of every runtime share: prompts, single jobs, equality to the bit, and states with a changed head."""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import numpy as np

from model.automaton import Automaton
from model.runtime.base import Done, Draw, Job, Runtime
from model.sampling import SamplingParams

PENALISED = SamplingParams(seed=5, frequency_penalty=0.7, presence_penalty=0.4, repetition_penalty=1.3, top_p=0.9)
HOW = Draw(SamplingParams(), 1)
FOREIGN = Automaton(np.zeros((2, 5), np.int32))
# what no runtime of 258 tokens does beside a job of slot 0, and what it says
BAD: dict[str, tuple[Job, str]] = {
    "slot": (Job(1000, [1]), "slot 1000 is outside 0 ... "),
    "negative slot": (Job(-1, [1]), "slot -1 is outside"),
    "no tokens": (Job(1, []), "slot 1: a job consumes at least one token"),
    "token": (Job(1, [0, 258]), "slot 1: token 258 is outside the vocabulary of 258"),
    "negative token": (Job(1, [-1]), "slot 1: token -1 is outside"),
    "target": (Job(1, [1], [999]), "slot 1: token 999 is outside"),
    "number of targets": (Job(1, [1, 2], [1]), "slot 1: 1 targets for 2 tokens"),
    "no targets": (Job(1, [1], []), "slot 1: 0 targets for 1 tokens"),
    "max_new": (Job(1, [1], draw=dataclasses.replace(HOW, max_new=0)), "slot 1: max_new is 0, at least 1"),
    "automaton": (Job(1, [1], draw=dataclasses.replace(HOW, automaton=FOREIGN)), "automaton is of another vocabulary"),
    "bias": (Job(1, [1], draw=Draw(SamplingParams(logit_bias={258: 1.0}), 1)), "logit_bias names 258"),
    **{
        f"{name} {value}": (Job(1, [1], draw=Draw(SamplingParams(**{name: value}), 1)), f"slot 1: {name} cannot be")
        for name, value in (
            ("temperature", math.nan),
            ("temperature", math.inf),
            ("temperature", -1.0),
            ("top_p", 0.0),
            ("top_p", 1.5),
            ("top_p", math.nan),
            ("top_k", -1),
            ("min_p", -0.1),
            ("min_p", math.nan),
            ("frequency_penalty", math.inf),
            ("presence_penalty", math.nan),
            ("repetition_penalty", 0.0),
            ("repetition_penalty", math.inf),
            ("logit_bias", {3: math.nan}),
            ("logit_bias", {3: math.inf}),
            ("seed", 2**64),
            ("sample", -1),
        )
    },
    "twice": (Job(0, [1]), "a slot may have one job in a call, given [0, 0]"),
}


def prompt(length: int, seed: int = 0, vocab_size: int = 256) -> list[int]:
    """Random tokens: bytes where nothing else is asked for."""
    return np.random.default_rng(seed).integers(0, vocab_size, length).tolist()


def one(runtime: Runtime, job: Job) -> Done:
    """A job alone."""
    (done,) = runtime.run([job])
    return done


def same(a: Done, b: Done) -> None:
    """Equal in every field, bit for bit, the logits too."""
    assert (a.logits is None) == (b.logits is None)
    if a.logits is not None and b.logits is not None:
        assert a.logits.dtype == b.logits.dtype == np.float32
        np.testing.assert_array_equal(a.logits, b.logits)
    assert dataclasses.replace(a, logits=None) == dataclasses.replace(b, logits=None)


def forge(state: bytes, change: Callable[[dict[str, Any]], object], body: bytes | None = None) -> bytes:
    """Change the head, or replace the arrays, and make the hash right."""
    (size,) = struct.unpack_from("<I", state, 8)
    facts = json.loads(state[12 : 12 + size])
    change(facts)
    head = json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()
    content = state[:8] + struct.pack("<I", len(head)) + head + (state[12 + size : -32] if body is None else body)
    return rehash(content)


def rehash(content: bytes) -> bytes:
    """Any content with its hash."""
    return content + sha256(content).digest()
