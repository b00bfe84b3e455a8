"""Pictures that a training run reduces anew from a larger size, a little stretched or moved."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model import images, runs
from model.batches import Pictures
from model.config import Raster
from model.pixels import WHITE, PixelCodec, Pixels, fit, fit_loosely
from model.recipe import Recipe

SIDE, SIZE = 64, 16
STILL = np.zeros(2)


@pytest.fixture
def picture() -> Pixels:
    """Noise with a white margin as wide as the filter reaches beyond a pixel moved by one."""
    drawn = np.full((SIDE, SIDE, 3), WHITE, np.uint8)
    drawn[16:-16, 16:-16] = np.random.default_rng(0).integers(0, 256, (SIDE - 32, SIDE - 32, 3))
    return drawn


def apart(one: Pixels, other: Pixels) -> int:
    """The largest difference; where Pillow adds in another order, its rounding makes one level now and then."""
    return int(np.abs(one.astype(int) - other).max())


def test_neither_stretched_nor_moved_it_is_fit(picture: Pixels) -> None:
    """The same reduction."""
    loose, plain = fit_loosely(picture, SIZE, np.ones(2), STILL), fit(Image.fromarray(picture), SIZE)
    assert apart(loose, plain) <= 1


@pytest.mark.parametrize(("across", "down"), [(1, 0), (0, 1), (-1, 1)])
def test_moves_are_whole_pixels_to_the_right_and_down(picture: Pixels, across: int, down: int) -> None:
    """What moves by a pixel of the reduced picture is that picture, moved."""
    moved = fit_loosely(picture, SIZE, np.ones(2), np.array([across, down], np.float64))
    still = fit_loosely(picture, SIZE, np.ones(2), STILL)
    assert (moved == np.roll(still, (down, across), (0, 1))).all()


def test_stretched_it_is_larger_from_its_middle() -> None:
    """A dark square grows to both sides by as much as asked, in the direction asked."""
    drawn = np.full((SIDE, SIDE, 3), WHITE, np.uint8)
    drawn[16:48, 16:48] = 0  # 8 pixels of the reduced one
    wide = fit_loosely(drawn, SIZE, np.array([1.1, 1.0]), STILL)
    dark = 1 - wide[..., 0] / WHITE
    assert dark[8].sum() == pytest.approx(8.8, abs=0.1)
    assert dark[:, 8].sum() == pytest.approx(8.0, abs=0.1)
    assert (wide == wide[:, ::-1]).all()


def test_symmetry_outlives_what_leaves_the_middle_in_place(picture: Pixels) -> None:
    """A model reads mirror images: most pictures keep theirs."""
    picture[:, SIDE // 2 :] = picture[:, : SIDE // 2][:, ::-1]
    changed = fit_loosely(picture, SIZE, np.array([0.93, 1.07]), np.array([0.0, 0.4]))
    assert not (changed == fit_loosely(picture, SIZE, np.ones(2), STILL)).all()
    assert apart(changed, changed[:, ::-1]) <= 1


def sources(share: float) -> tuple[Pictures, Pictures]:
    """One that redraws a share, and the same that redraws none."""
    detailed = np.random.default_rng(1).integers(0, 256, (5, SIDE, SIDE, 3), np.uint8)
    reduced = np.stack([fit(Image.fromarray(picture), SIZE) for picture in detailed])
    arrays = (np.arange(5) % 2, np.zeros(5, np.int64), np.zeros(5, np.int64))
    known = images.ImageSet(reduced, *arrays, list("abcde"), [[name] for name in "abcde"], ["x", "y"], [])
    codec = PixelCodec(Raster(height=SIZE, width=SIZE, name_length=4), known.labels, [])
    given = (known, codec, 0, 0.2, 0.3, 7)
    return Pictures(*given, detailed, share), Pictures(*given)


def test_as_many_are_redrawn_as_asked() -> None:
    """And all else is drawn as without: which picture, mirrored or not, told what."""
    redrawn, plain = sources(0.5)
    (inputs, targets), (plain_inputs, plain_targets) = redrawn.batch(3, 400), plain.batch(3, 400)
    assert (inputs[:, :5] == plain_inputs[:, :5]).all()
    changed = (targets != plain_targets).any(1)
    assert 0.4 < float(changed.float().mean()) < 0.6
    again = redrawn.batch(3, 400)
    assert (inputs == again[0]).all()
    assert (targets == again[1]).all()
    assert not (redrawn.batch(4, 400)[1] == targets).all()


def test_no_two_are_redrawn_alike() -> None:
    """One picture becomes as many as it is read times."""
    redrawn, _ = sources(1.0)
    _, targets = redrawn.batch(0, 200)
    assert len(targets.unique(dim=0)) == 200


def test_pictures_given_are_left_as_they_are() -> None:
    """Redrawing writes into what a step reads, not into the set."""
    redrawn, _ = sources(1.0)
    before = redrawn.pictures.images.copy()
    redrawn.batch(0, 50)
    assert (redrawn.pictures.images == before).all()


def test_a_run_redraws_what_it_trains_on_from_the_files(tmp_path: Path) -> None:
    """Held-out pictures stay as they are; a picture is redrawn from its own file, not from a neighbour's."""
    for number in range(60):
        level = 4 * number
        Image.new("RGB", (SIDE, SIDE), (level, level, level)).save(tmp_path / f"{number}.png")
    fields = {
        "name": "redrawn", "kind": "image", "corpus": str(tmp_path), "preset": "emoji", "size": 8, "batch": 2,
        "model": {"dim": 16, "num_layers": 1, "num_heads": 1, "window": 24},
    }  # fmt: skip
    still, _ = runs.make_trainer(Recipe.model_validate(fields), tmp_path / "run")
    loose, _ = runs.make_trainer(Recipe.model_validate({**fields, "redrawn_share": 1.0}), tmp_path / "run")
    assert (still.validation[1] == loose.validation[1]).all()
    given, read = still.source.batch(0, 100)[1], loose.source.batch(0, 100)[1]
    middle = 8 * 4 * 3 + 4 * 3
    assert (given[:, middle] == read[:, middle]).all()
    assert not (given == read).all()  # a white margin comes into view of what became smaller
