"""Who may call: keys, rate, hosts and origins, each refused in one shape and before a byte of the body is read."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from live import INVALID
from starlette.types import Message
from typer.testing import CliRunner

from service import access, rate, server
from service.access import Keys, digest, is_guarded, read_keys
from service.app import create_app
from service.cli import app as commands
from service.errors import SettingError
from service.hosts import Hosts, host_name, is_loopback
from service.middleware import PROBES
from service.rate import Rate, read_rate
from service.settings import Settings
from service.state import Service

ORIGIN = "https://page.example"
PREFLIGHT = {"origin": ORIGIN, "access-control-request-method": "POST"}


@dataclass
class Answer:
    """What the application sent."""

    status: int
    headers: dict[str, str]
    body: bytes

    def check(self, status: int, kind: str, code: str) -> None:
        """It is an error in the one shape, with an id."""
        assert self.status == status, self.body
        error = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert (error["type"], error["code"]) == (kind, code)
        assert self.headers["x-request-id"]


async def unread() -> Message:
    """The body of a request that must be answered without it."""
    raise AssertionError("the body was read")


async def ended() -> Message:
    """No body."""
    return {"type": "http.request", "body": b"", "more_body": False}


def call(
    app: FastAPI,
    method: str = "GET",
    path: str = "/version",
    host: str | None = "localhost:8000",
    address: str = "127.0.0.1",
    raw: list[tuple[bytes, bytes]] | None = None,
    receive: Any = ended,
    **headers: str,
) -> Answer:
    """One request, without a socket; underscores of a header's name are hyphens."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    given = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    given += [(b"host", host.encode("latin-1"))] if host is not None else []
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": given + (raw or []),
        "client": (address, 40_000), "server": ("127.0.0.1", 8000),
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    start = sent[0]
    found = {name.decode(): value.decode() for name, value in start["headers"]}
    return Answer(start["status"], found, b"".join(message.get("body", b"") for message in sent[1:]))


def make(**settings: Any) -> FastAPI:
    """The application; its models are never loaded, so that /v1/models is a 503 for whoever may ask."""
    return create_app(Settings(**settings))


def rejections(app: FastAPI) -> dict[str, float]:
    """The counter, by reason."""
    (family,) = app.state.service.metrics.rejections.collect()
    samples = [sample for sample in family.samples if sample.name.endswith("_total")]
    assert all(sample.labels["model"] == "" for sample in samples)
    return {sample.labels["reason"]: sample.value for sample in samples}


# keys


def test_names_of_keys() -> None:
    """Those of the environment are numbered, those of a file have theirs; what is no key has none."""
    keys = Keys([("a", digest(b"one")), ("b", digest(b"two")), ("a", digest(b"three"))])
    assert [keys.name(key) for key in (b"one", b"two", b"three", b"four", b"", b"One")] == [
        "a", "b", "a", None, None, None
    ]  # fmt: skip
    assert keys
    assert not Keys([])
    both = read_keys(Settings(api_keys=["x", "y"]))
    assert [both.name(key) for key in (b"x", b"y")] == ["key-1", "key-2"]


