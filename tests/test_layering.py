"""What may import what, and how long a file may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path.relative_to(ROOT) for folder in ("model", "service") for path in (ROOT / folder).rglob("*.py"))
WITH_TORCH = {
    f"model/{name}.py"
    for name in (
        "aft", "bias", "recurrent", "parallel", "network", "weights", "batches", "muon", "train", "runs", "evaluate",
        "runtime/eager",
    )
}  # fmt: skip


def imports(tree: ast.AST, *, inside: bool) -> Iterator[str]:
    """The first word of each import; of functions' bodies too where asked."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield (node.module or "").split(".")[0]
        elif inside or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imports(node, inside=inside)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_layers(path: Path) -> None:
    """The service imports the model, never the other way; torch stays where it is needed; a file is one idea."""
    text = (ROOT / path).read_text()
    tree = ast.parse(text)
    if path.parts[0] == "model":
        assert not {"service", "fastapi", "starlette", "uvicorn", "typer"} & set(imports(tree, inside=True))
    if str(path) not in WITH_TORCH:
        assert "torch" not in imports(tree, inside=False)
    assert text.count("\n") <= 300


def test_the_service_starts_without_torch() -> None:
    """Nor through what its modules import: the command line answers at once, and tests need no weights."""
    code = "import sys, service.cli, service.server, service.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
