"""The contract of the tokenizer routes, as a client sees it; and the very requests that lm-eval makes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import checkpoints_for_tests
import httpx
import pytest
from fake_runtime import FakeRuntime
from live import INVALID, Client, Process, assert_error, fake_loader, serve, serve_app

from model.config import Raster
from model.pixels import PixelCodec
from model.tokenizer import Bytes, Characters, train_characters

TEXTS = ["", "Speak", "Çà, 日本 🙂\n", "a\0b\u2581c\ue000\u2028", " two  spaces ", "<|begin|>\n", "</s>"]
BEGIN, END = "<|begin|>", "<|end|>"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of text beside one of pictures."""
    folder = tmp_path_factory.mktemp("checkpoints")
    checkpoints_for_tests.characters(folder / "tiny")
    checkpoints_for_tests.pictures(folder / "pics")
    return folder


@pytest.fixture(scope="module")
def server(checkpoints: Path) -> Iterator[Process]:
    """One real process."""
    with serve(checkpoints, max_body_bytes=20_000, max_prompt_tokens=1000) as process:
        yield process


@pytest.fixture(scope="module")
def tokenizer() -> Characters:
    """The text model's."""
    return train_characters(checkpoints_for_tests.TEXT)


@pytest.fixture(scope="module")
def two() -> Iterator[Client]:
    """Two text models of bytes, the second of which ends."""
    with serve_app(fake_loader(FakeRuntime(1), FakeRuntime(1, max_position=64))) as client:
        yield client


@pytest.fixture(scope="module")
def small() -> Iterator[Client]:
    """A model of bytes behind small limits."""
    with serve_app(fake_loader(FakeRuntime(1)), max_prompt_tokens=1000, max_body_bytes=20_000) as client:
        yield client


def post(client: Client, path: str, body: dict[str, Any]) -> httpx.Response:
    """A body as ASCII: it may hold what UTF-8 cannot."""
    return client.http.post(path, content=json.dumps(body), headers={"content-type": "application/json"})


@pytest.mark.parametrize("text", TEXTS)
def test_there_and_back(server: Process, tokenizer: Characters, text: str) -> None:
    """The ids of the tokenizer, without the begin symbol, and the same text again; so at the root."""
    ids = tokenizer.encode(text)
    answer = post(server, "/v1/tokenize", {"model": "tiny", "prompt": text})
    assert answer.json() == {"tokens": ids, "count": len(ids)}
    assert post(server, "/v1/detokenize", {"model": "tiny", "tokens": ids}).json() == {"prompt": text}
    for extra in ({}, {"add_special_tokens": True}, {"add_special_tokens": False}, {"model": None}, {"model": "tiny"}):
        answer = post(server, "/tokenize", {"prompt": text, **extra})
        assert answer.json() == {"tokens": ids, "count": len(ids), "max_model_len": None}
    for extra in ({}, {"model": None}, {"model": "tiny"}):
        assert post(server, "/detokenize", {"tokens": ids, **extra}).json() == {"prompt": text}


def test_ids_that_are_no_whole_text(server: Process, tokenizer: Characters) -> None:
    """A part of a character becomes U+FFFD; the two symbols write nothing."""
    ids = tokenizer.encode("\ue000")
    assert len(ids) == 3
    for path in ("/v1/detokenize", "/detokenize"):
        cut = post(server, path, {"model": "tiny", "tokens": [*tokenizer.encode("S"), *ids[:2]]})
        assert cut.json() == {"prompt": "S\ufffd"}
        symbols = post(server, path, {"model": "tiny", "tokens": [tokenizer.begin, *ids, tokenizer.end]})
        assert symbols.json() == {"prompt": "\ue000"}


def test_the_names_of_the_symbols(server: Process, tokenizer: Characters) -> None:
    """At the root a name alone is the symbol; under /v1, or within a text, it is text."""
    for name, token in ((BEGIN, tokenizer.begin), (END, tokenizer.end)):
        answer = post(server, "/tokenize", {"prompt": name})
        assert answer.json() == {"tokens": [token], "count": 1, "max_model_len": None}
        ids = tokenizer.encode(name)
        assert len(ids) > 1
        assert post(server, "/v1/tokenize", {"model": "tiny", "prompt": name}).json()["tokens"] == ids
        twice = post(server, "/tokenize", {"prompt": name * 2}).json()
        assert twice["tokens"] == ids * 2


