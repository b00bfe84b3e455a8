"""Image sets: labels, splits, formats; and pictures as training examples."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model import emoji as drawn
from model import images
from model.batches import IGNORED, Pictures, examples, prompts
from model.config import Raster
from model.fetch import DataError
from model.pixels import PixelCodec


def png(color: tuple[int, ...], size: int = 64) -> bytes:
    """A picture of one colour."""
    buffer = io.BytesIO()
    Image.new("RGBA", (size, size), color).save(buffer, "PNG")
    return buffer.getvalue()


def entry(unified: str, category: str, order: int, **has: bool) -> dict[str, object]:
    """A row of emoji.json."""
    names = {"name": "OLD NAME", "short_name": unified.lower(), "short_names": [unified.lower(), "a_b-c"]}
    row = {"unified": unified, "category": category, "sort_order": order, **names}
    both = {"has_img_google": True, "has_img_twitter": True} | has
    return {**row, "image": f"{unified.lower()}.png", **both}


@pytest.fixture
def emoji(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two packages in the real layout, of a few pictures."""
    table = [
        entry("1F600", "Smileys & Emotion", 2),
        entry("1F1E6", "Flags", 1),
        entry("1F3FB", "Component", 3),
        entry("1F601", "Smileys & Emotion", 4, has_img_twitter=False),
    ]
    for number, style in enumerate(("google", "twitter")):
        files = {f"img/{style}/64/{row['image']}": png((10 + number, 20, 30, 255)) for row in table}
        package(tmp_path, style, files | {"emoji.json": json.dumps(table).encode()})
    package(tmp_path, "blob", {"img/google/64/1f600.png": png((12, 20, 30, 255)), "emoji.json": b"[]"})
    joined = {f"assets/png/{name}.png": png((13, 20, 30, 255)) for name in ("1f3fb", "1f1e6-1f600", "1f1e6")}
    package(tmp_path, "emojione", joined)
    package(tmp_path, "fluent", {"assets/1f1e6-fe0f.webp": webp((14, 20, 30)), "assets/1f600/x.svg": b"<svg/>"})
    with tarfile.open(tmp_path / "emoji-names.tgz", "w:gz") as archive:
        add(archive, "package/data-by-emoji.json", json.dumps({"\U0001f600": {"name": "grinning Face"}}).encode())
    monkeypatch.setenv("AFT_DATA", str(tmp_path))
    monkeypatch.setattr(drawn, "check", lambda *_: None)
    return tmp_path


def package(folder: Path, name: str, files: dict[str, bytes]) -> None:
    """A tarball of npm's."""
    with tarfile.open(folder / f"emoji-{name}.tgz", "w:gz") as archive:
        for path, raw in files.items():
            add(archive, f"package/{path}", raw)


def webp(color: tuple[int, int, int]) -> bytes:
    """A larger picture of one colour, in the other format."""
    buffer = io.BytesIO()
    Image.new("RGB", (256, 256), color).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def add(archive: tarfile.TarFile, name: str, raw: bytes) -> None:
    """One file of an archive."""
    member = tarfile.TarInfo(name)
    member.size = len(raw)
    archive.addfile(member, io.BytesIO(raw))


@pytest.mark.usefixtures("emoji")
def test_emoji_in_two_styles() -> None:
    """What both packages have, in the table's order, with category and style; components are left out."""
    loaded = images.load("emoji", 8)
    assert loaded.names == ["1f1e6", "1f600"] * 2
    assert loaded.labels == ["Flags", "Smileys & Emotion"]
    assert loaded.label.tolist() == [0, 1, 0, 1]
    assert loaded.style.tolist() == [0, 0, 1, 1]
    assert loaded.images[:, 0, 0].tolist() == [[10, 20, 30]] * 2 + [[11, 20, 30]] * 2
    assert loaded.part[0] == loaded.part[2]
    assert loaded.part[1] == loaded.part[3]
    assert loaded.flips.tolist() == [False, True, False, True]
    assert loaded.aliases == [["old name", "1f1e6", "a b c"], ["grinning face", "old name", "1f600", "a b c"]] * 2


