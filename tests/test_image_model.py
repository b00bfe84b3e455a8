"""The image model from a folder of pictures to a PNG: train, evaluate, draw."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import checkpoints_for_tests as tiny
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from model import weights
from model.batches import examples
from model.checkpoint import Checkpoint, CheckpointError
from model.evaluate import per_dimension
from model.generate import draw, draw_together
from model.pixels import NUM_VALUES
from model.runtime.choice import open_runtime
from service.cli import app
from service.commands import evaluation

RECIPE = """
name = "squares"
kind = "image"
corpus = "{corpus}"
preset = "tiny"
size = 4
batch = 8
steps = 150
warmup_steps = 10
eval_every = 75
save_every = 150
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subfolders of forty pictures of one colour each."""
    top = tmp_path_factory.mktemp("pictures")
    for label, color in (("blue", (0, 0, 200)), ("red", (200, 0, 0))):
        (top / label).mkdir()
        for i in range(40):
            Image.new("RGB", (8, 8), color).save(top / label / f"{label}{i}.png")
    return top


@pytest.fixture(scope="module")
def random(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image model that is not trained."""
    return tiny.pictures(tmp_path_factory.mktemp("checkpoints") / "random")


def aft(*arguments: object) -> str:
    """Standard output of a command that succeeds."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@torch.inference_mode()
def first_value_bits(folder: Path) -> float:
    """What being told the colour is worth at the first sub-pixel, where nothing else says it: wrong minus right."""
    source = Checkpoint(folder)
    prompts = torch.tensor([[source.pixels.condition(label)] for label in ("blue", "red")])
    known = weights.load(source)(prompts)[0][:, 0].log_softmax(-1) / math.log(2)
    right, wrong = known[0, 0] + known[1, 200], known[0, 200] + known[1, 0]
    return float(right - wrong)


def test_train_evaluate_draw(folder: Path, tmp_path: Path) -> None:
    """It learns two colours, says so in bits, and draws the one that is asked for."""
    (tmp_path / "squares.toml").write_text(RECIPE.format(corpus=folder))
    places = ("--checkpoints", tmp_path / "checkpoints")
    aft("train", tmp_path / "squares.toml", "--runs", tmp_path / "runs", *places)
    aft("eval", "squares", "--json", tmp_path / "bits.json", *places)
    bits = json.loads((tmp_path / "bits.json").read_text())
    assert bits["bits_per_dimension"] < 1.0
    for step in (75, 150):  # two labels, four rows of pictures of 4 pixels, a gap of one, three times as large
        with Image.open(tmp_path / "runs" / "squares" / f"samples-{step}.png") as sheet:
            assert sheet.size == (33, 63)
    assert first_value_bits(tmp_path / "checkpoints" / "squares") > 2
    assert bits["webp_bits_per_dimension"] > 0
    assert bits["pictures"] > 0
    aft("generate", "--model", "squares", "--image", tmp_path / "a.png", "--class", "red", "--temperature", 0, *places)
    with Image.open(tmp_path / "a.png") as image:
        assert (image.size, image.format) == ((4, 4), "PNG")
        red, _, blue = np.asarray(image).reshape(-1, 3).mean(0)
    assert red > blue + 100


@pytest.mark.parametrize("idle", [["--stride", "3"], ["--depths", "10"], ["--max-chars", "9"], ["--plot", "x.png"]])
def test_what_says_nothing_to_pictures_is_refused(random: Path, idle: list[str]) -> None:
    """Before anything is evaluated."""
    result = CliRunner().invoke(app, ["eval", "random", *idle, "--checkpoints", str(random.parent)])
    assert result.exit_code == 1
    assert f"{idle[0]} says nothing" in result.output


def test_many_pictures_fit_into_one_webp() -> None:
    """Sixteen columns, or as many as rows: a side of a WebP ends at 16,383 pixels."""
    few, many = (np.zeros((count, 32, 32, 3), np.uint8) for count in (8_176, 8_177))
    assert evaluation._sheet(few).shape == (511 * 32, 16 * 32, 3)
    assert evaluation._sheet(many).shape == (90 * 32, 91 * 32, 3)


def test_per_dimension_is_plain_cross_entropy(random: Path) -> None:
    """Each value after its condition and all values before it, one by one."""
    network = weights.load(Checkpoint(random)).freeze()
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    inputs, targets = examples(images, np.array([[256], [259]]))
    total = 0.0
    for row, wanted in zip(inputs, targets, strict=True):
        for t in range(48):
            logits = network(row[None, : t + 1])[0][0, -1].double()
            total -= float(logits.log_softmax(-1)[wanted[t]]) / math.log(2)
    assert per_dimension(network, inputs, targets) == pytest.approx(total / 96, rel=1e-5)


def test_names_are_not_scored(tmp_path: Path) -> None:
    """Bits a sub-pixel count no letter, and the first sub-pixel comes right after the name."""
    checkpoint = Checkpoint(tiny.pictures(tmp_path / "named", name_length=5))
    network, codec = weights.load(checkpoint).freeze(), checkpoint.pixels
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    told = np.array([codec.prompt("red", name="red"), codec.prompt()])
    inputs, targets = examples(images, told)
    logits = network(inputs)[0][:, 5:].double().log_softmax(-1)
    wanted = -logits.gather(2, torch.from_numpy(images.reshape(2, 48, 1).astype(np.int64))).mean() / math.log(2)
    assert per_dimension(network, inputs, targets) == pytest.approx(float(wanted), rel=1e-5)


def test_a_name_is_another_picture(tmp_path: Path) -> None:
    """Drawn after its name, all of it; the same as one sequence that begins with the prompt."""
    folder = tiny.pictures(tmp_path / "named", name_length=5)
    checkpoint = Checkpoint(folder)
    parts = list(draw(folder, "red", name="Bob", seed=0))
    assert len(parts) == 4
    other = list(draw(folder, "red", seed=0))[-1]
    assert not (parts[-1] == other).all()
    runtime, codec = open_runtime(checkpoint, 2), checkpoint.pixels
    together = draw_together(runtime, codec, [codec.prompt("red", name="bob"), codec.prompt("red")])
    assert (together[0] == parts[-1]).all()
    half = [*codec.prompt("red", name="bob"), *codec.encode(parts[-1])[:24]]
    assert (draw_together(runtime, codec, [half])[0] == parts[-1]).all()
    aft("generate", "--image", tmp_path / "out.png", "--class", "red", "--name", "bob", "--seed", 0, "--model", "named",
        "--checkpoints", tmp_path)  # fmt: skip
    with Image.open(tmp_path / "out.png") as image:
        assert (np.asarray(image) == parts[-1]).all()
    with pytest.raises(ValueError, match="at most 5 characters"):
        next(draw(folder, name="longer"))


def test_parts_are_prefixes(random: Path) -> None:
    """Row after row; what stands there does not change, and the rest is white."""
    parts = list(draw(random, "red", seed=3))
    assert len(parts) == 4
    for row, part in enumerate(parts):
        assert (part[: row + 1] == parts[-1][: row + 1]).all()
        assert (part[row + 1 :] == 255).all()


def test_a_seed_is_a_picture(random: Path) -> None:
    """The same again for the same seed and sample; another for another."""
    last = [list(draw(random, seed=seed, sample=sample))[-1] for seed, sample in ((1, 0), (1, 0), (2, 0), (1, 1))]
    assert (last[0] == last[1]).all()
    assert not (last[0] == last[2]).all()
    assert not (last[0] == last[3]).all()


def test_conditions_are_never_drawn(random: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However likely the model finds them."""
    network = weights.load(Checkpoint(random))
    with torch.no_grad():
        network.head.weight[NUM_VALUES:] *= 1000
    monkeypatch.setattr("model.runtime.eager.load", lambda _: network)
    assert list(draw(random))[-1].shape == (4, 4, 3)


