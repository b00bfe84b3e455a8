"""The table of errors: each row's status, type, code and headers, in one shape."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import errors
from service.errors import ApiError, clip

INVALID, UNAVAILABLE = "invalid_request_error", "unavailable_error"
ROWS: list[tuple[ApiError, int, str, str, dict[str, str]]] = [
    (errors.invalid("m", "p"), 400, INVALID, "invalid_value", {}),
    (errors.model_not_found("x", ["a"]), 404, INVALID, "model_not_found", {}),
    (errors.not_found(), 404, INVALID, "not_found", {}),
    (errors.method_not_allowed({"allow": "POST"}), 405, INVALID, "method_not_allowed", {"allow": "POST"}),
    (errors.too_large(7), 413, INVALID, "request_too_large", {"connection": "close"}),
    (
        errors.queue_full(3, 9), 503, "overloaded_error", "queue_full",
        {"retry-after": "9", "retry-after-ms": "9000"},
    ),
    (
        errors.shutting_down(), 503, UNAVAILABLE, "shutting_down",
        {"retry-after": "5", "retry-after-ms": "5000", "connection": "close"},
    ),
    (
        errors.model_loading(), 503, UNAVAILABLE, "model_loading",
        {"retry-after": "5", "retry-after-ms": "5000", "connection": "close"},
    ),
    (errors.internal(), 500, "server_error", "internal_error", {}),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[3])
def test_rows(row: tuple[ApiError, int, str, str, dict[str, str]]) -> None:
    """As docs and clients expect them."""
    error, status, kind, code, headers = row
    response = error.response()
    content = json.loads(bytes(response.body))
    assert content == {"error": {"message": error.message, "type": kind, "param": error.param, "code": code}}
    assert list(content["error"]) == ["message", "type", "param", "code"]
    assert (response.status_code, response.media_type) == (status, "application/json")
    extra = {name: value for name, value in response.headers.items() if name not in ("content-type", "content-length")}
    assert extra == headers


def test_params() -> None:
    """The field where there is one, null where there is none."""
    assert errors.invalid("m", "p").param == "p"
    assert errors.invalid("m").param is None
    assert errors.model_not_found("x", []).param == "model"


def test_messages_name_what_matters() -> None:
    """The limit, the known models, the methods."""
    assert "7" in errors.too_large(7).message
    assert "3" in errors.queue_full(3, 9).message
    assert "no room for 7 choices" in errors.queue_full(3, 9, 7).message
    assert "POST" in errors.method_not_allowed({"allow": "POST"}).message
    assert errors.model_not_found("x", ["a", "b"]).message == "model 'x' is not served here; served: a, b"
    assert errors.model_not_found("x", []).message.endswith("none")


@given(st.text(st.characters(codec=None)))
def test_input_is_repeated_bounded_and_encodable(text: str) -> None:
    """Whatever a model was called."""
    assert len(clip(text)) <= 65
    clip(text).encode()
    assert clip(text).startswith(text[:64].encode("utf-8", "replace").decode())
    response = errors.model_not_found(text, ["a"]).response()
    assert len(response.body) < 1000
    json.loads(bytes(response.body))
