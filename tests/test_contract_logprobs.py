"""Echo, scoring and log-probabilities, as a client of ``POST /v1/completions`` sees them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import checkpoints_for_tests
import pytest
from fake_runtime import FakeRuntime, expected, likeliest, target_logprob
from hypothesis import assume, given
from hypothesis import strategies as st
from live import Client, assert_error, fake_loader, make_checkpoints, serve_app, wait_until

import model
from model.runtime.base import Job
from model.runtime.choice import open_runtime
from model.tokenizer import Bytes
from service.loading import load_models
from service.scheduler import PREFILL_CHUNK
from service.schema.logprobs import Logprobs, token_names, vocabulary

pytest.importorskip("model.runtime.native._kernel", reason="equality to the bit needs the native kernel")

FAKE: dict[str, Any] = {"model": "fake0", "prompt": "ab", "max_tokens": 12, "seed": 0}
REAL: dict[str, Any] = {"model": "tiny", "prompt": "Speak", "max_tokens": 30, "seed": 7, "ignore_eos": True}
FIELDS = ["tokens", "token_logprobs", "top_logprobs", "text_offset"]
TOKENIZER = Bytes()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of characters, of characters that end, and of bytes."""
    folder = make_checkpoints(tmp_path_factory.mktemp("checkpoints"))
    checkpoints_for_tests.plain_bytes(folder / "bytes")
    return folder


@pytest.fixture(scope="module")
def real(checkpoints: Path) -> Iterator[Client]:
    """The app on real models, with fewer slots and places than a scoring has prompts."""
    with serve_app(load_models, checkpoints=checkpoints, threads=1, slots=4, max_queue=6, runtime="native") as client:
        yield client


@pytest.fixture(scope="module")
def fake() -> Iterator[Client]:
    """The app on a fake whose end symbol comes at position 40."""
    with serve_app(fake_loader(FakeRuntime(3, end_at=40))) as client:
        yield client


