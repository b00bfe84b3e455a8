"""Law "checkpoint", and every kind of damage, refused with the name of what is wrong."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints_for_tests as tiny
import pytest
import safetensors.torch
import sentencepiece
import torch
from torch import Tensor

from model import weights
from model.checkpoint import Checkpoint, CheckpointError, find
from model.config import preset
from model.generate import generate
from model.network import Network
from model.tokenizer import Bytes, train_characters

WEIGHTS, TOKENIZER, CONFIG = "model.safetensors", "tokenizer.model", "config.json"
TOKENS = torch.arange(40)[None] * 7 % 250


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound checkpoint of characters."""
    return tiny.characters(tmp_path / "sound")


def names(folder: Path) -> list[str]:
    """What lies in a folder, hidden files included."""
    return sorted(path.name for path in folder.iterdir())


def rounded(network: Network) -> dict[str, Tensor]:
    """What should be stored: matrices rounded to bf16, everything else in float32."""
    matrices = ("embed.weight", "head.weight", "q.weight", "k.weight", "v.weight", "o.weight")
    return {
        name: tensor.bfloat16().float() if name.endswith((*matrices, "up.weight", "down.weight")) else tensor
        for name, tensor in network.state_dict().items()
    }


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change config.json."""
    config = json.loads((folder / CONFIG).read_text())
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))


def replace(folder: Path, name: str, content: bytes) -> None:
    """Put another file in place, with its hash."""
    (folder / name).write_bytes(content)
    edit(folder, lambda config: config["files"].update({name: hashlib.sha256(content).hexdigest()}))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the stored tensors, with the hash."""
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    change(tensors)
    replace(folder, WEIGHTS, safetensors.torch.save(tensors))


@pytest.mark.parametrize("tokenizer", ["characters", "bytes"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tied_head": True},
        {"bias": "conv", "max_model_len": 64, "decay": False},
        {"bias": "absolute", "bias_rank": 3, "num_heads": 1, "max_model_len": 64, "decay": False},
        {"bias": "none", "window": 0, "activation": "gelu"},
    ],
    ids=["relative", "tied", "conv", "absolute", "simple"],
)
def test_load_gives_the_bits_that_were_saved(tmp_path: Path, tokenizer: str, changes: dict[str, Any]) -> None:
    """Every parameter is its bf16 rounding or itself, and so are the logits, bit for bit."""
    kept = Bytes() if tokenizer == "bytes" else train_characters(tiny.TEXT)
    network = tiny.random_network(preset("tiny", kept.vocab_size, **changes))
    expected = rounded(network)
    weights.save(network, kept, tmp_path / "m", {"steps": 3})
    checkpoint = Checkpoint(tmp_path / "m")
    loaded = weights.load(checkpoint)
    assert loaded.state_dict().keys() == expected.keys()
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected[name]), name
    network.load_state_dict(expected)
    with torch.no_grad():
        assert torch.equal(loaded(TOKENS)[0], network(TOKENS)[0])
    assert not loaded.training
    assert (checkpoint.name, checkpoint.config.model, checkpoint.config.training) == ("m", network.config, {"steps": 3})
    assert checkpoint.tokenizer.token_bytes == kept.token_bytes
    assert checkpoint.tokenizer.encode(tiny.TEXT) == kept.encode(tiny.TEXT)


def test_a_second_save_gives_the_same_files_and_the_same_text(folder: Path, tmp_path: Path) -> None:
    """save(load(save(m))) is save(m), byte for byte; for a seed the text is the same, for another it is not."""
    first = Checkpoint(folder)
    weights.save(weights.load(first), first.tokenizer, tmp_path / "again", first.config.training)
    for name in (WEIGHTS, TOKENIZER, CONFIG):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert Checkpoint(tmp_path / "again").fingerprint == first.fingerprint
    text = "".join(generate(folder, "Speak", 50, seed=3))
    assert "".join(generate(tmp_path / "again", "Speak", 50, seed=3)) == text
    assert "".join(generate(tmp_path / "again", "Speak", 50, seed=4)) != text


def test_a_tied_head_is_stored_once_and_stays_tied(tmp_path: Path) -> None:
    """No head in the file; one tensor in the network."""
    folder = tiny.characters(tmp_path / "tied", tied_head=True)
    assert "head.weight" not in safetensors.torch.load_file(folder / WEIGHTS)
    network = weights.load(Checkpoint(folder))
    assert network.head.weight is network.embed.weight


