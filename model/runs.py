"""From a recipe to a checkpoint: corpus -> split -> tokenizer -> windows -> trainer -> folder; and its calibration."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from model import calibration, checkpoint, curve, data, images, pixels, weights
from model.batches import (
    Material,
    Mixture,
    Pictures,
    Source,
    Windows,
    counted_by,
    encode,
    examples,
    prompts,
    side_by_side,
)
from model.checkpoint import Checkpoint, Codec
from model.config import ModelConfig, Raster, preset
from model.evaluate import window_logits
from model.generate import draw_together
from model.machine import device_name
from model.match import Ids, Match
from model.network import Network
from model.pixels import PixelCodec
from model.recipe import Recipe, RecipeError, first_of, fit
from model.runtime.choice import native_is_built, open_runtime
from model.start import begin_with
from model.tokenizer import Bytes, Tokenizer, train_characters
from model.train import STATE, Report, Trainer

SAMPLE_ROWS, SAMPLE_COLUMNS = 4, 16
DETAIL = 4  # times the size of a picture: what it is drawn again from
SAVE_SECONDS = 60  # what a run of so many minutes loses when it is interrupted, or ten steps
# Tokens or sub-pixels that a calibration reads: fewer say nothing of what a match is worth, the logits of more would
# not fit into memory.
LEAST_HELD_OUT, MOST_HELD_OUT = 200, 300_000


def choose_tokenizer(corpus: str | bytes, wanted: str) -> Tokenizer:
    """Characters for text that is UTF-8, bytes for what is not, or as told. ValueError where that cannot be."""
    if wanted == "bytes" or (wanted == "auto" and isinstance(corpus, bytes)):
        return Bytes()
    if isinstance(corpus, bytes):
        raise ValueError("the corpus is not UTF-8, so it has no characters: use the bytes tokenizer")
    return train_characters(corpus)


def _text(recipe: Recipe) -> tuple[Tokenizer, Material]:
    corpus = data.load(recipe.corpus)
    tokenizer = choose_tokenizer(corpus, recipe.tokenizer)
    corpus = counted_by(tokenizer, corpus)
    parts = data.split(corpus)
    if len(parts.validation) < 2:
        raise ValueError(f"the corpus has {len(corpus)} characters: too few to set 5 % aside")
    ids = encode(parts.train, tokenizer)
    own = Windows(ids, recipe.length, tokenizer, recipe.begin_share, recipe.seed, recipe.carry)
    source: Source = own
    validation = side_by_side(encode(parts.validation, tokenizer), recipe.length, recipe.eval_chars)
    digest = hashlib.sha256(corpus if isinstance(corpus, bytes) else corpus.encode())
    if recipe.extra:
        extra = data.load(recipe.extra)
        digest.update(extra if isinstance(extra, bytes) else extra.encode())
        # it has no beginnings that a stream would have
        beside = Windows(encode(extra, tokenizer), recipe.length, tokenizer, 0.0, recipe.seed, recipe.carry)
        source = Mixture(own, beside, recipe.extra_share, round(recipe.extra_until * recipe.steps))
    return tokenizer, Material(source, validation, digest.hexdigest())


def _images(recipe: Recipe) -> tuple[PixelCodec, Material]:
    pictures = images.load(recipe.corpus, recipe.size)
    raster = Raster(height=recipe.size, width=recipe.size, name_length=recipe.name_length)
    codec = PixelCodec(raster, pictures.labels, pictures.styles)
    shares = recipe.any_share, recipe.nameless_share
    known, held_out = pictures.subset(0), pictures.subset(1)
    if not (known.names and held_out.names):
        raise ValueError(
            f"{recipe.corpus} has {len(pictures.names)} pictures: too few to set 5 % aside and learn the rest"
        )
    detailed = None
    if recipe.redrawn_share:
        detailed = images.load(recipe.corpus, DETAIL * recipe.size).images[pictures.part == 0]
    source = Pictures(known, codec, recipe.brightness, *shares, recipe.seed, detailed, recipe.redrawn_share)
    validation = examples(held_out.images, prompts(held_out, codec))
    return codec, Material(source, validation, pictures.sha256)


def make_trainer(
    recipe: Recipe, folder: Path, build: Callable[[ModelConfig], Network] = Network
) -> tuple[Trainer, Codec]:
    """Everything that a run needs, resumed where the folder holds its state.

    ``build`` makes the network: another than ours, to compare with.
    """
    codec: Codec
    shape: dict[str, Any] = {}
    if recipe.kind == "text":
        codec, material = _text(recipe)
    else:
        codec, material = _images(recipe)
        shape = {"raster": codec.raster.model_dump(), "max_model_len": codec.raster.positions}
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if torch.cuda.device_count() >= world else "gloo")
    torch.manual_seed(recipe.seed)
    try:
        config = preset(recipe.preset, codec.vocab_size, **{**recipe.model, **shape})
    except ValidationError as error:
        raise RecipeError(f"{recipe.name}: model: {first_of(error)}") from error
    network = build(config)
    length, longest = recipe.length * recipe.carry, network.config.max_model_len
    if recipe.kind == "image":
        length = codec.raster.positions if isinstance(codec, PixelCodec) else length
    if longest is not None and length > longest:
        raise ValueError(f"length {length} is longer than the model, which ends at {longest}")
    if recipe.start and not (folder / STATE).exists():
        begin_with(network, codec, Path(recipe.start))
    trainer = Trainer(network, material, recipe, folder)
    trainer.resume()
    return trainer, codec


def train(
    recipe: Recipe,
    folder: Path,
    target: Path,
    report: Report,
    after_step: Callable[[Trainer, float], None] | None = None,
) -> None:
    """Run a recipe to its end in ``folder`` and write the checkpoint to ``target``."""
    trainer, codec = make_trainer(recipe, folder)

    def reported(row: curve.Row) -> None:
        report(row)
        if isinstance(codec, PixelCodec) and not trainer.rank:
            draw_samples(trainer, codec)

    trainer.run(reported, after_step)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if trainer.rank:
        return
    last = trainer.rows[-1]
    facts: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json"),
        "minutes": round(trainer.seconds / 60, 1),
        "chars": int(last["chars"]),
        "train_bpc": round(last["train_bpc"], 4),
        "validation_bpc": round(last["validation_bpc"], 4),
        "device": device_name(str(trainer.device)),
        "threads": torch.get_num_threads(),
    }
    weights.save(trainer.result, codec, target, facts)
    curve.write_csv(trainer.rows, target / "curve.csv")
    unit = "character" if recipe.kind == "text" else "sub-pixel"
    curve.write_png(trainer.rows, target / "curve.png", recipe.name, unit)


def draw_samples(trainer: Trainer, codec: PixelCodec) -> None:
    """What an image model draws by now, into the run's folder: samples-STEP.png, a label a column, the first ones."""
    latest = trainer.folder / "latest"
    weights.save(trainer.result, codec, latest, {"steps": trainer.steps_done})
    labels = (codec.labels or [""])[:SAMPLE_COLUMNS]
    wanted = [codec.prompt(label) for _ in range(SAMPLE_ROWS) for label in labels]
    threads = torch.get_num_threads()
    # beside a GPU the network draws there, unless the native runtime is built
    where = "cpu" if native_is_built() else str(trainer.device)
    runtime = open_runtime(Checkpoint(latest), len(wanted), threads=1, device=where)
    sheet = pixels.sheet(draw_together(runtime, codec, wanted), columns=len(labels), scale=3)
    torch.set_num_threads(threads)  # a runtime of torch has set its own; another number rounds sums otherwise
    (trainer.folder / f"samples-{trainer.steps_done}.png").write_bytes(pixels.to_png(sheet))