def test_every_key_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first, the last and none take the same steps, each in constant time, on digests."""
    seen: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def counted(a: bytes, b: bytes) -> bool:
        seen.append((a, b))
        return real(a, b)

    keys = Keys([(name, digest(name.encode())) for name in "abcde"])
    monkeypatch.setattr(access.hmac, "compare_digest", counted)
    for key, name in ((b"a", "a"), (b"e", "e"), (b"x", None)):
        seen.clear()
        assert keys.name(key) == name
        assert len(seen) == 5
        assert all(len(known) == len(asked) == 32 for known, asked in seen)


def test_a_file_of_keys(tmp_path: Path) -> None:
    """Comments, blank lines, spaces around, letters of either case; beside those of the environment."""
    upper = hashlib.sha256(b"second").hexdigest().upper()
    file = tmp_path / "keys"
    file.write_text(f"# ours\n\n  anna:{digest(b'first').hex()}  \nb.o-b_2:{upper}\r\n")
    keys = read_keys(Settings(api_keys=["third"], api_keys_file=file))
    assert [keys.name(key) for key in (b"first", b"second", b"third")] == ["anna", "b.o-b_2", "key-1"]


HEX = digest(b"k").hex()


@pytest.mark.parametrize(
    "line",
    [
        "sesame-plain-key", f"a {HEX}", f"a:{HEX[1:]}", f"a:{HEX}0", f"a:{HEX[1:]}g", f":{HEX}", f"a b:{HEX}", f"{HEX}",
        f"{'a' * 65}:{HEX}", f"a:{HEX} # why", f"a:b:{HEX}", f"ä:{HEX}",
    ],
)  # fmt: skip
def test_bad_lines(tmp_path: Path, line: str) -> None:
    """Named by number, not repeated: it may be a key."""
    file = tmp_path / "keys"
    file.write_text(f"# first\na:{HEX}\n{line}\n", encoding="utf-8")
    with pytest.raises(SettingError, match=r"AFT_API_KEYS_FILE: line 3 of ") as caught:
        read_keys(Settings(api_keys_file=file))
    assert line not in str(caught.value)
    assert HEX[1:] not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    """A missing one, a folder, other bytes, and one without a key, which would open the service to everybody."""
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").write_text("# nobody\n\n")
    for name, word in (("missing", "No such file"), ("", "directory"), ("binary", "UTF-8"), ("empty", "has no key")):
        with pytest.raises(SettingError, match=word):
            create_app(Settings(api_keys_file=tmp_path / name))


@pytest.mark.parametrize("key", ["", " ", "se same", "sesame\n", "sésame", "sesame\x7f"])
def test_keys_that_no_header_carries(key: str) -> None:
    """Refused at start, by number."""
    with pytest.raises(SettingError, match=r"AFT_API_KEYS: key 2 ") as caught:
        read_keys(Settings(api_keys=["good", key]))
    assert "same" not in str(caught.value)


def test_what_needs_a_key() -> None:
    """All under /v1, the tokenizer and the version; no route is in neither list."""
    app = make(api_keys=["sesame"])
    open_paths = [*PROBES, "/openapi.json", "/docs", "/docs/start.js", "/nothing", "/v2/models", "/v1x"]
    guarded = ["/v1", "/v1/", "/v1/models", "/v1/completions", "/v1/nothing", "/tokenize", "/detokenize", "/version"]
    for path in open_paths:
        assert call(app, path=path).status != 401, path
    for path in [*guarded, "/tokenizer_info"]:
        call(app, path=path).check(401, INVALID, "invalid_api_key")
        assert call(app, path=path, authorization="Bearer sesame").status != 401
    known = {"/", *PROBES, "/openapi.json", "/docs", "/docs/start.js"}
    for route in app.openapi()["paths"]:
        assert is_guarded(route) or route in known or route.startswith("/docs/"), route


def test_no_key_and_a_wrong_one() -> None:
    """401 that says how a key is sent, before a byte of the body is read, and never which."""
    app = make(api_keys=["sesame", "simsalabim"])
    missing = call(app, "POST", "/v1/completions", receive=unread, content_length="99999999999")
    wrong = call(app, "POST", "/v1/completions", receive=unread, authorization="Bearer sesame-not")
    for answer in (missing, wrong):
        answer.check(401, INVALID, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert b"sesame" not in answer.body
    assert b"needed" in missing.body
    assert b"wrong" in wrong.body
    assert rejections(app) == {"invalid_api_key": 2}


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer sesame", 200), ("bearer sesame", 200), ("BEARER   sesame ", 200), ("Bearer simsalabim", 200),
        ("sesame", 401), ("Basic sesame", 401), ("Bearer", 401), ("Bearer ", 401), ("", 401), ("Bearer Sesame", 401),
        ("Bearer sesame simsalabim", 401), ("Bearer sesame, simsalabim", 401), ("Bearersesame", 401),
        ("Bearer s\xe9same", 401), ("Bearer " + "x" * 60_000, 401),
    ],
)  # fmt: skip
def test_forms_of_the_header(header: str, status: int) -> None:
    """The scheme in any case, then the whole key."""
    assert call(make(api_keys=["sesame", "simsalabim"]), authorization=header).status == status


def test_two_keys_are_none() -> None:
    """Which would it be?"""
    again = [(b"authorization", b"Bearer sesame")]
    assert call(make(api_keys=["sesame"]), raw=again).status == 200
    assert call(make(api_keys=["sesame"]), raw=again, authorization="Bearer sesame").status == 401


def test_without_keys_none_is_needed() -> None:
    """Nor looked at."""
    assert call(make()).status == 200
    assert call(make(), authorization="Bearer whatever").status == 200


def test_a_new_key(tmp_path: Path) -> None:
    """Two lines: a random key, and what the file needs so that it is taken."""
    runs = [CliRunner().invoke(commands, ["key", "anna"]) for _ in range(2)]
    (key, line), (other, _) = [run.stdout.splitlines() for run in runs]
    assert key.startswith("aft-")
    assert len(key) == 4 + 43
    assert key != other
    assert key not in line
    assert line == f"anna:{hashlib.sha256(key.encode()).hexdigest()}"
    (tmp_path / "keys").write_text(line)
    app = make(api_keys_file=tmp_path / "keys")
    assert call(app, authorization=f"Bearer {key}").status == 200
    assert call(app, authorization=f"Bearer {other}").status == 401
    bad = CliRunner().invoke(commands, ["key", "an na"])
    assert (bad.exit_code, bad.stdout, bad.stderr.count("\n")) == (1, "", 1)


# rate


class Clock:
    """Stands still until it is told."""

    now = 1_000_000.0

    def __call__(self) -> float:
        """The time."""
        return self.now


@pytest.mark.parametrize(
    ("text", "amount", "seconds"),
    [("600/minute", 600, 60), ("1/second", 1, 1), ("10 per 5 minutes", 10, 300), (" 2 / Hour ", 2, 3600)],
)
def test_rates(text: str, amount: int, seconds: int) -> None:
    """So many, and not one more, in so many seconds."""
    made = read_rate(text)
    assert made is not None
    clock = Clock()
    clock.now = 7.0 * seconds
    made._clock = clock
    assert [made.wait("a") for _ in range(amount)] == [0.0] * amount
    assert made.wait("a") == seconds
    clock.now += 2 * seconds
    assert made.wait("a") == 0


@pytest.mark.parametrize(
    "text", ["600", "minute", "0/minute", "-1/minute", "1/fortnight", "1/second; 9/day", "x" * 500]
)
def test_bad_rates(text: str) -> None:
    """Refused at start, repeated in part."""
    with pytest.raises(SettingError, match=r"AFT_RATE_LIMIT: .* is no rate such as 600/minute") as caught:
        create_app(Settings(rate_limit=text))
    assert len(str(caught.value)) < 200


def test_no_rate() -> None:
    """By default, or where the environment has an empty one."""
    assert read_rate("") is None
    assert read_rate(" ") is None


def test_a_burst_at_the_border_of_two_windows() -> None:
    """The old window counts for the part that is still inside: ten at its end leave no ten for the next moment."""
    clock = Clock()
    made = Rate(10, 60, clock)
    clock.now = 60 * 100 + 59.0
    assert [made.wait("a") for _ in range(10)] == [0.0] * 10
    clock.now += 1.5
    assert sum(made.wait("a") == 0 for _ in range(10)) == 1
    clock.now += 30
    assert sum(made.wait("a") == 0 for _ in range(10)) == 5
    assert made.wait("b") == 0


@given(st.integers(1, 5), st.lists(st.floats(0, 45), min_size=1, max_size=60))
def test_waiting_as_told_is_enough_and_needed(amount: int, pauses: list[float]) -> None:
    """After the wait a request is taken, shortly before it is not; a refused one costs nothing."""
    clock = Clock()
    made = Rate(amount, 30, clock)
    for pause in pauses:
        clock.now += pause
        seconds = made.wait("a")
        assert 0 <= seconds <= 30
        if seconds > 0.01:
            clock.now += seconds - 0.005
            assert made.wait("a") > 0
            clock.now += 0.006
            assert made.wait("a") == 0


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any number of addresses so many are kept, the latest; and none for long."""
    monkeypatch.setattr(rate, "MAX_NAMES", 100)
    clock = Clock()
    made = Rate(1, 60, clock)
    assert made.wait("busy") == 0
    for i in range(5000):
        assert made.wait(str(i)) == 0
        assert made.wait("busy") > 0
        assert len(made) <= 100
    assert made.wait("4999") > 0
    assert made.wait("0") == 0
    clock.now += 180
    for _ in range(100):
        made.wait("busy")
    assert len(made) == 1


