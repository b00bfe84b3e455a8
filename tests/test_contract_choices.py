"""Prompts, choices and how they are drawn, as a client of ``POST /v1/completions`` sees them; limits and deadlines."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import checkpoints_for_tests
import httpx
import pytest
from fake_runtime import FakeRuntime, expected, target_logprob
from live import INVALID, Client, assert_error, fake_loader, make_checkpoints, serve_app, text_of, wait_until

from model.automaton import stops
from model.runtime.base import Draw, Job
from model.runtime.choice import open_runtime
from model.sampling import SamplingParams
from model.tokenizer import Bytes
from service.loading import load_models
from service.request import Generation

BASE: dict[str, Any] = {"model": "fake0", "prompt": "ab", "max_tokens": 12, "seed": 7}
REAL: dict[str, Any] = {"model": "tiny", "prompt": "Speak", "max_tokens": 40, "seed": 7}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two tiny models."""
    return make_checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def real(checkpoints: Path) -> Iterator[Client]:
    """The app on real models, in this process."""
    with serve_app(load_models, checkpoints=checkpoints, threads=1, slots=6, max_queue=20) as client:
        yield client


@pytest.fixture(scope="module")
def shared() -> Iterator[Client]:
    """The app on a fast fake with fewer slots than many a request has choices."""
    with serve_app(fake_loader(FakeRuntime(4)), max_queue=60, max_choices=40) as client:
        yield client


def choices_of(client: Client, **body: Any) -> list[dict[str, Any]]:
    """The choices of a whole answer, in their order."""
    response = client.post({**BASE, **body})
    assert response.status_code == 200, response.text
    choices: list[dict[str, Any]] = response.json()["choices"]
    assert [choice["index"] for choice in choices] == list(range(len(choices)))
    return choices


def texts_of(client: Client, **body: Any) -> list[str]:
    """Their texts."""
    return [choice["text"] for choice in choices_of(client, **body)]


def streamed_texts(chunks: list[dict[str, Any]]) -> list[str]:
    """The texts of a stream's choices; each has one reason, in its last part."""
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            assert choice["index"] not in reasons
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
            if choice["finish_reason"] is not None:
                reasons[choice["index"]] = choice["finish_reason"]
    assert sorted(reasons) == sorted(texts) == list(range(len(texts)))
    return [texts[i] for i in range(len(texts))]


def test_the_four_kinds_of_prompts(shared: Client) -> None:
    """A string, strings, ids and lists of ids say the same; each choice has its place."""
    alone = shared.post({**BASE, "prompt": "ab"}).json()
    assert alone["choices"][0]["text"] == expected("ab", 7, 12)
    for prompt in (["ab"], [97, 98], [[97, 98]]):
        same = shared.post({**BASE, "prompt": prompt}).json()
        assert (same["choices"], same["usage"]) == (alone["choices"], alone["usage"])
    for prompts in (["ab", "", "xyz", "ab"], [[97, 98], [], [120, 121, 122], [97, 98]]):
        answer = shared.post({**BASE, "prompt": prompts}).json()
        assert [choice["text"] for choice in answer["choices"]] == [
            expected(prompt, 7, 12) for prompt in ("ab", "", "xyz", "ab")
        ]
        assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
        assert answer["usage"] == {"prompt_tokens": 7, "completion_tokens": 48, "total_tokens": 55}


def test_ids_that_name_the_symbols(shared: Client) -> None:
    """Begin is put before what does not begin with it, and is not counted; anywhere else it is an id as any other."""
    for prompt, tokens in [
        ([256, 97, 98], "ab"),
        ([256], ""),
        ([97, 256], "ab"),
        ([256, 256, 257], "ab"),
        ([257], "a"),
    ]:
        answer = shared.post({**BASE, "prompt": prompt}).json()
        assert answer["choices"][0]["text"] == expected(tokens, 7, 12)
        assert answer["usage"]["prompt_tokens"] == len(tokens)
    assert texts_of(shared, prompt=[[256, 97], [97], [256]]) == [expected(prompt, 7, 12) for prompt in ("a", "a", "")]
    assert texts_of(shared, prompt=[256, 97], echo=True) == ["a" + expected("a", 7, 12)]


