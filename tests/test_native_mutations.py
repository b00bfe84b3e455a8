"""The stored hash notices what would change a bit: three changes of the kernel's arithmetic that look harmless.

Each keeps the logits as good as they were, so no tolerance would find it.
"""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import native_for_tests
import numpy as np
import pytest
from native_build import PARTS, SRC, Build, copy_sources, dump, replace_once, run, sha256, shipped

TARGET = "avx2"  # where contraction has an instruction to contract to; the fastest of them to compile
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("native-mutations"),  # one build serves all
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the mutated kernel is built for x86-64"),
    pytest.mark.skipif(TARGET not in native_for_tests.TARGETS, reason="this processor has no AVX2 with FMA"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ here"),
]

# what it is -> the part that is compiled anew, the file, the text, what takes its place
MUTATIONS: dict[str, tuple[str, Path, str, str]] = {
    "the even product of a pair first": (
        "matmul",
        SRC / "matmul.cpp",
        ("        total += odd * x[1];\n        total += even * x[0];\n"),
        ("        total += even * x[0];\n        total += odd * x[1];\n"),
    ),
    "contraction outside the products": (
        "forward",
        Path("CMakeLists.txt"),
        "target_compile_options(forward_${TARGET} PRIVATE ${FLAGS_${TARGET}} -O3 -ffp-contract=off",
        "target_compile_options(forward_${TARGET} PRIVATE ${FLAGS_${TARGET}} -O3 -ffp-contract=fast",
    ),
    "neighbours first in the sum of lanes": (
        "forward",
        SRC / "vector.h",
        (
            "    for (int width = 8; width; width /= 2)\n"
            "        for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];\n"
        ),
        (
            "    for (int width = 1; width < LANES; width *= 2)\n"
            "        for (int i = 0; i < LANES; i += 2 * width) lanes[i] += lanes[i + width];\n"
        ),
    ),
}


class Shipped:
    """The kernel as it is, built once, and what it computes."""

    def __init__(self, folder: Path) -> None:
        checkpoint, self.stored = shipped()
        self.build, self.model = Build(folder), folder / "model"
        dump(checkpoint, self.model)
        self.parts = {part: self.build.part(part, TARGET) for part in PARTS}
        self.others = self.build.others(["avx512bf16", "avx512", "sse2"])
        self.logits = self.run(self.parts)

    def run(self, parts: dict[str, Path]) -> bytes:
        """The logits of a program with these parts."""
        said, logits = run([self.build.link([*parts.values(), *self.others])], self.model, TARGET)
        assert said == TARGET
        return logits


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    """Built once for all mutations."""
    return Shipped(tmp_path_factory.mktemp("shipped"))


def test_the_kernel_as_it_is(kernel: Shipped) -> None:
    """It has the stored hash: what the mutations below change is theirs alone."""
    assert sha256(kernel.logits) == kernel.stored


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_changes_the_hash(kernel: Shipped, tmp_path: Path, name: str) -> None:
    """Other bits, and yet the same logits but for rounding."""
    part, file, old, new = MUTATIONS[name]
    root = copy_sources(tmp_path / "changed")
    replace_once(root / file, old, new)
    logits = kernel.run({**kernel.parts, part: Build(tmp_path, root).part(part, TARGET)})
    assert sha256(logits) != kernel.stored
    plain, changed = (np.frombuffer(each, "<f4") for each in (kernel.logits, logits))
    np.testing.assert_allclose(changed, plain, rtol=0, atol=0.1)
