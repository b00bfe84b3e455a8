"""``aft``: every command. What a command needs is imported as it runs."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from service.commands.calibration import average, calibrate
from service.commands.terminal import check_writable, ended_by_sigterm, fail, one_line, require
from service.load.cli import serve as bench_serve

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
Checkpoints = Annotated[
    Path, typer.Option("--checkpoints", envvar="AFT_CHECKPOINTS", help="Folder of checkpoints, one folder a model.")
]


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0: any free one.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="A model to serve; may be given again. Default: all.")] = None,
    checkpoints: Annotated[Path | None, typer.Option(help="Folder of checkpoints.")] = None,
    runtime: Annotated[str | None, typer.Option(help="What advances the models: auto, native, torch.")] = None,
    device: Annotated[str | None, typer.Option(help="What the torch runtime computes on: cpu, cuda.")] = None,
    slots: Annotated[int | None, typer.Option(help="Streams that a model advances at once.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the runtime; 0: a good number.")] = None,
) -> None:
    """Serve every checkpoint over HTTP. All other settings: environment AFT_*, see docs/service.md."""
    with ended_by_sigterm():
        from service.server import serve as run
        from service.settings import Settings, misspelt

        flags: dict[str, Any] = {
            "host": host, "port": port, "models": model, "checkpoints": checkpoints,
            "runtime": runtime, "device": device, "slots": slots, "threads": threads,
        }  # fmt: skip
        try:
            settings = Settings(**{name: value for name, value in flags.items() if value is not None})
        except ValidationError as error:
            first = error.errors()[0]
            raise fail(f"setting {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        except ValueError as error:  # a list in the environment that is no JSON
            raise fail(f"{error}; lists are JSON, such as '[\"shakespeare\"]'") from None
        if wrong := misspelt(os.environ, settings):
            raise fail(wrong)
        raise typer.Exit(run(settings))


@app.command()
def key(name: Annotated[str, typer.Argument(help="Who gets it: it stands in the log, and has its own rate.")]) -> None:
    """Make an API key: the key for its owner, then its line for AFT_API_KEYS_FILE. The key is stored nowhere."""
    from service.access import key_line, new_key
    from service.errors import SettingError

    made = new_key()
    try:
        line = key_line(name, made)
    except SettingError as error:
        raise fail(str(error)) from None
    typer.echo(f"{made}\n{line}")


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What the text begins with.")] = "",
    model: Annotated[str | None, typer.Option(help="Name of the checkpoint; shakespeare, for an image emoji.")] = None,
    image: Annotated[Path | None, typer.Option(help="Draw an image with an image model, into this PNG file.")] = None,
    label: Annotated[str, typer.Option("--class", help="What the image shows; empty: anything.")] = "",
    style: Annotated[str, typer.Option(help="The style of the image; empty: any.")] = "",
    name: Annotated[str, typer.Option(help="What the image shows, in words, where the model knows names.")] = "",
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Characters to write; 400.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0.8, for an image 1.")] = None,
    guidance: Annotated[
        float, typer.Option(min=0, max=20, help="How strongly the image's class and name count; 1 is off.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(help="The same seed writes the same text.")] = None,
    checkpoints: Checkpoints = Path("checkpoints"),
) -> None:
    """Write text to the terminal, or draw an image, in process."""
    import secrets

    from model.generate import generate as stream

    with one_line():
        chosen = secrets.randbits(31) if seed is None else seed
        if image is not None:
            from service.commands.drawing import run

            if max_tokens is not None or (label and prompt):
                raise fail("an image has one class, --class or the prompt, and as many sub-pixels as the model draws")
            check_writable(image)
            how = {"temperature": 1.0 if temperature is None else temperature, "guidance": guidance, "seed": chosen}
            run(checkpoints / (model or "emoji"), image, label or prompt, style, name, **how)
            return
        if label or style or name or guidance != 1:
            raise fail("--class, --style, --name and --guidance say how an image is drawn; --image FILE draws one")
        folder, warmth = checkpoints / (model or "shakespeare"), 0.8 if temperature is None else temperature
        for part in stream(folder, prompt, max_tokens or 400, temperature=warmth, seed=chosen):
            sys.stdout.write(part)
            sys.stdout.flush()
        sys.stdout.write("\n")


@app.command()
def train(
    source: Annotated[Path, typer.Argument(help="A recipe (.toml), or a text file or folder of one's own.")],
    name: Annotated[str | None, typer.Option(help="Name of the model (own text).")] = None,
    minutes: Annotated[float | None, typer.Option(min=0.05, help="About how long to train (own text); 10.")] = None,
    threads: Annotated[int, typer.Option(help="Threads of torch; 0: its own choice.")] = 0,
    seed: Annotated[int | None, typer.Option(help="Seed of weights and order of the text (own text); 0.")] = None,
    tensorboard: Annotated[Path | None, typer.Option(help="Write the curve for TensorBoard into this folder.")] = None,
    runs: Annotated[Path, typer.Option(help="Where a run keeps its resumable state.")] = Path("runs"),
    checkpoints: Checkpoints = Path("checkpoints"),
) -> None:
    """Train a model; interrupted, the same command goes on where it stopped."""
    require("training", "torch", "matplotlib")
    import torch

    from model.recipe import read
    from service.commands.training import own_recipe, run

    if threads:
        torch.set_num_threads(threads)
    with one_line():
        if source.suffix == ".toml":
            if (name, minutes, seed) != (None, None, None):
                raise fail("a recipe has its own name, steps and seed: --name, --minutes and --seed are for a text")
            recipe = read(source)
        elif name is None:
            raise fail("a text of one's own needs a name for the model: --name NAME")
        else:
            recipe = own_recipe(name, source, 10 if minutes is None else minutes, seed or 0, runs)
        run(recipe, runs / recipe.name, checkpoints / recipe.name, tensorboard, calibrated=name is not None)


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="Name of the checkpoint.")],
    corpus: Annotated[str | None, typer.Option(help="Corpus; default: the one that it was trained on.")] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Characters that an overlapping window scores; half a window.")
    ] = None,
    depths: Annotated[
        str | None, typer.Option(help="Characters of preceding text, by commas; 100,1000,10000,100000.")
    ] = None,
    max_chars: Annotated[int | None, typer.Option(help="Score only the first so many of the test split.")] = None,
    match: Annotated[bool, typer.Option(help="With the model's match model, where it has one.")] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw bits per character by position here.")] = None,
    checkpoints: Checkpoints = Path("checkpoints"),
) -> None:
    """Bits per character of the test split: overlapping windows, and by position through the recurrence."""
    require("an evaluation", "torch", *(["matplotlib"] if plot else []))
    from service.commands.evaluation import run

    check_writable(json_file, plot)
    with one_line():
        wanted = None if depths is None else [int(depth) for depth in depths.split(",") if depth]
        run(checkpoints / model, corpus, stride, wanted, max_chars, json_file, plot, match=match)


class BenchGroup(TyperGroup):
    """What can be measured: an unknown thing is one line, as elsewhere."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a name."""
        if cmd_name not in self.commands:
            raise fail(f"bench measures {', '.join(self.commands)}, not {cmd_name}")
        return super().get_command(ctx, cmd_name)