@pytest.mark.parametrize("n", [1, 3, 8])
def test_the_number_of_a_choice(shared: Client, n: int) -> None:
    """sample + prompt x n, whole and streamed; each prompt counts once in usage, each choice's tokens too."""
    prompts = ["ab", "c", ""]
    wanted = [expected(prompt, 7 + sample, 12) for prompt in prompts for sample in range(n)]
    body = {**BASE, "prompt": prompts, "n": n}
    answer = shared.post(body).json()
    assert texts_of(shared, **body) == wanted
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 36 * n, "total_tokens": 3 + 36 * n}
    chunks = shared.stream({**body, "stream_options": {"include_usage": True}})
    assert streamed_texts(chunks) == wanted
    assert chunks[-1]["usage"] == answer["usage"]
    assert {choice["seed"] for choice in answer["choices"]} == {7}


def test_a_prompt_gives_the_same_in_any_company(real: Client) -> None:
    """Alone, in a list, as one of n, as ids, with a seed that was drawn: the same text for (seed, sample)."""
    prompts = ["Speak", "", "日本", "hear me" * 9, "Speak"]
    alone = [texts_of(real, **{**REAL, "prompt": prompt}, n=4) for prompt in prompts]
    assert texts_of(real, **{**REAL, "prompt": prompts}, n=4) == [text for texts in alone for text in texts]
    assert texts_of(real, **{**REAL, "prompt": prompts}) == [texts[0] for texts in alone]
    assert texts_of(real, **REAL, n=2) == alone[0][:2]
    assert texts_of(real, **REAL) == alone[0][:1]
    assert alone[0] == alone[4]
    assert len({text for texts in alone[:4] for text in texts}) == 16
    ids = [real.http.post("/v1/tokenize", json={"model": "tiny", "prompt": p}).json()["tokens"] for p in prompts]
    assert texts_of(real, **{**REAL, "prompt": ids}, n=4) == [text for texts in alone for text in texts]
    drawn = choices_of(real, **{**REAL, "seed": None}, n=3)
    assert len({choice["seed"] for choice in drawn}) == 1
    assert choices_of(real, **{**REAL, "seed": drawn[0]["seed"]}, n=3) == drawn


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([], "list of strings"), ([1, "a"], "list of strings"), (["a", [1]], "list of strings"),
        ([True], "list of strings"), ([[[1]]], "list of strings"), ([1.0], "list of strings"),
        ([258], "id 258, the vocabulary has 258 ids"), ([5, -1], "id -1,"), ([[1], [2, 300]], "id 300,"),
        ([2**31], "id 2147483648,"), ([-(2**63)], "id -9223372036854775808,"),
        ([[1], [2**64]], "id 18446744073709551616,"),
        ([10**400, 1], "vocabulary"), ([-(10**400)], "vocabulary"), (["a", "b\udc80"], "U+DC80"),
        ("x" * 31, "31 characters, at most 30"), (["a", "x" * 31], "31 characters"), ([0] * 31, "31 tokens"),
        (["é" * 16], "32 tokens"),
    ],
)  # fmt: skip
def test_refused_prompts(prompt: Any, words: str) -> None:
    """400 that names the prompt, whole or streamed; the input is not repeated at length."""
    with serve_app(fake_loader(FakeRuntime(1)), max_prompt_tokens=30) as client:
        for stream in (False, True):
            raw = json.dumps({**BASE, "prompt": prompt, "stream": stream})
            response = client.http.post("/v1/completions", content=raw, headers={"content-type": "application/json"})
            assert_error(response, 400, INVALID, "invalid_value", "prompt", words)
        assert client.post({**BASE, "prompt": "x" * 30}).status_code == 200


def test_best_of(shared: Client) -> None:
    """The n of the highest mean log-probability, best first; usage counts what was drawn and dropped."""

    def mean(prompt: str, sample: int) -> float:
        text, start = expected(prompt, 7 + sample, 12), len(prompt)
        return sum(target_logprob(start + i, ord(sign)) for i, sign in enumerate(text)) / 12

    prompts = ["ab", "c"]
    for n, best_of in [(1, 5), (2, 5), (3, 3), (None, 4), (5, 20)]:
        answer = shared.post({**BASE, "prompt": prompts, "n": n, "best_of": best_of}).json()
        wanted = []
        for prompt in prompts:
            order = sorted(range(best_of), key=lambda sample: -mean(prompt, sample))
            kept = range(best_of) if n == best_of else order[: n or 1]
            wanted += [expected(prompt, 7 + sample, 12) for sample in kept]
        assert [choice["text"] for choice in answer["choices"]] == wanted
        assert [choice["index"] for choice in answer["choices"]] == list(range(len(wanted)))
        assert answer["usage"] == {
            "prompt_tokens": 3,
            "completion_tokens": 24 * best_of,
            "total_tokens": 3 + 24 * best_of,
        }
    assert mean("ab", 0) != max(mean("ab", sample) for sample in range(5))


