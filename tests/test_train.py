"""Training learns, resumes exactly after being killed at any moment, and does not depend on the number of processes."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from model import curve, runs, weights
from model.batches import Material
from model.checkpoint import Checkpoint
from model.machine import has_bf16
from model.muon import Muon, orthogonal
from model.recipe import Recipe, RecipeError
from model.train import STATE, Trainer

ROOT = Path(__file__).parent.parent


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """12,000 characters that a small model learns at once."""
    path = tmp_path / "corpus.txt"
    path.write_text("".join(f"line {i % 10} of the song,\nand {i % 7} more.\n\n" for i in range(400)))
    return path


def make_recipe(corpus: Path, **changes: Any) -> Recipe:
    """A run of seconds; dropout is on, because it is random too."""
    fields: dict[str, Any] = {
        "name": "small", "corpus": str(corpus), "preset": "tiny", "model": {"dropout": 0.1}, "length": 32, "batch": 8,
        "accumulate": 2, "steps": 12, "warmup_steps": 4, "eval_every": 6, "eval_chars": 256, "save_every": 5,
        "precision": "float32",
    }  # fmt: skip
    return Recipe(**{**fields, **changes})


def make_trainer(recipe: Recipe, folder: Path) -> Trainer:
    """The trainer alone."""
    return runs.make_trainer(recipe, folder)[0]


def nothing(row: curve.Row) -> None:
    """A report that is thrown away."""


def assert_same(a: Trainer, b: Trainer) -> None:
    """Weights, moments, step and curve are equal to the bit; times are not."""
    assert a.steps_done == b.steps_done
    ours, theirs = dict(a._named()), dict(b._named())
    assert ours.keys() == theirs.keys()
    assert not [name for name in ours if not torch.equal(ours[name], theirs[name])]
    for key in ("step", "chars", "train_bpc", "validation_bpc", "num_scanned"):
        assert [row[key] for row in a.rows] == [row[key] for row in b.rows], key


def test_gradients_that_are_no_numbers(corpus: Path, tmp_path: Path) -> None:
    """The run ends and says at which step and rates; what was saved stands."""
    trainer = make_trainer(make_recipe(corpus), tmp_path / "run")
    trainer.step()
    trainer.save()
    with torch.no_grad():
        trainer.network.norm.weight.fill_(math.inf)
    with pytest.raises(ValueError, match=r"step 2: the gradients are no finite numbers; .*muon_rate 0\.02"):
        trainer.step()
    assert make_trainer(make_recipe(corpus), tmp_path / "run").steps_done == 1


@pytest.mark.parametrize("facts", [None, {}, {"facts": "{"}, {"facts": "{}"}])
def test_a_state_that_is_none(corpus: Path, tmp_path: Path, facts: dict[str, str] | None) -> None:
    """A file of tensors that no run wrote."""
    (tmp_path / "run").mkdir()
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "run" / STATE, facts)
    with pytest.raises(ValueError, match=r"state\.safetensors is damaged .* remove it to start again"):
        make_trainer(make_recipe(corpus), tmp_path / "run")


def test_a_shape_that_no_model_has(corpus: Path, tmp_path: Path) -> None:
    """One line that names the field."""
    with pytest.raises(RecipeError, match=r"^small: model: dim: [^\n]*$"):
        make_trainer(make_recipe(corpus, model={"dim": "x"}), tmp_path / "run")


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_loss_falls(corpus: Path, tmp_path: Path, optimizer: str) -> None:
    """From log2 of the vocabulary to half of what single characters carry, within 100 steps, on unseen text."""
    text = corpus.read_text()
    shares = [text.count(c) / len(text) for c in set(text)]
    entropy = -sum(p * math.log2(p) for p in shares)
    recipe = make_recipe(corpus, steps=100, eval_every=100, model={}, optimizer=optimizer)
    trainer = make_trainer(recipe, tmp_path / "run")
    first = trainer.step()
    assert 7.5 < first < 9.0  # about 285 ids, all equally likely: 8.2 bits
    trainer.run(nothing)
    assert trainer.rows[-1]["validation_bpc"] < entropy / 2
    assert trainer.evaluate() == trainer.rows[-1]["validation_bpc"]


@pytest.mark.parametrize("stop", [3, 5, 7])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "adamw", "precision": "bf16", "model": {"tied_head": True}, "average": 0.9},
        {"average": 0.8, "carry": 5},
    ],
)
def test_resume_is_exact(corpus: Path, tmp_path: Path, stop: int, changes: dict[str, Any]) -> None:
    """A run that ends before, at or after a save goes on to the same bits as one that was never stopped."""
    recipe = make_recipe(corpus, **changes)
    whole = make_trainer(recipe, tmp_path / "whole")
    whole.run(nothing)
    begun = make_trainer(recipe, tmp_path / "run")

    class StoppedError(Exception):
        pass

    def after_step(trainer: Trainer, _: float) -> None:
        if trainer.steps_done == stop:
            raise StoppedError

    with pytest.raises(StoppedError):
        begun.run(nothing, after_step)
    resumed = make_trainer(recipe, tmp_path / "run")
    assert resumed.steps_done == (5 if stop > 5 else 0)
    resumed.run(nothing)
    assert_same(resumed, whole)


def test_first_evaluation_before_the_first_save(corpus: Path, tmp_path: Path) -> None:
    """The curve is written in a folder that no save has made yet."""
    trainer = make_trainer(make_recipe(corpus, steps=2, eval_every=1, save_every=2), tmp_path / "new" / "run")
    trainer.run(nothing)
    assert (tmp_path / "new" / "run" / "curve.csv").read_text().count("\n") == 3


def test_a_report_that_fails_loses_nothing(corpus: Path, tmp_path: Path) -> None:
    """Curve and state are written before anybody is told."""
    recipe = make_recipe(corpus, steps=8, eval_every=4, save_every=4)

    def fail(_: curve.Row) -> None:
        raise OSError("no room for samples")

    with pytest.raises(OSError, match="no room"):
        make_trainer(recipe, tmp_path / "run").run(fail)
    resumed = make_trainer(recipe, tmp_path / "run")
    assert (resumed.steps_done, len(resumed.rows)) == (4, 1)
    assert (tmp_path / "run" / "curve.csv").read_text().count("\n") == 2
    told: list[float] = []
    resumed.run(lambda row: told.append(row["step"]))
    assert told == [4, 8]  # what nobody heard of is told again
    whole = make_trainer(recipe, tmp_path / "whole")
    whole.run(nothing)
    assert_same(resumed, whole)


def test_the_last_row_tells_of_as_many_steps_as_the_others(corpus: Path, tmp_path: Path) -> None:
    """A run whose end is no evaluation's turn: the mean loss is not that of its few last steps."""
    trainer, losses = make_trainer(make_recipe(corpus, steps=7, eval_every=3), tmp_path / "run"), list[float]()
    trainer.run(nothing, lambda _, loss: losses.append(loss))
    told = [row["train_bpc"] for row in trainer.rows]
    assert told == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:6]) / 3, sum(losses[4:7]) / 3])


