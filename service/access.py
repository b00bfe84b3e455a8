"""Who may call: by Host where there are no keys, by key, by rate. A refusal costs no byte of the body."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service import errors
from service.errors import SettingError
from service.hosts import Hosts
from service.metrics import Metrics
from service.middleware import PROBES, client_address
from service.rate import Rate, read_rate
from service.settings import Settings

GUARDED = ("/tokenize", "/detokenize", "/tokenizer_info", "/version")  # beside all under /v1
NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)
DIGEST = re.compile(r"[0-9a-fA-F]{64}")
SENDABLE = re.compile(r"[!-~]+")  # what a header carries as it is


def is_guarded(path: str) -> bool:
    """Whether a path needs a key, where there are keys, and counts towards the rate."""
    return path == "/v1" or path.startswith("/v1/") or path in GUARDED


def digest(key: bytes) -> bytes:
    """What is kept of a key. Keys are random and long, so one round is enough."""
    return hashlib.sha256(key).digest()


def new_key() -> str:
    """A key that nobody can guess."""
    return f"aft-{secrets.token_urlsafe(32)}"


def key_line(name: str, key: str) -> str:
    """A key's line in the file. SettingError for a name that is none."""
    if NAME.fullmatch(name) is None:
        raise SettingError("a key's name has 1 to 64 letters, digits, dots, underscores and hyphens")
    return f"{name}:{digest(key.encode()).hex()}"


class Keys:
    """Digests of keys, each with a name; a name may have several, while keys are changed."""

    def __init__(self, digests: Iterable[tuple[str, bytes]]) -> None:
        self._digests = list(digests)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def name(self, key: bytes) -> str | None:
        """The name of a key, or None. It takes the same time whichever key it is, and if it is none."""
        given, found = digest(key), None
        for name, known in self._digests:
            if hmac.compare_digest(known, given):
                found = name
        return found


def read_keys(settings: Settings) -> Keys:
    """The keys of both settings. SettingError for one that is no key, or a file without any."""
    found: list[tuple[str, bytes]] = []
    for i, secret in enumerate(settings.api_keys, 1):
        key = secret.get_secret_value()
        if SENDABLE.fullmatch(key) is None:
            raise SettingError(f"AFT_API_KEYS: key {i} is empty, or has spaces or letters outside of ASCII")
        found.append((f"key-{i}", digest(key.encode())))
    if settings.api_keys_file is not None:
        found += _read_file(settings.api_keys_file)
    return Keys(found)


def _read_file(path: Path) -> list[tuple[str, bytes]]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise SettingError(f"AFT_API_KEYS_FILE: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingError(f"AFT_API_KEYS_FILE: {path} is not UTF-8") from None
    found = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, _, hexadecimal = text.partition(":")
        if NAME.fullmatch(name) is None or DIGEST.fullmatch(hexadecimal) is None:
            raise SettingError(
                f"AFT_API_KEYS_FILE: line {number} of {path} is not NAME:SHA256; `aft key NAME` makes one"
            )
        found.append((name, bytes.fromhex(hexadecimal)))
    if not found:  # it would open the service to everybody
        raise SettingError(f"AFT_API_KEYS_FILE: {path} has no key")
    return found


@dataclass(frozen=True, slots=True)
class Rules:
    """What the settings say of who may call."""

    keys: Keys
    hosts: Hosts
    origins: frozenset[str]  # of pages that may post, beside our own
    rate: Rate | None


class Cors(CORSMiddleware):
    """Starlette's, whose refusal is text."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """The one shape of all errors."""
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        refused = errors.forbidden_preflight(bytes(response.body).decode()).response()
        own = {"content-length", "content-type"}
        refused.headers.update({name: value for name, value in response.headers.items() if name not in own})
        return refused


def read_rules(settings: Settings) -> Rules:
    """Everything at once, at start. SettingError names what is wrong."""
    hosts = Hosts(settings.host, settings.allowed_hosts)
    return Rules(read_keys(settings), hosts, frozenset(settings.cors_origins), read_rate(settings.rate_limit))


class Access:
    """Lets through who may call, with the key's name in the state; counts and answers the others."""

    def __init__(self, app: ASGIApp, rules: Rules, metrics: Metrics) -> None:
        self._app, self._rules, self._metrics = app, rules, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or refuse without reading."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            scope.setdefault("state", {})["key"] = ""
            self._check(scope)
        except _RefusedError as refused:
            self._metrics.rejections.labels("", refused.reason).inc()
            await refused.error.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        rules, path = self._rules, scope["path"]
        if not rules.keys and path not in PROBES:
            refusal = rules.hosts.refusal(_headers(scope, b"host"))
            if refusal is not None:
                raise _RefusedError("forbidden_host", refusal)
            self._check_origin(scope)
        if not is_guarded(path):
            return
        if rules.keys:
            given = _headers(scope, b"authorization")
            name = self._name(given)
            if name is None:
                raise _RefusedError("invalid_api_key", errors.invalid_api_key(given=bool(given)))
            scope["state"]["key"] = name
        if rules.rate is not None:
            seconds = rules.rate.wait(scope["state"]["key"] or client_address(scope))
            if seconds:
                raise _RefusedError("rate_limit", errors.rate_limited(seconds))

    def _check_origin(self, scope: Scope) -> None:
        """Browsers ask before they post JSON to another origin, but send a form at once: what posts must be known."""
        if scope["method"] in ("GET", "HEAD", "OPTIONS") or "*" in self._rules.origins:
            return
        own = {f"{scheme}://{host}" for scheme in ("http", "https") for host in _headers(scope, b"host")}
        for origin in _headers(scope, b"origin"):
            if origin not in self._rules.origins | own:
                raise _RefusedError("forbidden_origin", errors.forbidden_origin(origin))

    def _name(self, given: list[str]) -> str | None:
        scheme, _, key = given[0].strip().partition(" ") if len(given) == 1 else ("", "", "")
        return self._rules.keys.name(key.strip().encode("latin-1")) if scheme.lower() == "bearer" else None


class _RefusedError(Exception):
    def __init__(self, reason: str, error: errors.ApiError) -> None:
        super().__init__(reason)
        self.reason, self.error = reason, error


def _headers(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]
