"""The kernel on an emulated processor against the stored hashes: `make conformance-emulated`.

    .venv/bin/python tests/native_emulated.py [aarch64] [nehalem] [haswell]

Compiles the kernel with tests/native_driver.cpp for another processor, runs it under qemu-user on 1,000 positions of a
shipped model, and compares the logits' hash. A forced path on a new processor cannot show an instruction that leaked.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from native_build import Build, dump, run, sha256, shipped

X86 = ["avx512bf16", "avx512", "avx2", "sse2"]
# name -> compiler, its instruction sets, the emulator
TARGETS: dict[str, tuple[str, list[str], list[str]]] = {
    "aarch64": ("aarch64-linux-gnu-g++", ["portable"], ["qemu-aarch64"]),
    "nehalem": ("g++", X86, ["qemu-x86_64", "-cpu", "Nehalem"]),
    "haswell": ("g++", X86, ["qemu-x86_64", "-cpu", "Haswell"]),
}


def main(names: list[str]) -> None:
    """Build, run, compare; status 1 where a hash differs."""
    checkpoint, stored = shipped()
    for name in names or TARGETS:
        compiler, targets, emulator = TARGETS[name]
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            program = Build(folder, compiler=compiler).program(*targets)
            dump(checkpoint, folder / "model")
            said, logits = run([*emulator, program], folder / "model")
            same = sha256(logits) == stored
            print(f"{' '.join(emulator)}: {said}: {'the stored logits' if same else 'OTHER LOGITS'}")
            if not same:
                sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
