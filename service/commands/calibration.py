"""``aft calibrate`` and ``aft average``: what can be done to a model after its training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.commands.terminal import fail, one_line, require


def calibrate(
    model: Annotated[str, typer.Argument(help="Name of the checkpoint.")],
    corpus: Annotated[str | None, typer.Option(help="Corpus; default: the one that it was trained on.")] = None,
    window: Annotated[
        int | None, typer.Option(min=1, max=2**20, help="Tokens in which matches are looked for; 4096.")
    ] = None,
    shortest: Annotated[int | None, typer.Option(min=1, max=32, help="Tokens that must agree; 2.")] = None,
    longest: Annotated[int | None, typer.Option(min=1, max=64, help="Tokens from which matches are alike; 20.")] = None,
    most: Annotated[int | None, typer.Option(min=1, max=64, help="Matches that count, the newest first; 8.")] = None,
    checkpoints: Annotated[Path, typer.Option(envvar="AFT_CHECKPOINTS", help="Folder of model folders.")] = Path(
        "checkpoints"
    ),
) -> None:
    """Fit to the validation split how sure a model is and, for text, its match model; store both."""
    require("a calibration", "torch")
    from model.calibration import is_at_limit
    from model.match import Match
    from model.runs import calibrate as run

    given = {"window": window, "shortest": shortest, "longest": longest, "most": most}
    with one_line():
        shape = Match.unfitted(**{name: value for name, value in given.items() if value is not None})
        found = run(checkpoints / model, corpus, shape if set(given.values()) != {None} else None)
    typer.echo(f"validation split {found.before:.4f} -> {found.bits:.4f} bits; logits times {found.factor:.3f}")
    if is_at_limit(found.factor):
        typer.echo(f"a better factor may lie beyond: aft calibrate {model} once more goes on from here")
    if found.match is not None:
        masses = ", ".join(f"{mass:.2f}" for mass in found.match.masses)
        last = found.match.shortest + len(found.match.masses) - 1
        typer.echo(f"masses of matches of {found.match.shortest} to {last} tokens: {masses}")


def average(
    model: Annotated[str, typer.Argument(help="Name of a checkpoint.")],
    other: Annotated[str, typer.Argument(help="Name of one that went on from it.")],
    name: Annotated[str, typer.Option(help="Name of the result; neither of both.")],
    share: Annotated[float, typer.Option(min=0, max=1, help="How much of the other.")] = 0.5,
    checkpoints: Annotated[Path, typer.Option(envvar="AFT_CHECKPOINTS", help="Folder of model folders.")] = Path(
        "checkpoints"
    ),
) -> None:
    """Average the weights of two checkpoints, of which one went on from the other."""
    require("an average", "torch")
    from model import weights
    from model.checkpoint import Checkpoint

    if name in (model, other):
        raise fail(f"--name {name} would replace what is averaged")
    with one_line():
        both = Checkpoint(checkpoints / model), Checkpoint(checkpoints / other)
        facts = {**both[1].config.training, "average": {"of": [model, other], "share": share}}
        weights.save(weights.mean(*both, share), both[1].codec, checkpoints / name, facts)
    typer.echo(f"{checkpoints / name}: aft calibrate {name}")