def test_sequences_scanned_are_those_of_all_processes(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many in the other process as here: the curve has both."""
    trainer = make_trainer(make_recipe(corpus), tmp_path / "run")
    trainer.world = 2
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat: flat.mul_(2))
    monkeypatch.setattr(type(trainer.network), "num_scanned", 3)
    trainer.step()
    trainer.step()
    assert trainer.record()["num_scanned"] == 2 * 2 * 3


def test_state_file_is_the_whole_state(corpus: Path, tmp_path: Path) -> None:
    """Save then resume gives every tensor and fact back, a half-filled average included."""
    recipe = make_recipe(corpus)
    trainer = make_trainer(recipe, tmp_path / "run")
    for _ in range(3):
        trainer.step()
    trainer.save()
    resumed = make_trainer(recipe, tmp_path / "run")
    assert_same(resumed, trainer)
    assert (resumed.seconds, resumed._recent, resumed._scanned) == (trainer.seconds, trainer._recent, 0)
    assert not list((tmp_path / "run").glob("*.partial"))
    assert len(list(trainer._named())) > len(list(trainer.network.state_dict()))  # moments are there
    assert trainer.step() == resumed.step()


SCRIPT = """
import json, os, pathlib, sys, time
import torch
from model import runs
from model.recipe import Recipe
torch.set_num_threads(1)
folder, target, stop = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[4])
recipe = Recipe.model_validate_json(sys.argv[3])
losses = []
def after_step(trainer, loss):
    losses.append(loss)
    if trainer.steps_done == stop:
        print("reached", flush=True)
        time.sleep(60)