def test_the_requests_of_lm_eval(server: Process, tokenizer: Characters) -> None:
    """``RemoteTokenizer`` of its utils.py, with a text and an image model served: it never names a model."""
    headers = {"content-type": "application/json"}  # on the GET, too
    info = server.http.get("/tokenizer_info", headers=headers).json()
    assert info == {
        "model": "tiny", "bos_token": BEGIN, "bos_token_id": tokenizer.begin, "eos_token": END,
        "eos_token_id": tokenizer.end, "vocab_size": tokenizer.vocab_size, "max_model_len": None,
    }  # fmt: skip

    def encode(text: str) -> list[int]:
        return server.http.post("/tokenize", json={"prompt": text, "add_special_tokens": False}).json()["tokens"]

    # what it takes for the symbols' ids, and puts before a text that it scores from its first token on
    assert encode(info["bos_token"])[0] == tokenizer.begin
    assert encode(info["eos_token"])[0] == tokenizer.end
    # it splits the ids of context + continuation after as many as the context has
    context, whole = encode("Before we"), encode("Before we proceed, 日本")
    assert whole[: len(context)] == context
    answer = server.http.post("/detokenize", json={"tokens": [tokenizer.begin, *whole]})
    assert answer.json()["prompt"] == "Before we proceed, 日本"


def test_which_model(server: Process, two: Client) -> None:
    """Unknown 404, of images 400; without a name only where one text model is served."""
    for path, body in (("tokenize", {"prompt": "a"}), ("detokenize", {"tokens": [97]})):
        for where in (f"/v1/{path}", f"/{path}"):
            unknown = post(server, where, {**body, "model": "huge"})
            assert_error(unknown, 404, INVALID, "model_not_found", "model", "huge", "pics, tiny")
            image = post(server, where, {**body, "model": "pics"})
            assert_error(image, 400, INVALID, "invalid_value", "model", "image model")
            assert_error(post(two, where, body), 400, INVALID, "invalid_value", "model")
        assert_error(post(server, f"/v1/{path}", body), 400, INVALID, "invalid_value", "model")
        assert_error(post(server, f"/v1/{path}", {**body, "model": None}), 400, INVALID, "invalid_value", "model")
        assert_error(post(two, f"/{path}", body), 400, INVALID, "invalid_value", "model", "fake0, fake1")
    assert post(two, "/tokenize", {"prompt": "a", "model": "fake1"}).json()["max_model_len"] == 64
    assert_error(two.http.get("/tokenizer_info"), 400, INVALID, "invalid_value", "model", "fake0, fake1")
    info = two.http.get("/tokenizer_info", params={"model": "fake1"}).json()
    assert (info["model"], info["vocab_size"], info["max_model_len"]) == ("fake1", 258, 64)
    unknown = server.http.get("/tokenizer_info", params={"model": "huge"})
    assert_error(unknown, 404, INVALID, "model_not_found", "model", "huge")
    image = server.http.get("/tokenizer_info", params={"model": "pics"})
    assert_error(image, 400, INVALID, "invalid_value", "model", "image model")


def test_no_text_model() -> None:
    """Where only pictures are drawn, nothing can be left out."""
    pictures = PixelCodec(Raster(height=4, width=4), ["red"], ["plain"])
    runtime = FakeRuntime(1, vocab_size=pictures.vocab_size, max_position=48)
    with serve_app(fake_loader(runtime, codec=pictures)) as client:
        answer = post(client, "/tokenize", {"prompt": "a"})
        assert_error(answer, 400, INVALID, "invalid_value", "model", "no text model")
        assert_error(client.http.get("/tokenizer_info"), 400, INVALID, "invalid_value", "model", "no text model")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokens": [97, 258]}, ["id 258", "index 1", "258"]),
        ({"tokens": [-1]}, ["id -1", "index 0", "258"]),
        ({"tokens": [10**40]}, ["id 1000", "…", "258"]),
        ({"tokens": [97, "98"]}, ["tokens.1"]),
        ({"tokens": [True]}, ["tokens.0"]),
        ({"tokens": [97.0]}, ["tokens.0"]),
        ({"tokens": "a"}, ["tokens"]),
        ({"tokens": None}, ["tokens"]),
        ({}, ["tokens"]),
        ({"tokens": [97] * 1001}, ["1001", "1000"]),
        ({"tokens": [97], "skip_special_tokens": True}, ["skip_special_tokens: unknown field"]),
    ],
)
def test_refused_ids(small: Client, changes: dict[str, Any], words: list[str]) -> None:
    """400 with the id, its place and the vocabulary."""
    param = "skip_special_tokens" if len(changes) > 1 else "tokens"
    for path in ("/v1/detokenize", "/detokenize"):
        answer = post(small, path, {"model": "fake0", **changes})
        assert_error(answer, 400, INVALID, "invalid_value", param, *words)


