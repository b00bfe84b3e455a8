"""``aft bench`` on tiny models: every figure is there, and what a model cannot do is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import checkpoints_for_tests as tiny
import pytest
from typer.testing import CliRunner

from model import bench, machine
from model.checkpoint import Checkpoint
from model.config import preset
from model.network import Network
from model.runtime import choice
from model.runtime.choice import open_runtime
from service.cli import app


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two repeats of a moment each."""
    monkeypatch.setattr(bench, "REPEATS", 2)
    monkeypatch.setattr(bench, "SECONDS", 0.005)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of each kind, and one that ends."""
    folder = tmp_path_factory.mktemp("checkpoints")
    tiny.plain_bytes(folder / "text")
    tiny.ending(folder / "short")
    tiny.pictures(folder / "pics")
    return folder


def run(checkpoints: Path, *arguments: str) -> tuple[int, str]:
    """Exit status and output."""
    result = CliRunner().invoke(app, ["bench", *arguments, "--checkpoints", str(checkpoints)])
    return result.exit_code, result.output


@pytest.mark.parametrize("runtime", ["auto", "torch"])
@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        (["decode", "--model", "text", "--sizes", "1,3", "--depths", "0,600"], [(1, 0), (1, 600), (3, 0), (3, 600)]),
        (["prefill", "--model", "text", "--sizes", "5,600"], [(1, 5), (1, 600)]),
        (["images", "--model", "pics", "--sizes", "1,2"], [(1, 0), (2, 0)]),
    ],
)
def test_figures(checkpoints: Path, tmp_path: Path, runtime: str, arguments: list[str], rows: list[Any]) -> None:
    """Rates with their range; a limit where the kernel can measure one; the machine beside them."""
    path = tmp_path / "figures.json"
    status, said = run(checkpoints, *arguments, "--runtime", runtime, "--threads", "1", "--json", str(path))
    assert status == 0, said
    facts = json.loads(path.read_text())
    figures = facts["figures"]
    assert [(f["streams"], f["depth"]) for f in figures] == rows
    for figure in figures:
        assert 0 < figure["low"] <= figure["per_second"] <= figure["high"]
        assert (figure["limit"] is None) == (facts["machine"]["runtime"] == "torch")
    assert facts["machine"]["threads"] == 1
    assert facts["machine"]["cpu"]


PEER = """
class Slow:
    name, max_depth = "slow", 10
    def decode(self, streams, depth, steps):
        assert depth == 0 or streams == 1
        return 7.0
    def prefill(self, length):
        return 5.0
def open_peer(checkpoint, slots, threads):
    return Slow()