def test_what_a_model_cannot_do_is_named(random: Path, tmp_path: Path) -> None:
    """A label that it does not know; text from an image model; an image from a text model."""
    with pytest.raises(ValueError, match="unknown label; known: blue, red"):
        list(draw(random, "green"))
    with pytest.raises(CheckpointError, match="random is an image model: it has no text"):
        _ = Checkpoint(random).tokenizer
    text = tiny.characters(tmp_path / "text")
    with pytest.raises(CheckpointError, match="text is a text model: it has no images"):
        list(draw(text))


def test_kinds_must_agree(random: Path, tmp_path: Path) -> None:
    """A config whose kind, tokenizer and raster say different things."""
    config = json.loads((random / "config.json").read_text())
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.safetensors").write_bytes((random / "model.safetensors").read_bytes())
    (broken / "config.json").write_text(json.dumps(config | {"kind": "text"}))
    with pytest.raises(CheckpointError, match="kind, tokenizer and raster contradict each other"):
        Checkpoint(broken)


def test_contact_sheet(folder: Path, tmp_path: Path) -> None:
    """`aft data show` writes a PNG; a part without pictures is an error."""
    out = tmp_path / "sheet.png"
    assert "labels: blue, red" in aft("data", "show", folder, out, "--size", 4, "--part", 0)
    with Image.open(io.BytesIO(out.read_bytes())) as image:
        assert image.width == 2 * (24 * 5 + 1)
    (tmp_path / "one").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "one" / "a.png")
    parts = [
        CliRunner().invoke(app, ["data", "show", str(tmp_path / "one"), str(out), "--part", str(i)]) for i in range(3)
    ]
    assert sorted(result.exit_code for result in parts) == [0, 1, 1]


