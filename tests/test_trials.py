"""benchmarks/trials: the networks that are compared with, and a table of runs from its file to its rows."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import preset
from model.recipe import Recipe

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
from trials.__main__ import merged, table  # noqa: E402
from trials.networks import NETWORKS  # noqa: E402
from trials.where import kinds  # noqa: E402

TABLES = sorted((BENCHMARKS / "trials").glob("*.toml"))


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_causal_and_of_one_size(name: str) -> None:
    """What comes later changes nothing before it, gradients included; parameters within 2 % of the shipped kind."""
    torch.manual_seed(0)
    config = preset("tiny", 50, dim=64, num_layers=2)
    network = NETWORKS[name](config)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5)
    tokens = torch.randint(0, 50, (2, 24))
    other = tokens.clone()
    other[:, 15:] = (other[:, 15:] + 1) % 50
    logits, states = network(tokens)
    assert not states
    changed, _ = network(other)
    torch.testing.assert_close(changed[:, :15], logits[:, :15], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(changed[:, 15:], logits[:, 15:], atol=1e-2)
    logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert network.num_parameters == pytest.approx(NETWORKS["aft"](config).num_parameters, rel=0.02)


def test_a_transformer_knows_where_it_stands() -> None:
    """Rotary positions: the same tokens in another order are another context."""
    torch.manual_seed(0)
    network = NETWORKS["transformer"](preset("tiny", 50)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
        a, b = (network(torch.tensor([row]))[0][0, -1] for row in ([1, 2, 3, 4], [2, 1, 3, 4]))
    assert not torch.allclose(a, b, atol=1e-2)


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_tables_hold_recipes(path: Path) -> None:
    """Every run of every table is a recipe of a shape that exists, on a known network; there is a base."""
    content = tomllib.loads(path.read_text())
    assert "base" in content["trial"]
    for name, changes in content["trial"].items():
        fields = merged(content["base"], changes)
        assert fields.pop("network", "aft") in NETWORKS
        recipe = Recipe(name=name, **fields)
        raster = {"raster": {"height": 16, "width": 16}, "max_model_len": 768} if recipe.kind == "image" else {}
        preset(recipe.preset, 300, **{**raster, **recipe.model})


def test_a_table_from_its_file_to_its_rows(tmp_path: Path) -> None:
    """Runs, keeps its rows, does nothing twice, names what it does not know, and fails where a run fails."""
    (tmp_path / "corpus.txt").write_text("".join(f"line {i % 10} of the song, and {i % 7} more.\n" for i in range(900)))
    (tmp_path / "small.toml").write_text(f"""
[base]
corpus = "{tmp_path / "corpus.txt"}"
preset = "tiny"
length = 32
batch = 8
steps = 3
warmup_steps = 1
eval_every = 3
eval_chars = 256
[trial.base]
[trial.wide.model]
dim = 48
[trial.transformer]
network = "transformer"
[trial.odd.model]
dim = 33
""")
    command = [sys.executable, "-m", "trials", str(tmp_path / "small.toml"), "--runs", str(tmp_path / "runs")]
    command += ["--results", str(tmp_path)]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *arguments], cwd=BENCHMARKS, capture_output=True, text=True, check=False)

    done = run("base", "wide", "transformer", "--jobs", "2")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "trials-small.json").read_text())
    assert list(rows) == ["base", "wide", "transformer"]
    assert rows["wide"]["parameters"] > rows["base"]["parameters"]
    assert rows["wide"]["fields"]["model"] == {"dim": 48}
    for row in rows.values():
        assert (row["trained_chars"], row["scanned"]) == (3 * 8 * 32, 0)
        assert 0 < row["validation"] < 9
        assert row["cpu"]
    assert "| wide |" in done.stdout
    again = run("base", "--table")
    assert table(rows) in again.stdout
    unknown = run("nothing")
    assert unknown.returncode == 2
    assert "unknown: nothing; known: base" in unknown.stderr
    failing = run("odd")
    assert failing.returncode == 1
    assert "odd: " in failing.stderr
    assert json.loads((tmp_path / "trials-small.json").read_text()) == rows


def test_what_a_pixel_is_equal_to() -> None:
    """Neighbours, the mirror image in the right half, anything before; one channel that differs is another colour."""
    a, b, c, d = [1, 2, 3], [1, 2, 4], [9, 2, 3], [0, 0, 0]
    found = kinds(np.array([[[a, b, b, a], [c, a, d, b]]], np.uint8))
    assert {name: [tuple(at) for at in np.argwhere(of_kind[0]).tolist()] for name, of_kind in found.items()} == {
        "the one to the left": [(0, 2)],
        "the one above": [],
        "above to the left": [(1, 1), (1, 3)],
        "above to the right": [],
        "its mirror image": [(0, 2), (0, 3)],
        "another before it": [(0, 2), (0, 3), (1, 1), (1, 3)],
        "none": [(row, column) for row in range(2) for column in range(4)],
    }