def test_best_of_a_real_model(real: Client) -> None:
    """As the log-probabilities say that it reports; means, not sums, though ends differ."""
    body = {**REAL, "max_tokens": 60, "stop": ["e", "o"], "logprobs": 0}
    samples = choices_of(real, **body, n=12)
    lengths = {len(choice["logprobs"]["tokens"]) for choice in samples}
    assert len(lengths) > 3
    means = [sum(c["logprobs"]["token_logprobs"]) / len(c["logprobs"]["tokens"]) for c in samples]
    order = sorted(range(12), key=lambda i: -means[i])
    best = choices_of(real, **body, n=4, best_of=12)
    assert [choice["text"] for choice in best] == [samples[i]["text"] for i in order[:4]]
    assert [choice["logprobs"] for choice in best] == [samples[i]["logprobs"] for i in order[:4]]


def test_best_of_in_a_stream(shared: Client) -> None:
    """Nothing to choose is a stream like any other; a choice is refused."""
    assert streamed_texts(shared.stream({**BASE, "n": 2, "best_of": 2})) == texts_of(shared, n=2)
    assert_error(
        shared.post({**BASE, "best_of": 2, "stream": True}), 400, INVALID, "invalid_value", "best_of", "stream"
    )
    assert_error(shared.post({**BASE, "n": 3, "best_of": 2}), 400, INVALID, "invalid_value", "best_of", "3")


SAMPLING: list[dict[str, Any]] = [
    {}, {"temperature": 0.5}, {"temperature": 1.9}, {"temperature": 0}, {"top_p": 0.3}, {"top_k": 2}, {"min_p": 0.4},
    {"frequency_penalty": 2.0}, {"presence_penalty": -2.0}, {"repetition_penalty": 5.0}, {"repetition_penalty": 0.2},
    {"logit_bias": {"270": 8, "271": -100}}, {"seed": -(2**63)},
    {"temperature": 1.3, "top_p": 0.9, "top_k": 9, "min_p": 0.01, "frequency_penalty": -0.5, "presence_penalty": 0.7,
     "repetition_penalty": 1.4, "logit_bias": {"265": 1.5}, "seed": 2**63 - 1},
]  # fmt: skip


def test_every_field_reaches_the_draw(real: Client, checkpoints: Path) -> None:
    """What the runtime draws with the same parameters; and each field alone changes the text."""
    checkpoint = checkpoints_for_tests.opened(checkpoints / "tiny")
    tokenizer, runtime = checkpoint.tokenizer, open_runtime(checkpoint, 1)
    automaton = stops(tokenizer.token_bytes, [], tokenizer.end, ignore_end=True)
    prompt = [tokenizer.begin, *tokenizer.encode(REAL["prompt"])]
    texts = []
    for fields in SAMPLING:
        body = {**REAL, "ignore_eos": True, "n": 2, **fields}
        bias = {int(token): value for token, value in fields.get("logit_bias", {}).items()}
        for sample, text in enumerate(texts_of(real, **body)):
            params = SamplingParams(**{"seed": 7, **fields, "logit_bias": bias, "sample": sample})
            runtime.reset(0)
            (done,) = runtime.run([Job(0, prompt, draw=Draw(params, 40, automaton))])
            assert tokenizer.decode(done.drawn) == text, fields
            texts.append(text)
    assert len(set(texts[::2])) == len(SAMPLING)


def test_logit_bias(real: Client) -> None:
    """100 always, -100 never, also the end symbol; ids that are none and a bias against everything are refused."""
    size = real.http.get("/v1/models/tiny").json()["vocab_size"]

    def id_of(sign: str) -> int:
        """A character's."""
        (token,) = real.http.post("/v1/tokenize", json={"model": "tiny", "prompt": sign}).json()["tokens"]
        return int(token)

    def drawn(bias: dict[str, float]) -> list[str]:
        choices = choices_of(real, **REAL, n=6, logprobs=0, logit_bias=bias)
        return [name for choice in choices for name in choice["logprobs"]["tokens"]]

    k = id_of("k")
    assert texts_of(real, **REAL, logit_bias={str(k): 100}) == ["k" * 40]
    assert texts_of(real, **REAL, logit_bias={str(i): -100 for i in range(size) if i != k}, n=2) == ["k" * 40] * 2
    free = drawn({})
    sign = next(name for name in free if name and name in checkpoints_for_tests.TEXT)
    assert drawn({str(id_of(sign)): 0}) == free
    assert sign not in drawn({str(id_of(sign)): -100})
    everything = {str(i): -100 for i in range(size)}
    for bias, word in [(everything, "every token"), ({str(size): 1}, str(size)), ({"999999999": 1}, "999999999")]:
        for stream in (False, True):
            response = real.post({**REAL, "logit_bias": bias, "stream": stream})
            assert_error(response, 400, INVALID, "invalid_value", "logit_bias", word)