"""


def test_peers_beside(checkpoints: Path, tmp_path: Path) -> None:
    """By turns in one run, at the depths that they reach; one that is not installed is named."""
    folder, path = tmp_path / "peers", tmp_path / "figures.json"
    folder.mkdir()
    (folder / "slow.py").write_text(PEER)
    (folder / "absent.py").write_text("import no_such_package")
    common = ["--model", "text", "--peers", str(folder), "--json", str(path)]
    status, said = run(checkpoints, "decode", "--sizes", "1,3", "--depths", "0,9,600", *common)
    assert status == 0, said
    assert "not measured: absent: No module named 'no_such_package'" in said
    figures = [f for f in json.loads(path.read_text())["figures"] if f["who"] == "slow"]
    assert [(f["streams"], f["depth"], f["per_second"], f["limit"]) for f in figures] == [
        (1, 0, 7.0, None), (1, 9, 7.0, None), (3, 0, 7.0, None),
    ]  # fmt: skip
    status, said = run(checkpoints, "prefill", "--sizes", "5,600", *common)
    assert status == 0, said
    figures = json.loads(path.read_text())["figures"]
    assert [(f["who"], f["depth"]) for f in figures] == [("native", 5), ("slow", 5), ("native", 600)]


def test_random_weights(checkpoints: Path, tmp_path: Path) -> None:
    """A model of any shape that nobody has trained."""
    path = tmp_path / "figures.json"
    status, said = run(checkpoints, "decode", "--random", "1x32x4", "--sizes", "2", "--json", str(path))
    assert status == 0, said
    facts = json.loads(path.read_text())
    assert facts["model"] == "1x32x4"
    # one layer of 32 channels: window, den, num, peak and what the two shifts keep, 4 bytes each
    assert facts["machine"]["state_bytes"] == 32 * (4 + 3 + 1) * 4
    assert facts["machine"]["flops_per_token"] == 2 * (4 * 32**2 + 8 * 32**2 + 258 * 32) + 4 * 32 * 4


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["dance"], "not dance"),
        (["decode", "--random", "6x256"], "'6x256'"),
        (["decode", "--random", "1x33x4"], "33"),
        (["decode", "--peers", "nowhere"], "nowhere"),
        (["decode", "--runtime", "gpu"], "on gpu"),
        (["decode", "--model", "text", "--sizes", "0"], "at least 1"),
        (["decode", "--model", "text", "--sizes", "x"], "'x'"),
        (["images", "--model", "text"], "no images"),
        (["images", "--model", "pics", "--peers", "."], "--peers says nothing"),
        (["images", "--model", "pics", "--depths", "0"], "--depths says nothing"),
        (["prefill", "--model", "text", "--depths", "10"], "--depths says nothing"),
        (["decode", "--model", "pics"], "no decode"),
        (["decode", "--model", "short", "--depths", "64"], "ends at 64"),
        (["decode", "--model", "absent"], "absent"),
    ],
)
def test_refused(checkpoints: Path, arguments: list[str], word: str) -> None:
    """One line, status 1."""
    status, said = run(checkpoints, *arguments)
    assert status == 1
    assert said.startswith("aft: ")
    assert word in said


def test_matrix_parameters() -> None:
    """All that is multiplied: every parameter but norms, biases, decays and the table of the embedding."""
    for config in (preset("tiny", 50), preset("tiny", 50, bias="conv")):
        network = Network(config)
        matrices = [
            p for n, p in network.named_parameters() if p.ndim == 2 and ".bias." not in n and not n.startswith("embed")
        ]
        assert bench.matrix_parameters(config) == sum(p.numel() for p in matrices)


def test_the_limit_of_a_share() -> None:
    """A figure without a limit has no share."""
    assert bench.Figure("decode", "native", 1, 0, 5.0, 4.0, 6.0, 10.0, "reading").share == 0.5
    assert bench.Figure("decode", "native", 1, 0, 5.0, 4.0, 6.0, None, "").share is None


@pytest.mark.parametrize(
    ("content", "cores"), [("max 100000", 7), ("150000 100000", 2), ("1000 100000", 1), ("9000000 100000", 7), ("", 7)]
)
def test_available_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, cores: int) -> None:
    """The affinity, and a cgroup's share rounded up."""
    monkeypatch.setattr(choice.os, "sched_getaffinity", lambda _: set(range(7)))
    monkeypatch.setattr(choice, "CPU_MAX", tmp_path / "cpu.max")
    assert choice.available_cores() == 7
    (tmp_path / "cpu.max").write_text(content)
    assert choice.available_cores() == cores


def test_which_runtime(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The native one where it is built; else torch; else what to install."""
    assert choice.choose("torch") == ("torch", "as set")
    monkeypatch.setattr(choice, "native_is_built", lambda: True)
    assert choice.choose() == ("native", "it is built")
    assert choice.choose("native") == ("native", "as set")
    monkeypatch.setattr(choice, "native_is_built", lambda: False)
    assert choice.choose() == ("torch", "the native runtime is not built")
    assert open_runtime(Checkpoint(checkpoints / "text"), 1).name == "torch"
    with pytest.raises(choice.RuntimeMissingError, match="compiler"):
        choice.choose("native")
    monkeypatch.setattr(choice.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(choice.RuntimeMissingError, match=r"pip install '\.\[torch\]'"):
        choice.choose()


def test_this_build_has_the_native_runtime() -> None:
    """Where tests run there is a compiler: torch in silence would be a defect."""
    assert choice.choose()[0] == "native"


def test_facts_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an image: measurements are not lost for a missing program."""
    monkeypatch.setenv("PATH", "")
    known = machine.facts()
    assert known["commit"] == ""
    assert known["cpu"]
