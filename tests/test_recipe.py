"""A recipe is read from TOML or made for a text; what is wrong is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from model.config import preset
from model.recipe import Recipe, RecipeError, fit, read


def write(folder: Path, text: str) -> Path:
    """A recipe file."""
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def test_read(tmp_path: Path) -> None:
    """Fields of the file over the defaults."""
    text = 'name = "a.b-c_1"\ncorpus = "shakespeare"\nsteps = 7\nmuon_rate = 1\n[model]\ndropout = 0.2\n'
    recipe = read(write(tmp_path, text))
    assert recipe == Recipe(name="a.b-c_1", corpus="shakespeare", steps=7, muon_rate=1.0, model={"dropout": 0.2})
    assert (recipe.length, recipe.batch, recipe.precision) == (512, 16, "auto")


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("steps = 0", "steps"), ("length = -1", "length"), ("batch = 1.5", "batch"), ("accumulate = 0", "accumulate"),
        ("muon_rate = 0", "muon_rate"), ("adamw_rate = -1.0", "adamw_rate"), ("weight_decay = -0.1", "weight_decay"),
        ("warmup_steps = -1", "warmup_steps"), ("final_rate = 1.5", "final_rate"),
        ("max_grad_norm = 0", "max_grad_norm"), ("begin_share = 2", "begin_share"),
        ('precision = "fp8"', "precision"), ("eval_every = 0", "eval_every"),
        ("save_every = 0", "save_every"), ('optimizer = "sgd"', "optimizer"), ('tokenizer = "words"', "tokenizer"),
        ("muon_rate = inf", "muon_rate"), ("weight_decay = inf", "weight_decay"), ("seed = -1", "seed"),
        ("seed = 9223372036854775808", "seed"), ("steps = true", "steps"), ('steps = "12"', "steps"),
        ("stepz = 3", "stepz"), ("model = 3", "model"), ("average = 1.0", "average"), ("carry = 0", "carry"),
    ],
)  # fmt: skip
def test_bad_field_is_named(tmp_path: Path, line: str, field: str) -> None:
    """The message has the file and the field."""
    path = write(tmp_path, f'name = "x"\ncorpus = "y"\n{line}\n')
    with pytest.raises(RecipeError, match=rf"recipe\.toml: {field}: "):
        read(path)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('kind = "image"\ncarry = 2', "an image is one window"),
        ('kind = "image"\nextra = "z"', "extra is text"),
        ('kind = "image"\nlength = 64', "length says nothing to a model of kind image"),
        ("size = 32", "size says nothing to a model of kind text"),
        ('preset = "nope"', "preset: 'nope' is none; known: "),
        ("carry = 3\nsave_every = 100", "save_every 100 is no multiple of carry 3"),
        ("[model]\nvocab_size = 300", "model: vocab_size follows from the data"),
        ('kind = "image"\n[model]\nmax_model_len = 9', "model: max_model_len follows from the data"),
        ('[model]\nname = "z"', "model: name is no field of a model"),
    ],
)
def test_a_rule_of_several_fields(tmp_path: Path, lines: str, words: str) -> None:
    """Its message says what does not go together."""
    path = write(tmp_path, f'name = "x"\ncorpus = "y"\n{lines}\n')
    with pytest.raises(RecipeError, match=rf"recipe\.toml: Value error, {words}"):
        read(path)


@pytest.mark.parametrize("name", ["", "a/b", "..//x", "a b", "x" * 65])
def test_name_is_one_folder(name: str) -> None:
    """A name that is no plain folder is refused."""
    with pytest.raises(ValidationError, match="name"):
        Recipe(name=name, corpus="y")


@pytest.mark.parametrize("name", [".", "..", "a\n"])
def test_name_is_a_folder_of_its_own(name: str) -> None:
    """Nor may it be the parent, or end in a line end."""
    with pytest.raises(ValidationError, match="name"):
        Recipe(name=name, corpus="y")


def test_missing_field(tmp_path: Path) -> None:
    """Name and corpus have no default."""
    with pytest.raises(RecipeError, match="corpus: Field required"):
        read(write(tmp_path, 'name = "x"\n'))


def test_unreadable(tmp_path: Path) -> None:
    """No file, no TOML and no UTF-8 are recipe errors too."""
    with pytest.raises(RecipeError, match=r"none\.toml"):
        read(tmp_path / "none.toml")
    with pytest.raises(RecipeError, match=r"recipe\.toml"):
        read(write(tmp_path, "name = \n"))
    path = tmp_path / "latin.toml"
    path.write_bytes(b'name = "\xe9"\n')
    with pytest.raises(RecipeError, match=r"latin\.toml"):
        read(path)


def test_rate() -> None:
    """Warm-up to 1, half way down the cosine in the middle, the final rate at the end and beyond."""
    recipe = Recipe(name="x", corpus="y", steps=110, warmup_steps=10, final_rate=0.1)
    assert [recipe.rate(step) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert recipe.rate(35) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + 2**-0.5))
    assert [recipe.rate(step) for step in (60, 110, 500)] == pytest.approx([0.55, 0.1, 0.1])
    falling = [recipe.rate(step) for step in range(10, 111)]
    assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 100), (5, 5)])
def test_rate_of_short_runs(steps: int, warmup: int) -> None:
    """No division by zero, and never above the peak."""
    recipe = Recipe(name="x", corpus="y", steps=steps, warmup_steps=warmup)
    assert all(0 < recipe.rate(step) <= 1 for step in range(steps + 1))


@pytest.mark.parametrize(
    ("num_chars", "expected"),
    [
        (2_000, {"dim": 96, "length": 32}), (50_000, {"dim": 96, "length": 256}), (299_999, {"dim": 96, "length": 256}),
        (300_000, {"dim": 192, "length": 256}), (2_999_999, {"dim": 192, "length": 256}),
        (3_000_000, {"dim": 256, "length": 512}),
    ],
)  # fmt: skip
def test_fit(num_chars: int, expected: dict[str, Any]) -> None:
    """Small texts get small models; every step reads 8,192 characters; the model is valid."""
    recipe = fit("mine", "mine.txt", num_chars, seed=4)
    config = preset(recipe.preset, 100, **recipe.model)
    assert {"dim": config.dim, "length": recipe.length} == expected
    assert recipe.batch * recipe.length == 8192
    assert (recipe.name, recipe.corpus, recipe.seed) == ("mine", "mine.txt", 4)


@pytest.mark.parametrize("num_chars", [1, 400, 700, 1_300, 5_000, 10_000])
def test_fit_leaves_validation_windows(num_chars: int) -> None:
    """The 5 % set aside hold two windows, down to a length of 16."""
    recipe = fit("mine", "mine.txt", num_chars)
    assert recipe.length >= 16
    assert recipe.length == 16 or num_chars * 5 // 100 >= 2 * recipe.length
    doubled = 2 * recipe.length
    assert doubled > 256 or num_chars * 5 // 100 < 2 * doubled