def test_what_is_left_to_draw_counts(shared: Client) -> None:
    """The end symbol alone is something to draw, but where it is ignored; begin never is."""
    all_but_the_end = {str(i): -100 for i in range(257)}
    answer = shared.post({**BASE, "logit_bias": all_but_the_end, "max_tokens": 1})
    assert answer.status_code == 200
    ignored = {**BASE, "logit_bias": all_but_the_end, "ignore_eos": True}
    assert_error(shared.post(ignored), 400, INVALID, "invalid_value", "logit_bias")
    unlimited = {**BASE, "logit_bias": all_but_the_end, "max_tokens": None, "stream": True}
    assert_error(shared.post(unlimited), 400, INVALID, "invalid_value", "logit_bias")
    all_but_begin = {str(i): -100 for i in range(258) if i != 256}
    assert_error(shared.post({**BASE, "logit_bias": all_but_begin}), 400, INVALID, "invalid_value", "logit_bias")


def test_ignore_eos() -> None:
    """The end symbol ends a text with stop and counts; ignored, it is not drawn."""
    with serve_app(fake_loader(FakeRuntime(1, end_at=9))) as client:
        body = {**BASE, "seed": 0}
        for fields in ({}, {"ignore_eos": False}, {"ignore_eos": None}):
            answer = client.post({**body, **fields}).json()
            assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == (
                expected("ab", 0, 6),
                "stop",
            )
            assert answer["usage"]["completion_tokens"] == 7
        answer = client.post({**body, "ignore_eos": True}).json()
        assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == (
            expected("ab", 0, 12),
            "length",
        )
        assert text_of(client.stream({**body, "ignore_eos": True})) == expected("ab", 0, 12)


def test_stop(shared: Client) -> None:
    """The text ends before the stop, whole and streamed; its tokens count; of several the first complete."""
    body = {"model": "fake0", "prompt": "", "seed": 0, "max_tokens": 200}
    text = expected("", 0, 200)
    for stop, wanted in [
        (["fox"], text.split("fox")[0]),
        ("fox ", text.split("fox ")[0]),
        (["lazy", "brown", "own"], text.split("brown")[0]),
        (["row", "brown"], text.split("row")[0]),
        (["nothing"], text),
        ([], text),
    ]:
        whole = shared.post({**body, "stop": stop}).json()
        assert whole["choices"][0]["text"] == wanted
        assert whole["choices"][0]["finish_reason"] == ("length" if wanted == text else "stop")
        assert text_of(shared.stream({**body, "stop": stop})) == wanted
    fox = shared.post({**body, "stop": ["fox"]}).json()
    assert fox["usage"]["completion_tokens"] == text.index("fox") + 3


def test_one_choice_may_stop_before_another(shared: Client) -> None:
    """Each has its own reason; the request's outcome is length where any was cut."""
    before = {outcome: shared.metric("aft_requests_total", outcome=outcome) for outcome in ("stop", "length")}
    body = {**BASE, "prompt": ["", "x" * 20], "seed": 0, "max_tokens": 22, "stop": "fox"}
    text = expected("", 0, 22)
    first, second = choices_of(shared, **body)
    assert (first["text"], first["finish_reason"]) == (text.split("fox")[0], "stop")
    assert (second["text"], second["finish_reason"]) == (expected("x" * 20, 0, 22), "length")
    assert streamed_texts(shared.stream(body)) == [first["text"], second["text"]]
    shared.post({**body, "max_tokens": 99})
    after = {outcome: shared.metric("aft_requests_total", outcome=outcome) for outcome in before}
    assert after == {"stop": before["stop"] + 1, "length": before["length"] + 2}


def test_an_unlimited_stream_ends_with_length() -> None:
    """At the server's cap; the end symbol is not drawn; whole, null is the default instead."""
    runtime = FakeRuntime(1, end_at=20)
    with serve_app(fake_loader(runtime), max_stream_tokens=400, burst_seconds=0.01) as client:
        body = {"model": "fake0", "prompt": "", "seed": 0, "max_tokens": None}
        chunks = client.stream(body)
        assert text_of(chunks) == expected("", 0, 400)
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
        whole = client.post(body).json()
        assert whole["choices"][0]["text"] == expected("", 0, 19)
        assert whole["choices"][0]["finish_reason"] == "stop"
        runtime.end_at = None
        assert client.post(body).json()["usage"]["completion_tokens"] == 256


