"""Training of pictures that goes on from a model which knows fewer styles."""

from pathlib import Path

import pytest
import torch

from model import weights
from model.checkpoint import Checkpoint
from model.config import ModelConfig, Raster, preset
from model.network import Network
from model.pixels import PixelCodec
from model.start import begin_with

RASTER = Raster(height=4, width=4, name_length=3)


def codec(labels: str = "ab", styles: str = "s") -> PixelCodec:
    """With labels and styles of one letter."""
    return PixelCodec(RASTER, list(labels), list(styles))


def network(of: PixelCodec, **changes: object) -> Network:
    """A tiny one that looks back, not trained."""
    shape = {"raster": RASTER.model_dump(), "max_model_len": RASTER.positions, "lookback": [2, 3]}
    config: ModelConfig = preset("tiny", of.vocab_size, **shape, **changes)
    return Network(config).eval()


@pytest.fixture
def start(tmp_path: Path) -> tuple[Network, Path]:
    """A model of two labels and a style, and its checkpoint."""
    torch.manual_seed(1)
    known = network(codec())
    weights.save(known, codec(), tmp_path / "known", {})
    with torch.no_grad():
        for parameter in known.parameters():
            if parameter.ndim == 2:
                parameter.copy_(parameter.bfloat16())  # as it is stored
    return known, tmp_path / "known"


@pytest.mark.parametrize(
    ("label", "style", "known_style"), [("b", "s", "s"), ("a", "t", ""), ("", "r", ""), ("", "", "")]
)
@torch.inference_mode()
def test_a_new_style_begins_as_any(start: tuple[Network, Path], label: str, style: str, known_style: str) -> None:
    """Styles that were known draw as before, those that were not as any style does; names are read as before."""
    known, folder = start
    more = codec(styles="rst")
    grown = network(more)
    begin_with(grown, more, folder)
    values = [7, 200, 33, 250, 0]
    before = known(torch.tensor([[*codec().prompt(label, known_style, "x1"), *values]]))[0]
    after = grown(torch.tensor([[*more.prompt(label, style, "x1"), *values]]))[0]
    torch.testing.assert_close(after[..., :256], before[..., :256])


@pytest.mark.parametrize("other", [codec(labels="ac"), codec(labels="ba"), codec(styles="t"), codec(styles="")])
def test_what_the_start_knows_must_be_known(start: tuple[Network, Path], other: PixelCodec) -> None:
    """Other labels, another order of them, a style that is gone."""
    with pytest.raises(ValueError, match="ids mean something else"):
        begin_with(network(other), other, start[1])


def test_more_styles_are_no_other_shape(start: tuple[Network, Path]) -> None:
    """A wider network is, whatever its styles."""
    more = codec(styles="st")
    with pytest.raises(ValueError, match="another shape"):
        begin_with(network(more, dim=64), more, start[1])


@torch.inference_mode()
def test_mirror_images_are_new(start: tuple[Network, Path], tmp_path: Path) -> None:
    """A model that read none draws as before, with a table of zeros; one that reads them is another shape than it."""
    known, folder = start
    grown = network(codec(), mirror=True)
    begin_with(grown, codec(), folder)
    tokens = torch.randint(0, 256, (2, RASTER.positions))
    torch.testing.assert_close(grown(tokens)[0], known(tokens)[0])
    grown.get_parameter("lookback.mirror.weight").normal_()
    assert not torch.allclose(grown(tokens)[0], known(tokens)[0])
    with pytest.raises(ValueError, match="another shape"):
        begin_with(known, codec(), saved(grown, codec(), tmp_path / "grown"))


@torch.inference_mode()
def test_names_are_new(tmp_path: Path) -> None:
    """A model that knew none reads them: pixels and conditions keep their meaning, and letters differ a little."""
    plain_raster = Raster(height=4, width=4)
    known_codec, named = PixelCodec(plain_raster, ["a", "b"], ["s"]), codec(styles="st")
    torch.manual_seed(1)
    known = Network(preset("tiny", known_codec.vocab_size, raster=plain_raster.model_dump(), max_model_len=48)).eval()
    weights.save(known, known_codec, tmp_path / "known", {})
    grown = Network(preset("tiny", named.vocab_size, raster=RASTER.model_dump(), max_model_len=RASTER.positions)).eval()
    begin_with(grown, named, tmp_path / "known")
    before = weights.load(Checkpoint(tmp_path / "known")).embed.value.weight
    after = grown.embed.value.weight
    assert torch.equal(after[:256], before[:256])
    assert torch.equal(after[named.condition("b", "s")], before[known_codec.condition("b", "s")])
    assert torch.equal(after[named.condition("b", "t")], before[known_codec.condition("b")])
    letters = after[256 + named.num_conditions :]
    assert 0 < float((letters - before[known_codec.condition()]).abs().max()) < 0.2
    assert len({tuple(row) for row in letters.tolist()}) == 1 + len(named.alphabet)
    with pytest.raises(ValueError, match="another shape"):
        begin_with(known, known_codec, saved(grown, named, tmp_path / "named"))


def saved(network: Network, codec: PixelCodec, folder: Path) -> Path:
    """A model, stored."""
    weights.save(network, codec, folder, {})
    return folder