def test_rate_of_a_key() -> None:
    """Each key has its own, whatever its address; what needs no key, and what has a wrong one, does not count."""
    app = make(api_keys=["one", "two"], rate_limit="2/day")  # no window ends in the test
    for _ in range(4):
        assert call(app, path="/livez").status == 200
        assert call(app, path="/openapi.json").status == 200
        assert call(app, authorization="Bearer three").status == 401
    for address in ("10.0.0.1", "10.0.0.2"):
        assert call(app, address=address, authorization="Bearer one").status == 200
    refused = call(app, "POST", "/v1/completions", address="10.0.0.3", authorization="Bearer one", receive=unread)
    refused.check(429, "rate_limit_error", "rate_limit_exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.headers["retry-after-ms"] == f"{refused.headers['retry-after']}000"
    assert call(app, address="10.0.0.3", authorization="Bearer two").status == 200
    assert rejections(app) == {"invalid_api_key": 4, "rate_limit": 1}


def test_rate_of_an_address() -> None:
    """Where there are no keys, also if somebody sends one; a day's wait is told as a minute."""
    app = make(rate_limit="1/day")
    assert call(app, address="127.0.0.1", authorization="Bearer a").status == 200
    refused = call(app, address="127.0.0.1", authorization="Bearer b")
    refused.check(429, "rate_limit_error", "rate_limit_exceeded")
    assert refused.headers["retry-after"] == "60"
    assert call(app, address="127.0.0.2").status == 200


# hosts


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "LOCALHOST:8000", "localhost.", "127.0.0.1", "127.0.0.1:8000", "127.8.9.1:1", "[::1]", "[::1]:80",
        "[0:0:0:0:0:0:0:1]", "10.1.2.3:9", "Good.Example:8", "good.example.", "[fe80::7]:1", "localhost:",
    ],
)  # fmt: skip
def test_hosts_that_are_served(host: str) -> None:
    """Loopback by any name and port, the address that is bound, the names of the setting."""
    hosts = Hosts("10.1.2.3", ["good.example", "FE80:0::7"])
    assert hosts.refusal([host]) is None


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "0.0.0.0", "[::]", "10.1.2.4", "", " ",
        "evil.example:127", "localhost@evil.example", "localhost/evil", "::1", "[::1", "[::1]x", "localhost:x", ":80",
        "localhost:8000:9", "localhost, evil.example", "good.example.evil", "not-good.example", "\xe9", "2130706433",
        "128.0.0.1",
    ],
)  # fmt: skip
def test_hosts_that_are_refused(host: str) -> None:
    """Everything else, also what only looks like one."""
    for bound in ("10.1.2.3", "0.0.0.0", "::"):
        refusal = Hosts(bound, ["good.example"]).refusal([host])
        assert refusal is not None
        assert (refusal.status, refusal.code) == (403, "forbidden_host")
        assert Hosts(bound, ["*"]).refusal([host]) is None


