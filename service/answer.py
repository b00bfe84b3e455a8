"""A whole answer, kept as JSON from the first burst on.

As objects the log-probabilities of a long text take several times as much memory, and to render them at the end would
hold up all other requests for seconds.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from typing import Any

from starlette.responses import Response


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _object(fields: dict[str, bytes]) -> bytes:
    return b"{" + b",".join(_json(name) + b":" + value for name, value in fields.items()) + b"}"


def _array(items: Iterable[bytes]) -> bytes:
    return b"[" + b",".join(items) + b"]"


class GatheredChoice:
    """One choice of a whole answer, from the chunks that a stream would have."""

    def __init__(self) -> None:
        self._text = io.BytesIO()
        self._lists: dict[str, io.BytesIO | None] = {}  # of the log-probabilities; None: one that was not asked for
        self._last: dict[str, Any] = {}

    def add(self, chunk: dict[str, Any]) -> None:
        """A chunk's choice: its text and log-probabilities go on where the last one's ended."""
        self._text.write(_json(chunk["text"])[1:-1])
        for name, values in (chunk["logprobs"] or {}).items():
            known = self._lists.setdefault(name, None if values is None else io.BytesIO())
            if known is not None and values:
                known.write((b"," if known.tell() else b"") + _json(values)[1:-1])
        self._last = chunk

    def json(self, index: int) -> bytes:
        """The choice under this index."""
        fields = {name: _json(value) for name, value in (self._last | {"index": index, "logprobs": None}).items()}
        fields["text"] = b'"' + self._text.getvalue() + b'"'
        if self._lists:
            lists = {n: b"null" if known is None else _array([known.getvalue()]) for n, known in self._lists.items()}
            fields["logprobs"] = _object(lists)
        return _object(fields)


def whole(head: dict[str, Any], choices: list[GatheredChoice], usage: dict[str, int]) -> Response:
    """The answer, its choices numbered in this order."""
    fields = {name: _json(value) for name, value in head.items()}
    fields["choices"] = _array(choice.json(index) for index, choice in enumerate(choices))
    return Response(_object(fields | {"usage": _json(usage)}), media_type="application/json")
