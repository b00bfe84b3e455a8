"""Bodies: what is refused, and how; nothing else ever comes out than a valid request or an ApiError."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from service.errors import ApiError
from service.schema.completions import CompletionRequest, StreamOptions
from service.schema.parse import MAX_FIELDS, parse, read_body
from service.settings import Settings

GOOD: dict[str, Any] = {"model": "m", "prompt": "p"}


def refuse(body: bytes | dict[str, Any], param: str | None, *words: str) -> ApiError:
    """The error of a body: a 400 of the one shape, which can be encoded and says these words."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(ApiError) as caught:
        parse(raw, CompletionRequest)
    error = caught.value
    assert (error.status, error.type, error.code, error.param) == (400, "invalid_request_error", "invalid_value", param)
    bytes(error.response().body).decode("ascii")
    assert len(error.message) < 400
    for word in words:
        assert word in error.message
    return error


def accept(**fields: Any) -> CompletionRequest:
    """A good body with some fields more."""
    return parse(json.dumps({**GOOD, **fields}).encode(), CompletionRequest)


def test_a_body() -> None:
    """All fields."""
    fields: dict[str, Any] = {
        "max_tokens": 5, "temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0.5, "seed": -(2**63), "stop": ["a"],
        "stream": True, "n": 3, "best_of": 3, "frequency_penalty": -2, "presence_penalty": 2, "repetition_penalty": 1.5,
        "ignore_eos": True, "echo": False, "logprobs": 5, "user": "somebody", "suffix": None,
    }  # fmt: skip
    request = accept(**fields, stream_options={"include_usage": True}, logit_bias={"7": -100, "12": 0.5})
    assert {name: getattr(request, name) for name in fields} == fields
    assert request.stream_options is not None
    assert request.stream_options.include_usage is True
    assert request.logit_bias == {7: -100, 12: 0.5}
    assert set(CompletionRequest.model_fields) == {*fields, *GOOD, "stream_options", "logit_bias"}


def test_defaults_and_null() -> None:
    """Null is absence, but for max_tokens of a stream."""
    names = [name for name in CompletionRequest.model_fields if name not in GOOD]
    plain, nulls = accept(), accept(**dict.fromkeys(names))
    assert plain.max_tokens == 256
    assert not plain.unlimited
    assert not nulls.unlimited
    for name in names:
        if name != "max_tokens":
            assert getattr(plain, name) is None
            assert getattr(nulls, name) is None
    assert accept(max_tokens=None, stream=True).unlimited
    assert not accept(stream=True).unlimited
    assert not accept(max_tokens=5, stream=True).unlimited
    assert accept(stop=[]).stops == []
    assert accept(stop="a").stops == ["a"]
    assert accept(logit_bias={}).logit_bias == {}
    assert accept(stream=True, stream_options=dict.fromkeys(StreamOptions.model_fields)).stream_options is not None
    assert (plain.num_choices, plain.samples) == (1, 1)
    assert (accept(n=2).samples, accept(n=2, best_of=5).samples, accept(best_of=5).num_choices) == (2, 5, 1)


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a", ["a"]), ("", [""]), (["a", ""], ["a", ""]), ([5], [[5]]), ([1, 2], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        ([[]], [[]]), ([[], [1]], [[], [1]]), ([10**30, -1], [[10**30, -1]]),
    ],
)  # fmt: skip
def test_prompts(prompt: Any, wanted: Any) -> None:
    """One or many, text or ids. Whether ids are in the vocabulary is the model's matter."""
    assert accept(prompt=prompt).prompt == wanted


@pytest.mark.parametrize(
    "prompt",
    [
        [], {}, 1, 1.5, True, None, ["a", 1], [1, "a"], [1, 2.0], [1, True], [True], [None], ["a", None], [[1], "a"],
        [["a"]], [[1], 2], [1, [2]], [[1], [True]], [[1.0]], [[None]], [[[1]]], [[[]]], [{}], [[1], None],
    ],
)  # fmt: skip
def test_prompts_that_are_refused(prompt: Any) -> None:
    """Empty, mixed, other numbers, nested deeper."""
    refuse({**GOOD, "prompt": prompt}, "prompt", "prompt", "list of strings")