def choices_of(client: Client, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The choices of a whole answer; the lists of each are parallel."""
    response = client.post(body)
    assert response.status_code == 200, response.text
    choices: list[dict[str, Any]] = response.json()["choices"]
    for choice in choices:
        if choice["logprobs"] is not None:
            assert list(choice["logprobs"]) == FIELDS
            lengths = {len(values) for values in choice["logprobs"].values() if values is not None}
            assert len(lengths) == 1
    return choices


def joined(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The choices that a stream's parts make."""
    made: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for part in chunk["choices"]:
            if part["index"] not in made:
                made[part["index"]] = part
                continue
            whole = made[part["index"]]
            whole["text"] += part["text"]
            whole["finish_reason"] = part["finish_reason"]
            assert (part["logprobs"] is None) == (whole["logprobs"] is None)
            for field, values in (part["logprobs"] or {}).items():
                assert (values is None) == (whole["logprobs"][field] is None)
                if values is not None:
                    whole["logprobs"][field] += values
    return [made[index] for index in sorted(made)]


@pytest.mark.parametrize("count", [0, 1, 2, 5])
@pytest.mark.parametrize("name", ["tiny", "bytes"])
def test_the_legacy_shape(real: Client, name: str, count: int) -> None:
    """Four lists; the token itself is among the likeliest, with the very same number."""
    body = {**REAL, "model": name, "n": 3}
    plain = choices_of(real, body)
    assert all(choice["logprobs"] is None for choice in plain)
    for choice, without in zip(choices_of(real, {**body, "logprobs": count}), plain, strict=True):
        assert choice["text"] == without["text"]
        logprobs = choice["logprobs"]
        assert len(logprobs["tokens"]) == 30
        assert all(value <= 0 for value in logprobs["token_logprobs"])
        if not count:
            assert logprobs["top_logprobs"] is None
            continue
        beside = 0
        for token, value, top in zip(*(logprobs[field] for field in FIELDS[:3]), strict=True):
            assert top[token] == value
            assert count <= len(top) <= count + 1
            beside += len(top) > count
        assert 0 < beside < 30


def test_the_same_numbers_whatever_is_asked_beside(real: Client) -> None:
    """Neither the number of the likeliest nor an echo nor a temperature changes a token's own; they are the model's."""
    wanted = choices_of(real, {**REAL, "logprobs": 0, "temperature": 0})[0]["logprobs"]["token_logprobs"]
    for fields in (
        {"logprobs": 5, "temperature": 0},
        {"logprobs": 3, "top_k": 1, "temperature": 2},
        {"logprobs": 1, "top_p": 1e-9},
        {"logprobs": 2, "min_p": 1},
    ):
        assert choices_of(real, {**REAL, **fields})[0]["logprobs"]["token_logprobs"] == wanted
    echoed = choices_of(real, {**REAL, "logprobs": 1, "temperature": 0, "echo": True})[0]["logprobs"]["token_logprobs"]
    assert echoed[5:] == wanted


def test_a_greedy_token_is_the_likeliest(real: Client) -> None:
    """Of what may be drawn its number is the largest, to the bit: what lm-eval calls is_greedy."""

    def differences(name: str, temperature: float) -> list[float]:
        body = {**REAL, "model": name, "temperature": temperature, "logprobs": 5, "n": 2}
        found = []
        for choice in choices_of(real, body):
            pairs = zip(choice["logprobs"]["token_logprobs"], choice["logprobs"]["top_logprobs"], strict=True)
            # the symbols that write nothing are not drawn here
            found += [value - max(other for sign, other in top.items() if sign) for value, top in pairs]
        return found

    for name in ("tiny", "bytes"):
        assert set(differences(name, 0)) == {0.0}
        assert min(differences(name, 1)) < 0


def test_bias_and_penalties_are_not_in_the_numbers(real: Client) -> None:
    """A token that is forced keeps the log-probability that the model gave it."""
    free = choices_of(real, {**REAL, "prompt": "kkkk", "max_tokens": 0, "echo": True, "logprobs": 0})[0]["logprobs"]
    ids = real.http.post("/v1/tokenize", json={"model": "tiny", "prompt": "k"}).json()["tokens"]
    forced = {**REAL, "prompt": "k", "max_tokens": 3, "logit_bias": {str(ids[0]): 100}, "logprobs": 1}
    forced |= {"frequency_penalty": 1, "repetition_penalty": 2, "temperature": 0.5}
    logprobs = choices_of(real, forced)[0]["logprobs"]
    assert logprobs["tokens"] == ["k"] * 3
    assert logprobs["token_logprobs"] == free["token_logprobs"][1:]


LONG = "Speak, speak! Çà, 日本 🙂 hear me. " * (PREFILL_CHUNK // 16)
PROMPTS = ["S", "Speak, speak!", "日本 🙂 and ☃ and é", LONG]


@pytest.mark.parametrize("name", ["tiny", "bytes"])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_scoring(real: Client, checkpoints: Path, name: str, count: int) -> None:
    """Exactly what the library and a job of a runtime give, to the bit; but null for the first."""
    text = model.load(checkpoints / name, num_streams=1, runtime="native")
    body = {**REAL, "model": name, "max_tokens": 0, "echo": True, "logprobs": count}
    runtime, tokenizer = text.runtime, text.tokenizer
    answer = real.post({**body, "prompt": PROMPTS}).json()
    assert answer["usage"]["completion_tokens"] == 0
    for prompt, choice in zip(PROMPTS, answer["choices"], strict=True):
        assert (choice["text"], choice["finish_reason"]) == (prompt, "length")
        logprobs = choice["logprobs"]
        assert logprobs["token_logprobs"][0] is None
        stream = text.stream()
        assert logprobs["token_logprobs"][1:] == stream.logprobs(prompt)[1:]
        stream.close()
        ids = tokenizer.encode(prompt)
        runtime.reset(0)
        (done,) = runtime.run([Job(0, [tokenizer.begin, *ids[:-1]], ids)])
        assert logprobs["token_logprobs"][1:] == done.target_logprobs[1:]
        assert len(logprobs["tokens"]) == len(ids)
        if not count:
            assert logprobs["top_logprobs"] is None
            continue
        assert logprobs["top_logprobs"][0] is None
        for token, value, top in list(zip(*(logprobs[field] for field in FIELDS[:3]), strict=True))[1:]:
            assert top[token] == value
            assert count <= len(top) <= count + 1
    assert joined(real.stream({**body, "prompt": PROMPTS})) == answer["choices"]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_begin_before_ids_gives_the_first_its_number(real: Client, checkpoints: Path, count: int) -> None:
    """Ids that begin with the symbol are echoed with it, as "" and null: then every token of the text is scored."""
    text = model.load(checkpoints / "tiny", num_streams=1, runtime="native")
    begin, stream = text.tokenizer.begin, text.stream()
    body = {**REAL, "max_tokens": 0, "echo": True, "logprobs": count}
    for prompt in PROMPTS:
        ids = text.tokenizer.encode(prompt)
        answer = real.post({**body, "prompt": [begin, *ids]}).json()
        (choice,) = answer["choices"]
        assert choice["text"] == prompt
        assert choice["logprobs"]["tokens"][0] == ""
        assert choice["logprobs"]["token_logprobs"] == [None, *stream.logprobs(prompt)]
        assert answer["usage"]["prompt_tokens"] == len(ids)
        (without,) = choices_of(real, {**body, "prompt": prompt})
        for field in FIELDS:
            if choice["logprobs"][field] is not None:
                assert choice["logprobs"][field][2:] == without["logprobs"][field][1:]
        assert choice["logprobs"]["text_offset"][:2] == [0, 0]
        assert joined(real.stream({**body, "prompt": [begin, *ids]})) == [choice]
    (nothing,) = choices_of(real, {**body, "prompt": [begin]})
    assert nothing["logprobs"]["tokens"] == [""]
    assert nothing["logprobs"]["token_logprobs"] == [None]
    both = choices_of(real, {**body, "prompt": [[begin, *ids[:9]], ids[:9]]})
    assert [len(choice["logprobs"]["tokens"]) for choice in both] == [10, 9]


def test_a_whole_answer_has_a_bound() -> None:
    """Of tokens with log-probabilities, of all choices together; a stream may have any number."""
    with serve_app(fake_loader(FakeRuntime(4)), max_logprobs=100) as client:
        body = {**FAKE, "prompt": "ab", "max_tokens": 25, "logprobs": 0, "n": 4}
        assert client.post(body).status_code == 200
        for changes in ({"max_tokens": 26}, {"echo": True}, {"best_of": 5}, {"prompt": ["ab", "c"]}):
            refused = client.post({**body, **changes})
            assert_error(refused, 400, "invalid_request_error", "invalid_value", "logprobs", "at most 100", "stream")
        assert len(joined(client.stream({**body, "max_tokens": 90}))) == 4
        assert client.post({**body, "max_tokens": 90, "logprobs": None}).status_code == 200


def test_a_scored_echo_comes_in_parts() -> None:
    """As it is computed, each part with its text: a long prompt holds nobody up."""
    with serve_app(fake_loader(FakeRuntime(1))) as client:
        body = {**FAKE, "prompt": "ab☃" * PREFILL_CHUNK, "max_tokens": 0, "echo": True, "logprobs": 1}
        chunks = [chunk["choices"][0] for chunk in client.stream(body)]
        assert len(chunks) > 2
        for chunk in chunks:
            assert len(chunk["logprobs"]["tokens"]) <= PREFILL_CHUNK + 1
        assert "".join(chunk["text"] for chunk in chunks) == body["prompt"]
        assert joined(client.stream(body)) == client.post(body).json()["choices"]


def test_the_likeliest_of_an_echo(real: Client, checkpoints: Path) -> None:
    """As a greedy draw after each prefix says; where an echoed token is the likeliest, it has the largest number."""
    checkpoint = checkpoints_for_tests.opened(checkpoints / "tiny")
    runtime, names = open_runtime(checkpoint, 1), token_names(checkpoint.tokenizer)
    ids = checkpoint.tokenizer.encode("Speak, ☃ speak!")
    runtime.reset(0)
    (done,) = runtime.run([Job(0, [checkpoint.tokenizer.begin, *ids], logits="all")])
    assert done.logits is not None
    body = {**REAL, "prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 2}
    tops = choices_of(real, body)[0]["logprobs"]["top_logprobs"]
    for row, top in list(zip(done.logits, tops, strict=False))[1:]:
        assert next(iter(top)) == names[int(row.argmax())]
    greedy = choices_of(real, {**REAL, "temperature": 0, "max_tokens": 40, "logprobs": 2})[0]["logprobs"]
    speak = checkpoint.tokenizer.encode("Speak")
    written = [*speak, *(names.index(name) for name in greedy["tokens"])]
    again = choices_of(real, {**body, "prompt": written})[0]["logprobs"]
    assert again["token_logprobs"][5:] == greedy["token_logprobs"]
    assert again["tokens"][5:] == greedy["tokens"]
    assert all(
        top[t] == max(top.values()) for t, top in zip(again["tokens"][5:], again["top_logprobs"][5:], strict=True)
    )


@pytest.mark.parametrize("logprobs", [None, 0, 2])
@pytest.mark.parametrize("max_tokens", [0, 1, 30])
def test_echo(real: Client, max_tokens: int, logprobs: int | None) -> None:
    """The prompt, then what is written after it, in every choice; the same streamed."""
    prompts = ["Speak", "日本", ""]
    body = {**REAL, "prompt": prompts, "n": 2, "max_tokens": max_tokens, "logprobs": logprobs}
    echoed = choices_of(real, {**body, "echo": True})
    nothing = {"text": "", "logprobs": {field: [] for field in FIELDS}}
    written = choices_of(real, body) if max_tokens else [nothing] * 6
    for i, (choice, alone) in enumerate(zip(echoed, written, strict=True)):
        prompt = prompts[i // 2]
        assert choice["text"] == prompt + alone["text"]
        if logprobs is None:
            assert choice["logprobs"] is None
            continue
        count = len(choice["logprobs"]["tokens"]) - len(alone["logprobs"]["tokens"])
        for field in FIELDS[:3]:
            if choice["logprobs"][field] is not None:
                assert choice["logprobs"][field][count:] == alone["logprobs"][field]
        assert "".join(choice["logprobs"]["tokens"][:count]) == prompt
        assert [o - len(prompt) for o in choice["logprobs"]["text_offset"][count:]] == alone["logprobs"]["text_offset"]
        assert [i for i, value in enumerate(choice["logprobs"]["token_logprobs"]) if value is None] == [0] * bool(
            prompt
        )
    assert joined(real.stream({**body, "echo": True})) == echoed
    usage = real.post({**body, "echo": True}).json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (7, 6 * max_tokens)


def test_a_stop_is_not_searched_in_an_echo(fake: Client) -> None:
    """Nor across its end; the text after it stops as ever."""
    for logprobs in (None, 0, 1):
        body = {**FAKE, "echo": True, "prompt": "fox t", "stop": ["fox", "the"], "logprobs": logprobs}
        text = expected("fox t", 0, 30)
        body["max_tokens"] = 30
        (choice,) = choices_of(fake, body)
        end = min(text.find(stop) for stop in ("fox", "the") if stop in text)
        assert (choice["text"], choice["finish_reason"]) == ("fox t" + text[:end], "stop")
        assert joined(fake.stream(body)) == [choice]
        (nothing,) = choices_of(fake, {**body, "max_tokens": 0})
        assert (nothing["text"], nothing["finish_reason"]) == ("fox t", "length")
    # "h" would be complete with the echo's "t" before it
    prompt = "x" * 44 + "t"
    assert expected(prompt, 0, 12).startswith("h")
    (choice,) = choices_of(fake, {**FAKE, "prompt": prompt, "echo": True, "stop": "th"})
    assert choice["text"] == prompt + expected(prompt, 0, 12)


def test_ids_that_begin_with_begin(fake: Client) -> None:
    """They keep that one, and the echo has it: so a client can ask for the probability of the first character."""
    begin, ids = Bytes().begin, [65, 66, 67]
    body = {**FAKE, "max_tokens": 1, "echo": True, "logprobs": 1}
    (with_begin,), (without,) = (choices_of(fake, {**body, "prompt": prompt}) for prompt in ([begin, *ids], ids))
    assert with_begin["text"] == without["text"] == "ABC" + expected("ABC", 0, 1)
    assert with_begin["logprobs"]["tokens"] == ["", *without["logprobs"]["tokens"]]
    scores = [target_logprob(place, token) for place, token in enumerate(ids)]
    assert with_begin["logprobs"]["token_logprobs"][:4] == [None, *scores]
    assert without["logprobs"]["token_logprobs"][:3] == [None, *scores[1:]]
    assert with_begin["logprobs"]["text_offset"] == [0, *without["logprobs"]["text_offset"]]


def test_an_echo_of_nothing(fake: Client) -> None:
    """An empty prompt is echoed as nothing."""
    (choice,) = choices_of(fake, {**FAKE, "prompt": "", "max_tokens": 0, "echo": True, "logprobs": 1})
    assert (choice["text"], choice["finish_reason"]) == ("", "length")
    assert choice["logprobs"] == {field: [] for field in FIELDS}
    (choice,) = choices_of(fake, {**FAKE, "prompt": "", "max_tokens": 3, "echo": True, "logprobs": 1})
    assert choice["text"] == expected("", 0, 3)
    assert choice["logprobs"]["text_offset"] == [0, 1, 2]
    invalid = "invalid_request_error", "invalid_value"
    assert_error(fake.post({**FAKE, "max_tokens": 0}), 400, *invalid, "max_tokens", "echo")


def test_a_thousand_prompts_are_scored(real: Client) -> None:
    """More than slots and places hold: the rest follows. One more than the limit is refused, and so is writing."""
    prompts = [f"{i} {'me speak'[: i % 9]}" for i in range(1024)]
    body = {**REAL, "prompt": prompts, "max_tokens": 0, "echo": True, "logprobs": 1}
    choices = choices_of(real, body)
    assert [choice["text"] for choice in choices] == prompts
    assert [choice["index"] for choice in choices] == list(range(1024))
    for i in (0, 500, 1023):
        (alone,) = choices_of(real, {**body, "prompt": prompts[i]})
        assert choices[i]["logprobs"] == alone["logprobs"]
    assert joined(real.stream(body)) == choices
    assert real.free("tiny")
    invalid = "invalid_request_error", "invalid_value"
    assert_error(real.post({**body, "prompt": ["a"] * 1025}), 400, *invalid, "prompt", "1025", "1024")
    assert_error(real.post({**body, "prompt": ["a"] * 513, "n": 2}), 400, *invalid, "prompt", "1026", "10")
    assert_error(real.post({**body, "prompt": ["a"] * 11, "max_tokens": 1}), 400, *invalid, "prompt", "11", "10")


def test_who_leaves_a_long_scoring_frees_all(real: Client) -> None:
    """What was queued of it never runs."""
    before = real.metric("aft_prompt_tokens_total", model="tiny")
    sock = real.send({**REAL, "prompt": [LONG] * 1024, "max_tokens": 0, "echo": True, "logprobs": 5, "stream": True})
    assert b"200 OK" in sock.recv(2000)
    sock.close()
    wait_until(lambda: real.free("tiny"), 10)
    assert real.metric("aft_prompt_tokens_total", model="tiny") - before < 200 * len(LONG)


def test_a_scored_prompt_may_fill_the_model(real: Client) -> None:
    """To its last position; one more is refused."""
    last = checkpoints_for_tests.MAX_LEN - 1
    body = {**REAL, "model": "short", "prompt": "S" * last, "max_tokens": 0, "echo": True, "logprobs": 1}
    (choice,) = choices_of(real, body)
    assert len(choice["logprobs"]["token_logprobs"]) == last
    response = real.post({**body, "prompt": "S" * (last + 1)})
    assert_error(response, 400, "invalid_request_error", "invalid_value", "prompt", str(last))


@pytest.mark.parametrize(
    "fields",
    [
        {"logprobs": 0}, {"logprobs": 2}, {"logprobs": 5, "echo": True}, {"logprobs": 1, "stop": ["e", "o "]},
        {"logprobs": 1, "stop": ["e", "o "], "echo": True, "n": 3}, {"model": "bytes", "logprobs": 3, "n": 2},
        {"model": "bytes", "logprobs": 3, "echo": True, "prompt": [[0xF0, 0x9F], [0xC3]], "seed": 3},
    ],
)  # fmt: skip
def test_streamed_and_whole_are_equal(real: Client, fields: dict[str, Any]) -> None:
    """The parts' lists, one after the other, are the whole's."""
    body = {**REAL, "max_tokens": 90, **fields}
    assert joined(real.stream(body)) == choices_of(real, body)


def test_tokens_of_a_stop_stand_in_the_lists(fake: Client) -> None:
    """And count in usage; what comes after them does neither. Their offsets go on behind the text."""
    body = {**FAKE, "prompt": "", "max_tokens": 30, "stop": "fox", "logprobs": 1}
    answer = fake.post(body).json()
    (choice,) = answer["choices"]
    text = expected("", 0, 30)
    end = text.index("fox")
    assert choice["text"] == text[:end]
    assert choice["logprobs"]["tokens"] == list(text[: end + 3])
    assert choice["logprobs"]["text_offset"] == list(range(end + 3))
    assert answer["usage"]["completion_tokens"] == end + 3
    assert choice["logprobs"]["token_logprobs"] == [
        target_logprob(i, ord(sign)) for i, sign in enumerate(text[: end + 3])
    ]
    for i, top in enumerate(choice["logprobs"]["top_logprobs"]):
        ((token, value),) = likeliest(i, 1, 258)
        assert top[token_names(TOKENIZER)[token]] == value


def test_an_end_symbol_is_empty(fake: Client) -> None:
    """It counts, and stands in the lists as ""; in the text it is nothing."""
    answer = fake.post({**FAKE, "prompt": "x" * 30, "max_tokens": 30, "logprobs": 1}).json()
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == (expected("x" * 30, 0, 9), "stop")
    assert choice["logprobs"]["tokens"] == [*expected("x" * 30, 0, 9), ""]
    assert choice["logprobs"]["text_offset"] == list(range(10))
    assert choice["logprobs"]["top_logprobs"][-1][""] == choice["logprobs"]["token_logprobs"][-1]
    assert answer["usage"]["completion_tokens"] == 10


def test_names_of_bytes(real: Client) -> None:
    """Part of a character is called by its byte, so that no two of the likeliest have one name."""
    body = {**REAL, "prompt": "a☃é", "max_tokens": 0, "echo": True, "logprobs": 5}
    (choice,) = choices_of(real, body)
    snow, acute = ([f"bytes:\\x{byte:02x}" for byte in sign.encode()] for sign in "☃é")
    assert choice["logprobs"]["tokens"] == ["a", *snow, *acute]
    assert choice["logprobs"]["text_offset"] == [0, 1, 1, 1, 2, 2]
    (choice,) = choices_of(real, {**body, "model": "bytes", "prompt": "日a"})
    assert choice["logprobs"]["tokens"] == ["bytes:\\xe6", "bytes:\\x97", "bytes:\\xa5", "a"]
    assert choice["logprobs"]["text_offset"] == [0, 0, 0, 1]
    assert all(len(top) in (5, 6) for top in choice["logprobs"]["top_logprobs"][1:])


@pytest.mark.parametrize("name", ["tiny", "bytes"])
def test_names_are_unambiguous(checkpoints: Path, name: str) -> None:
    """Each id that writes something has a name of its own, which leads back to its bytes."""
    tokenizer = checkpoints_for_tests.opened(checkpoints / name).tokenizer
    names = token_names(tokenizer)
    written = [(name, raw) for name, raw in zip(names, tokenizer.token_bytes, strict=True) if raw]
    assert len({name for name, _ in written}) == len(written)
    for called, raw in written:
        prefix, _, escaped = called.partition("bytes:")
        back = bytes.fromhex(escaped.replace("\\x", "")) if escaped and not prefix else called.encode()
        assert back == raw
    silent = [name for name, raw in zip(names, tokenizer.token_bytes, strict=True) if not raw]
    assert set(silent) == {""}


def test_an_incomplete_end_of_an_echo(real: Client) -> None:
    """It is U+FFFD whatever is drawn after it, and offsets know."""
    for prompt in ([0xC3], [0x61, 0xF0, 0x9F], [0xE6, 0x97]):
        ids = {str(i): -100 for i in range(258) if i != 0xA9}  # what would complete the first
        body = {**REAL, "model": "bytes", "prompt": prompt, "max_tokens": 2, "echo": True, "logprobs": 0}
        (choice,) = choices_of(real, {**body, "logit_bias": ids})
        echoed = bytes(prompt).decode(errors="replace")
        assert choice["text"] == echoed + "\ufffd\ufffd"
        assert choice["logprobs"]["text_offset"][-2:] == [len(echoed), len(echoed) + 1]


def offsets_by_hand(raw: bytes) -> list[int]:
    """For each byte: which of the text's characters it is a part of."""
    spans: list[tuple[int, int]] = []
    at = 0
    while at < len(raw):
        try:
            raw[at:].decode()
            end = len(raw)
        except UnicodeDecodeError as error:
            end = at + error.start
            spans += _characters(at, raw[at:end])
            spans.append((end, at + error.end))
            at += error.end
            continue
        spans += _characters(at, raw[at:end])
        at = end
    return [next(i for i, (begin, end) in enumerate(spans) if begin <= place < end) for place in range(len(raw))]


def _characters(at: int, raw: bytes) -> list[tuple[int, int]]:
    spans = []
    for sign in raw.decode():
        spans.append((at, at + len(sign.encode())))
        at += len(sign.encode())
    return spans


MIXED = st.lists(
    st.sampled_from([*"aé€😀".encode(), 0xED, 0xA0, 0xFF, 0xF4, 0x90, 0xEF, 0xBF, 0xBD]) | st.integers(0, 255),
    max_size=12,
)


@given(MIXED | st.text(alphabet="aé€😀\ufffd", max_size=6).map(lambda text: list(text.encode())))
def test_offsets_of_any_bytes(raw: list[int]) -> None:
    """Where in the text a token's character stands, whatever is broken before it."""
    # of a surrogate Python's decoder holds two bytes back as one incomplete character
    assume(not any(a == 0xED and 0xA0 <= b < 0xC0 for a, b in pairwise(raw)))
    logprobs = Logprobs(vocabulary(TOKENIZER), 0)
    for token in raw:
        logprobs.add(token, -1.0, [])
    assert logprobs.offsets == offsets_by_hand(bytes(raw))
    text = bytes(raw).decode(errors="replace")
    for name, offset in zip(logprobs.tokens, logprobs.offsets, strict=True):
        if not name.startswith("bytes:"):
            assert text[offset : offset + len(name)] == name


def test_offsets_of_what_a_model_writes(real: Client) -> None:
    """Random weights write broken UTF-8: each whole character stands where its offset says."""
    for name in ("tiny", "bytes"):
        body = {**REAL, "model": name, "prompt": ["日本", "é"], "n": 4, "max_tokens": 60, "logprobs": 0}
        for echo in (False, True):
            broken = 0
            for choice in choices_of(real, {**body, "echo": echo}):
                broken += "\ufffd" in choice["text"]
                logprobs = choice["logprobs"]
                assert logprobs["text_offset"] == sorted(logprobs["text_offset"])
                for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
                    if not token.startswith("bytes:"):
                        assert choice["text"][offset : offset + len(token)] == token
            assert broken


def test_answers_hold_no_strange_numbers(real: Client) -> None:
    """No NaN and no infinity, also for what the model finds nearly impossible."""
    raw = real.post({**REAL, "prompt": [[i] * 3 for i in range(6)], "max_tokens": 1, "echo": True, "logprobs": 5}).text

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert len(json.loads(raw, parse_constant=refuse)["choices"]) == 6
