"""How commands end that cannot go on."""

import pytest
import torch
import typer

from service.commands.terminal import one_line


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("std::bad_alloc"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB.\nGPU 0 has a total capacity of ..."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    ],
    ids=["plain", "kernel", "gpu", "cpu"],
)
def test_no_room_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    """It says what helps."""
    with pytest.raises(typer.Exit) as ended, one_line():
        raise error
    assert ended.value.exit_code == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("aft: there is not enough memory")
    assert said.endswith(": ask for less\n")


def test_what_is_wrong_with_the_input_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """In its own words."""
    with pytest.raises(typer.Exit), one_line():
        raise ValueError("sizes are at least 1")
    assert capsys.readouterr().err == "aft: sizes are at least 1\n"


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), KeyError("x"), AssertionError()])
def test_a_fault_of_ours_is_not_hidden(error: Exception) -> None:
    """A traceback says where."""
    with pytest.raises(type(error)), one_line():
        raise error