def fit_minutes(name: str, corpus: str, minutes: float, seed: int = 0) -> Recipe:
    """A recipe for one's own text that ends after about so many minutes on this machine, by timing a few steps."""
    recipe = fit(name, corpus, len(data.load(corpus)), seed=seed)
    trainer, _ = make_trainer(recipe, Path("/nonexistent"))
    trainer.step()
    began = time.perf_counter()
    for _ in range(3):
        trainer.step()
    seconds = (time.perf_counter() - began) / 3
    # an eighth of the time goes to evaluations, saving and the start
    budget = int(minutes * 60 * 0.875 / seconds)
    every = max(10, budget // 10)
    steps = max(20, budget - budget % every)
    kept = min(every, max(10, int(SAVE_SECONDS / seconds)))
    changes = {"steps": steps, "warmup_steps": min(100, steps // 10), "eval_every": every, "save_every": kept}
    return recipe.model_copy(update=changes)


class Calibrated(NamedTuple):
    """What was found on the validation split."""

    factor: float  # of the logits
    match: Match | None
    before: float  # bits a token, or a sub-pixel, by the network as it was
    bits: float  # by what is stored now


def calibrate(folder: Path, corpus: str | None, match: Match | None = None) -> Calibrated:
    """Fit to the validation split what training cannot, and store it: a factor of the logits and, for text, masses.

    ``match`` is the shape of the match model, the usual one where none is given. ValueError for a model without a
    known corpus, or of images with a shape, CheckpointError where the folder is none. An earlier calibration is not
    built upon, but for its factor, which stays in the weights.
    """
    source = Checkpoint(folder)
    name = source.corpus(corpus)
    image = isinstance(source.codec, PixelCodec)
    if image and match is not None:
        raise ValueError(f"{source.name} is a model of images: it has no match model")
    match = match or Match.unfitted()
    logits, ids, start = _held_out_pictures(source, name) if image else _held_out_text(source, name, match.window)
    before = float(calibration.target_bits(logits, ids[start:].astype(np.int64), 1.0).mean())
    found = calibration.fit(logits, ids, start, None if image else match)
    earlier = float(source.config.training.get("calibration", {}).get("factor", 1.0))
    facts = {"corpus": name, "split": "validation", "factor": round(earlier * found.factor, 4)}
    checkpoint.change(folder, weights.scaled(source, found.factor), found.match, {"calibration": facts})
    return Calibrated(found.factor, found.match, before, found.bits)


Logits = NDArray[np.float32]


def _held_out_text(source: Checkpoint, name: str, window: int) -> tuple[Logits, Ids, int]:
    """Logits (n, V) of the validation split; the split behind what stands before it; where it begins."""
    parts = data.split(counted_by(source.tokenizer, data.load(name)))
    train, held_out = encode(parts.train, source.tokenizer), encode(parts.validation, source.tokenizer)[:MOST_HELD_OUT]
    if len(held_out) < LEAST_HELD_OUT:
        raise ValueError(f"the validation split has {len(held_out)} tokens, to calibrate takes {LEAST_HELD_OUT}")
    length = source.length
    before = train[-max(window, length) :]
    ids: Ids = np.concatenate([before, held_out])
    network = weights.load(source).freeze()
    return window_logits(network, ids, len(before), length, max(1, length // 2)), ids, len(before)


def _held_out_pictures(source: Checkpoint, name: str) -> tuple[Logits, Ids, int]:
    """Logits (n, V) of the sub-pixels of the validation split's pictures, and these, one after the other."""
    codec = source.pixels
    held_out = images.load(name, codec.raster.width).subset(1)
    if not len(held_out.images):
        raise ValueError(f"{name} has no picture to validate on")
    # of all kinds: they stand style by style, or folder by folder
    number = len(held_out.images)
    kept = np.linspace(0, number - 1, min(number, max(1, MOST_HELD_OUT // codec.raster.size))).round().astype(int)
    inputs, targets = examples(held_out.images[kept], prompts(held_out, codec)[kept])
    network = weights.load(source).freeze()
    with torch.inference_mode():
        logits = torch.cat([network(part)[0][:, -codec.raster.size :].flatten(0, 1) for part in inputs.split(8)])
    return logits.float().numpy(), targets[:, -codec.raster.size :].flatten().numpy().astype(np.int32), 0