def test_fingerprint_differs_where_the_model_does(folder: Path, tmp_path: Path) -> None:
    """Other weights, another tokenizer, another shape; but not other facts about the training."""
    known = Checkpoint(folder).fingerprint
    others = [
        tiny.characters(tmp_path / "seed", seed=1),
        tiny.plain_bytes(tmp_path / "bytes"),
        tiny.ending(tmp_path / "ending"),
    ]
    fingerprints = {known, *(Checkpoint(other).fingerprint for other in others)}
    assert len(fingerprints) == 4
    edit(folder, lambda config: config["training"].update(note="x"))
    assert Checkpoint(folder).fingerprint == known
    edit(folder, lambda config: config["model"].update(activation="gelu"))
    assert Checkpoint(folder).fingerprint not in fingerprints
    pictures = tiny.pictures(tmp_path / "pictures")
    known = Checkpoint(pictures).fingerprint
    edit(pictures, lambda config: config["labels"].reverse())  # each id means another label
    assert Checkpoint(pictures).fingerprint != known


def write_text(name: str, text: str) -> Callable[[Path], None]:
    """Overwrite a file."""
    return lambda folder: (folder / name).write_text(text) and None  # type: ignore[return-value]


def configure(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Edit config.json."""
    return lambda folder: edit(folder, change)


def tensors(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    """Edit the tensors."""
    return lambda folder: edit_tensors(folder, change)


def flip(name: str) -> Callable[[Path], None]:
    """Change one bit in the middle of a file."""

    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return damage


def truncate_weights(folder: Path) -> None:
    """Cut the weights short, and fix the hash up."""
    replace(folder, WEIGHTS, (folder / WEIGHTS).read_bytes()[:-100])


def unigram_tokenizer(folder: Path) -> None:
    """A sentencepiece model without byte fallback, hash fixed up."""
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["hear me speak", "before we proceed"]), model_writer=buffer, model_type="char",
        vocab_size=18, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    replace(folder, TOKENIZER, buffer.getvalue())


def fold(folder: Path) -> None:
    """A folder where the weights should be."""
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


EXTRA = "0" * 64
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {  # what happens, what the message must say
    "no config": (lambda folder: (folder / CONFIG).unlink(), r"sound: no readable config\.json"),
    "not JSON": (write_text(CONFIG, "{"), r"sound: config\.json: .*JSON"),
    "not an object": (write_text(CONFIG, "[]"), r"sound: config\.json: "),
    "empty": (write_text(CONFIG, ""), r"sound: config\.json: "),
    "not UTF-8": (lambda folder: (folder / CONFIG).write_bytes(b'{"\xff": 1}'), r"sound: config\.json: "),
    "unknown field": (configure(lambda c: c.update(colour=1)), r"config\.json: colour: "),
    "unknown field of the model": (configure(lambda c: c["model"].update(depth=1)), r"config\.json: model\.depth: "),
    "missing field": (configure(lambda c: c.pop("tokenizer")), r"config\.json: tokenizer: "),
    "format 2": (configure(lambda c: c.update(format=2)), r"config\.json: format: "),
    "format as text": (configure(lambda c: c.update(format="1")), r"config\.json: format: "),
    "another kind": (configure(lambda c: c.update(kind="image")), r"config\.json: kind, tokenizer and raster"),
    "number as text": (configure(lambda c: c["model"].update(dim="32")), r"config\.json: model\.dim: "),
    "impossible model": (configure(lambda c: c["model"].update(num_heads=5)), r"config\.json: model: .*num_heads"),
    "unknown tokenizer": (configure(lambda c: c.update(tokenizer="words")), r"config\.json: tokenizer: "),
    "hash not hashed": (configure(lambda c: c["files"].update({WEIGHTS: "x"})), r"files\.model\.safetensors: "),
    "no hash of the weights": (configure(lambda c: c["files"].pop(WEIGHTS)), "must hash .*model.safetensors"),
    "no hash of the tokenizer": (configure(lambda c: c["files"].pop(TOKENIZER)), "must hash .*tokenizer.model"),
    "hash of another file": (configure(lambda c: c["files"].update({"../x": EXTRA})), r"must hash .*\.\./x"),
    "wrong hash": (configure(lambda c: c["files"].update({WEIGHTS: EXTRA})), "model.safetensors is damaged or foreign"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "model.safetensors cannot be read"),
    "weights are a folder": (fold, "model.safetensors cannot be read"),
    "no tokenizer": (lambda folder: (folder / TOKENIZER).unlink(), "tokenizer.model cannot be read"),
    "one bit of the weights": (flip(WEIGHTS), "model.safetensors is damaged or foreign"),
    "one bit of the tokenizer": (flip(TOKENIZER), "tokenizer.model is damaged or foreign"),
    "truncated weights": (truncate_weights, "model.safetensors is no safetensors file"),
    "empty weights": (lambda folder: replace(folder, WEIGHTS, b""), "model.safetensors is no safetensors file"),
    "pickled weights": (lambda folder: replace(folder, WEIGHTS, b"\x80\x04N."), "is no safetensors file"),
    "missing tensor": (tensors(lambda t: t.pop("blocks.1.aft.o.weight")), r"blocks\.1\.aft\.o\.weight has shape nothi"),
    "additional tensor": (tensors(lambda t: t.update(x=torch.zeros(2))), r"x has shape \(2,\).*asks for nothing"),
    "wrong shape": (
        tensors(lambda t: t.update({"norm.weight": torch.zeros(31)})),
        r"norm\.weight has shape \(31,\), the config asks for \(32,\)",
    ),
    "transposed": (tensors(lambda t: t.update({"head.weight": t["head.weight"].T.contiguous()})), r"head\.weight"),
    "wrong depth": (configure(lambda c: c["model"].update(num_layers=3)), r"blocks\.2\..* has shape nothing"),
    "head that is tied": (configure(lambda c: c["model"].update(tied_head=True)), r"head\.weight has shape"),
    "wrong vocabulary": (configure(lambda c: c["model"].update(vocab_size=300)), r"has \d+ ids, the model 300"),
    "tokenizer of another text": (
        lambda folder: replace(folder, TOKENIZER, train_characters("abc").model),
        r"tokenizer has \d+ ids, the model",
    ),
    "foreign tokenizer": (lambda folder: replace(folder, TOKENIZER, b"no model" * 9), "tokenizer.model is not a sente"),
    "empty tokenizer": (lambda folder: replace(folder, TOKENIZER, b""), "sound: tokenizer.model"),
    "tokenizer without bytes": (unigram_tokenizer, "tokenizer.model has no byte fallback"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_refused_by_name(folder: Path, name: str) -> None:
    """Reading and loading raise CheckpointError, which says what is wrong."""
    weights.load(Checkpoint(folder))
    damage, message = DAMAGES[name]
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        weights.load(Checkpoint(folder))


def test_a_file_or_nothing_is_no_checkpoint(tmp_path: Path) -> None:
    """So is an empty folder."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name in ("file", "empty", "absent"):
        with pytest.raises(CheckpointError, match=rf"{name}: no readable config\.json"):
            Checkpoint(tmp_path / name)


def test_saving_again_keeps_the_readme(folder: Path) -> None:
    """What people wrote stays; what the model is made of is replaced; nothing else appears."""
    (folder / "README.md").write_text("card")
    before = Checkpoint(folder).fingerprint
    tiny.characters(folder, seed=1)
    assert (folder / "README.md").read_text() == "card"
    assert Checkpoint(folder).fingerprint != before
    assert names(folder) == ["README.md", CONFIG, WEIGHTS, TOKENIZER]
    assert names(folder.parent) == ["sound"]


def test_a_save_makes_its_parents(tmp_path: Path) -> None:
    """And the folder can be read by others."""
    folder = tiny.plain_bytes(tmp_path / "a" / "b" / "c")
    assert folder.stat().st_mode & 0o777 == 0o755
    assert Checkpoint(folder).name == "c"


@pytest.mark.parametrize("failing", ["write_bytes", "write_text", "chmod"])
def test_a_failed_write_leaves_the_old_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    """A full disk: the old one is whole, and nothing lies beside it."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, failing, full)
        with pytest.raises(OSError, match="No space"):
            tiny.characters(folder, seed=1)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert names(folder.parent) == ["sound"]


def test_a_failed_swap_leaves_the_old_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of the renames fails."""
    before = Checkpoint(folder).fingerprint
    rename = os.replace
    for failing in (1, 2):
        calls = []

        def replace(source: Path, target: Path, calls: list[Path] = calls, failing: int = failing) -> None:
            calls.append(source)
            if len(calls) == failing:
                raise OSError(5, "Input/output error")
            rename(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            with pytest.raises(OSError, match="Input/output"):
                tiny.characters(folder, seed=1)
        assert Checkpoint(folder).fingerprint == before, f"rename {failing}"


def test_a_link_stays_a_link(folder: Path, tmp_path: Path) -> None:
    """What it leads to is replaced."""
    link = tmp_path / "link"
    link.symlink_to(folder)
    before = Checkpoint(folder).fingerprint
    tiny.characters(link, seed=1)
    assert link.is_symlink()
    assert Checkpoint(folder).fingerprint == Checkpoint(link).fingerprint != before
    assert names(tmp_path) == ["link", "sound"]


def test_find(tmp_path: Path) -> None:
    """Every folder with a config.json, by name; no files, no hidden folders, nothing deeper."""
    for name in ("b", "a", ".a.partial", "c/deeper"):
        tiny.plain_bytes(tmp_path / name)
    (tmp_path / "file").write_text("x")
    assert find(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    assert find(tmp_path / "absent") == []
    shutil.rmtree(tmp_path / "a")
    assert find(tmp_path) == [tmp_path / "b"]


def test_weights_that_change_between_two_reads(folder: Path) -> None:
    """No runtime runs them under another's fingerprint."""
    known = Checkpoint(folder)
    with (folder / WEIGHTS).open("ab") as file:
        file.write(b" ")
    for use in (weights.load, lambda checkpoint: weights.scaled(checkpoint, 2.0), Checkpoint.weights):
        with pytest.raises(CheckpointError, match="has changed since config"):
            use(known)
