"""Stops over tokens, against a plain search in the bytes that the tokens write."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.automaton import ACCEPT, FORBIDDEN, Automaton, stops
from model.tokenizer import Bytes, train_characters

BEGIN, END = 0, 1
# two letters and their combinations: stops overlap, nest and cross the borders of tokens all the time
WRITTEN = [b"", b"", b"a", b"b", b"ab", b"ba", b"aab", b"abba", b"bbbb", "é".encode(), b"\xc3", b"\xa9"]
PIECES = st.sampled_from([b"a", b"b", b"ab", "é".encode(), b"\xa9"])
STRINGS = st.lists(st.lists(PIECES, min_size=1, max_size=5).map(b"".join), max_size=5)
TOKENS = st.lists(st.integers(2, len(WRITTEN) - 1), max_size=40)


def first_stop(written: Sequence[bytes], strings: Sequence[bytes]) -> int | None:
    """Index of the first token after which the text holds one of the strings."""
    text = b""
    for i, part in enumerate(written):
        text += part
        if any(string in text for string in strings):
            return i
    return None


@settings(max_examples=400)
@given(STRINGS, TOKENS)
def test_accepts_with_the_first_token_that_completes_a_stop(strings: list[bytes], tokens: list[int]) -> None:
    """And not before, across any token borders, stops inside stops and inside tokens included."""
    automaton = stops(WRITTEN, strings, END, ignore_end=False)
    state, accepted = 0, None
    for i, token in enumerate(tokens):
        state = int(automaton.next[state, token])
        assert state != FORBIDDEN
        if state == ACCEPT:
            accepted = i
            break
    assert accepted == first_stop([WRITTEN[token] for token in tokens], strings)


@given(STRINGS, st.booleans())
def test_begin_and_end_in_every_state(strings: list[bytes], ignore_end: bool) -> None:
    """Begin writes nothing and is never drawn; end stops, or is not drawn where it is ignored; all else may be."""
    table = stops(WRITTEN, strings, END, ignore_end=ignore_end).next
    assert table.dtype == np.int32
    assert table.shape[1] == len(WRITTEN)
    assert set(table[:, BEGIN].tolist()) == {FORBIDDEN}
    assert set(table[:, END].tolist()) == {FORBIDDEN if ignore_end else ACCEPT}
    others = np.delete(table, [BEGIN, END], axis=1)
    assert others.min() >= 0
    assert others.max() < len(table)
    assert set(others[ACCEPT].tolist()) == {ACCEPT}


def test_without_strings_only_end_stops() -> None:
    """No string: every other token leads back to the start."""
    table = stops(WRITTEN, [], END, ignore_end=False).next
    assert set(np.delete(table[0], [BEGIN, END]).tolist()) == {0}


@settings(max_examples=30)
@given(st.text("ab日é ", min_size=1, max_size=3), st.text("ab日é ", max_size=30))
def test_real_tokenizers(stop: str, text: str) -> None:
    """Bytes, and characters of which some are spelled in bytes: the stop is found where the text first holds it."""
    for tokenizer in (Bytes(), CHARACTERS):
        ids = tokenizer.encode(text)
        automaton = stops(tokenizer.token_bytes, [stop.encode()], tokenizer.end, ignore_end=True)
        state, accepted = 0, None
        for i, token in enumerate(ids):
            state = int(automaton.next[state, token])
            if state == ACCEPT:
                accepted = i
                break
        assert accepted == first_stop([tokenizer.token_bytes[token] for token in ids], [stop.encode()])


CHARACTERS = train_characters("abé\n")


@pytest.mark.parametrize("table", [[[0, 2]], [[0, -2]], [[0, 1]]])
def test_a_table_that_leads_outside_is_refused(table: list[list[int]]) -> None:
    """A kernel would read another's memory there."""
    with pytest.raises(ValueError, match="leads outside"):
        Automaton(np.array(table, np.int32))