@pytest.mark.usefixtures("emoji")
def test_emoji_in_all_styles() -> None:
    """Three packages more, each with what it has of the same emoji, however it spells their code points."""
    loaded = images.load("emoji-styles", 8)
    assert loaded.styles == ["google", "twitter", "blob", "emojione", "fluent"]
    assert loaded.names == ["1f1e6", "1f600"] * 2 + ["1f600", "1f1e6", "1f1e6"]
    assert loaded.style.tolist() == [0, 0, 1, 1, 2, 3, 4]
    assert loaded.images[4:, 0, 0].tolist() == [[12, 20, 30], [13, 20, 30], [14, 20, 30]]
    flag, face = loaded.part[:2]
    assert loaded.part.tolist() == [flag, face, flag, face, face, flag, flag]


@pytest.mark.usefixtures("emoji")
def test_prompts_say_the_style_by_name() -> None:
    """A model of more styles in another order reads a set of two."""
    loaded = images.load("emoji", 4)
    codec = PixelCodec(Raster(height=4, width=4), loaded.labels, ["fluent", "twitter", "google"])
    expected = [codec.condition(label, style) for style in ("google", "twitter") for label in loaded.labels]
    assert prompts(loaded, codec)[:, 0].tolist() == expected
    with pytest.raises(ValueError, match="unknown style"):
        prompts(loaded, PixelCodec(Raster(height=4, width=4), loaded.labels, ["twitter"]))