runs.train(recipe, folder, target, lambda row: None, after_step)
if os.environ.get("RANK", "0") == "0":
    (folder / "losses.json").write_text(json.dumps(losses))
"""


def command(tmp_path: Path, recipe: Recipe, name: str, stop: int = 0) -> list[str]:
    """The arguments after the interpreter of a run in a process of its own."""
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(SCRIPT))
    return [str(script), str(tmp_path / name), str(tmp_path / "out" / name), recipe.model_dump_json(), str(stop)]


def environment() -> dict[str, str]:
    """One thread a process, and the project importable."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def test_resume_after_kill(corpus: Path, tmp_path: Path) -> None:
    """kill -9 of a real process, between two saves and again at another place: the final weights are the same bits."""
    recipe = make_recipe(corpus)
    whole_losses: list[float] = []
    runs.train(
        recipe, tmp_path / "whole", tmp_path / "out" / "whole", nothing, lambda _, loss: whole_losses.append(loss)
    )
    for stop in (7, 11):  # saves are at 5, 10 and 12
        with subprocess.Popen(
            [sys.executable, *command(tmp_path, recipe, "killed", stop)], env=environment(), stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"reached\n"
            process.send_signal(signal.SIGKILL)
            assert process.wait(30) == -signal.SIGKILL
    (tmp_path / "killed" / "state.safetensors.partial").write_bytes(b"what a kill in the middle of a save leaves")
    subprocess.run([sys.executable, *command(tmp_path, recipe, "killed")], env=environment(), check=True, timeout=120)
    assert len(whole_losses) == 12
    losses = json.loads((tmp_path / "killed" / "losses.json").read_text())
    assert losses == whole_losses[10:]  # it went on from the save at step 10
    whole, killed = (safetensors.torch.load_file(tmp_path / name / "state.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    weights = [(tmp_path / "out" / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]


def test_kill_inside_a_save(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that dies before its rename leaves the state of the save before."""
    recipe = make_recipe(corpus)
    trainer = make_trainer(recipe, tmp_path / "run")
    trainer.step()
    trainer.save()
    trainer.step()

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        trainer.save()
    monkeypatch.undo()
    resumed = make_trainer(recipe, tmp_path / "run")
    assert resumed.steps_done == 1


def test_two_processes_equal_one(corpus: Path, tmp_path: Path) -> None:
    """torchrun with two gloo processes: the losses of one process with the same batch in two parts."""
    recipe = make_recipe(corpus)
    one: list[float] = []
    runs.train(recipe, tmp_path / "one", tmp_path / "out" / "one", nothing, lambda _, loss: one.append(loss))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    pair = [*torchrun, "--standalone", *command(tmp_path, recipe, "two")]
    done = subprocess.run(pair, env=environment(), check=False, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    two = json.loads((tmp_path / "two" / "losses.json").read_text())
    assert len(one) == 12
    assert two == pytest.approx(one, rel=0, abs=1e-4)
    assert (tmp_path / "out" / "two" / "config.json").exists()


def test_another_recipe_is_refused(corpus: Path, tmp_path: Path) -> None:
    """A folder that another recipe trained in is not continued by mistake."""
    trainer = make_trainer(make_recipe(corpus), tmp_path / "run")
    trainer.step()
    trainer.save()
    with pytest.raises(ValueError, match="a run with another recipe stands here"):
        make_trainer(make_recipe(corpus, seed=1), tmp_path / "run")


def test_batch_that_cannot_be_shared_is_refused(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts must divide the batch and be a multiple of the processes."""
    with pytest.raises(ValueError, match="batch 8, accumulate 3, 1 processes"):
        make_trainer(make_recipe(corpus, accumulate=3), tmp_path / "run")
    recipe = make_recipe(corpus, accumulate=1)
    trainer = make_trainer(recipe, tmp_path / "run")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="batch 8, accumulate 1, 2 processes"):
        Trainer(trainer.network, Material(trainer.source, trainer.validation, ""), recipe, tmp_path / "run")


def test_parts_do_not_change_a_step(corpus: Path, tmp_path: Path) -> None:
    """Without dropout a batch in four parts has the loss and the first moments of the batch at once."""
    recipes = [make_recipe(corpus, accumulate=parts, model={}, optimizer="adamw") for parts in (1, 4)]
    one, four = (make_trainer(recipe, tmp_path / "run") for recipe in recipes)
    assert one.step() == pytest.approx(four.step(), rel=0, abs=1e-6)
    theirs = dict(four._named())
    moments = {name: tensor for name, tensor in one._named() if name.endswith("exp_avg")}
    assert len(moments) == len(list(one.network.parameters()))
    for name, tensor in moments.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("model", [{}, {"token_shift": True}, {"lookback": [2, 9]}], ids=["", "shift", "lookback"])
def test_carried_windows_are_one_long_window(corpus: Path, tmp_path: Path, model: dict[str, Any]) -> None:
    """Where weights stand still, two windows with the state between them have the loss of one of twice the length."""
    still: dict[str, Any] = {
        "model": model,
        "adamw_rate": 1e-30,
        "muon_rate": 1e-30,
        "begin_share": 0.5,
    }
    two = make_trainer(make_recipe(corpus, length=16, carry=2, save_every=2, **still), tmp_path / "two")
    one = make_trainer(make_recipe(corpus, length=32, **still), tmp_path / "one")
    for _ in range(2):  # the second row begins anew
        halves = [two.step(), two.step()]
        assert sum(halves) / 2 == pytest.approx(one.step(), rel=0, abs=1e-5)
    apart = make_trainer(make_recipe(corpus, length=16, carry=2, save_every=2, **still), tmp_path / "apart")
    for _ in range(4):
        apart._carried = {part: apart.network.init_state(4) for part in range(2)}  # forgets
        loss = apart.step()
    assert loss != pytest.approx(halves[1], rel=0, abs=1e-4)


def test_carry_needs_a_model_that_goes_on(corpus: Path, tmp_path: Path) -> None:
    """Absolute positions end before the last window of a row."""
    model = {"bias": "absolute", "num_heads": 1, "decay": False, "max_model_len": 40}
    with pytest.raises(ValueError, match="length 64 is longer than the model, which ends at 40"):
        make_trainer(make_recipe(corpus, carry=2, save_every=2, model=model), tmp_path / "run")


def test_another_corpus_beside(corpus: Path, tmp_path: Path) -> None:
    """It is read in training alone; a run does not go on with another; bytes do not mix with characters."""
    extra = tmp_path / "extra.txt"
    extra.write_text("zz qq ÿ\n" * 100)
    recipe = make_recipe(corpus, extra=str(extra), extra_share=0.5, extra_until=0.5)
    trainer = make_trainer(recipe, tmp_path / "run")
    inputs, _ = trainer.source.batch(5, 8)
    assert torch.isin(inputs[:4], torch.unique(trainer.validation[0])).float().mean() < 0.9
    assert torch.equal(
        trainer.source.batch(6, 8)[0], make_trainer(make_recipe(corpus), tmp_path / "x").source.batch(6, 8)[0]
    )
    trainer.step()
    trainer.save()
    extra.write_text("zz qq y\n" * 100)
    with pytest.raises(ValueError, match="the corpus is another"):
        make_trainer(recipe, tmp_path / "run")
    extra.write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match="is not UTF-8, and this model reads characters"):
        make_trainer(recipe, tmp_path / "other")


def test_a_start_from_known_weights(corpus: Path, tmp_path: Path) -> None:
    """A run begins where a checkpoint stands, and resumes from its own state; other shapes and folders are refused."""
    first = make_recipe(corpus, steps=6)
    runs.train(first, tmp_path / "first", tmp_path / "out", nothing)
    known = weights.load(Checkpoint(tmp_path / "out"))
    recipe = make_recipe(corpus, start=str(tmp_path / "out"), save_every=1, model={"dropout": 0.3})
    trainer = make_trainer(recipe, tmp_path / "second")
    for name, w in trainer.network.state_dict().items():
        assert torch.equal(w, known.state_dict()[name])
    trainer.step()
    trainer.save()
    resumed = make_trainer(recipe, tmp_path / "second")
    assert_same(resumed, trainer)
    with pytest.raises(ValueError, match=r"start: .* another shape"):
        make_trainer(make_recipe(corpus, start=str(tmp_path / "out"), model={"dim": 64}), tmp_path / "x")
    with pytest.raises(ValueError, match="start: nowhere: no readable config"):
        make_trainer(make_recipe(corpus, start=str(tmp_path / "nowhere")), tmp_path / "x")
    other = tmp_path / "other.txt"
    other.write_text(corpus.read_text().replace("g", "\u00a3"))
    with pytest.raises(ValueError, match="ids mean something else"):
        make_trainer(make_recipe(other, start=str(tmp_path / "out")), tmp_path / "x")
    shifting = make_recipe(corpus, start=str(tmp_path / "out"), model={"token_shift": True, "lookback": [2, 5]})
    gained = make_trainer(shifting, tmp_path / "third").network.eval()
    tokens = torch.randint(0, known.config.vocab_size, (2, 30))
    torch.testing.assert_close(gained(tokens)[0], known(tokens)[0])  # a share of 1 passes everything on, 0 adds nothing
    runs.train(shifting, tmp_path / "third", tmp_path / "shifting", nothing)
    with pytest.raises(ValueError, match=r"start: .* another shape"):
        make_trainer(make_recipe(corpus, start=str(tmp_path / "shifting")), tmp_path / "x")
    shutil.rmtree(tmp_path / "out")
    assert make_trainer(recipe, tmp_path / "second").steps_done == 1  # its own state has all


def test_moving_average(corpus: Path, tmp_path: Path) -> None:
    """What is evaluated and kept: 2/11, 3/12 ... of the old in the first steps, later the decay of the recipe."""
    recipe = make_recipe(corpus, average=0.2, steps=4)
    trainer = make_trainer(recipe, tmp_path / "run")
    expected: dict[str, torch.Tensor] = {}
    for kept in (0.0, 2 / 11, 0.2, 0.2):
        trainer.step()
        for name, w in trainer.network.state_dict().items():
            expected[name] = w + kept * (expected.get(name, w) - w)
    assert trainer.result is not trainer.network
    for name, w in trainer.result.state_dict().items():
        torch.testing.assert_close(w, expected[name], rtol=1e-5, atol=1e-7)
    averaged = trainer.evaluate()
    trainer.averaged = None
    assert trainer.evaluate() != averaged


def test_the_average_is_what_a_checkpoint_holds(corpus: Path, tmp_path: Path) -> None:
    """Its weights, rounded to bf16, are the average's."""
    recipe = make_recipe(corpus, average=0.9, steps=6, eval_every=6)
    seen: list[Trainer] = []
    runs.train(recipe, tmp_path / "run", tmp_path / "out", nothing, lambda trainer, _: seen.append(trainer))
    stored = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    for name, w in seen[-1].result.state_dict().items():
        assert torch.equal(stored[name], w.to(stored[name].dtype)), name
    assert not torch.equal(stored["head.weight"], seen[-1].network.head.weight.bfloat16())


@pytest.mark.parametrize(("able", "wanted"), [({"amx_bf16": True}, True), ({"avx512_bf16": True}, True), ({}, False)])
def test_precision_by_hardware(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, able: dict[str, bool], wanted: bool
) -> None:
    """``auto`` multiplies bf16 where the processor does; the other two are what they say."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    for precision, expected in (("auto", wanted), ("bf16", True), ("float32", False)):
        trainer = make_trainer(make_recipe(corpus, precision=precision), tmp_path / "run")
        with trainer.autocast():
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert (product.dtype == torch.bfloat16) is expected
        (muon,) = (optimizer for optimizer in trainer.optimizers if isinstance(optimizer, Muon))
        assert (muon.dtype == torch.bfloat16) is expected


def test_a_gpu_without_bf16_is_none_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """What only emulates it costs time instead of saving it."""
    for able in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda able=able, **_: able)
        assert has_bf16("cuda") is able


def test_dropout_is_drawn_anew_for_each_step_and_part(corpus: Path, tmp_path: Path) -> None:
    """Of the same windows and weights, the loss differs between steps, between seeds, and between parts and whole."""
    losses = []
    for step, seed, parts in ((0, 0, 1), (1, 0, 1), (0, 1, 1), (0, 0, 2), (0, 0, 1)):
        recipe = make_recipe(corpus, accumulate=parts, model={"dropout": 0.5}, begin_share=0.0, seed=seed)
        trainer = make_trainer(recipe, tmp_path / "run")
        trainer.network.load_state_dict(
            {
                name: torch.sin(torch.arange(w.numel()).float()).view_as(w)
                for name, w in trainer.network.state_dict().items()
            }
        )
        x = torch.arange(32).repeat(8, 1)
        trainer.source.batch = lambda *_, x=x: (x, x)  # type: ignore[method-assign, misc]
        trainer.steps_done = step
        losses.append(trainer.step())
    assert losses[0] == losses[-1]
    assert len(set(losses)) == 4


def test_optimizers_take_each_parameter_once(corpus: Path, tmp_path: Path) -> None:
    """Muon has the matrices of the blocks; tables, decays, norms, embedding and head have AdamW without decay."""
    trainer = make_trainer(make_recipe(corpus), tmp_path / "run")
    names = {id(p): name for name, p in trainer.network.named_parameters()}
    adamw, muon = (
        [names[id(p)] for group in optimizer.param_groups for p in group["params"]] for optimizer in trainer.optimizers
    )
    assert sorted(adamw + muon) == sorted(names.values())
    assert {name.split(".", 2)[2] for name in muon} == {
        "aft.q.weight", "aft.k.weight", "aft.v.weight", "aft.o.weight", "mlp.up.weight", "mlp.down.weight",
    }  # fmt: skip
    assert all(group["weight_decay"] == 0 for group in trainer.optimizers[0].param_groups)
    assert trainer.optimizers[1].param_groups[0]["weight_decay"] == 0.1


def test_rate_follows_the_recipe(corpus: Path, tmp_path: Path) -> None:
    """Each step sets the rate of its own number, also right after a resume."""
    recipe = make_recipe(corpus)
    trainer = make_trainer(recipe, tmp_path / "run")
    for number in range(3):
        trainer.step()
        assert trainer.optimizers[0].param_groups[0]["lr"] == recipe.adamw_rate * recipe.rate(number)
        assert trainer.optimizers[1].param_groups[0]["lr"] == recipe.muon_rate * recipe.rate(number)
    trainer.save()
    resumed = make_trainer(recipe, tmp_path / "run")
    resumed.step()
    assert resumed.optimizers[1].param_groups[0]["lr"] == recipe.muon_rate * recipe.rate(3)
    assert resumed.optimizers[1].param_groups[0]["peak"] == recipe.muon_rate


def test_evaluation_is_plain_cross_entropy(corpus: Path, tmp_path: Path) -> None:
    """Bits per character of whole windows side by side, without dropout and without gradients."""
    recipe = make_recipe(corpus)
    trainer = make_trainer(recipe, tmp_path / "run")
    inputs, targets = trainer.validation
    ids = torch.cat([inputs.flatten(), targets[-1, -1:]])
    assert len(ids) == 257
    bits = []
    for start in range(0, 256, 32):
        logits, _ = trainer.network.eval()(ids[None, start : start + 32])
        log2 = logits[0].double().log_softmax(-1) / torch.log(torch.tensor(2.0, dtype=torch.float64))
        bits += [-float(log2[i, ids[start + i + 1]].detach()) for i in range(32)]
    assert trainer.evaluate() == pytest.approx(sum(bits) / 256, abs=1e-5)


def test_train_writes_a_checkpoint_and_its_curve(corpus: Path, tmp_path: Path) -> None:
    """The folder has the weights, the facts of the run, and the curve as CSV and PNG; each evaluation is reported."""
    recipe = make_recipe(corpus)
    reports: list[curve.Row] = []
    runs.train(recipe, tmp_path / "run", tmp_path / "out" / "small", reports.append)
    target = tmp_path / "out" / "small"
    facts = Checkpoint(target).config.training
    assert facts["recipe"] == recipe.model_dump(mode="json")
    assert facts["chars"] == 12 * 8 * 32
    assert facts["validation_bpc"] == round(reports[-1]["validation_bpc"], 4)
    with (target / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["6", "12"]
    assert [row["chars"] for row in rows] == ["1536", "3072"]
    for row, report in zip(rows, reports, strict=True):
        for key in curve.FIELDS:
            assert float(row[key]) == pytest.approx(report[key], rel=1e-5)
    assert (target / "curve.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert (tmp_path / "run" / "curve.csv").read_bytes() == (target / "curve.csv").read_bytes()


def test_what_was_read_counts_where_the_validation_split_is_short(tmp_path: Path) -> None:
    """Its one window is shorter than those of training."""
    (tmp_path / "short.txt").write_text("abcdefghij" * 20)
    trainer, _ = runs.make_trainer(make_recipe(tmp_path / "short.txt", steps=1), tmp_path / "run")
    trainer.run(lambda _: None)
    assert trainer.validation[0].shape[1] < 32
    assert trainer.rows[-1]["chars"] == 8 * 32


def test_tokenizer_choice(tmp_path: Path) -> None:
    """Characters for text, bytes for what is no UTF-8 or on request; characters of no text are refused."""
    assert runs.choose_tokenizer("text", "auto").vocab_size > 258
    assert runs.choose_tokenizer("text", "bytes").vocab_size == 258
    assert runs.choose_tokenizer(b"\xff", "auto").vocab_size == 258
    with pytest.raises(ValueError, match="not UTF-8"):
        runs.choose_tokenizer(b"\xff", "characters")
    path = tmp_path / "short.txt"
    path.write_text("too short to split")
    with pytest.raises(ValueError, match="too few to set 5 % aside"):
        make_trainer(make_recipe(path), tmp_path / "run")


@pytest.mark.parametrize("raw", ["é€ and more. " * 200, b"\xff\x00\xfe" * 900])
def test_bytes_corpora_train(tmp_path: Path, raw: str | bytes) -> None:
    """A byte model trains on text and on what is no text."""
    path = tmp_path / "corpus.bin"
    path.write_bytes(raw.encode() if isinstance(raw, str) else raw)
    trainer = make_trainer(make_recipe(path, tokenizer="bytes"), tmp_path / "run")
    assert trainer.network.config.vocab_size == 258
    losses = [trainer.step() for _ in range(6)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("minutes", "seconds", "every", "kept"),
    [(10, 2.0, 26, 26), (10, 0.5, 105, 105), (60, 0.5, 630, 120), (1, 2.0, 10, 10), (10, 8.0, 10, 10)],
)
def test_fit_minutes(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, minutes: float, seconds: float, every: int, kept: int
) -> None:
    """Ten evaluations in seven eighths of the minutes, by the time of three steps; a state about every minute."""
    clock = iter([100.0, 100.0 + 3 * seconds])
    monkeypatch.setattr(Trainer, "step", lambda _: 0.0)
    monkeypatch.setattr(runs, "time", SimpleNamespace(perf_counter=lambda: next(clock)))  # other threads have theirs
    recipe = runs.fit_minutes("mine", str(corpus), minutes=minutes, seed=3)
    budget = int(minutes * 60 * 0.875 / seconds)
    assert recipe.steps == budget - budget % every
    assert (recipe.seed, recipe.eval_every, recipe.save_every) == (3, every, kept)
    assert recipe.warmup_steps == min(100, recipe.steps // 10)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_muon_is_torchs(shape: tuple[int, int]) -> None:
    """In bf16 to the bit; in float32 near it, where singular values are what the iteration makes of them."""
    generator = torch.Generator().manual_seed(0)
    first, gradients = torch.randn(shape, generator=generator), torch.randn(3, *shape, generator=generator)
    options = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95}
    theirs, ours, exact = (nn.Parameter(first.clone()) for _ in range(3))
    made = [
        torch.optim.Muon([theirs], **options),
        Muon([ours], dtype=torch.bfloat16, **options),
        Muon([exact], dtype=torch.float32, **options),
    ]
    for gradient in gradients:
        for parameter, optimizer in zip((theirs, ours, exact), made, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    assert torch.equal(ours, theirs)
    torch.testing.assert_close(exact, theirs, rtol=0, atol=0.01)
    assert not torch.equal(exact, theirs)
    how = (3.4445, -4.7750, 2.0315), 5, 1e-7
    together = orthogonal(torch.stack([gradients[0], gradients[1]]), *how)  # as on a GPU
    for one, gradient in zip(together, gradients, strict=False):
        torch.testing.assert_close(one, orthogonal(gradient, *how), rtol=1e-5, atol=1e-6)
    singular = torch.linalg.svdvals(orthogonal(gradients[0], *how))
    assert 0.5 < singular.min() <= singular.max() < 1.5
    pair = [nn.Parameter(first.clone()) for _ in range(2)]
    for parameter, gradient in zip(pair, gradients, strict=False):
        parameter.grad = gradient.clone()
    single = Muon([nn.Parameter(first.clone())], dtype=torch.float32, **options)
    both = Muon(pair, dtype=torch.float32, **options)
    with torch.no_grad():
        both._update(pair, both.param_groups[0])  # as on a GPU: all of one shape at once
    for parameter, gradient in zip(pair, gradients, strict=False):
        (alone,) = single.param_groups[0]["params"]
        single.state.clear()
        alone.data.copy_(first)
        alone.grad = gradient.clone()
        single.step()
        torch.testing.assert_close(parameter, alone, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="no closure"):
        made[1].step(lambda: 0.0)
