"""The torch runtime: any device that torch has, exact to a tolerance.

Shapes never depend on company, so that a request's numbers do not either: a decode step always runs a whole tile of
slots, whoever holds them, and a prefill always one slot in chunks of fixed sizes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.checkpoint import Checkpoint
from model.machine import device_name
from model.match import Recent
from model.recurrent import State
from model.runtime import states
from model.runtime.base import Done, Job, JobError, StateError, Stop, check_jobs
from model.runtime.sampler import SlotSampler
from model.sampling import log_softmax
from model.weights import load

# Slots of one decode step. On a CPU one stream must not pay for all slots; a GPU computes few or many in the same time.
TILE, WIDE_TILE = 16, 256
DEVICES = ("cpu", "cuda", "mps", "xpu")
NOTHING: Recent = np.empty(0, np.uint16)  # what a stream has read that has read nothing
CHUNKS = tuple(2**i for i in range(9, -1, -1))  # positions of a prefill call, the largest that fits first


class EagerRuntime:
    """A slot pool of ``num_slots`` recurrent states beside one network."""

    name = "torch"
    exact = False

    def __init__(self, checkpoint: Checkpoint, num_slots: int, device: str = "cpu", *, match: bool = True) -> None:
        """CheckpointError where the weights do not fit the config, ValueError for no slots or no such device.

        ``match``: whether its match model is used.
        """
        if num_slots < 1:
            raise ValueError(f"{num_slots} slots: at least 1")
        self._device = checked_device(device)
        self._network = load(checkpoint).to(self._device).freeze()
        config = checkpoint.config.model
        self.vocab_size, self.num_slots, self.max_position = config.vocab_size, num_slots, config.max_model_len
        self.isa, self.threads = device_name(device), torch.get_num_threads()
        self._tile = min(TILE if self._device.type == "cpu" else WIDE_TILE, num_slots)
        # the last bits are torch's, of its version and of a tile's width: states move all the same
        numerics = f"{checkpoint.fingerprint_with(match=match)} torch float32"
        self.fingerprint = hashlib.sha256(numerics.encode()).hexdigest()
        self._tiles = [self._network.init_state(self._tile) for _ in range(-(-num_slots // self._tile))]
        self._empty = self._network.init_state(1)
        self._positions = [0] * num_slots
        self._match = checkpoint.match if match else None
        self.recent_bytes = self._match.state_bytes if self._match is not None else 0
        self._window = self.recent_bytes // 2
        self._recent: list[Recent] = [NOTHING] * num_slots  # the last tokens, oldest first
        self._samplers = [SlotSampler.empty(self.vocab_size) for _ in range(num_slots)]
        self.weight_bytes = sum(p.numel() * p.element_size() for p in self._network.parameters())
        self.workspace_bytes = 0
        self.state_bytes = sum(t.numel() * t.element_size() for state in self._empty for t in state) + self.recent_bytes

    def position(self, slot: int) -> int:
        """Positions consumed."""
        return self._positions[self._checked(slot)]

    def _checked(self, slot: int) -> int:
        if not 0 <= slot < self.num_slots:
            raise IndexError(f"slot {slot} is outside 0 ... {self.num_slots - 1}")
        return slot

    @torch.no_grad()
    def run(self, jobs: Sequence[Job]) -> list[Done]:
        """The contract of ``Runtime.run``."""
        check_jobs(jobs, self)
        for job in jobs:
            if job.draw is not None and not self._samplers[job.slot].fits(job.draw):
                raise JobError(f"slot {job.slot}: the automaton has fewer states than the slot has passed")
        done = [Done() for _ in jobs]
        # one token is a decode step's work; more are a prefill of their own
        last: dict[int, NDArray[np.float32]] = {}
        guides = [job.draw.guide for job in jobs if job.draw is not None and job.draw.guide is not None]
        read = [*jobs, *(Job(guide.slot, guide.tokens) for guide in guides)]
        single = [job for job in read if len(job.tokens) == 1]
        stepped = self._step({job.slot: job.tokens[0] for job in single}) if single else {}
        for job, result in zip(read, [*done, *(Done() for _ in guides)], strict=True):
            rows = stepped[job.slot][None] if job.slot in stepped else self._prefill(job)
            rows = self._mixed(job.slot, rows, job.tokens)
            self._samplers[job.slot].consume(job.tokens)
            last[job.slot] = rows[-1]
            if job.targets is not None:
                logprobs = log_softmax(rows)[np.arange(len(rows)), np.asarray(job.targets)]
                result.target_logprobs = logprobs.tolist()
            if job.logits != "none":
                result.logits = rows if job.logits == "all" else rows[-1]
        self._burst(jobs, done, last)
        return done

    def _burst(self, jobs: Sequence[Job], done: list[Done], last: dict[int, NDArray[np.float32]]) -> None:
        """Draw from the last logits; consume what was drawn, all live slots in one step; until every burst ends."""
        live = [(job, result) for job, result in zip(jobs, done, strict=True) if job.draw is not None]
        while live:
            drawn = {}
            going = []
            for job, result in live:
                assert job.draw is not None
                slot, guide = job.slot, job.draw.guide
                told_less = last[guide.slot] if guide is not None else None
                self._samplers[slot].draw(last[slot], job.draw, self._positions[slot], result, told_less)
                if result.stopped is None and self._positions[slot] == self.max_position:
                    result.stopped = Stop.LENGTH
                if result.stopped is None and len(result.drawn) < job.draw.max_new:
                    drawn[slot] = result.drawn[-1]
                    if guide is not None:
                        drawn[guide.slot] = result.drawn[-1]
                        self._samplers[guide.slot].consume(result.drawn[-1:])
                    going.append((job, result))
            live = going
            if drawn:
                stepped = self._step(drawn)
                last = {slot: self._mixed(slot, row[None], [drawn[slot]])[0] for slot, row in stepped.items()}

    def _mixed(self, slot: int, rows: NDArray[np.float32], tokens: Sequence[int]) -> NDArray[np.float32]:
        """The logits (n, V) after the last n of the tokens that a slot has consumed, with the match model's part."""
        if self._match is None:
            return rows
        stream = np.concatenate([self._recent[slot], np.asarray(tokens, np.uint16)])
        self._recent[slot] = stream[max(0, len(stream) - self._window) :]
        ends = range(len(stream) - len(rows) + 1, len(stream) + 1)
        return np.stack([self._match.mixed(row, stream[:end]) for row, end in zip(rows, ends, strict=True)])

    def _step(self, tokens: dict[int, int]) -> dict[int, NDArray[np.float32]]:
        """One position of the given slots; whole tiles are computed, the other slots' states stay."""
        rows: dict[int, NDArray[np.float32]] = {}
        for tile in sorted({slot // self._tile for slot in tokens}):
            slots = [slot for slot in tokens if slot // self._tile == tile]
            places = torch.tensor([slot % self._tile for slot in slots], device=self._device)
            inputs = torch.zeros(self._tile, 1, dtype=torch.int64, device=self._device)
            inputs[places, 0] = torch.tensor([tokens[slot] for slot in slots], device=self._device)
            logits, after = self._network(inputs, self._tiles[tile])
            if len(slots) == self._tile:
                self._tiles[tile] = after
            else:
                for pool, new in zip(self._tiles[tile], after, strict=True):
                    for kept, changed in zip(pool, new, strict=True):
                        kept[places] = changed[places]
            drawn_from = logits[:, 0].float().cpu().numpy()
            rows.update({slot: drawn_from[slot % self._tile] for slot in slots})
        for slot in tokens:
            self._positions[slot] += 1
        return rows

    def _prefill(self, job: Job) -> NDArray[np.float32]:
        """All tokens of one slot -> logits (n, V), or (1, V) where only the last are needed."""
        state = self._read(job.slot)
        every = job.targets is not None or job.logits == "all"
        rows: list[Tensor] = []
        tokens = torch.tensor(list(job.tokens), device=self._device)[None]
        for part in tokens.split(list(_chunks(len(job.tokens))), 1):
            hidden, state = self._network.hidden(part, state)
            if every:
                rows.append(self._network.head(hidden)[0])
        if not every:
            rows = [self._network.head(hidden[:, -1:])[0]]
        self._write(job.slot, state)
        self._positions[job.slot] += len(job.tokens)
        return torch.cat(rows).float().cpu().numpy()

    def _read(self, slot: int) -> list[State]:
        place = slot % self._tile
        tile = self._tiles[slot // self._tile]
        return [State(*(part[place : place + 1].clone() for part in layer)) for layer in tile]

    def _write(self, slot: int, layers: list[State]) -> None:
        for pool, layer in zip(self._tiles[slot // self._tile], layers, strict=True):
            for kept, new in zip(pool, layer, strict=True):
                kept[slot % self._tile] = new[0]

    def reset(self, slot: int) -> None:
        """Back to before the first position."""
        self._write(self._checked(slot), self._empty)
        self._positions[slot] = 0
        self._recent[slot] = NOTHING
        self._samplers[slot] = SlotSampler.empty(self.vocab_size)

    def restart_automaton(self, slot: int) -> None:
        """The contract of ``Runtime.restart_automaton``."""
        self._samplers[self._checked(slot)].automaton_state = 0

    def copy(self, source: int, targets: Sequence[int]) -> None:
        """Copy a slot, sampler included, into others."""
        state = self._read(self._checked(source))
        for target in [self._checked(target) for target in targets]:  # all of them, before one is written
            self._write(target, state)
            self._positions[target] = self._positions[source]
            self._recent[target] = self._recent[source]
            self._samplers[target] = self._samplers[source].copy()

    def export(self, slot: int) -> bytes:
        """The slot's state as bytes."""
        sampler = self._samplers[self._checked(slot)]
        facts: dict[str, object] = {
            "fingerprint": self.fingerprint,
            "position": self._positions[slot],
            "automaton_state": sampler.automaton_state,
        }
        layers = [part[0].cpu().numpy() for layer in self._read(slot) for part in layer]
        recent = states.padded(self._recent[slot], self._window)
        return states.pack(facts, [*layers, recent, sampler.counts, sampler.seen])

    def restore(self, slot: int, state: bytes) -> None:
        """Put an exported state into a slot. StateError leaves the slot as it was."""
        self._checked(slot)
        facts, body = states.unpack(state)
        if facts.get("fingerprint") != self.fingerprint:
            raise StateError("the state belongs to another model or runtime")
        arrays = list(self._arrays(body))
        recent, counts, seen = (arrays.pop(at) for at in (-3, -2, -1))
        tensors = iter(torch.from_numpy(array).to(self._device)[None] for array in arrays)
        layers = [State(*(next(tensors) for _ in layer)) for layer in self._empty]
        position, automaton_state = facts.get("position"), facts.get("automaton_state")
        if not isinstance(position, int) or any(int(layer.position) != position for layer in layers):
            raise StateError("the state's head and its layers stand at different positions")
        if any(bool(((layer.tokens < -1) | (layer.tokens >= self.vocab_size)).any()) for layer in layers):
            raise StateError("the state's last tokens are no tokens of this model")
        if not isinstance(automaton_state, int) or automaton_state < 0:
            raise StateError("the state's automaton is in no state")
        states.check_sampler(counts.astype(np.int32), seen.astype(np.uint8), position)
        last = states.check_recent(recent.astype(np.uint16), position, self.vocab_size)
        self._write(slot, layers)
        self._positions[slot], self._recent[slot] = position, last
        self._samplers[slot] = SlotSampler(counts.astype(np.int32), seen.astype(np.bool_), automaton_state)

    def _arrays(self, body: bytes) -> Iterator[NDArray[np.generic]]:
        shapes = [(part[0].cpu().numpy().dtype, tuple(part.shape[1:])) for layer in self._empty for part in layer]
        shapes += [(np.dtype(np.uint16), (self._window,))]
        shapes += [(np.dtype(np.int32), (self.vocab_size,)), (np.dtype(np.bool_), (self.vocab_size,))]
        sizes = [int(np.prod(shape)) * dtype.itemsize for dtype, shape in shapes]
        if len(body) != sum(sizes):
            raise StateError(f"the state has {len(body)} bytes of arrays, this model's has {sum(sizes)}")
        at = 0
        for (dtype, shape), size in zip(shapes, sizes, strict=True):
            yield np.frombuffer(body[at : at + size], dtype).reshape(shape).copy()
            at += size


def checked_device(device: str) -> torch.device:
    """A device that this build of torch computes on. ValueError where it is none, or is not there."""
    try:
        found = torch.device(device)
        if found.type not in DEVICES:
            raise RuntimeError(f"only {', '.join(DEVICES)} compute a model")
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, ImportError) as error:  # a build without CUDA asserts
        reason = str(error).splitlines()[0].partition(". ")[0]  # torch goes on to list all that it knows
        raise ValueError(f"torch has no device {device!r} here: {reason[:200]}") from error
    return found


def _chunks(length: int) -> Iterator[int]:
    """How a prefill is cut: a rule of the length alone."""
    for size in CHUNKS:
        while length >= size:
            yield size
            length -= size
