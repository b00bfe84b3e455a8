"""What a training run is: a table that a TOML file fills in, or that the size of a text and some minutes decide."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model.config import PRESETS, ModelConfig

PositiveInt = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


# fields that a run of the other kind would not read
TEXT_ONLY = ("tokenizer", "length", "begin_share", "eval_chars")
IMAGE_ONLY = ("size", "brightness", "redrawn_share", "any_share", "name_length", "nameless_share")


class RecipeError(ValueError):
    """A recipe that cannot be read; the message names the field."""


class Recipe(BaseModel):
    """One training run."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[str, Field(pattern=r"^[\w-][\w.-]{0,63}$")]  # the checkpoint's folder
    kind: Literal["text", "image"] = "text"
    corpus: str  # a name from model/corpora.py or model/images.py, a file or a folder
    extra: str = ""  # another corpus, of which windows are read beside the corpus's own; text only
    extra_share: Annotated[float, Field(ge=0, le=1)] = 0.5  # of a step's windows
    extra_until: Annotated[float, Field(ge=0, le=1)] = 0.7  # share of the steps; the last ones read the corpus alone
    tokenizer: Literal["auto", "characters", "bytes"] = "auto"  # auto: characters where the corpus is UTF-8
    start: str = ""  # folder of a checkpoint whose weights come first; model/start.py says what may come in addition
    preset: str = "shipped"
    model: dict[str, Any] = {}  # fields of ModelConfig that differ from the preset
    length: PositiveInt = 512  # T: positions of a training window
    carry: PositiveInt = 1  # windows that follow one another in the text, the states handed on; 1: none do
    size: PositiveInt = 16  # pixels of an image's side; an image is one window, whatever ``length`` is
    brightness: Annotated[int, Field(ge=0, le=255)] = 0  # images: a value of -b ... b added to all sub-pixels
    redrawn_share: Annotated[float, Field(ge=0, le=1)] = 0.0  # images: reduced anew, a little stretched or moved
    any_share: Annotated[float, Field(ge=0, le=1)] = 0.1  # images: of the labels, and of the styles, are left out
    name_length: Annotated[int, Field(ge=0)] = 0  # images: characters of a name that stands before the pixels
    nameless_share: Annotated[float, Field(ge=0, le=1)] = 0.3  # images: of the names are left out
    batch: PositiveInt = 16  # windows or images of a step, over all processes
    accumulate: PositiveInt = 1  # parts that a step's batch is computed in; a multiple of the number of processes
    steps: PositiveInt = 2500
    optimizer: Literal["muon", "adamw"] = "muon"  # muon: for the matrices of the blocks; AdamW takes the rest
    muon_rate: Rate = 0.02
    adamw_rate: Rate = 3e-3
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1  # matrices of the blocks only
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    final_rate: Annotated[float, Field(ge=0, le=1)] = 0.02  # of the peak, at the end of the cosine
    max_grad_norm: Rate = 1.0
    begin_share: Annotated[float, Field(ge=0, le=1)] = 0.05  # of the windows start with the begin symbol
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0  # decay a step of the weights' moving average; 0: none
    precision: Literal["auto", "bf16", "float32"] = "auto"  # of matrix products; auto: bf16 where hardware has it
    eval_every: PositiveInt = 250  # steps between evaluations on the validation split
    eval_chars: PositiveInt = 65_536  # characters of the validation split that an evaluation reads
    save_every: PositiveInt = 100  # steps between resumable states
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse what cannot be resumed or carried, and shapes that no model has."""
        if self.carry > 1 and self.kind == "image":
            raise ValueError("an image is one window: nothing is carried to the next")
        if self.extra and self.kind == "image":
            raise ValueError("extra is text: an image model reads one image set")
        if self.extra and self.extra_share and not round(self.extra_share * self.batch):
            raise ValueError(f"extra_share {self.extra_share} of a batch of {self.batch} is no window")
        other = TEXT_ONLY if self.kind == "image" else IMAGE_ONLY
        fields = type(self).model_fields
        if idle := sorted(name for name in other if getattr(self, name) != fields[name].default):
            raise ValueError(f"{idle[0]} says nothing to a model of kind {self.kind}")
        if self.preset not in PRESETS:
            raise ValueError(f"preset: {self.preset!r} is none; known: {', '.join(PRESETS)}")
        decided = {"vocab_size", "raster", *(["max_model_len"] if self.kind == "image" else [])}
        if wrong := set(self.model) - (set(ModelConfig.model_fields) - decided):
            what = "follows from the data" if min(wrong) in decided else "is no field of a model"
            raise ValueError(f"model: {min(wrong)} {what}")
        if self.save_every % self.carry:
            raise ValueError(
                f"save_every {self.save_every} is no multiple of carry {self.carry}: states are not saved, so a run "
                "resumes where none is carried"
            )
        return self

    def rate(self, step: int) -> float:
        """The share of the peak learning rate at a step: warm-up, cosine, the final rate."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = min(1.0, (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps))
        return self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * done))


def read(path: Path) -> Recipe:
    """A recipe from TOML. RecipeError names what is wrong."""
    try:
        fields = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path}: {error}") from error
    return make(str(path), fields)


def make(where: str, fields: dict[str, Any]) -> Recipe:
    """A recipe from its fields. RecipeError names the first that is wrong, in one line."""
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        raise RecipeError(f"{where}: {first_of(error)}") from error


def first_of(error: ValidationError) -> str:
    """The first thing that is wrong, in one line: the field, where it is one, and what is wrong with it."""
    first = error.errors()[0]
    return ": ".join([*([".".join(map(str, first["loc"]))] if first["loc"] else []), first["msg"]])


def fit(name: str, corpus: str, num_chars: int, **changes: Any) -> Recipe:
    """A recipe for a text of one's own; a small text gets a small model, or it would be learned by heart."""
    size: dict[str, Any]
    if num_chars < 300_000:
        size = {"dim": 96, "num_layers": 3, "num_heads": 4, "dropout": 0.2}
    elif num_chars < 3_000_000:
        size = {"dim": 192, "num_layers": 4, "num_heads": 8, "dropout": 0.1}
    else:
        size = {}
    length = 256 if num_chars < 3_000_000 else 512
    # a text shorter than a few windows still trains
    while length > 16 and num_chars * 5 // 100 < 2 * length:
        length //= 2
    fields = {"name": name, "corpus": corpus, "model": size, "length": length, "batch": 8192 // length, **changes}
    return make("a recipe for one's own text", fields)
