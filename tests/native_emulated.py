"""The kernel on an emulated processor against the stored hashes: `make conformance-emulated`.

    .venv/bin/python tests/native_emulated.py [aarch64] [nehalem] [haswell]

Compiles the kernel with tests/native_driver.cpp for another processor, runs it under qemu-user on 1,000 positions of a
shipped model, and compares the logits' hash. A forced path on a new processor cannot show an instruction that leaked.
"""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from model import conformance
from model.checkpoint import Checkpoint
from model.runtime.native import weights
from model.runtime.native.runtime import kernel_shape

ROOT = Path(__file__).parents[1]
SRC = ROOT / "model/runtime/native/src"
POSITIONS = 1_000
# the flags are those of CMakeLists.txt
X86 = {
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"],
    "avx2": ["-mavx2", "-mfma"],
    "sse2": [],
}
# name -> compiler, its kernels and their flags, the emulator
TARGETS: dict[str, tuple[str, dict[str, list[str]], list[str]]] = {
    "aarch64": ("aarch64-linux-gnu-g++", {"portable": []}, ["qemu-aarch64"]),
    "nehalem": ("g++", X86, ["qemu-x86_64", "-cpu", "Nehalem"]),
    "haswell": ("g++", X86, ["qemu-x86_64", "-cpu", "Haswell"]),
}


def build(folder: Path, compiler: str, kernels: dict[str, list[str]]) -> Path:
    """A static program."""
    common = [compiler, "-std=gnu++20", "-Wno-psabi", "-c"]
    objects = []
    for target, flags in kernels.items():
        for part, contraction in (("forward", "off"), ("matmul", "fast")):
            objects.append(folder / f"{part}-{target}.o")
            command = [*common, "-O3", *flags, f"-ffp-contract={contraction}", f"-DAFT_TARGET={target}"]
            subprocess.run([*command, SRC / f"{part}.cpp", "-o", objects[-1]], check=True)
    for source in (
        *(SRC / f"{name}.cpp" for name in ("runtime", "targets", "sampling", "pool")),
        ROOT / "tests/native_driver.cpp",
    ):
        objects.append(folder / f"{source.stem}.o")
        subprocess.run([*common, "-O2", "-ffp-contract=off", source, "-o", objects[-1]], check=True)
    program = folder / "driver"
    subprocess.run([compiler, "-static", *objects, "-o", program, "-pthread"], check=True)
    return program


def dump(checkpoint: Checkpoint, path: Path) -> None:
    """The model and the text, as the driver reads them."""
    config = checkpoint.config.model
    arrays = weights.bands(weights.read(checkpoint), config)
    parts = [struct.pack("<11i", *kernel_shape(config).values()), struct.pack("<i", len(arrays))]
    for name, array in arrays.items():
        head = struct.pack("<i", len(name)) + name.encode()
        shape = struct.pack(f"<ii{array.ndim}q", array.dtype == np.float32, array.ndim, *array.shape)
        parts += [head, shape, np.ascontiguousarray(array).tobytes()]
    tokens = conformance.text(checkpoint, POSITIONS)
    parts.append(struct.pack(f"<qi{len(tokens)}i", config.max_model_len or -1, len(tokens), *tokens))
    path.write_bytes(b"".join(parts))


def main(names: list[str]) -> None:
    """Build, run, compare; status 1 where a hash differs."""
    checkpoint = Checkpoint(ROOT / "checkpoints/shakespeare")
    stored = json.loads((checkpoint.folder / conformance.FILE).read_text())["logits_sha256"][str(POSITIONS)]
    for name in names or TARGETS:
        compiler, kernels, emulator = TARGETS[name]
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            program = build(folder, compiler, kernels)
            dump(checkpoint, folder / "model")
            command = [*emulator, program, folder / "model", folder / "logits"]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            same = hashlib.sha256((folder / "logits").read_bytes()).hexdigest() == stored
            print(f"{' '.join(emulator)}: {done.stdout.strip()}: {'the stored logits' if same else 'OTHER LOGITS'}")
            if not same:
                sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
