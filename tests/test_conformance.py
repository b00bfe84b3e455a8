"""The shipped models' logits, to the bit, on every instruction set that this machine has."""

from __future__ import annotations

import json
from pathlib import Path

import checkpoints_for_tests as tiny
import native_for_tests  # noqa: F401 (skips where the kernel is not built)
import pytest
from typer.testing import CliRunner

from model import conformance
from model.checkpoint import Checkpoint, CheckpointError, find
from model.runtime.choice import open_runtime
from model.runtime.native._kernel import targets
from model.runtime.native.runtime import NativeRuntime
from service.cli import app

SHIPPED = find(Path(__file__).parents[1] / "checkpoints")


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
@pytest.mark.parametrize("target", targets())
def test_shipped_models(folder: Path, target: str) -> None:
    """The hashes beside the model; the best instruction set goes a hundred times as deep."""
    checkpoint = Checkpoint(folder)
    runtime = NativeRuntime(checkpoint, 1, threads=1, target=target)
    stored = json.loads((folder / conformance.FILE).read_text())
    assert stored["fingerprint"] == runtime.fingerprint, "aft conformance NAME --write, if other bits are meant"
    found = conformance.digests(checkpoint, runtime, 100_000 if target == targets()[0] else 1_000)
    assert found.items() <= stored["logits_sha256"].items()
    if checkpoint.match is not None:
        network = NativeRuntime(checkpoint, 1, threads=1, target=target, match=False)
        assert conformance.digests(checkpoint, network, 1_000).items() <= stored["network_sha256"].items()


def test_the_command(tmp_path: Path) -> None:
    """Writes, compares, and says what differs."""

    def run(*arguments: str) -> tuple[int, str]:
        command = ["conformance", "m", "--checkpoints", str(tmp_path), "--deepest", "1000", *arguments]
        result = CliRunner().invoke(app, command)
        return result.exit_code, result.output

    folder = tiny.characters(tmp_path / "m")
    assert run() == (1, "aft: m has no conformance.json: aft conformance m --write\n")
    assert run("--write")[0] == 0
    status, said = run()
    assert status == 0
    assert "after 1000 positions are the stored ones" in said
    kept = json.loads((folder / conformance.FILE).read_text())
    kept["logits_sha256"]["1000"] = "0" * 64
    (folder / conformance.FILE).write_text(json.dumps(kept))
    status, said = run()
    assert status == 1
    assert "after 1000 positions are not those of the stored hashes" in said
    tiny.characters(folder, seed=1)
    status, said = run()
    assert status == 1
    assert "of other weights" in said
    for damaged in ("[1]", "{", '{"fingerprint": "x"}'):
        (folder / conformance.FILE).write_text(damaged)
        status, said = run()
        assert status == 1
        assert "aft: m: conformance.json cannot be read: " in said


def test_a_model_with_a_match_model_needs_both_hashes(tmp_path: Path) -> None:
    """The file of one without says so."""
    checkpoint = Checkpoint(tiny.with_match(tiny.characters(tmp_path / "m")))
    runtime = NativeRuntime(checkpoint, 1)
    stored = {"fingerprint": runtime.fingerprint, "logits_sha256": {}}
    (checkpoint.folder / conformance.FILE).write_text(json.dumps(stored))
    with pytest.raises(CheckpointError, match="lacks network_sha256"):
        conformance.compare(checkpoint, runtime, runtime, deepest=1000)


def test_an_instruction_set_that_computes_other_bits_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The next one is; without one that agrees there is no runtime."""
    checkpoint = Checkpoint(tiny.characters(tmp_path / "m"))
    runtime = NativeRuntime(checkpoint, 1)
    conformance.write(checkpoint.folder, runtime, runtime)
    best, *others = targets()
    assert open_runtime(checkpoint, 1, wanted="native").isa == best
    computed = conformance.digests

    def wrong(checkpoint: Checkpoint, runtime: NativeRuntime, deepest: int) -> dict[str, str]:
        return {"1000": ""} if runtime.isa in broken else computed(checkpoint, runtime, deepest)

    monkeypatch.setattr(conformance, "digests", wrong)
    broken = {best}
    if others:
        assert open_runtime(checkpoint, 1, wanted="native").isa == others[0]
        assert f"m: {best} computes other bits" in caplog.text
    broken = set(targets())
    with pytest.raises(CheckpointError, match="computes other bits"):
        open_runtime(checkpoint, 1, wanted="native")
    stored = json.loads((checkpoint.folder / conformance.FILE).read_text())
    (checkpoint.folder / conformance.FILE).write_text(json.dumps(stored | {"fingerprint": "another model's"}))
    assert open_runtime(checkpoint, 1, wanted="native").isa == best
    (checkpoint.folder / conformance.FILE).write_text("{")
    with pytest.raises(CheckpointError, match=conformance.FILE):
        open_runtime(checkpoint, 1, wanted="native")