@pytest.mark.parametrize(
    "name", ["", "a", "-1", "+1", "1.0", "1e3", " 1", "1 ", "1_0", "²", "١", "1" * 10, "9" * 5000, "null", "\ud800"]
)
def test_names_of_biases(name: str) -> None:
    """Only ids in plain digits."""
    refuse({**GOOD, "logit_bias": {"1": 0, name: 1}}, "logit_bias", "logit_bias", "digits")


def test_an_id_with_two_biases() -> None:
    """One name twice is refused by that; two names of one id are refused too."""
    refuse(b'{"model":"m","prompt":"p","logit_bias":{"7":1,"7":2}}', "7", "twice")
    refuse({**GOOD, "logit_bias": {"7": 1, "007": 1}}, "logit_bias", "twice")
    refuse({**GOOD, "logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias", "1024", "1025")
    assert len(accept(logit_bias={str(i): 1 for i in range(1024)}).logit_bias or ()) == 1024


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", None), ("model", 1), ("prompt", None), ("prompt", 1), ("prompt", True), ("prompt", {}),
        ("max_tokens", "5"), ("max_tokens", True), ("max_tokens", 1.0), ("max_tokens", -1),
        ("temperature", "0.5"), ("temperature", True), ("temperature", -0.1), ("temperature", 2.1), ("temperature", []),
        ("temperature", 10**400),
        ("top_p", 0), ("top_p", 1.01), ("top_p", "1"),
        ("top_k", -1), ("top_k", 1.5), ("top_k", False), ("top_k", 2**31),
        ("min_p", -0.1), ("min_p", 1.1), ("seed", 2**63), ("seed", -(2**63) - 1), ("seed", 1.0), ("seed", "1"),
        ("seed", True), ("seed", 10**400),
        ("stop", ""), ("stop", ["a", ""]), ("stop", ["a"] * 17), ("stop", [1]), ("stop", 5),
        ("stream", "true"), ("stream", 1), ("stream_options", []), ("stream_options", True),
        ("n", 0), ("n", 129), ("n", 1.0), ("n", "1"), ("n", True), ("best_of", 0), ("best_of", 21), ("best_of", True),
        ("frequency_penalty", -2.1), ("frequency_penalty", 2.1), ("frequency_penalty", "1"),
        ("presence_penalty", -2.1), ("presence_penalty", 2.1), ("presence_penalty", []), ("presence_penalty", 10**400),
        ("repetition_penalty", 0), ("repetition_penalty", -1), ("repetition_penalty", 1e-4),
        ("repetition_penalty", 1001), ("repetition_penalty", "1"), ("repetition_penalty", True),
        ("logit_bias", []), ("logit_bias", "1"), ("logit_bias", {"1": 100.5}), ("logit_bias", {"1": -101}),
        ("logit_bias", {"1": "1"}), ("logit_bias", {"1": None}), ("logit_bias", {"1": True}),
        ("ignore_eos", 1), ("ignore_eos", "true"), ("echo", 0), ("echo", "false"),
        ("logprobs", -1), ("logprobs", 6), ("logprobs", True), ("logprobs", "1"), ("logprobs", 1.0),
        ("user", 1), ("user", []), ("suffix", ""), ("suffix", "x"), ("suffix", False),
    ],
)  # fmt: skip
def test_values_that_are_refused(name: str, value: Any) -> None:
    """Wrong types and ranges; the message names the field."""
    refuse({**GOOD, name: value}, name, name)


@pytest.mark.parametrize("name", ["model", "prompt"])
def test_required_fields(name: str) -> None:
    """Absent: named."""
    refuse({key: value for key, value in GOOD.items() if key != name}, name, name)


def test_the_message_names_the_limit() -> None:
    """The field, the limit."""
    refuse({**GOOD, "temperature": 3}, "temperature", "less than or equal to 2")
    refuse({**GOOD, "stop": ["a"] * 17}, "stop", "16")


@pytest.mark.parametrize("name", ["logprob", "x", "", "é", "\ud800", "a" * 5000, "model\n"])
def test_unknown_fields(name: str) -> None:
    """Refused by name, clipped, encodable; also inside an object."""
    refuse({**GOOD, name: 1}, name if name.isascii() and len(name) < 60 else ANY)
    refuse({**GOOD, "stream": True, "stream_options": {"include_obfuscation_of": 1}}, "stream_options", "include_obf")