def test_the_default_is_never_above_the_cap() -> None:
    """Who names no max_tokens asks for nothing too large; who names one above the cap is refused."""
    with serve_app(fake_loader(FakeRuntime(1)), max_tokens=50) as client:
        body = {"model": "fake0", "prompt": "a", "seed": 0}
        for fields in ({}, {"max_tokens": None}, {"max_tokens": 50}):
            assert client.post({**body, **fields}).json()["usage"]["completion_tokens"] == 50
        assert_error(client.post({**body, "max_tokens": 51}), 400, INVALID, "invalid_value", "max_tokens", "51", "50")
        assert_error(client.post({**body, "max_tokens": 256}), 400, INVALID, "invalid_value", "max_tokens", "256")


def test_usage_in_a_stream(shared: Client) -> None:
    """At the end, or in every chunk, where it grows to what the whole answer says."""
    body = {**BASE, "prompt": ["ab", "c"], "n": 2, "max_tokens": 30}
    whole = shared.post(body).json()["usage"]
    asked = shared.stream({**body, "stream_options": {"include_usage": True, "continuous_usage_stats": True}})
    alone = shared.stream({**body, "stream_options": {"continuous_usage_stats": True}})
    assert asked[-1]["choices"] == []
    assert all(chunk["choices"] for chunk in [*asked[:-1], *alone])
    for chunks in (asked, alone):
        counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
        assert counts == sorted(counts)
        assert counts[0] < counts[-1]
        assert chunks[-1]["usage"] == whole
        assert {chunk["usage"]["prompt_tokens"] for chunk in chunks} == {3}
        assert all(chunk["usage"]["total_tokens"] == 3 + chunk["usage"]["completion_tokens"] for chunk in chunks)
    for options in (None, {}, {"include_usage": False, "continuous_usage_stats": False}):
        assert not any("usage" in chunk for chunk in shared.stream({**body, "stream_options": options}))


def test_fields_without_an_effect(shared: Client) -> None:
    """user is ignored, whatever it says; null is absence; suffix and obfuscation are refused."""
    plain = choices_of(shared)
    for fields in (
        {"user": "somebody"},
        {"user": ""},
        {"suffix": None, "user": None, "logprobs": None, "best_of": None},
    ):
        assert choices_of(shared, **fields) == plain
    for value in (None, False):
        chunks = shared.stream({**BASE, "stream_options": {"include_obfuscation": value}})
        assert text_of(chunks) == plain[0]["text"]
        assert not any("obfuscation" in chunk for chunk in chunks)
    refused = {**BASE, "stream": True, "stream_options": {"include_obfuscation": True}}
    assert_error(shared.post(refused), 400, INVALID, "invalid_value", "stream_options", "include_obfuscation")
    for suffix in ("", "x"):
        assert_error(shared.post({**BASE, "suffix": suffix}), 400, INVALID, "invalid_value", "suffix")


@pytest.mark.parametrize(
    ("fields", "param", "given"),
    [
        ({"n": 7}, "n", 7), ({"best_of": 7}, "best_of", 7), ({"n": 2, "best_of": 7}, "best_of", 7),
        ({"prompt": ["a"] * 7}, "prompt", 7), ({"prompt": [[1], [2]], "n": 4}, "prompt", 8),
    ],
)  # fmt: skip
@pytest.mark.parametrize("limits", [{"max_queue": 4, "max_choices": 100}, {"max_queue": 100, "max_choices": 6}])
def test_too_many_choices(fields: dict[str, Any], param: str, given: int, limits: dict[str, int]) -> None:
    """More than the settings allow, or than could ever run and wait: 400, as it would never fit."""
    with serve_app(fake_loader(FakeRuntime(2)), **limits) as client:
        for stream in (False, True):
            if stream and fields.get("best_of"):
                continue
            response = client.post({**BASE, **fields, "stream": stream})
            assert_error(response, 400, INVALID, "invalid_value", param, f"{given} choices", "at most 6")
        assert len(choices_of(client, prompt=["a", "b"], n=3)) == 6
        assert len(choices_of(client, best_of=6)) == 1


