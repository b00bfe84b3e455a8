"""The log: lines for people or JSON on standard error. structlog renders what the standard library's loggers say."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Literal

import structlog
from starlette.types import Scope

from service.request import Ended, Outcome

log = logging.getLogger("aft.requests")
CLIENT_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)


def configure(level: str, style: Literal["console", "json"]) -> None:
    """Send everything that is logged in this process to standard error, a record at a time."""
    meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    processors: list[structlog.typing.Processor]
    if style == "json":
        processors = [meta, structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        # structlog's default traceback shows the local variables: prompts and keys
        console = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), sort_keys=False, pad_event_to=0,
            exception_formatter=structlog.dev.plain_traceback,
        )  # fmt: skip
        processors = [meta, _without_unknown, console]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ExtraAdder(),
            ],
            processors=processors,
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("uvicorn").setLevel(max(root.level, logging.WARNING))  # it says nothing that we do not say


def _without_unknown(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {name: value for name, value in event.items() if value is not None and value != ""}


def printable(text: str, limit: int = 128) -> str:
    """What a client sent, as a log may have it: short, in ASCII, and no sign moves a terminal's cursor."""
    short = text if len(text) <= limit else text[:limit] + "…"
    return short.encode("unicode_escape").decode()


def client_request_id(scope: Scope) -> str | None:
    """The id that the client gave its request, if it is a decent one."""
    for name, value in scope["headers"]:
        if name.lower() == b"x-request-id":
            text = value.decode("latin-1")
            return text if CLIENT_ID.fullmatch(text) else None
    return None


def request(scope: Scope, client: str, status: int | None, outcome: Outcome, seconds: float) -> None:
    """One line for one HTTP request. No query, no header but the id, nothing of the body."""
    state = scope["state"]
    ended: Ended | None = state.get("ended")
    fields = {
        "id": state["request_id"],
        "client_request_id": client_request_id(scope),
        "method": printable(scope["method"], 16),
        "path": printable(scope["path"]),
        "status": status,
        "outcome": outcome.value,
        "key": state.get("key", ""),
        "client": client,
        "model": ended.model if ended else state.get("model", ""),
        "prompt_tokens": ended.prompt_tokens if ended else None,
        "generated_tokens": ended.generated_tokens if ended else None,
        "choices": ended.choices if ended else None,
        "queue_seconds": _rounded(ended.queue_seconds if ended else None),
        "first_token_seconds": _rounded(ended.first_token_seconds if ended else None),
        "seconds": _rounded(seconds),
    }
    log.info("request", extra=fields)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