class _Any(str):
    """Equal to any name."""

    __hash__ = str.__hash__

    def __eq__(self, _: object) -> bool:
        return True


ANY = _Any("")


@pytest.mark.parametrize(
    ("fields", "param", "word"),
    [
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
        ({"stream_options": {}, "stream": False}, "stream_options", "stream: true"),
        ({"max_tokens": 0}, "max_tokens", "echo"),
        ({"max_tokens": 0, "echo": False}, "max_tokens", "echo"),
        ({"max_tokens": 0, "logprobs": 1}, "max_tokens", "echo"),
        ({"n": 3, "best_of": 2}, "best_of", "n, which is 3"),
        ({"n": 21, "best_of": 20}, "best_of", "n, which is 21"),
        ({"best_of": 2, "stream": True}, "best_of", "stream"),
        ({"n": 2, "best_of": 3, "stream": True}, "best_of", "stream"),
    ],
)
def test_fields_that_need_each_other(fields: dict[str, Any], param: str, word: str) -> None:
    """The message names both, and param the one that asks for too much."""
    refuse({**GOOD, **fields}, param, word)


def test_fields_that_go_together() -> None:
    """What is at the border of the above is taken."""
    accept(max_tokens=0, echo=True)
    accept(max_tokens=0, echo=True, logprobs=1, stream=True)
    accept(n=2, best_of=2, stream=True)
    accept(n=20, best_of=20)
    accept(n=128)
    accept(stream=True, stream_options={})


@pytest.mark.parametrize("name", ["include_usage", "continuous_usage_stats"])
def test_options_of_a_stream(name: str) -> None:
    """Booleans or null."""
    for value in (True, False, None):
        options = accept(stream=True, stream_options={name: value}).stream_options
        assert options is not None
        assert getattr(options, name) is value
    for wrong in (1, "true", []):
        refuse({**GOOD, "stream": True, "stream_options": {name: wrong}}, "stream_options", name)


def test_obfuscation_is_not_done() -> None:
    """So only its absence can be asked for."""
    for value in (False, None):
        accept(stream=True, stream_options={"include_obfuscation": value})
    for wrong in (True, 1, "false"):
        body = {**GOOD, "stream": True, "stream_options": {"include_obfuscation": wrong}}
        refuse(body, "stream_options", "include_obfuscation")


@pytest.mark.parametrize("constant", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999"])
def test_numbers_that_are_none(constant: bytes) -> None:
    """No NaN, no infinity, however it is written."""
    with pytest.raises(ApiError) as caught:
        parse(b'{"model":"m","prompt":"p","temperature":' + constant + b"}", CompletionRequest)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nul", b"\xff", b'{"a":1,}', b"[1]", b"1", b'"x"', b"null", b'{"model":"m"} x', b"{'a':1}",
     b'{"model":"\n"}', b"[" * 100_000, b'{"a":' * 100_000, b"[" * 100_000 + b"]" * 100_000, b"1" * 100_000],
)  # fmt: skip
def test_bodies_that_are_no_object(body: bytes) -> None:
    """Malformed, of another kind, nested without end, endless digits."""
    refuse(body, None)


def test_nested_values() -> None:
    """Deep, but not too deep to read: refused by the field's type."""
    refuse(b'{"model":"m","prompt":' + b"[" * 500 + b"]" * 500 + b"}", "prompt")
    refuse(b'{"model":"m","prompt":"p","seed":' + b"9" * 4000 + b"}", "seed")


@pytest.mark.parametrize("body", [b'{"model":"a","model":"b","prompt":"p"}', b'{"model":"a","prompt":"p","model":"a"}'])
def test_a_field_given_twice(body: bytes) -> None:
    """Refused, by name, whether or not the values agree."""
    refuse(body, "model", "twice")


def test_a_field_given_twice_below() -> None:
    """Also inside an object, and where its name is no text."""
    refuse(b'{"stream_options":{"include_usage":true,"include_usage":false}}', "include_usage", "twice")
    refuse(b'{"\\ud800":1,"\\ud800":2}', ANY, "twice")


@pytest.mark.parametrize("value", ["\ud800", "a\udfffb", "\udc00\ud800"])
def test_lone_surrogates_in_stops(value: str) -> None:
    """No text: 400 with the field's name. Those of a prompt are refused at the latest by the tokenizer."""
    refuse({**GOOD, "stop": value}, "stop")
    refuse({**GOOD, "stop": ["a", value]}, "stop")


