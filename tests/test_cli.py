"""The commands of ``aft``, in process."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import checkpoints_for_tests
import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file
from typer.testing import CliRunner

from model.checkpoint import Checkpoint
from model.recipe import Recipe, make
from model.runs import make_trainer
from service.cli import app

ROOT = Path(__file__).parent.parent

LINE = "{} bottles of beer on the wall, take one down, pass it around: {} left.\n"
TEXT = "".join(LINE.format(i, i - 1) for i in range(60, 0, -1))


def aft(*arguments: object) -> Result:
    """Run a command; an exception that is no exit is a failure."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result


def refuse(result: Result, *words: str) -> None:
    """Status 1 and one line."""
    assert result.exit_code == 1
    assert result.stderr.startswith("aft: ")
    assert result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert word in result.stderr


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one model that is not trained."""
    folder = tmp_path_factory.mktemp("checkpoints")
    checkpoints_for_tests.characters(folder / "tiny")
    return folder


@pytest.fixture(scope="module", autouse=True)
def small_recipe() -> Iterator[None]:
    """A model far smaller than those that fit minutes; test_server_e2e.py trains one of those."""

    def fit(name: str, corpus: str, minutes: float, seed: int) -> Recipe:
        assert (minutes, seed) == (0.05, 3)
        sizes = {"length": 32, "batch": 16, "steps": 40, "warmup_steps": 4, "eval_every": 20, "save_every": 20}
        fields = {"name": name, "corpus": corpus, "preset": "tiny", "seed": seed, **sizes}
        recipe = make("a recipe", fields)
        make_trainer(recipe, Path("/nonexistent"))  # what is wrong with a text is found here
        return recipe

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.commands.training.fit_minutes", fit)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, and what ``aft train`` made of it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "beer.txt").write_text(TEXT)
    result = train(folder)
    assert result.exit_code == 0, result.stderr
    assert "preset tiny" in result.stderr
    assert "validation" in result.stderr
    assert str(folder / "checkpoints" / "beer") in result.stderr.replace("\n", "")
    return folder


def train(folder: Path, source: str = "beer.txt", name: str = "beer") -> Result:
    """``aft train`` of a text of one's own."""
    places = ["--runs", folder / "runs", "--checkpoints", folder / "checkpoints"]
    return aft("train", folder / source, "--name", name, "--minutes", "0.05", "--seed", 3, *places)


def test_generate(tiny: Path) -> None:
    """The same seed writes the same text, in pieces of any number; another seed another one."""
    flags = ["Speak", "--model", "tiny", "--checkpoints", tiny, "--max-tokens", 40]
    first, again, other = (aft("generate", *flags, "--seed", seed) for seed in (1, 1, 2))
    assert first.exit_code == 0
    assert first.stdout == again.stdout != other.stdout
    assert first.stdout.endswith("\n")
    assert len(first.stdout) > 2
    shorter = aft("generate", *flags[:-1], 7, "--seed", 1).stdout.removesuffix("\n").rstrip("\ufffd")
    assert first.stdout.startswith(shorter)
    assert aft("generate", *flags).exit_code == 0


def test_generate_refuses(tiny: Path, tmp_path: Path) -> None:
    """No such model; a prompt that is longer than the model; numbers out of range are typer's (status 2)."""
    refuse(aft("generate", "a", "--model", "huge", "--checkpoints", tiny), "huge", "config.json")
    checkpoints_for_tests.ending(tmp_path / "short")
    refuse(aft("generate", "a" * 100, "--model", "short", "--checkpoints", tmp_path), "101", "64")
    refuse(aft("generate", "\ud800", "--model", "tiny", "--checkpoints", tiny), "surrogate")
    assert aft("generate", "a", "--max-tokens", 0).exit_code == 2
    assert aft("generate", "a", "--temperature", 3).exit_code == 2
    for option in (["--class", "Flags"], ["--style", "google"], ["--name", "red heart"], ["--guidance", 3]):
        refuse(aft("generate", "a", "--model", "tiny", "--checkpoints", tiny, *option), "--image")


