"""Text in process: what a seed gives, by hand and by pieces."""

from __future__ import annotations

from pathlib import Path

import checkpoints_for_tests as tiny
import numpy as np
import pytest
import torch

from model import weights
from model.checkpoint import CheckpointError
from model.generate import BURST, draw_together, generate
from model.generate import draw as draw_rows
from model.network import Network
from model.runtime.choice import open_runtime
from model.sampling import NothingToDrawError, SamplingParams, draw


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An endless model of characters."""
    return tiny.characters(tmp_path_factory.mktemp("generate") / "m")


def text(folder: Path, prompt: str, max_tokens: int, temperature: float = 1.0, seed: int = 0) -> str:
    """All pieces, on the runtime that computes what the network does."""
    return "".join(generate(folder, prompt, max_tokens, temperature=temperature, seed=seed, runtime="torch"))


def by_hand(folder: Path, prompt: str, max_tokens: int, params: SamplingParams) -> str:
    """The whole text so far through the parallel form, again for every token."""
    checkpoint = tiny.opened(folder)
    network, tokenizer = weights.load(checkpoint), checkpoint.tokenizer
    tokens = [tokenizer.begin, *tokenizer.encode(prompt)]
    start = len(tokens)
    while len(tokens) < start + max_tokens:
        with torch.no_grad():
            scores = network(torch.tensor([tokens]))[0][0, -1].double().numpy()
        for token, written in enumerate(tokenizer.token_bytes):
            if not written and token != tokenizer.end:
                scores[token] = -np.inf
        tokens.append(draw(scores, params, len(tokens)))
        if tokens[-1] == tokenizer.end or len(tokens) == (checkpoint.config.model.max_model_len or 10**9) + 1:
            break
    return tokenizer.decode(tokens[start:])


@pytest.mark.parametrize("prompt", ["", "Speak", "日本 🙂 café"])
@pytest.mark.parametrize(("temperature", "seed"), [(1.0, 0), (1.0, -7), (0.5, 1), (0.0, 0)])
def test_text_is_the_networks(folder: Path, prompt: str, temperature: float, seed: int) -> None:
    """The same as drawing from the parallel form by hand."""
    expected = by_hand(folder, prompt, 40, SamplingParams(temperature=temperature, seed=seed))
    assert text(folder, prompt, 40, temperature, seed) == expected


def test_a_seed_repeats_and_another_does_not(folder: Path) -> None:
    """Greedy does not look at it."""
    assert text(folder, "a", 60, seed=5) == text(folder, "a", 60, seed=5) != text(folder, "a", 60, seed=6)
    assert text(folder, "a", 60, 0.0, seed=5) == text(folder, "a", 60, 0.0, seed=6)


@pytest.mark.parametrize("tokens", [1, BURST - 1, BURST, BURST + 1, 3 * BURST])
def test_number_of_tokens_and_pieces(tmp_path: Path, tokens: int) -> None:
    """A model of bytes that never ends: exactly so many bytes, one piece a burst, and what the decoder held back."""
    folder = tiny.plain_bytes(tmp_path / "m")
    pieces = list(generate(folder, "x", tokens, seed=3, runtime="torch"))
    assert len(pieces) == -(-tokens // BURST) + 1
    expected = by_hand(folder, "x", tokens, SamplingParams(seed=3))
    assert "".join(pieces) == expected
    longer = text(folder, "x", tokens + 20, seed=3)
    assert longer.startswith(expected.rstrip("\ufffd"))
    assert len(longer) > len(expected)


def test_no_tokens_no_text(folder: Path) -> None:
    """Zero asked for."""
    assert text(folder, "a", 0) == ""


def test_the_models_end(tmp_path: Path) -> None:
    """A model of 64 positions: begin and the prompt are some of them; the token after the last is the text's last."""
    folder = tiny.ending(tmp_path / "m")
    given = by_hand(folder, "Speak", 10_000, SamplingParams(temperature=0.0))
    assert text(folder, "Speak", 10_000, 0.0) == given
    assert len(given.encode()) >= tiny.MAX_LEN - 5


def test_the_end_symbol_stops(tmp_path: Path) -> None:
    """And writes nothing: the head's rows of the end symbol and of the sixth greedy token change places."""
    folder = tiny.plain_bytes(tmp_path / "m")
    checkpoint = tiny.opened(folder)
    network, tokenizer = weights.load(checkpoint), checkpoint.tokenizer
    tokens = [tokenizer.begin, *tokenizer.encode("x")]
    with torch.no_grad():
        for _ in range(6):
            tokens.append(int(network(torch.tensor([tokens]))[0][0, -1].argmax()))
        drawn = tokens[2:]
        assert tokenizer.end not in drawn
        rows = [drawn[-1], tokenizer.end]
        network.head.weight[rows] = network.head.weight[rows[::-1]].clone()
    weights.save(network, tokenizer, folder, {})
    expected = tokenizer.decode(drawn[: drawn.index(drawn[-1])])
    assert expected
    assert text(folder, "x", 40, 0.0) == expected


def test_logits_that_are_no_numbers(tmp_path: Path) -> None:
    """Text, a picture and several together say so, instead of ending early or white."""

    def spoil(network: Network) -> None:
        with torch.no_grad():
            network.norm.weight.fill_(float("nan"))

    text_model, pictures = tiny.opened(tiny.characters(tmp_path / "m")), tiny.opened(tiny.pictures(tmp_path / "p"))
    for checkpoint in (text_model, pictures):
        network = weights.load(checkpoint)
        spoil(network)
        weights.save(network, checkpoint.codec, checkpoint.folder, {})
    with pytest.raises(NothingToDrawError, match="not numbers"):
        text(tmp_path / "m", "a", 5)
    with pytest.raises(NothingToDrawError, match="not numbers"):
        list(draw_rows(tmp_path / "p", runtime="torch"))
    codec = pictures.pixels
    runtime = open_runtime(tiny.opened(tmp_path / "p"), 2, wanted="torch")
    with pytest.raises(NothingToDrawError, match="not numbers"):
        draw_together(runtime, codec, [codec.prompt()] * 2)


def test_errors(folder: Path, tmp_path: Path) -> None:
    """A folder that is no checkpoint, a prompt that is no text."""
    with pytest.raises(CheckpointError, match=r"absent: no readable config\.json"):
        text(tmp_path / "absent", "a", 1)
    with pytest.raises(ValueError, match="unpaired surrogate"):
        text(folder, "a\ud800", 1)