def test_names_of_hosts() -> None:
    """One spelling of each."""
    assert host_name("[0:0::1]:8000") == "::1"
    assert host_name("A.B.:1") == "a.b"
    assert host_name("a b") is None
    assert [name for name in ("localhost", "127.3.4.5", "::1", "0.0.0.0", "::", "x") if is_loopback(name)] == [
        "localhost", "127.3.4.5", "::1"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["http://good.example", "*.example", "", "a b", "a/b"])
def test_bad_names_of_hosts(name: str) -> None:
    """Refused at start: they would never match."""
    with pytest.raises(SettingError, match="AFT_ALLOWED_HOSTS"):
        create_app(Settings(allowed_hosts=[name]))


def test_a_name_that_a_page_made_up() -> None:
    """403 on every route but the probes, before the body is read; not where keys are asked for."""
    app = make()
    for path in ("/v1/models", "/version", "/openapi.json", "/docs", "/nothing"):
        refused = call(app, path=path, host="evil.example:8000", receive=unread)
        refused.check(403, INVALID, "forbidden_host")
        assert b"evil.example" in refused.body
    for path in PROBES:
        assert call(app, path=path, host="evil.example").status in (200, 503)
        assert call(app, path=path, host=None).status in (200, 503)
    assert rejections(app) == {"forbidden_host": 5}
    assert len(call(app, host="x" * 9000).body) < 400
    assert call(make(allowed_hosts=["evil.example"]), host="evil.example").status == 200
    assert call(make(api_keys=["sesame"]), host="evil.example", authorization="Bearer sesame").status == 200
    assert call(make(api_keys=["sesame"]), host=None, authorization="Bearer sesame").status == 200