def test_an_image_needs_no_name_of_a_model(tmp_path: Path) -> None:
    """``--image`` alone draws with the shipped pixel model, at temperature 1."""
    folder = tiny.pictures(tmp_path / "emoji")
    aft("generate", "--image", tmp_path / "out.png", "--class", "red", "--seed", 4, "--checkpoints", tmp_path)
    *_, wanted = draw(folder, "red", seed=4)
    with Image.open(tmp_path / "out.png") as image:
        assert (np.asarray(image) == wanted).all()
    # over HTTP the class is the prompt, too
    aft("generate", "red", "--image", tmp_path / "same.png", "--seed", 4, "--checkpoints", tmp_path)
    assert (tmp_path / "same.png").read_bytes() == (tmp_path / "out.png").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["red", "--class", "red", "--image", "out.png"], "one class"),
        (["red", "--max-tokens", "4", "--image", "out.png"], "as many sub-pixels as the model draws"),
        (["red", "--image", "absent/out.png"], "absent/out.png cannot be written: no folder absent"),
        (["red", "--image", "."], "it is a folder"),
        (["purple", "--image", "out.png"], "unknown label; known: blue, red"),
    ],
)
def test_images_that_are_not_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    """One line, before anything is drawn."""
    tiny.pictures(tmp_path / "emoji")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["generate", *arguments, "--checkpoints", "."])
    assert result.exit_code == 1
    assert result.stderr.startswith("aft: ")
    assert words in result.stderr
    assert not (tmp_path / "out.png").exists()


def test_an_image_set_without_a_test_picture(folder: Path, random: Path, tmp_path: Path) -> None:
    """Is too small to score on, and that is said."""
    (tmp_path / "few").mkdir()
    one = next((folder / "red").iterdir())
    (tmp_path / "few" / "a.png").write_bytes(one.read_bytes())
    result = CliRunner().invoke(
        app, ["eval", "random", "--corpus", str(tmp_path / "few"), "--checkpoints", str(random.parent)]
    )
    assert result.exit_code == 1
    assert "no picture to test on" in result.stderr
