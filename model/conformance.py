"""What a native runtime must compute, to the bit: hashes of a model's logits after a fixed text, stored beside it.

The text is numbers from Philox below the vocabulary's size, so that any machine can make it; half of a text is copied
from before, so that a match model finds something. A hash covers the last position's logits: they depend on every bit
of the state, and so on everything before.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pydantic import BaseModel, ValidationError

from model.checkpoint import Checkpoint, CheckpointError
from model.pixels import NUM_VALUES, PixelCodec
from model.runtime.base import Job, Runtime
from model.sampling import uniform

FILE = "conformance.json"
DEPTHS = (1_000, 10_000, 100_000)
CHUNK = 512
PART = 50  # tokens; twice of it divides every depth: the last position stands at the end of what was copied


class Stored(BaseModel):
    """The file beside a model."""

    fingerprint: str
    logits_sha256: dict[str, str]  # by depth
    network_sha256: dict[str, str] = {}  # of a model with a match model: without it

    @classmethod
    def read(cls, checkpoint: Checkpoint) -> Stored:
        """Of a checkpoint. FileNotFoundError where there is none, CheckpointError where it is damaged."""
        try:
            stored = cls.model_validate_json((checkpoint.folder / FILE).read_bytes())
        except ValidationError as error:
            raise CheckpointError(f"{checkpoint.name}: {FILE} cannot be read: {error.errors()[0]['msg']}") from None
        if checkpoint.match is not None and not stored.network_sha256:
            raise CheckpointError(f"{checkpoint.name}: {FILE} lacks network_sha256")
        return stored


def text(checkpoint: Checkpoint, count: int) -> list[int]:
    """``count`` ids that begin as a stream of this model does."""
    if isinstance(checkpoint.codec, PixelCodec):
        first, size = checkpoint.codec.prompt(), NUM_VALUES
    else:
        first, size = [checkpoint.codec.begin], checkpoint.codec.vocab_size
    tokens = [*first, *(int(uniform(0, 0, position) * size) for position in range(len(first), count))]
    if not isinstance(checkpoint.codec, PixelCodec):
        for begin in range(PART, count, 2 * PART):  # every second part is one of the 32 before it
            back = PART * (1 + int(uniform(1, 0, begin) * min(begin // PART, 32)))
            tokens[begin : begin + PART] = tokens[begin - back : begin - back + PART]
    return tokens[:count]


def digests(checkpoint: Checkpoint, runtime: Runtime, deepest: int = DEPTHS[-1]) -> dict[str, str]:
    """sha256 of the logits (float32, little-endian) after so many positions; of the whole image for an image model."""
    end = checkpoint.config.model.max_model_len
    depths = sorted({min(depth, end or depth) for depth in DEPTHS if depth <= deepest})
    tokens = text(checkpoint, depths[-1])
    runtime.reset(0)
    found, at = {}, 0
    for depth in depths:
        while at < depth:
            part = tokens[at : min(at + CHUNK, depth)]
            (done,) = runtime.run([Job(0, part, logits="last")])
            at += len(part)
        assert done.logits is not None
        found[str(depth)] = hashlib.sha256(done.logits.astype("<f4").tobytes()).hexdigest()
    return found


def write(folder: Path, runtime: Runtime, network: Runtime) -> None:
    """Store what a runtime computes, and where the model has a match model, what one without it does."""
    checkpoint = Checkpoint(folder)
    facts: dict[str, object] = {
        "fingerprint": runtime.fingerprint, "logits_sha256": digests(checkpoint, runtime),
    }  # fmt: skip
    if checkpoint.match is not None:
        facts["network_sha256"] = digests(checkpoint, network)
    (folder / FILE).write_text(json.dumps(facts, indent=2) + "\n")


def compare(checkpoint: Checkpoint, runtime: Runtime, network: Runtime, *, deepest: int) -> tuple[list[str], list[str]]:
    """The depths up to ``deepest``, and those where the model or its network computes other bits than are stored.

    FileNotFoundError where nothing is stored, CheckpointError where it is damaged, ValueError where that is for other
    weights or another numerics.
    """
    stored = Stored.read(checkpoint)
    if stored.fingerprint != runtime.fingerprint:
        raise ValueError(f"the hashes of {checkpoint.name} are of other weights or another numerics")
    found = digests(checkpoint, runtime, deepest)
    wrong = [depth for depth, digest in found.items() if stored.logits_sha256.get(depth) != digest]
    if checkpoint.match is not None:
        alone, known = digests(checkpoint, network, deepest), stored.network_sha256
        wrong += [f"{depth} (network alone)" for depth, digest in alone.items() if known.get(depth) != digest]
    return list(found), wrong


def agrees(checkpoint: Checkpoint, runtime: Runtime) -> bool:
    """Whether a runtime computes what is stored beside a model, at the first depth; so, too, where nothing is.

    What is stored for other weights or other numerics says nothing of these. Takes some hundredths of a second.
    """
    if not (checkpoint.folder / FILE).exists():
        return True
    stored = Stored.read(checkpoint)
    if stored.fingerprint != runtime.fingerprint:
        return True
    agreed = digests(checkpoint, runtime, DEPTHS[0]).items() <= stored.logits_sha256.items()
    runtime.reset(0)
    return agreed
