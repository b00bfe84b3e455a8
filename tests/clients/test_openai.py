"""The openai packages for Python and Node say the same as plain HTTP."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from installed import ROOT
from live import Process, serve
from PIL import Image

ASK = {"model": "shakespeare", "prompt": "ROMEO:\n", "max_tokens": 40, "seed": 7}
KEYS = ["aft-one", "aft-two"]
Ask = Callable[..., dict[str, Any]]


def plain(server: Process, **more: Any) -> list[dict[str, Any]]:
    """The choices as they come over the wire."""
    return server.post({**ASK, **more}).raise_for_status().json()["choices"]


def picture(encoded: str) -> np.ndarray:
    """The values of an image (H, W, C)."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))


@pytest.fixture(scope="module")
def above() -> np.ndarray:
    """An image (16, 16, 3)."""
    return np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def answers(server: Process, ask: Ask, above: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All that calls.py or calls.mjs was told."""
    folder: Path = tmp_path_factory.mktemp("pictures")
    mask = np.zeros((16, 16, 4), np.uint8)
    mask[:8, :, 3] = 255  # the lower half is to be drawn
    Image.fromarray(above).save(folder / "image.png")
    Image.fromarray(mask).save(folder / "mask.png")
    return ask("calls", server.url, folder / "image.png", folder / "mask.png")


def test_text(server: Process, answers: dict[str, Any]) -> None:
    """Whole, streamed, by ids, again: one seed, one text; lists and samples; a stop."""
    (expected,) = plain(server)
    whole = answers["whole"]
    assert whole["object"] == "text_completion"
    assert whole["choices"] == [expected]
    for text in (answers["again"], answers["ids"], answers["stream"]["text"], answers["stream_logprobs"]["text"]):
        assert text == expected["text"]
    usage = {"prompt_tokens": 7, "completion_tokens": 40, "total_tokens": 47}
    assert usage.items() <= whole["usage"].items()
    assert usage.items() <= answers["stream"]["usage"].items()
    assert answers["n"] == [choice["text"] for choice in plain(server, n=2)]
    assert answers["prompts"] == [choice["text"] for choice in plain(server, prompt=["ROMEO:\n", "JULIET:\n"])]
    (stopped,) = plain(server, stop=["\n"])
    assert (answers["stop"]["text"], answers["stop"]["finish_reason"]) == (stopped["text"], "stop")


def test_logprobs(server: Process, answers: dict[str, Any]) -> None:
    """Of a prompt that is only scored, and of a stream."""
    (scored,) = plain(server, max_tokens=0, echo=True, logprobs=2)
    assert answers["echo"] == scored["logprobs"]
    (drawn,) = plain(server, logprobs=0)
    assert answers["stream_logprobs"]["token_logprobs"] == drawn["logprobs"]["token_logprobs"]


def test_models(answers: dict[str, Any]) -> None:
    """The list, and one of it."""
    assert answers["models"] == [["emoji", "model"], ["shakespeare", "model"]]
    assert answers["model"] == "emoji"


def test_images(server: Process, answers: dict[str, Any], above: np.ndarray) -> None:
    """A drawing as plain HTTP has it; a streamed edit that keeps what the mask keeps."""
    body = {"model": "emoji", "prompt": "Food & Drink", "seed": 7}
    drawn = server.http.post("/v1/images/generations", json=body).raise_for_status().json()
    assert answers["image"] == drawn["data"][0]["b64_json"]
    assert answers["edit"]["types"] == ["image_edit.partial_image", "image_edit.completed"]
    assert np.array_equal(picture(answers["edit"]["image"])[:8], above[:8])


def test_errors(answers: dict[str, Any]) -> None:
    """The client's own classes, with the fields of ours."""
    kind = "invalid_request_error"
    seen = dict(answers["errors"])
    assert seen.pop("timeout") in (["APITimeoutError"], ["APIConnectionTimeoutError"])  # Python's name, Node's name
    assert seen == {
        "model": ["NotFoundError", 404, kind, "model_not_found", "model"],
        "one_model": ["NotFoundError", 404, kind, "model_not_found", "model"],
        "range": ["BadRequestError", 400, kind, "invalid_value", "temperature"],
        "unknown": ["BadRequestError", 400, kind, "invalid_value", "nonsense"],
        "route": ["NotFoundError", 404, kind, "not_found", None],
    }


def test_streams_at_once(server: Process, answers: dict[str, Any]) -> None:
    """Sixteen at the same time read what each reads alone; one that is left gives its slot back."""
    assert answers["many"] == [plain(server, seed=seed)[0]["text"] for seed in range(16)]
    assert answers["leave_early"] == [1, 0]


def test_full(ask: Ask) -> None:
    """A full service: the client waits as long as Retry-After says, then succeeds. A wrong key, and too high a rate."""
    full = {"slots": 1, "max_queue": 0, "max_stream_tokens": 20_000}  # few tokens: Retry-After says when they are there
    access = {"api_keys": json.dumps(KEYS), "rate_limit": "20/day"}
    with serve(ROOT / "checkpoints", runtime="native", log_level="warning", **full, **access) as server:
        seen = ask("full", server.url, *KEYS)
    name, status, seconds = seen["full"]
    assert (name, status) == ("InternalServerError", 503)
    assert 1 <= int(seconds) <= 60
    waited, told = seen["waited"]  # one attempt failed, and the next one came when it had been told to
    assert int(told) <= waited < int(told) + 5
    assert len(seen["text"]) == 5
    assert seen["wrong"] == ["AuthenticationError", 401, ""]
    assert seen["limited"][:2] == ["RateLimitError", 429]
    assert 1 <= int(seen["limited"][2]) <= 60
