"""The native runtime: the contract of model/runtime/base.py on the kernel, exact to the bit."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model.automaton import Automaton
from model.checkpoint import Checkpoint, CheckpointError
from model.config import MAX_LOOKBACKS, ModelConfig
from model.match import Match
from model.runtime import states
from model.runtime.base import Done, Draw, Job, JobError, StateError, Stop, check_jobs
from model.runtime.native import weights
from model.runtime.native._kernel import Kernel, targets

NUMERICS = "native 1 bf16"  # changes with every change of a bit of a result
LOGITS = {"none": 0, "last": 1, "all": 2}
STOPS = (None, Stop.ACCEPT, Stop.LENGTH, Stop.FAULT)


class NativeRuntime:
    """A slot pool of ``num_slots`` recurrent states beside one model's packed weights."""

    name = "native"
    exact = True

    def __init__(
        self, checkpoint: Checkpoint, num_slots: int, threads: int = 1, target: str = "", *, match: bool = True
    ) -> None:
        """CheckpointError where the tensors do not fit the config; ValueError for an unknown instruction set.

        ``match``: whether the checkpoint's match model is used, where it has one.
        """
        config = checkpoint.config.model
        if num_slots < 1 or threads < 1:
            raise ValueError(f"num_slots and threads must be at least 1, they are {num_slots} and {threads}")
        if target and target not in targets():
            raise ValueError(f"instruction set {target!r} is not available here; available: {', '.join(targets())}")
        self.vocab_size, self.num_slots, self.max_position = config.vocab_size, num_slots, config.max_model_len
        stored = weights.read(checkpoint)
        weights.check(stored, checkpoint)
        arrays = weights.bands(stored, config)
        last = -1 if self.max_position is None else self.max_position
        searched = checkpoint.match.window if match and checkpoint.match is not None else 0
        self._window = max(searched, config.remembered)  # last tokens that are remembered
        self.recent_bytes = 2 * self._window
        try:
            self._kernel = Kernel(kernel_shape(config), arrays, num_slots, last, threads, target)
            if match and checkpoint.match is not None:
                self._kernel.set_match(*match_arguments(checkpoint.match))
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{checkpoint.name}: {error}") from None
        numerics = f"{checkpoint.fingerprint_with(match=match)} {NUMERICS}"
        self.fingerprint = hashlib.sha256(numerics.encode()).hexdigest()
        self.state_bytes = self._kernel.state_bytes + self.recent_bytes
        self.weight_bytes, self.workspace_bytes = self._kernel.weight_bytes, self._kernel.workspace_bytes
        self.isa, self.threads = self._kernel.target, self._kernel.threads

    def position(self, slot: int) -> int:
        """Positions consumed."""
        return self._kernel.position(self._checked(slot))

    def run(self, jobs: Sequence[Job]) -> list[Done]:
        """The contract of ``Runtime.run``."""
        check_jobs(jobs, self)
        for job in jobs:
            automaton = job.draw.automaton if job.draw else None
            if automaton is not None and self._kernel.automaton_state(job.slot) >= len(automaton.next):
                raise JobError(f"slot {job.slot}: the automaton has fewer states than the slot has passed")
        given = [
            (job.slot, list(job.tokens), list(job.targets or ()), LOGITS[job.logits], _draw(job.draw)) for job in jobs
        ]
        return [self._done(job, result) for job, result in zip(jobs, self._kernel.run(given), strict=True)]

    def _done(
        self, job: Job, result: tuple[list[float], bytes, list[int], list[float], list[list[tuple[int, float]]], int]
    ) -> Done:
        target_logprobs, raw, drawn, logprobs, top, stopped = result
        logits: NDArray[np.float32] | None = None
        if job.logits != "none":
            logits = np.frombuffer(raw, np.float32)
            if job.logits == "all":
                logits = logits.reshape(-1, self.vocab_size)
        return Done(target_logprobs, logits, drawn, logprobs, top, STOPS[stopped])

    def reset(self, slot: int) -> None:
        """Back to before the first position."""
        self._kernel.reset(self._checked(slot))

    def restart_automaton(self, slot: int) -> None:
        """The contract of ``Runtime.restart_automaton``."""
        self._kernel.restart(self._checked(slot))

    def copy(self, source: int, targets: Sequence[int]) -> None:
        """Copy a slot, sampler included, into others."""
        for slot in (source, *targets):
            self._checked(slot)
        for target in targets:
            self._kernel.copy(source, target)

    def export(self, slot: int) -> bytes:
        """The slot's state as bytes: equal on every machine for equal histories."""
        state, counts, seen, position, automaton_state = self._kernel.export(self._checked(slot))
        facts: dict[str, object] = {
            "fingerprint": self.fingerprint, "position": position, "automaton_state": automaton_state,
        }  # fmt: skip
        recent = states.padded(np.frombuffer(self._kernel.recent(slot), np.uint16), self._window)
        return states.pack(facts, [np.frombuffer(part, np.uint8) for part in (state, recent.tobytes(), counts, seen)])

    def restore(self, slot: int, state: bytes) -> None:
        """Put an exported state into a slot. StateError leaves the slot as it was."""
        facts, body = states.unpack(state)
        if facts.get("fingerprint") != self.fingerprint:
            raise StateError("the state belongs to another model or runtime")
        position, automaton_state = facts.get("position"), facts.get("automaton_state")
        if not isinstance(position, int) or not 0 <= position <= (self.max_position or 2**62):
            raise StateError("the state stands at no position of this model")
        if not isinstance(automaton_state, int) or not 0 <= automaton_state < 2**31:
            raise StateError("the state's automaton is in no state")
        cuts = (self.state_bytes, self.state_bytes + 4 * self.vocab_size)
        if len(body) != cuts[1] + self.vocab_size:
            raise StateError(f"the state has {len(body)} bytes, this model's has {cuts[1] + self.vocab_size}")
        network = self.state_bytes - self.recent_bytes
        parts = body[:network], body[cuts[0] : cuts[1]], body[cuts[1] :]
        states.check_sampler(np.frombuffer(parts[1], np.int32), np.frombuffer(parts[2], np.uint8), position)
        stored = np.frombuffer(body[network : cuts[0]], np.uint16)
        recent = states.check_recent(stored, position, self.vocab_size)
        self._kernel.restore(self._checked(slot), *parts, position, automaton_state, recent.tobytes())

    def _checked(self, slot: int) -> int:
        if not 0 <= slot < self.num_slots:
            raise IndexError(f"slot {slot} is outside 0 ... {self.num_slots - 1}")
        return slot