def test_train_writes_a_checkpoint(trained: Path) -> None:
    """One that loads and says what it was trained on; the run's state is kept apart."""
    checkpoint = Checkpoint(trained / "checkpoints" / "beer")
    assert checkpoint.config.training["recipe"]["corpus"] == str(trained / "beer.txt")
    assert (trained / "runs" / "beer" / "recipe.json").exists()
    assert checkpoint.match is not None  # it is calibrated, too
    text = aft("generate", "9", "--model", "beer", "--checkpoints", trained / "checkpoints", "--max-tokens", 50)
    assert text.exit_code == 0


def test_train_again_goes_on_where_it_stopped(trained: Path) -> None:
    """A finished run has nothing left to do, and its checkpoint stays the same model."""
    before = Checkpoint(trained / "checkpoints" / "beer").fingerprint
    assert train(trained).exit_code == 0
    assert Checkpoint(trained / "checkpoints" / "beer").fingerprint == before


@pytest.mark.parametrize("known", ['{"training": {"recipe": {"corpus": "shakespeare"}}}', "{}", "{"])
def test_a_model_of_another_corpus_is_not_lost(tmp_path: Path, known: str) -> None:
    """Its name is taken, before anything is trained."""
    config = tmp_path / "checkpoints" / "beer" / "config.json"
    config.parent.mkdir(parents=True)
    config.write_text(known)
    (tmp_path / "beer.txt").write_text(TEXT)
    refuse(train(tmp_path), "holds a model of another corpus", "choose another name")
    assert config.read_text() == known
    assert not (tmp_path / "runs" / "beer" / "state.safetensors").exists()


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"asked": 1, "recipe": {}}'])
def test_a_kept_recipe_that_is_damaged(trained: Path, content: str) -> None:
    """The file is named, and nothing is lost."""
    kept = trained / "runs" / "beer" / "recipe.json"
    before = kept.read_text()
    try:
        kept.write_text(content)
        refuse(train(trained), "recipe.json is damaged", "remove it")
    finally:
        kept.write_text(before)


def test_train_refuses(trained: Path, tmp_path: Path) -> None:
    """No name; no text; too little of it; a name that is taken by another text; a recipe that is none."""
    (tmp_path / "small.txt").write_text("ab")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "bad.toml").write_text("steps = 'many'")
    refuse(aft("train", tmp_path / "small.txt"), "--name")
    refuse(train(tmp_path, "small.txt"), "2 characters")
    refuse(train(tmp_path, "empty.txt"), "empty")
    refuse(train(tmp_path, "absent.txt"), "absent.txt")
    refuse(train(tmp_path, "small.txt", "a/b"))
    refuse(aft("train", tmp_path / "bad.toml"), "bad.toml")
    refuse(aft("train", tmp_path / "absent.toml"), "absent.toml")
    (trained / "other.txt").write_text(TEXT)
    refuse(train(trained, "other.txt"), "beer.txt", "another name")