app.command()(calibrate)
app.command()(average)


bench_app = typer.Typer(cls=BenchGroup, no_args_is_help=True, help="Measure a runtime, or a service over HTTP.")
app.add_typer(bench_app, name="bench")
bench_app.command("serve")(bench_serve)


@bench_app.command("decode")
@bench_app.command("prefill")
@bench_app.command("images")
def bench(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="Name of the checkpoint.")] = "shakespeare",
    random: Annotated[str | None, typer.Option(help="Random weights instead: LAYERSxCHANNELSxWINDOW.")] = None,
    sizes: Annotated[
        str | None, typer.Option(help="Streams side by side, or lengths of a prompt, by commas; 1,4,16,64,256.")
    ] = None,
    depths: Annotated[str | None, typer.Option(help="Positions consumed before, by commas (decode); 0.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads of the runtime; 0: a good number.")] = 0,
    runtime: Annotated[str, typer.Option(help="auto, native or torch.")] = "auto",
    device: Annotated[str, typer.Option(help="What the torch runtime computes on: cpu, cuda.")] = "cpu",
    peers: Annotated[Path | None, typer.Option(help="Folder of peers to measure beside: benchmarks/peers.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    checkpoints: Checkpoints = Path("checkpoints"),
) -> None:
    """Measure a runtime in process, beside what this machine could reach at most."""
    from service.commands.benching import Wish, random_model, run

    if random is not None:
        require("a model of random weights", "torch")
    check_writable(json_file)
    what = context.info_name
    usual = {"decode": "1,4,16,64,256", "prefill": "64,512,4096", "images": "1,16,64"}
    with one_line():
        if what not in usual or runtime not in ("auto", "native", "torch"):
            raise ValueError(f"a runtime is auto, native or torch; nothing is measured on {runtime}")
        wanted = [int(size) for size in (sizes or usual[what]).split(",")]
        if what != "decode" and depths is not None:
            raise ValueError(f"--depths says nothing to {what}: it begins at the beginning")
        if what == "images" and peers is not None:
            raise ValueError("--peers says nothing to images: peers are measured on text")
        after = [int(depth) for depth in (depths or "0").split(",")]
        if min(wanted) < 1 or min(after) < 0:
            raise ValueError("sizes are at least 1 and depths at least 0")
        if peers is not None and not peers.is_dir():
            raise ValueError(f"{peers} is no folder of peers")
        wish = Wish(what, wanted, after, threads, runtime, device, peers, json_file)  # type: ignore[arg-type]
        with nullcontext(checkpoints / model) if random is None else random_model(random) as folder:
            run(folder, wish)


@app.command()
def conformance(
    model: Annotated[str, typer.Argument(help="Name of the checkpoint.")],
    write: Annotated[bool, typer.Option("--write", help="Store the hashes beside the model.")] = False,
    deepest: Annotated[int, typer.Option(min=1000, help="Compare hashes up to this position.")] = 100_000,
    checkpoints: Checkpoints = Path("checkpoints"),
) -> None:
    """Compare the native runtime's logits on this processor with the hashes stored beside a model."""
    from model import conformance as stored
    from model.checkpoint import Checkpoint
    from model.runtime.choice import open_runtime

    folder = checkpoints / model
    with one_line():
        checkpoint = Checkpoint(folder)
        runtime = open_runtime(checkpoint, 1, wanted="native", verify=False)
        network = open_runtime(checkpoint, 1, wanted="native", match=False, verify=False)
        if not write and not (folder / stored.FILE).exists():
            raise fail(f"{model} has no {stored.FILE}: aft conformance {model} --write")
        if write:
            stored.write(folder, runtime, network)
        found, wrong = stored.compare(checkpoint, runtime, network, deepest=deepest)
    if wrong:
        raise fail(f"{runtime.isa}: the logits after {', '.join(wrong)} positions are not those of the stored hashes")
    typer.echo(f"{runtime.isa}: the logits after {', '.join(found)} positions are the stored ones")


data_app = typer.Typer(no_args_is_help=True, help="Look at data.")
app.add_typer(data_app, name="data")


@data_app.command()
def show(
    source: Annotated[str, typer.Argument(help="An image set: emoji, emoji-styles, cifar10, or a folder.")],
    out: Annotated[Path, typer.Argument(help="PNG file of a contact sheet.")],
    size: Annotated[int, typer.Option(min=1, help="Pixels of a picture's side.")] = 16,
    count: Annotated[int, typer.Option(min=1, help="Pictures on the sheet.")] = 96,
    part: Annotated[int, typer.Option(min=0, max=2, help="0 training, 1 validation, 2 test.")] = 2,
) -> None:
    """Draw a contact sheet of an image set."""
    from model import images, pixels

    check_writable(out)
    with one_line():
        pictures = images.load(source, size).subset(part)
        if not pictures.names:
            raise fail(f"this part of {source} has no pictures")
        out.write_bytes(pixels.to_png(pixels.sheet(list(pictures.images[:count]), columns=24, scale=2)))
    typer.echo(
        f"{min(count, len(pictures.names))} of {len(pictures.names)} pictures; labels: {', '.join(pictures.labels)}"
    )


def main() -> None:
    """The ``aft`` script."""
    app()