def test_pairs_of_surrogates_are_text() -> None:
    """How JSON escapes what is beyond U+FFFF."""
    assert parse(b'{"model":"m","prompt":"\\ud83d\\ude00"}', CompletionRequest).prompt == ["😀"]


def test_the_value_is_not_repeated() -> None:
    """A secret in a body is not in the answer."""
    for body in ({**GOOD, "seed": "s3cr3t"}, {**GOOD, "prompt": ["s3cr3t", 1]}, {**GOOD, "stop": {"a": "s3cr3t"}}):
        with pytest.raises(ApiError) as caught:
            parse(json.dumps(body).encode(), CompletionRequest)
        assert "s3cr3t" not in caught.value.message


STRINGS = st.text(st.characters(codec=None))  # unpaired surrogates too
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | STRINGS
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=4) | st.dictionaries(STRINGS, v, max_size=4), max_leaves=8
)
NAMES = st.sampled_from([*CompletionRequest.model_fields, "include_usage", "other"]) | STRINGS


def check_refusal(error: ApiError) -> None:
    """A 400 of the one shape, of bounded length."""
    assert error.status == 400
    content = json.loads(bytes(error.response().body))
    assert set(content["error"]) == {"message", "type", "param", "code"}
    assert len(content["error"]["message"]) < 400


def check(raw: bytes) -> None:
    """A valid request, or an ApiError that can be sent."""
    try:
        request = parse(raw, CompletionRequest)
    except ApiError as error:
        check_refusal(error)
    else:
        assert request.max_tokens is None or request.max_tokens >= (0 if request.echo else 1)
        assert all(request.stops)


@given(st.dictionaries(NAMES, VALUES, max_size=8))
def test_any_object(fields: dict[str, Any]) -> None:
    """Whatever the fields hold."""
    check(json.dumps(fields).encode())
    check(json.dumps({**fields, **GOOD}).encode())


@given(NAMES.filter(lambda n: n not in GOOD), VALUES)
def test_any_value_of_one_field(name: str, value: Any) -> None:
    """One strange field in a body that is otherwise good: this is what gets deepest."""
    check(json.dumps({**GOOD, name: value}).encode())


@given(st.binary(max_size=60) | VALUES.map(lambda v: json.dumps(v).encode()))
def test_any_bytes(raw: bytes) -> None:
    """Whatever the body holds."""
    check(raw)


def request_of(
    parts: list[bytes], headers: dict[str, str], then: dict[str, Any] | None = None
) -> tuple[Request, list[int]]:
    """A request whose body comes in parts; and how many have been read."""
    read = [0]

    async def receive() -> dict[str, Any]:
        read[0] += 1
        if read[0] > len(parts):
            assert then is not None
            return then
        more = then is not None or read[0] < len(parts)
        return {"type": "http.request", "body": parts[read[0] - 1], "more_body": more}

    pairs = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    state = {"began": time.perf_counter()}
    scope = {"type": "http", "method": "POST", "path": "/", "headers": pairs, "query_string": b"", "state": state}
    typed: Callable[[], Awaitable[dict[str, Any]]] = receive
    return Request(scope, typed), read  # type: ignore[arg-type]


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize("media", ["application/json", "Application/JSON", "application/json; charset=utf-8"])
def test_content_types(media: str) -> None:
    """JSON with any parameters, in any case."""
    request, _ = request_of([b"{", b"}"], {"content-type": media})
    assert asyncio.run(read_body(request, 10, Settings())) == b"{}"


@pytest.mark.parametrize("media", ["", "text/plain", "application/jsonx", "multipart/form-data", "é" * 100])
def test_other_content_types(media: str) -> None:
    """400 before anything is read."""
    request, read = request_of([b"{}"], {"content-type": media} if media else {})
    with pytest.raises(ApiError) as caught:
        asyncio.run(read_body(request, 10, Settings()))
    assert (caught.value.status, caught.value.code) == (400, "invalid_value")
    assert "application/json" in caught.value.message
    assert read == [0]