def test_a_page_of_another_origin_makes_nobody_post() -> None:
    """403 for forms, too, which browsers send without asking; not for our own pages, allowed ones, or with keys."""
    app, scored = make(), {"method": "POST", "path": "/v1/images/score", "content_type": "multipart/form-data"}
    for origin in (ORIGIN, "null", "http://localhost:8001", "https://localhost:8000.evil.example", ""):
        refused = call(app, **scored, origin=origin, receive=unread)
        refused.check(403, INVALID, "forbidden_origin")
    assert rejections(app) == {"forbidden_origin": 5}
    assert call(app, **scored).status == 400  # no page: the form is read, and is none
    assert call(app, **scored, origin="http://localhost:8000").status == 400
    assert call(app, origin=ORIGIN).status == 200  # what is read is no harm: a page cannot read the answer
    assert call(make(cors_origins=[ORIGIN]), **scored, origin=ORIGIN).status == 400
    assert call(make(cors_origins=["*"]), **scored, origin=ORIGIN).status == 400
    assert call(make(api_keys=["sesame"]), **scored, origin=ORIGIN, authorization="Bearer sesame").status == 400


def test_no_host_or_two() -> None:
    """400, also where any name is served: which one would it be?"""
    for app in (make(), make(allowed_hosts=["*"])):
        call(app, host=None).check(400, INVALID, "invalid_value")
        call(app, raw=[(b"Host", b"localhost")]).check(400, INVALID, "invalid_value")


# origins


def origin_of(answer: Answer) -> str | None:
    """Which page may read an answer."""
    return answer.headers.get("access-control-allow-origin")


def test_preflights_need_no_key() -> None:
    """A page cannot send one with them; another page's is refused."""
    app = make(api_keys=["sesame"], cors_origins=[ORIGIN], rate_limit="1/minute")
    asked = "authorization, content-type, x-stainless-lang"
    headers = {**PREFLIGHT, "access_control_request_headers": asked}
    for _ in range(3):
        answer = call(app, "OPTIONS", "/v1/completions", **headers)
        assert (answer.status, origin_of(answer)) == (200, ORIGIN)
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert answer.headers["access-control-allow-headers"] == asked
        assert answer.headers["x-request-id"]
    other = call(app, "OPTIONS", "/v1/completions", **{**headers, "origin": "https://evil.example"})
    other.check(400, "invalid_request_error", "forbidden_origin")
    assert origin_of(other) is None
    wrong = call(app, "OPTIONS", "/v1/completions", **{**headers, "access-control-request-method": "PUT"})
    wrong.check(400, "invalid_request_error", "forbidden_origin")
    assert origin_of(wrong) == ORIGIN
    assert call(app, "OPTIONS", "/v1/completions").status == 401  # no preflight: it has no origin


