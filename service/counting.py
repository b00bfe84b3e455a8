"""``aft prior``: count a text model's corpus into an n-gram prior beside its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.terminal import fail, require


def prior(
    model: Annotated[str, typer.Argument(help="Name of the checkpoint.")],
    corpus: Annotated[str | None, typer.Option(help="Corpus; default: the one that it was trained on.")] = None,
    order: Annotated[int, typer.Option(min=1, max=8, help="Characters of the longest context.")] = 6,
    least: Annotated[int, typer.Option(min=1, help="Occurrences from which on a long context is kept.")] = 3,
    checkpoints: Annotated[Path, typer.Option(help="Folder of model folders.")] = Path("checkpoints"),
) -> None:
    """Count the training split, fit the gates on the validation split, count that, too; store it beside the weights."""
    from model.checkpoint import CheckpointError
    from model.fetch import DataError

    require("a prior", "torch")
    from model.runs import count_prior

    try:
        found = count_prior(checkpoints / model, corpus, order, least)
    except (ValueError, DataError, CheckpointError) as error:
        raise fail(str(error)) from None
    gates = ", ".join(f"{gate:.2f}" for gate in found.gates)
    typer.echo(
        f"{found.contexts:,} contexts, {found.bytes / 1e6:.1f} MB; gates by length: {gates}; validation split "
        f"{found.without:.4f} -> {found.bits:.4f} bits per token"
    )