@pytest.mark.parametrize(
    ("changes", "param", "words"),
    [
        ({"prompt": "a\ud800"}, "prompt", ["U+D800", "index 1"]),
        ({"prompt": 5}, "prompt", ["prompt"]),
        ({"prompt": ["a"]}, "prompt", ["prompt"]),
        ({"prompt": None}, "prompt", ["prompt"]),
        ({"prompt": "a" * 1001}, "prompt", ["1001", "1000"]),
        ({"prompt": "é" * 600}, "prompt", ["1200", "1000"]),
        ({"prompt": "a", "messages": []}, "messages", ["unknown field"]),
    ],
)
def test_refused_texts(small: Client, changes: dict[str, Any], param: str, words: list[str]) -> None:
    """400 with the field."""
    for path in ("/v1/tokenize", "/tokenize"):
        answer = post(small, path, {"model": "fake0", **changes})
        assert_error(answer, 400, INVALID, "invalid_value", param, *words)


def test_limits_are_inclusive(small: Client) -> None:
    """As many tokens as the limit says."""
    for path in ("/v1/", "/"):
        ids = post(small, f"{path}tokenize", {"model": "fake0", "prompt": "a" * 1000}).json()["tokens"]
        assert len(ids) == 1000
        answer = post(small, f"{path}detokenize", {"model": "fake0", "tokens": ids})
        assert answer.json() == {"prompt": "a" * 1000}


def test_bodies_are_those_of_completions(small: Client) -> None:
    """Strict JSON, of bounded size."""
    vllm_only = post(small, "/v1/tokenize", {"model": "fake0", "prompt": "a", "add_special_tokens": True})
    assert_error(vllm_only, 400, INVALID, "invalid_value", "add_special_tokens", "unknown field")
    wrong = post(small, "/tokenize", {"model": "fake0", "prompt": "a", "add_special_tokens": 1})
    assert_error(wrong, 400, INVALID, "invalid_value", "add_special_tokens")
    for path in ("/v1/tokenize", "/v1/detokenize", "/tokenize", "/detokenize"):
        large = small.http.post(path, content=b" " * 20_001, headers={"content-type": "application/json"})
        assert_error(large, 413, INVALID, "request_too_large", None, "20000")
        twice = small.http.post(
            path, content=b'{"model": "fake0", "model": "fake0"}', headers={"content-type": "application/json"}
        )
        assert_error(twice, 400, INVALID, "invalid_value", "model", "twice")
        form = small.http.post(path, data={"model": "fake0"})
        assert_error(form, 400, INVALID, "invalid_value", None, "application/json")
        assert_error(small.http.get(path), 405, INVALID, "method_not_allowed")


def test_the_loop_beats_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another request is answered while a text is being encoded or decoded."""
    calls: list[str] = []

    def pausing(name: str, make: Callable[..., Any]) -> Callable[..., Any]:
        def paused(self: Bytes, value: Any) -> Any:
            assert client.http.get("/livez", timeout=5).status_code == 200
            calls.append(name)
            return make(self, value)

        return paused

    with serve_app(fake_loader(FakeRuntime(1))) as client:
        for name in ("encode", "decode"):
            monkeypatch.setattr(Bytes, name, pausing(name, getattr(Bytes, name)))
        for path in ("/v1/", "/"):
            assert post(client, f"{path}tokenize", {"model": "fake0", "prompt": "a"}).json()["tokens"] == [97]
            assert post(client, f"{path}detokenize", {"model": "fake0", "tokens": [97]}).json() == {"prompt": "a"}
    assert calls == ["encode", "decode"] * 2


def test_not_before_the_models_are_loaded_nor_while_draining() -> None:
    """503, as everywhere."""
    with serve_app(fake_loader(FakeRuntime(1))) as client:
        client.service.draining = True
        answers = [client.http.get("/tokenizer_info"), post(client, "/tokenize", {"prompt": "a"})]
        answers.append(post(client, "/v1/detokenize", {"model": "fake0", "tokens": []}))
        for answer in answers:
            assert_error(answer, 503, "unavailable_error", "shutting_down")
        client.service.draining = False