def test_a_damaged_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes with another hash than the published package."""
    (tmp_path / "emoji-google.tgz").write_bytes(b"something else")
    monkeypatch.setenv("AFT_DATA", str(tmp_path))
    with pytest.raises(DataError, match="expected fb5fd131"):
        images.load("emoji", 8)


@pytest.mark.parametrize("other", ["1F9D1-200D-2695-FE0F", "1F468-200D-2695-FE0F", "1F469-200D-2695-FE0F"])
def test_genders_are_one_group(other: str) -> None:
    """A person, a man and a woman of one trade fall on one side."""
    assert drawn.group_of(other) == "1F9D1-200D-2695"


def test_gender_signs_are_stripped() -> None:
    """And so are the signs of gender and presentation at the end."""
    assert drawn.group_of("1F46F-200D-2640-FE0F") == drawn.group_of("1F46F") == "1F46F"


def test_what_was_seen_is_not_held_out() -> None:
    """A held-out picture that is equal to one of training, or to its mirror image, is no test of anything."""
    draw = np.random.default_rng(0)
    one, two, new = draw.integers(0, 256, (3, 4, 4, 3), np.uint8)
    pictures = np.stack([one, two, one, two[:, ::-1], new, new, one])
    part = np.array([0, 0, 1, 2, 1, 2, 0])
    assert images.seen(pictures, part).tolist() == [False, False, True, True, False, False, False]


def test_pictures_of_a_direction_are_not_mirrored() -> None:
    """Flags, symbols, and what is called by a side or an hour; the rest is."""
    named = ["grinning face", "two o clock", "left facing fist", "waxing gibbous moon", "copyright", "bright star"]
    labels = np.array([0, 0, 0, 0, 1, 0])
    pictures = np.zeros((6, 2, 2, 3), np.uint8)
    given = images.ImageSet(
        pictures, labels, labels * 0, labels * 0, named, [[name, "x"] for name in named], ["Faces", "Symbols"], []
    )
    assert given.flips.tolist() == [True, False, False, False, False, True]


def test_another_set_has_another_hash() -> None:
    """Whatever of it is other: a run would go on with something else."""
    draw = np.random.default_rng(0)
    parts = {
        "images": draw.integers(0, 256, (2, 4, 4, 3), np.uint8), "label": np.array([0, 1]), "style": np.array([0, 0]),
        "part": np.array([0, 1]), "names": ["a", "b"], "aliases": [["a"], ["b"]], "labels": ["x", "y"], "styles": ["s"],
    }  # fmt: skip
    changes: dict[str, object] = {
        "images": parts["images"] ^ 1, "label": np.array([1, 1]), "style": np.array([0, 1]), "part": np.array([0, 2]),
        "aliases": [["a"], ["left"]], "labels": ["x", "Flags"], "styles": ["t"],
    }  # fmt: skip
    hashes = {images.ImageSet(**{**parts, name: value}).sha256 for name, value in changes.items()}
    assert len(hashes | {images.ImageSet(**parts).sha256}) == len(changes) + 1


def test_sides_are_90_5_5() -> None:
    """Over many groups, by hash: false alarm below 1e-6 (six standard deviations)."""
    counts = np.bincount([images.side(f"group {i}") for i in range(20_000)], minlength=3)
    assert abs(counts[0] - 18_000) < 6 * 43
    assert abs(counts[1] - 1_000) < 6 * 31
    assert abs(counts[2] - 1_000) < 6 * 31


def test_folder_with_labels(tmp_path: Path) -> None:
    """Subfolders are labels."""
    for name in ("red/a.png", "blue/b.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(png((255, 0, 0, 255) if "red" in name else (0, 0, 255, 255), 9))
    loaded = images.load(str(tmp_path), 4)
    assert loaded.labels == ["blue", "red"]
    assert loaded.names == ["blue/b.png", "red/a.png"]
    assert loaded.images[:, 0, 0].tolist() == [[0, 0, 255], [255, 0, 0]]


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    """A broken file, a folder without any, a name that is nothing."""
    with pytest.raises(DataError, match="holds no picture"):
        images.load(str(tmp_path), 4)
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"a\.png is no picture"):
        images.load(str(tmp_path), 4)
    (tmp_path / "a.png").rename(tmp_path / "b.txt")
    for name in ("red/a.png", "loose.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png((255, 0, 0, 255)))
    with pytest.raises(DataError, match=r"labels, and loose\.png beside"):
        images.load(str(tmp_path), 4)
    with pytest.raises(DataError, match="neither a folder nor a known image set"):
        images.load("nowhere", 4)


def test_cifar_batches(tmp_path: Path) -> None:
    """The binary format: label, then planes of red, green and blue."""
    planes = np.zeros((2, 3, 32, 32), np.uint8)
    planes[:, 0], planes[:, 1, 0, 1] = 200, 7
    rows = np.concatenate([np.array([[3], [0]], np.uint8), planes.reshape(2, -1)], 1)
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        (tmp_path / name).write_bytes(rows.tobytes())
    (tmp_path / "batches.meta.txt").write_text("airplane\nautomobile\nbird\ncat\n")
    loaded = images.load(str(tmp_path), 32)
    assert loaded.images.shape == (12, 32, 32, 3)
    assert loaded.images[0, 0, 1].tolist() == [200, 7, 0]
    assert [loaded.labels[i] for i in loaded.label[:2]] == ["cat", "airplane"]
    assert loaded.part.tolist() == [0] * 10 + [2, 2]
    (tmp_path / "batches.meta.txt").write_text("airplane\nautomobile\nbird\n")
    with pytest.raises(DataError, match=r"batches\.meta\.txt has 3 names, the pictures have labels up to 3"):
        images.load(str(tmp_path), 32)
    for wrong in (b"\0" * 100, b""):
        (tmp_path / "data_batch_2.bin").write_bytes(wrong)
        with pytest.raises(DataError, match=r"data_batch_2\.bin is no CIFAR-10 batch"):
            images.load(str(tmp_path), 32)
    (tmp_path / "data_batch_2.bin").unlink()
    with pytest.raises(DataError, match=r"lacks data_batch_2\.bin"):
        images.load(str(tmp_path), 32)


@pytest.mark.usefixtures("emoji")
def test_examples_begin_with_their_condition() -> None:
    """Inputs are the condition and all values but the last; targets all values."""
    loaded = images.load("emoji", 4)
    codec = PixelCodec(Raster(height=4, width=4), loaded.labels, loaded.styles)
    inputs, targets = examples(loaded.images, prompts(loaded, codec))
    assert inputs[:, 0].tolist() == [codec.condition(label, s) for s in codec.styles for label in codec.labels]
    assert targets[2].tolist() == codec.encode(loaded.images[2])
    assert (inputs[:, 1:] == targets[:, :-1]).all()


@pytest.mark.usefixtures("emoji")
def test_examples_with_names() -> None:
    """The name stands between condition and pixels, and is no target; long ones lose their ends."""
    loaded = images.load("emoji", 4)
    codec = PixelCodec(Raster(height=4, width=4, name_length=9), loaded.labels, loaded.styles)
    inputs, targets = examples(loaded.images, prompts(loaded, codec))
    assert inputs.shape == targets.shape == (4, 9 + 48)
    assert inputs[1, 1:10].tolist() == codec.spell("grinning")
    assert (targets[:, :9] == IGNORED).all()
    assert targets[2, 9:].tolist() == codec.encode(loaded.images[2])
    assert (inputs[:, 10:] == targets[:, 9:-1]).all()


@pytest.mark.usefixtures("emoji")
def test_any_of_its_names_or_none() -> None:
    """In training a picture goes by each of its names, and by none as often as asked."""
    loaded = images.load("emoji", 4)
    codec = PixelCodec(Raster(height=4, width=4, name_length=8), loaded.labels, loaded.styles)
    source = Pictures(loaded, codec, brightness=0, any_share=0.0, nameless_share=0.5, seed=1)
    inputs, _ = source.batch(0, 400)
    faces = inputs[inputs[:, 0] == codec.condition("Smileys & Emotion", "google")]
    seen = {tuple(row) for row in faces[:, 1:9].tolist()}
    assert seen == {tuple(codec.spell(name)) for name in ("", "grinning", "old name", "1f600", "a b c")}
    nameless = (inputs[:, 1:9] == codec.spell("")[0]).all(1).float().mean()
    assert 0.4 < float(nameless) < 0.6


@pytest.mark.usefixtures("emoji")
def test_some_are_told_neither_label_nor_name() -> None:
    """As a guide is; half of those without a label, the others as often as asked."""
    loaded = images.load("emoji", 4)
    codec = PixelCodec(Raster(height=4, width=4, name_length=8), loaded.labels, loaded.styles)
    source = Pictures(loaded, codec, brightness=0, any_share=0.5, nameless_share=0.1, seed=1)
    inputs, _ = source.batch(0, 4000)
    nameless = (inputs[:, 1:9] == codec.spell("")[0]).all(1)
    labelless = torch.tensor(
        [codec.guide([condition]) == [condition, *codec.spell("")] for condition in inputs[:, 0].tolist()]
    )
    assert 0.45 < float(labelless.float().mean()) < 0.55
    assert 0.45 < float(nameless[labelless].float().mean()) < 0.6
    assert 0.05 < float(nameless[~labelless].float().mean()) < 0.2


@pytest.mark.usefixtures("emoji")
def test_batches_depend_on_the_step_alone() -> None:
    """The same step twice; brightness stays in its bounds; conditions are left out about as often as asked."""
    loaded = images.load("emoji", 4)
    codec = PixelCodec(Raster(height=4, width=4), loaded.labels, loaded.styles)
    source = Pictures(loaded, codec, brightness=5, any_share=0.5, nameless_share=0.0, seed=1)
    inputs, targets = source.batch(3, 400)
    again = source.batch(3, 400)
    assert (inputs == again[0]).all()
    assert (targets == again[1]).all()
    assert not (source.batch(4, 400)[1] == targets).all()
    red = targets[:, 0]
    assert set(red.tolist()) == set(range(5, 17))  # 10 or 11, +-5
    without = (inputs[:, 0] == codec.condition()).float().mean()
    assert 0.15 < float(without) < 0.35  # a quarter: false alarm below 1e-5


def test_only_some_labels_are_mirrored() -> None:
    """A flag is never mirrored, a face in half of the cases."""
    left = np.zeros((2, 2, 2, 3), np.uint8)
    left[:, :, 0] = 100
    arrays = (np.array([0, 1]), np.zeros(2, np.int64), np.zeros(2, np.int64))
    loaded = images.ImageSet(left, *arrays, ["flag", "face"], [[], []], ["Flags", "Smileys & Emotion"], [])
    codec = PixelCodec(Raster(height=2, width=2), loaded.labels, [])
    inputs, targets = Pictures(loaded, codec, brightness=0, any_share=0.0, nameless_share=0.0, seed=0).batch(0, 400)
    flags = inputs[:, 0] == codec.condition("Flags")
    mirrored = targets[:, 0] == 0
    assert not mirrored[flags].any()
    assert 0.3 < float(mirrored[~flags].float().mean()) < 0.7