def test_choices_are_admitted_together_or_not_at_all() -> None:
    """Too few places now: 503, nothing of it runs, and what runs is not harmed."""
    runtime = FakeRuntime(2)
    with serve_app(fake_loader(runtime), max_queue=4) as client:
        runtime.gate.clear()
        with client.send({**BASE, "n": 3}) as sock:
            assert runtime.blocked.wait(10)
            wait_until(lambda: client.service.engine.num_active == 3)
            assert_error(client.post({**BASE, "n": 4}), 503, "overloaded_error", "queue_full")
            assert client.service.engine.num_active == 3
            with client.send({**BASE, "n": 3, "prompt": "c"}) as other:
                wait_until(lambda: client.service.engine.num_active == 6)
                runtime.gate.set()
                assert b"200 OK" in sock.recv(4000)
                assert b"200 OK" in other.recv(4000)
        assert client.metric("aft_generation_tokens_total") == 6 * 12
        wait_until(lambda: client.free("fake0"))


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_frees_all_of_its_choices(stream: bool) -> None:
    """Those that run and those that wait; one outcome."""
    with serve_app(fake_loader(FakeRuntime(2, seconds_per_token=0.001)), max_queue=9, burst_seconds=0.01) as client:
        sock = client.send({**BASE, "prompt": ["a", "b", "c"], "n": 2, "max_tokens": 10**6, "stream": stream})
        wait_until(lambda: client.metric("aft_generation_tokens_total") > 10)
        assert client.metric("aft_requests_waiting") == 4
        sock.close()
        wait_until(lambda: client.free("fake0"))
        assert client.metric("aft_client_disconnects_total") == 1
        assert client.metric("aft_requests_total", outcome="cancelled") == 1


def test_a_fault_in_one_choice_fails_the_request() -> None:
    """Whole a 500, streamed an error event; the slots of the others are free, and the next request is served."""
    runtime = FakeRuntime(1)
    runtime.fail_prompt = ord("!")
    with serve_app(fake_loader(runtime)) as client:
        body = {**BASE, "prompt": ["ab", "!", "cd"]}
        assert_error(client.post(body), 500, "server_error", "internal_error")
        raw = client.post({**body, "stream": True}).text
        assert json.loads(raw.strip().split("\n")[-1].removeprefix("data: "))["error"]["code"] == "internal_error"
        assert "[DONE]" not in raw
        wait_until(lambda: client.free("fake0"))
        assert texts_of(client) == [expected("ab", 7, 12)]
        assert client.metric("aft_requests_total", outcome="error") == 2


def occupy(client: Client) -> Generation:
    """One slot is taken, until it is cancelled, by what nobody reads and no deadline ends."""
    tokenizer = Bytes()
    automaton = stops(tokenizer.token_bytes, [], tokenizer.end, ignore_end=True)
    generation = Generation("x", "fake0", [tokenizer.begin], SamplingParams(), 10**9, automaton)
    engine = client.service.engine
    engine._loop.call_soon_threadsafe(engine.submit, generation)
    wait_until(lambda: generation.paused)
    return generation


def test_a_stream_has_its_time_from_its_slot_on() -> None:
    """AFT_MAX_STREAM_SECONDS: who waits longer than that for a slot still gets text; the wait is measured."""
    runtime = FakeRuntime(1, seconds_per_token=0.001)
    with serve_app(fake_loader(runtime), max_stream_seconds=0.5) as client:
        occupant, engine = occupy(client), client.service.engine

        def leave_after_a_while() -> None:
            wait_until(lambda: engine.num_active == 2)
            time.sleep(1.0)
            engine.cancel(occupant)

        threading.Thread(target=leave_after_a_while).start()
        text = client.post({**BASE, "max_tokens": None, "stream": True}).text
        assert text.count("data: ") > 2
        assert '"finish_reason": "length"' in text or '"finish_reason":"length"' in text
        assert client.metric("aft_generation_tokens_total") > 10
        wait_until(lambda: client.metric("aft_request_duration_seconds_count", endpoint="completions") == 1)
        assert client.metric("aft_request_queue_seconds_sum", endpoint="completions") > 0.9


