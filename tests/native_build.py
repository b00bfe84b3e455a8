"""The kernel as a program of its own (tests/native_driver.cpp): what emulators, mutations and thread checks run.

Instruction sets and flags are read from CMakeLists.txt, so that what is checked here is what is shipped.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model import conformance
from model.checkpoint import Checkpoint
from model.runtime.native import weights
from model.runtime.native.runtime import kernel_shape, match_arguments

ROOT = Path(__file__).parents[1]
SRC = Path("model/runtime/native/src")
DRIVER = Path("tests/native_driver.cpp")
PARTS = ("forward", "probability", "search", "matmul")  # compiled once for each instruction set
OTHERS = (*(SRC / f"{name}.cpp" for name in ("runtime", "targets", "sampling", "match", "pool")), DRIVER)
POSITIONS = 1_000


class Build:
    """Compiles the kernel of ``root``, laid out as this repository, for one compiler; objects lie in ``folder``."""

    def __init__(self, folder: Path, root: Path = ROOT, compiler: str = "g++", extra: Sequence[str] = ()) -> None:
        self.folder, self.root, self.compiler, self.extra = folder, root, compiler, extra
        lists = (root / "CMakeLists.txt").read_text()
        self._sets = {name: flags.split() for name, flags in re.findall(r"set\(FLAGS_(\w+) ?(.*)\)", lists)}
        options = re.findall(r"target_compile_options\((\w+)_\$\{TARGET} PRIVATE \$\{FLAGS_\$\{TARGET}} (.*)\)", lists)
        self._options = {part: flags.split() for part, flags in options}
        assert set(self._options) == set(PARTS), "CMakeLists.txt is written in another way than this module reads"

    def part(self, part: str, target: str) -> Path:
        """The object of one part for one instruction set."""
        flags = [*self._sets[target], *self._options[part], f"-DAFT_TARGET={target}"]
        return self._object(self.root / SRC / f"{part}.cpp", f"{part}-{target}", flags)

    def others(self, missing: Sequence[str] = ()) -> list[Path]:
        """The objects that are the same everywhere; instruction sets that are ``missing`` must not be asked for."""
        objects = [self.other(self.root / source) for source in OTHERS]
        if missing:
            entry = 'extern const Target target; const Target target{"not built"};'
            lines = [f"namespace aft::{name} {{ {entry} }}" for name in missing]
            stub = self.folder / "missing.cpp"
            stub.write_text("\n".join([f'#include "{self.root / SRC / "types.h"}"', *lines, ""]))
            objects.append(self.other(stub))
        return objects

    def other(self, source: Path) -> Path:
        """The object of a file that is the same everywhere."""
        return self._object(source, source.stem, ["-O2", "-ffp-contract=off"])

    def link(self, objects: Sequence[Path], name: str = "driver") -> Path:
        """A program; static where no sanitizer is asked for, which needs its library."""
        program = self.folder / name
        how = self.extra or ["-static"]
        subprocess.run([self.compiler, *how, *objects, "-o", program, "-pthread"], check=True)
        return program

    def program(self, *targets: str) -> Path:
        """The driver with these instruction sets; ``targets.cpp`` asks for all of a processor, or for ``portable``."""
        missing = [] if "portable" in targets else [name for name in self._sets if name not in (*targets, "portable")]
        parts = [self.part(part, target) for target in targets for part in PARTS]
        return self.link([*parts, *self.others(missing)])

    def _object(self, source: Path, name: str, flags: Sequence[str]) -> Path:
        path = self.folder / f"{name}.o"
        common = [self.compiler, "-std=gnu++20", "-Wno-psabi", "-c"]
        subprocess.run([*common, *flags, *self.extra, source, "-o", path], check=True)
        return path


def copy_sources(folder: Path) -> Path:
    """A copy of what ``Build`` reads, to be changed."""
    shutil.copytree(ROOT / SRC, folder / SRC)
    for name in (DRIVER, Path("CMakeLists.txt")):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    return folder


def replace_once(path: Path, old: str, new: str) -> None:
    """Change a source. What is to be replaced must stand there exactly once: the source may have moved on."""
    text = path.read_text()
    assert text.count(old) == 1, f"{path.name} has {text.count(old)} times what is to be replaced:\n{old}"
    path.write_text(text.replace(old, new))


def shipped() -> tuple[Checkpoint, str]:
    """A shipped model, and the stored hash of its logits after ``POSITIONS``."""
    checkpoint = Checkpoint(ROOT / "checkpoints/shakespeare")
    stored = json.loads((checkpoint.folder / conformance.FILE).read_text())
    return checkpoint, stored["logits_sha256"][str(POSITIONS)]


def dump(checkpoint: Checkpoint, path: Path) -> None:
    """The model and the text, as the driver reads them."""
    config = checkpoint.config.model
    arrays = weights.bands(weights.read(checkpoint), config)
    fields = kernel_shape(config).values()
    parts = [struct.pack(f"<{len(fields)}i", *fields), struct.pack("<i", len(arrays))]
    for name, array in arrays.items():
        head = struct.pack("<i", len(name)) + name.encode()
        shape = struct.pack(f"<ii{array.ndim}q", array.dtype == np.float32, array.ndim, *array.shape)
        parts += [head, shape, np.ascontiguousarray(array).tobytes()]
    window, shortest, most, masses = (0, 0, 0, []) if checkpoint.match is None else match_arguments(checkpoint.match)
    parts.append(struct.pack(f"<4i{len(masses)}d", window, shortest, most, len(masses), *masses))
    tokens = conformance.text(checkpoint, POSITIONS)
    parts.append(struct.pack(f"<qi{len(tokens)}i", config.max_model_len or -1, len(tokens), *tokens))
    path.write_bytes(b"".join(parts))


def run(command: Sequence[str | Path], model: Path, target: str = "", threads: int = 1) -> tuple[str, bytes]:
    """What the driver says and the logits (float32) that it writes."""
    logits = model.with_name("logits")
    logits.unlink(missing_ok=True)
    arguments = [*command, model, logits, str(threads), target]
    done = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip(), logits.read_bytes()


def sha256(logits: bytes) -> str:
    """As ``conformance.json`` has it."""
    return hashlib.sha256(logits).hexdigest()