def test_eval(trained: Path, tmp_path: Path) -> None:
    """A table, the numbers as JSON, a plot; the numbers are those of a model that has learned something."""
    result = aft(
        "eval", "beer", "--checkpoints", trained / "checkpoints", "--depths", "10,100,1000000", "--stride", 32,
        "--max-chars", 100, "--json", tmp_path / "e.json", "--plot", tmp_path / "e.png",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    numbers = json.loads((tmp_path / "e.json").read_text())
    assert (numbers["model"], numbers["corpus"]) == ("beer", str(trained / "beer.txt"))
    assert (numbers["characters"], numbers["stride"]) == (100, 32)
    alphabet = Checkpoint(trained / "checkpoints" / "beer").tokenizer.vocab_size
    assert 0 < numbers["bits_per_character"] < math.log2(alphabet)
    assert [row["depth"] for row in numbers["by_depth"]] == [10, 100]
    for row in numbers["by_depth"]:
        assert row["difference"] == pytest.approx(row["bits"] - numbers["bits_per_character"], abs=1e-6)
        assert f"{row['bits']:.4f}" in result.stdout
    assert f"{numbers['bits_per_character']:.4f}" in result.stdout
    assert (tmp_path / "e.png").read_bytes().startswith(b"\x89PNG")


def test_eval_refuses(tiny: Path, tmp_path: Path) -> None:
    """No model, no corpus, depths that are no numbers."""
    refuse(aft("eval", "huge", "--checkpoints", tiny), "huge")
    refuse(aft("eval", "tiny", "--checkpoints", tiny), "--corpus")
    refuse(aft("eval", "tiny", "--checkpoints", tiny, "--corpus", tmp_path / "absent"), "absent")
    refuse(aft("eval", "tiny", "--checkpoints", tiny, "--depths", "1,x"), "x")


def test_help() -> None:
    """No command: its list; and each has a text."""
    listing = aft()
    for command in ("serve", "generate", "train", "eval"):
        assert command in listing.output
        assert aft(command, "--help").exit_code == 0


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["train", "checkpoints/shakespeare/train.toml"], "training needs torch and matplotlib: make setup-train"),
        (["eval", "shakespeare"], "an evaluation needs torch"),
        (["eval", "shakespeare", "--plot", "x.png"], "an evaluation needs torch and matplotlib"),
        (["calibrate", "shakespeare"], "a calibration needs torch"),
        (["bench", "decode", "--random", "1x32x4"], "a model of random weights needs torch"),
    ],
)
def test_without_the_extra_it_is_one_line(command: list[str], words: str) -> None:
    """In a plain installation, before anything is begun."""
    code = (
        "import importlib.util, sys\n"
        "known = importlib.util.find_spec\n"
        "sys.modules.update({'torch': None, 'matplotlib': None})\n"
        "importlib.util.find_spec = lambda name, *a: None if name in ('torch', 'matplotlib') else known(name, *a)\n"
        "from service.cli import app\n"
        "app(sys.argv[1:])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_average(tmp_path: Path) -> None:
    """Halfway between two models; what only the other has begins as nothing; none between different shapes."""
    where = ["--checkpoints", tmp_path]
    plain = checkpoints_for_tests.plain_bytes(tmp_path / "a")
    shifted = checkpoints_for_tests.plain_bytes(tmp_path / "b", 1, token_shift=True, lookback=(2, 4))
    assert aft("average", "a", "b", "--name", "c", "--share", 0.25, *where).exit_code == 0
    one, other, found = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert found.keys() == other.keys()
    for name, tensor in found.items():
        nothing = torch.ones_like(tensor) if name.endswith(".share") else torch.zeros_like(tensor)
        first = one.get(name, nothing).float()
        wanted = (0.75 * first + 0.25 * other[name].float()).to(tensor.dtype).float()
        assert torch.allclose(tensor.float(), wanted, atol=1e-3)
    assert Checkpoint(tmp_path / "c").config.training["average"] == {"of": ["a", "b"], "share": 0.25}
    assert Checkpoint(tmp_path / "c").config.model == Checkpoint(shifted).config.model
    before = Checkpoint(plain).fingerprint
    refuse(aft("average", "a", "b", "--name", "a", *where), "would replace what is averaged")
    checkpoints_for_tests.plain_bytes(tmp_path / "d", dim=48)
    refuse(aft("average", "a", "d", "--name", "e", *where), "different shapes")
    for name, changes in (("g", {"activation": "gelu"}), ("h", {"token_shift": True, "lookback": (2, 5)})):
        checkpoints_for_tests.plain_bytes(tmp_path / name, 1, **changes)  # tensors of the same shapes
        refuse(aft("average", "b" if name == "h" else "a", name, "--name", "e", *where), "different shapes")
    checkpoints_for_tests.characters(tmp_path / "f")
    refuse(aft("average", "a", "f", "--name", "e", *where), "mean different things")
    refuse(aft("average", "a", "absent", "--name", "e", *where), "absent")
    assert Checkpoint(plain).fingerprint == before
    assert not (tmp_path / "e").exists()