def test_a_page_may_read_every_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Successes, refusals and faults; another page none."""
    app = make(api_keys=["sesame"], cors_origins=[ORIGIN], rate_limit="4/day", max_body_bytes=10)
    key = {"authorization": "Bearer sesame"}
    form = {"content_type": "application/json", "content_length": "11"}

    def fail(_: Service) -> None:
        raise RuntimeError("a fault")

    def ask(origin: str) -> list[Answer]:
        answers = [
            call(app, origin=origin, **key),
            call(app, origin=origin),
            call(app, path="/nothing", origin=origin),
            call(app, "POST", "/v1/completions", origin=origin, **key, **form),
            call(app, path="/v1/models", origin=origin, **key),
        ]
        with monkeypatch.context() as patch:
            patch.setattr(Service, "ready", fail)
            answers.append(call(app, path="/v1/models", origin=origin, **key))
        return [*answers, call(app, origin=origin, **key)]

    for answer, status in zip(ask(ORIGIN), (200, 401, 404, 413, 503, 500, 429), strict=True):
        assert (answer.status, origin_of(answer)) == (status, ORIGIN)
        exposed = answer.headers["access-control-expose-headers"]
        assert "x-request-id" in exposed
        assert "retry-after" in exposed
        assert "Origin" in answer.headers["vary"]
    assert {origin_of(answer) for answer in ask("https://evil.example")} == {None}
    forbidden = call(make(cors_origins=[ORIGIN]), host="evil.example", origin=ORIGIN)
    assert (forbidden.status, origin_of(forbidden)) == (403, ORIGIN)


def test_origins_by_default_and_all() -> None:
    """No page by default; with `*` every page, without credentials of the browser."""
    assert origin_of(call(make(), origin=ORIGIN)) is None
    assert call(make(), "OPTIONS", "/v1/completions", **PREFLIGHT).status == 405
    answer = call(make(cors_origins=["*"]), origin=ORIGIN)
    assert origin_of(answer) == "*"
    assert "access-control-allow-credentials" not in answer.headers


# start


def test_settings_that_cannot_be_served_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Status 1 and one line; no key in it."""
    monkeypatch.setattr(server.logs, "configure", lambda *_: None)
    (tmp_path / "keys").write_text("anna:sesame\n")
    cases: list[dict[str, Any]] = [
        {"api_keys_file": tmp_path / "keys"}, {"api_keys": ["open sesame"]}, {"rate_limit": "much"},
        {"allowed_hosts": ["http://x"]},
    ]  # fmt: skip
    for settings in cases:
        caplog.clear()
        assert server.serve(Settings(**settings)) == 1
        (record,) = caplog.records
        assert record.levelname == "ERROR"
        assert record.exc_info is None
        assert f"AFT_{next(iter(settings)).upper()}" in record.getMessage()
        assert "sesame" not in record.getMessage()


def test_open_to_everybody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One warning where others can reach a service without keys; none on loopback or with keys."""
    for settings in (
        Settings(), Settings(host="localhost"), Settings(host="::1"), Settings(host="0.0.0.0", api_keys=["a"]),
        Settings(host="0.0.0.0", api_keys_file=tmp_path),
    ):  # fmt: skip
        server.warn_if_open(settings)
    assert not caplog.records
    for host in ("0.0.0.0", "::", "10.0.0.1", "my-host"):
        caplog.clear()
        server.warn_if_open(Settings(host=host))
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        for word in (host, "no keys", "AFT_API_KEYS"):
            assert word in record.getMessage()
