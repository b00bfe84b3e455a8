"""From folders to served models, and what is said where that cannot be."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import checkpoints_for_tests
import pytest
from live import Process
from prometheus_client import CollectorRegistry

from model.checkpoint import CheckpointError
from service.loading import folders, load_models
from service.metrics import Metrics
from service.settings import Settings


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """One model."""
    checkpoints_for_tests.characters(tmp_path / "tiny")
    return tmp_path


def damage(folder: Path, what: str) -> str:
    """Break a checkpoint in one way; the word that the message must have."""
    config = json.loads((folder / "config.json").read_text())
    if what == "weights":
        raw = bytearray((folder / "model.safetensors").read_bytes())
        raw[-1] ^= 1
        (folder / "model.safetensors").write_bytes(raw)
        return "model.safetensors"
    if what == "missing":
        (folder / "model.safetensors").unlink()
        return "model.safetensors"
    if what == "shape":
        config["model"]["dim"] *= 2
    if what == "format":
        config["format"] = 99
    (folder / "config.json").write_text("{" if what == "json" else json.dumps(config))
    return {"shape": "shape", "format": "format", "json": "config.json"}[what]


def test_models_are_served_by_their_folders_names(checkpoints: Path) -> None:
    """All, or those that are named, in that order; slots and times as set."""
    checkpoints_for_tests.plain_bytes(checkpoints / "another")
    (checkpoints / "no-model").mkdir()
    registry = CollectorRegistry()
    served = load_models(Settings(checkpoints=checkpoints, slots=3, threads=1), Metrics(registry))
    assert [model.name for model in served] == ["another", "tiny"]
    assert [model.runtime.num_slots for model in served] == [3, 3]
    assert [model.runtime.vocab_size for model in served] == [model.codec.vocab_size for model in served]
    for model in served:
        assert model.created == int((checkpoints / model.name / "config.json").stat().st_mtime)
        assert (registry.get_sample_value("aft_startup_seconds", {"model": model.name, "phase": "load"}) or 0) > 0
    named = Settings(checkpoints=checkpoints, models=["tiny"])
    assert folders(named) == [checkpoints / "tiny"]
    both = Settings(checkpoints=checkpoints, models=["tiny", "another"])
    assert [folder.name for folder in folders(both)] == ["tiny", "another"]


def test_no_checkpoints(tmp_path: Path) -> None:
    """An empty folder, or none: the message names it."""
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(CheckpointError, match="holds no checkpoint") as caught:
            folders(Settings(checkpoints=folder))
        assert str(folder) in str(caught.value)


def test_an_unknown_name(checkpoints: Path) -> None:
    """It, and what there is."""
    with pytest.raises(CheckpointError, match=r"'huge' is not in .*: tiny"):
        folders(Settings(checkpoints=checkpoints, models=["tiny", "huge"]))


@pytest.mark.parametrize("what", ["weights", "missing", "shape", "format", "json"])
def test_a_damaged_folder(checkpoints: Path, what: str) -> None:
    """The folder and the file."""
    word = damage(checkpoints / "tiny", what)
    with pytest.raises(CheckpointError) as caught:
        load_models(Settings(checkpoints=checkpoints), Metrics(CollectorRegistry()))
    assert "tiny" in str(caught.value)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_serving_a_damaged_folder_ends_with_1(checkpoints: Path) -> None:
    """One line, no traceback."""
    damage(checkpoints / "tiny", "weights")
    process = Process(checkpoints, ready=False)
    try:
        status, stderr = process.wait(60)
    finally:
        process.end()
    assert status == 1
    # loading and listening run side by side: either line may come first
    (said,) = (line for line in stderr.splitlines() if "listening on" not in line)
    assert "tiny" in said
    assert "model.safetensors is damaged" in said


def test_a_port_that_is_taken(checkpoints: Path) -> None:
    """The process ends, and says why without a traceback."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = Process(checkpoints, "--port", str(taken.getsockname()[1]), ready=False)
        try:
            status, stderr = process.wait(60)
        finally:
            process.end()
    assert status != 0
    assert "Traceback" not in stderr
    assert "in use" in stderr
