"""Settings: defaults, the environment, flags before it, bad values in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from service import server
from service.cli import app
from service.settings import Settings


def test_defaults() -> None:
    """Those of the contract."""
    settings = Settings()
    assert settings.model_dump() == {
        "host": "127.0.0.1", "port": 8000, "checkpoints": Path("checkpoints"), "models": [],
        "runtime": "auto", "device": "cpu", "threads": 0, "slots": 64, "max_queue": 256,
        "max_tokens": 1_000_000, "max_stream_tokens": 2_000_000,
        "max_stream_seconds": 3600, "max_prompt_tokens": 1_000_000, "max_body_bytes": 8 * 1024 * 1024,
        "max_upload_bytes": 1024 * 1024, "burst_seconds": 0.05, "heartbeat_seconds": 10, "stalled_reader_seconds": 60,
        "drain_seconds": 30, "keep_alive_seconds": 75, "log_level": "info", "log_format": "console", "api_keys": [],
        "api_keys_file": None, "rate_limit": "", "max_choices_per_key": 0, "max_queue_per_key": 0,
        "max_logprobs": 1_000_000,
        "allowed_hosts": [], "cors_origins": [],
        "max_choices": 128, "max_scored_prompts": 1024, "deadline_seconds": 0,
    }  # fmt: skip


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_each_is_described(name: str) -> None:
    """Docs print it."""
    assert Settings.model_fields[name].description


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """AFT_<NAME>, lists as JSON."""
    for name, value in {"SLOTS": "3", "MODELS": '["a","b"]', "DRAIN_SECONDS": "0.5", "CHECKPOINTS": "/x"}.items():
        monkeypatch.setenv(f"AFT_{name}", value)
    settings = Settings()
    assert (settings.slots, settings.models, settings.drain_seconds) == (3, ["a", "b"], 0.5)
    assert settings.checkpoints == Path("/x")


def test_frozen_and_closed() -> None:
    """Nothing is changed while serving, and a misspelt setting is no setting."""
    with pytest.raises(ValidationError):
        Settings().slots = 5  # type: ignore[misc]
    with pytest.raises(ValidationError, match="slotz"):
        Settings(slotz=5)  # type: ignore[call-arg]


def invoke(monkeypatch: pytest.MonkeyPatch, *flags: str, **env: str) -> tuple[int, str, list[Settings]]:
    """``aft serve`` that starts nothing: its status, its standard error, the settings it would have served with."""
    seen: list[Settings] = []

    def fake(settings: Settings) -> int:
        seen.append(settings)
        return 0

    monkeypatch.setattr(server, "serve", fake)
    result = CliRunner().invoke(app, ["serve", *flags], env={f"AFT_{name}": value for name, value in env.items()})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stderr, seen


def test_flags_come_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what has no flag keeps the environment's value."""
    flags = ["--port", "7", "--model", "a", "--model", "b", "--checkpoints", "/y", "--slots", "2", "--threads", "1"]
    status, _, (settings,) = invoke(monkeypatch, *flags, PORT="9", SLOTS="9", MAX_QUEUE="5")
    assert status == 0
    assert (settings.port, settings.models, settings.slots, settings.threads) == (7, ["a", "b"], 2, 1)
    assert (settings.checkpoints, settings.max_queue) == (Path("/y"), 5)


@pytest.mark.parametrize(
    ("flags", "env", "name"),
    [
        (["--port", "70000"], {}, "port"),
        (["--port", "-1"], {}, "port"),
        (["--slots", "0"], {}, "slots"),
        (["--runtime", "cuda"], {}, "runtime"),
        (["--threads", "-1"], {}, "threads"),
        ([], {"SLOTS": "many"}, "slots"),
        ([], {"MAX_QUEUE": "-1"}, "max_queue"),
        ([], {"BURST_SECONDS": "0"}, "burst_seconds"),
        ([], {"DRAIN_SECONDS": "nan"}, "drain_seconds"),
        ([], {"STALLED_READER_SECONDS": "inf"}, "stalled_reader_seconds"),
        ([], {"BURST_SECONDS": "inf"}, "burst_seconds"),
        ([], {"DEADLINE_SECONDS": "inf"}, "deadline_seconds"),
        ([], {"LOG_LEVEL": "loud"}, "log_level"),
        ([], {"MODELS": "mine"}, "models"),
        ([], {"API_KEYS": "sesame"}, "api_keys"),
        ([], {"API_KEYS": '{"sesame": 1}'}, "api_keys"),
        ([], {"LOG_FORMAT": "xml"}, "log_format"),
    ],
)
def test_bad_values(monkeypatch: pytest.MonkeyPatch, flags: list[str], env: dict[str, Any], name: str) -> None:
    """Status 1 and one line that names the setting."""
    status, stderr, seen = invoke(monkeypatch, *flags, **env)
    assert (status, seen) == (1, [])
    assert stderr.count("\n") == 1
    assert stderr.startswith("aft: ")
    assert name in stderr
    assert "sesame" not in stderr


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("API_KEY", "AFT_API_KEY in the environment is no setting; is it AFT_API_KEYS?"),
        ("API_KEYS_FLE", "is it AFT_API_KEYS_FILE?"), ("RATELIMIT", "is it AFT_RATE_LIMIT?"), ("XYZZY", "no setting\n"),
        ("KEY", "AFT_API_KEYS has its keys"),
    ],
)  # fmt: skip
def test_misspelt_variables(monkeypatch: pytest.MonkeyPatch, name: str, words: str) -> None:
    """Not ignored: a service that was to ask for keys would stand open. The value is not repeated."""
    status, stderr, seen = invoke(monkeypatch, **{name: "sesame"})
    assert (status, seen) == (1, [])
    assert words in stderr
    assert "sesame" not in stderr


def test_variables_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the runtime and corpora read is no mistake; nor is a client's key beside a server's own."""
    names = {"ISA": "avx2", "DATA": "/x", "KEY": "a", "API_KEYS": '["sesame"]', "PORT": "9"}
    status, _, (settings,) = invoke(monkeypatch, **names)
    assert (status, settings.port) == (0, 9)


def test_keys_are_not_shown() -> None:
    """Wherever settings are printed."""
    settings = Settings(api_keys=["sesame"])
    assert "sesame" not in f"{settings!r} {settings} {settings.model_dump_json()}"