@pytest.mark.parametrize(
    ("encoding", "status"), [("gzip", 415), ("br, gzip", 415), ("identity", None), ("Identity", None)]
)
def test_content_encodings(encoding: str, status: int | None) -> None:
    """None but identity."""
    request, _ = request_of([b"{}"], {**JSON, "content-encoding": encoding})
    if status is None:
        assert asyncio.run(read_body(request, 10, Settings())) == b"{}"
        return
    with pytest.raises(ApiError) as caught:
        asyncio.run(read_body(request, 10, Settings()))
    assert (caught.value.status, caught.value.type) == (status, "invalid_request_error")


def test_a_body_that_says_it_is_too_large() -> None:
    """413 by its header, before anything is read."""
    request, read = request_of([b"x" * 11], {**JSON, "content-length": "11"})
    with pytest.raises(ApiError) as caught:
        asyncio.run(read_body(request, 10, Settings()))
    assert (caught.value.status, caught.value.code) == (413, "request_too_large")
    assert "10" in caught.value.message
    assert read == [0]


def test_a_body_that_becomes_too_large() -> None:
    """413 as soon as the limit is passed; exactly the limit is taken."""
    request, read = request_of([b"x" * 6] * 10, JSON)
    with pytest.raises(ApiError) as caught:
        asyncio.run(read_body(request, 10, Settings()))
    assert caught.value.status == 413
    assert read == [2]
    request, _ = request_of([b"x" * 5] * 2, {**JSON, "content-length": "10"})
    assert asyncio.run(read_body(request, 10, Settings())) == b"x" * 10


@pytest.mark.parametrize("length", ["-1", "x", "", "²", "9" * 5000])
def test_lengths_that_are_none(length: str) -> None:
    """A header that is no sensible number is an ApiError or is not believed."""
    request, _ = request_of([b"{}"], {**JSON, "content-length": length})
    with contextlib.suppress(ApiError):
        assert asyncio.run(read_body(request, 10, Settings())) == b"{}"


def test_a_client_that_leaves_in_its_body() -> None:
    """An ApiError that nobody will read, and no fault."""
    request, _ = request_of([b"{"], JSON, {"type": "http.disconnect"})
    with pytest.raises(ApiError) as caught:
        asyncio.run(read_body(request, 10, Settings()))
    assert caught.value.status == 499  # how it is counted: as a client that left


@pytest.mark.parametrize(
    ("stalled", "deadline", "status", "code"),
    [
        (0.05, 0, 408, "request_timeout"), (0.05, 30, 408, "request_timeout"),
        (30, 0.05, 504, "deadline_exceeded"), (30, 1e-9, 504, "deadline_exceeded"),
    ],
)  # fmt: skip
def test_a_client_that_stops_in_its_body(stalled: float, deadline: float, status: int, code: str) -> None:
    """408 after a while, or 504 at the deadline, whatever was sent before; the connection ends."""
    settings = Settings(stalled_reader_seconds=stalled, deadline_seconds=deadline)

    async def receive() -> dict[str, Any]:
        if sent:
            await asyncio.Event().wait()
        sent.append(True)
        return {"type": "http.request", "body": b"{", "more_body": True}

    sent: list[bool] = []
    scope = {
        "type": "http", "method": "POST", "path": "/", "headers": [(b"content-type", b"application/json")],
        "state": {"began": time.perf_counter()},
    }  # fmt: skip
    request = Request(scope, receive)  # type: ignore[arg-type]
    with pytest.raises(ApiError) as caught:
        asyncio.run(read_body(request, 10, settings))
    assert (caught.value.status, caught.value.code) == (status, code)
    assert caught.value.response().headers["connection"] == "close"
    assert sent or deadline == 1e-9


@pytest.mark.parametrize("place", ["{%s}", '{"model": "m", "prompt": "x", "stream_options": {%s}}'])
def test_objects_of_many_fields(place: str) -> None:
    """Refused before each becomes an error of its own; exactly so many are told which is unknown."""
    for count, words in ((MAX_FIELDS, "unknown field"), (MAX_FIELDS + 1, f"at most {MAX_FIELDS}")):
        body = place % ", ".join(f'"a{i}": 0' for i in range(count))
        with pytest.raises(ApiError) as caught:
            parse(body.encode(), CompletionRequest)
        assert caught.value.status == 400
        assert words in caught.value.message or (count == MAX_FIELDS and "Field required" in caught.value.message)