def kernel_shape(config: ModelConfig) -> dict[str, int]:
    """The fields of ``Shape`` in src/runtime.h, in their order."""
    places = 1
    if config.bias == "absolute":
        places = config.max_model_len or 1
    elif config.bias == "raster" and config.raster is not None:
        places = config.raster.row
    raster = config.raster
    lookback = [*config.lookback, *[0] * (MAX_LOOKBACKS - len(config.lookback))]
    return {
        "dim": config.dim,
        "hidden": config.dim * config.mlp_ratio,
        "vocab_size": config.vocab_size,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "window": config.window,
        "places": places,
        "activation": 0 if config.activation == "squared_relu" else 1,
        "raster_height": raster.height if raster else 0,
        "raster_width": raster.width if raster else 0,
        "raster_channels": raster.channels if raster else 0,
        "raster_first": raster.name_length if raster else 0,
        "token_shift": int(config.token_shift),
        "mirror": int(config.mirror),
        **{f"lookback_{number}": distance for number, distance in enumerate(lookback)},
    }


def match_arguments(match: Match) -> tuple[int, int, int, list[float]]:
    """The fields of ``Match`` in src/match.h, in their order."""
    return match.window, match.shortest, match.most, list(match.masses)


def _draw(draw: Draw | None) -> tuple[object, ...] | None:
    if draw is None:
        return None
    p = draw.params
    floats = [p.temperature, p.top_p, p.min_p, p.frequency_penalty, p.presence_penalty, p.repetition_penalty]
    bias = [(int(token), float(value)) for token, value in p.logit_bias.items()]
    table, guide = _table(draw.automaton), draw.guide
    return (
        [float(x) for x in floats], p.top_k, p.seed & (2**64 - 1), p.sample & (2**32 - 1), bias, draw.max_new,
        draw.top, table, (guide.slot, list(guide.tokens), float(guide.weight)) if guide is not None else None,
    )  # fmt: skip


def _table(automaton: Automaton | None) -> NDArray[np.int32] | None:
    return None if automaton is None else np.ascontiguousarray(automaton.next, np.int32)