def last_error(text: str) -> dict[str, Any]:
    """The error that ends a stream."""
    assert "[DONE]" not in text
    assert text.endswith("}\n\n")
    error: dict[str, Any] = json.loads(text.strip().split("\n")[-1].removeprefix("data: "))["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_a_deadline_in_the_queue() -> None:
    """503 with a time to come back; in a stream, whose head is out, an error event."""
    runtime = FakeRuntime(1)
    with serve_app(fake_loader(runtime), deadline_seconds=1) as client:
        occupant = occupy(client)
        began = time.monotonic()
        response = client.post({**BASE, "n": 2})
        assert 1 <= time.monotonic() - began < 10
        assert_error(response, 503, "overloaded_error", "queue_timeout", None, "1 s")
        assert 1 <= int(response.headers["retry-after"]) <= 60
        assert int(response.headers["retry-after-ms"]) == 1000 * int(response.headers["retry-after"])
        assert "x-should-retry" not in response.headers
        error = last_error(client.post({**BASE, "stream": True}).text)
        assert (error["type"], error["code"]) == ("overloaded_error", "queue_timeout")
        wait_until(lambda: client.metric("aft_requests_waiting") == 0)
        assert client.metric("aft_requests_total", outcome="timeout") == 2
        client.service.engine.cancel(occupant)
        client.service.settings = client.service.settings.model_copy(update={"deadline_seconds": 0})
        assert texts_of(client) == [expected("ab", 7, 12)]


def test_a_deadline_that_passes_while_it_runs() -> None:
    """504 that says not to retry; streamed, what was written and an error event; then the slots are free."""
    runtime = FakeRuntime(2, seconds_per_token=0.001)
    with serve_app(fake_loader(runtime), deadline_seconds=1, burst_seconds=0.01) as client:
        body = {**BASE, "max_tokens": 10**6, "n": 2}
        response = client.post(body)
        assert_error(response, 504, "timeout_error", "deadline_exceeded", None, "1 s")
        assert response.headers["x-should-retry"] == "false"
        assert "retry-after" not in response.headers
        wait_until(lambda: client.free("fake0"))
        streamed = client.post({**body, "stream": True})
        assert streamed.status_code == 200
        error = last_error(streamed.text)
        assert (error["type"], error["code"], error["param"]) == ("timeout_error", "deadline_exceeded", None)
        assert streamed.text.count('"text":"') > 2
        wait_until(lambda: client.free("fake0"))
        assert client.metric("aft_requests_total", outcome="timeout") == 2
        assert client.metric("aft_requests_total") == 2
        assert client.metric("aft_client_disconnects_total") == 0
        client.service.settings = client.service.settings.model_copy(update={"deadline_seconds": 0})
        assert texts_of(client) == [expected("ab", 7, 12)]


def test_a_key_holds_so_many_slots_at_once() -> None:
    """Its other choices wait though slots are free; another key is served meanwhile."""
    runtime = FakeRuntime(4, seconds_per_token=0.001)
    settings = {"api_keys": ["first", "second"], "max_choices_per_key": 2, "burst_seconds": 0.01}
    with serve_app(fake_loader(runtime), **settings) as client:
        first, second = ({"authorization": f"Bearer {key}"} for key in ("first", "second"))
        greedy = {**BASE, "n": 4, "max_tokens": 10**6, "stream": True}
        with client.http.stream("POST", "/v1/completions", json=greedy, headers=first) as response:
            wait_until(lambda: client.metric("aft_slots_in_use") == 2)
            with httpx.Client(base_url=client.url, headers=second, timeout=30) as other:
                for _ in range(3):
                    assert other.post("/v1/completions", json=BASE).json()["choices"][0]["text"] == expected(
                        "ab", 7, 12
                    )
                    assert client.metric("aft_slots_in_use") == 2
                    assert client.metric("aft_requests_waiting") == 2
            assert response.status_code == 200
        wait_until(lambda: client.free("fake0"))
        answer = client.post({**BASE, "n": 6}, headers=first).json()
        assert [choice["text"] for choice in answer["choices"]] == [expected("ab", 7 + i, 12) for i in range(6)]


def test_a_key_holds_so_many_places_in_the_queue() -> None:
    """What goes beyond is refused whole; another key may still wait."""
    runtime = FakeRuntime(1, seconds_per_token=0.001)
    settings = {"api_keys": ["first", "second"], "max_queue": 5, "max_queue_per_key": 2, "burst_seconds": 0.01}
    with serve_app(fake_loader(runtime), **settings) as client:
        first, second = ({"authorization": f"Bearer {key}"} for key in ("first", "second"))
        long = {**BASE, "max_tokens": 10**6, "stream": True}
        assert client.post({**BASE, "n": 3}, headers=first).status_code == 200  # one runs, two wait
        # what never fits is no matter of waiting
        more = client.post({**BASE, "n": 4}, headers=first)
        assert_error(more, 400, "invalid_request_error", "invalid_value", "n", "4 choices, at most 3")
        scoring = {**BASE, "prompt": ["ab"] * 9, "max_tokens": 0, "echo": True, "logprobs": 0}
        scored = client.post(scoring, headers=first).json()["choices"]  # three at a time
        assert [choice["text"] for choice in scored] == ["ab"] * 9
        with client.http.stream("POST", "/v1/completions", json=long, headers=first):
            wait_until(lambda: client.metric("aft_slots_in_use") == 1)
            with client.http.stream("POST", "/v1/completions", json={**long, "n": 2}, headers=first):
                wait_until(lambda: client.metric("aft_requests_waiting") == 2)
                refused = client.post(BASE, headers=first)
                assert_error(refused, 429, "rate_limit_error", "rate_limit_exceeded")
                assert 1 <= int(refused.headers["retry-after"]) <= 60
                with client.http.stream("POST", "/v1/completions", json={**long, "n": 2}, headers=second):
                    wait_until(lambda: client.metric("aft_requests_waiting") == 4)
        wait_until(lambda: client.free("fake0"))
        assert client.metric("aft_admission_rejections_total", reason="key_queue_full") == 1
        assert client.post(BASE, headers=first).status_code == 200


def test_seeds(real: Client) -> None:
    """Another seed, another text; none: one is drawn and reported, and gives the same text again."""
    texts = {texts_of(real, **{**REAL, "seed": seed})[0] for seed in range(5)}
    assert len(texts) == 5
    drawn = choices_of(real, **{**REAL, "seed": None})
    assert choices_of(real, **{**REAL, "seed": drawn[0]["seed"]}) == drawn
    assert choices_of(real, **{**REAL, "seed": None})[0]["seed"] != drawn[0]["seed"]


def test_greedy_needs_no_seed(real: Client) -> None:
    """Temperature 0 and top_k 1 agree, whatever the seed and sample."""
    answers = [
        text
        for seed, how in [(1, {"temperature": 0}), (2, {"temperature": 0}), (3, {"top_k": 1}), (4, {"min_p": 1.0})]
        for text in texts_of(real, **{**REAL, "seed": seed, **how}, n=2)
    ]
    assert len(set(answers)) == 1


def test_requests_of_many_choices_beside_each_other(real: Client) -> None:
    """More choices than slots, of several requests at once: each equals itself alone."""
    bodies = [{**REAL, "prompt": ["Speak", "hear"], "n": 1 + i % 3, "seed": i, "max_tokens": 15 + i} for i in range(4)]
    alone = [choices_of(real, **body) for body in bodies]

    async def all_at_once() -> list[list[dict[str, Any]]]:
        async with httpx.AsyncClient(base_url=real.url, timeout=60) as client:
            answers = await asyncio.gather(*(client.post("/v1/completions", json=body) for body in bodies))
            return [answer.json()["choices"] for answer in answers]

    assert asyncio.run(all_at_once()) == alone


def test_the_time_of_an_upload_counts() -> None:
    """A deadline begins with the request's head, not with the last byte of its body; so does what is measured."""

    def slowly() -> Iterator[bytes]:
        body = json.dumps(BASE).encode()
        yield body[:9]
        time.sleep(2)
        yield body[9:]

    headers = {"content-type": "application/json"}
    with serve_app(fake_loader(FakeRuntime(1)), deadline_seconds=1) as client:
        late = client.http.post("/v1/completions", content=slowly(), headers=headers)
        assert_error(late, 504, "timeout_error", "deadline_exceeded")  # slots were free
        assert late.headers["x-should-retry"] == "false"
        assert client.metric("aft_requests_total", outcome="timeout") == 1
        assert client.post(BASE).status_code == 200
    with serve_app(fake_loader(FakeRuntime(1)), deadline_seconds=30) as client:
        assert client.http.post("/v1/completions", content=slowly(), headers=headers).status_code == 200
        assert client.metric("aft_request_duration_seconds_sum", endpoint="completions") > 1
        assert client.metric("aft_time_to_first_token_seconds_sum") > 1
        assert client.metric("aft_request_queue_seconds_sum", endpoint="completions") < 1


def test_a_client_that_leaves_or_stops_in_its_upload() -> None:
    """The first is counted as cancelled, the second is told, and neither keeps the process from its end."""
    with serve_app(fake_loader(FakeRuntime(1)), stalled_reader_seconds=2) as client:
        head = (
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 99"
        )
        with client.connect() as sock:
            sock.sendall(head + b"\r\n\r\n{")
        wait_until(lambda: client.metric("aft_requests_total", endpoint="completions", outcome="cancelled") == 1)
        with client.connect() as sock:
            sock.sendall(head + b"\r\n\r\n{")
            answer = sock.recv(4096)
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b"request_timeout" in answer or b"request_timeout" in sock.recv(4096)
        assert client.metric("aft_requests_total", endpoint="completions", outcome="rejected") == 1
