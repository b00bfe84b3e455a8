"""Tokens -> text in pieces: equal to the whole, whatever the pieces; a stop is never shown in part."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from model.automaton import ACCEPT, stops
from model.tokenizer import Bytes
from service.text import TextAssembler

TOKENIZER = Bytes()
LETTERS = st.text(alphabet="abé€😀", max_size=30)
STOPS = st.lists(st.text(alphabet="abé€😀", min_size=1, max_size=4), max_size=4)


def cut(tokens: list[int], places: list[int]) -> list[list[int]]:
    """Tokens in pieces, some of them empty."""
    edges = [0, *sorted(min(place, len(tokens)) for place in places), len(tokens)]
    return [tokens[a:b] for a, b in pairwise(edges)]


def draw(tokens: list[int], stop: list[str]) -> tuple[list[int], bool]:
    """What a runtime draws of these: up to and with the token that completes a stop."""
    strings = [s.encode() for s in stop]
    automaton = stops(TOKENIZER.token_bytes, strings, TOKENIZER.end, ignore_end=False)
    state = 0
    for i, token in enumerate(tokens):
        state = int(automaton.next[state, token])
        if state == ACCEPT:
            return tokens[: i + 1], True
    return tokens, False


def before_the_stop(text: str, stop: list[str]) -> str:
    """By hand: the earliest end of any stop; of those that end there, the earliest begin."""
    for end in range(len(text) + 1):
        ending = [s for s in stop if text[:end].endswith(s)]
        if ending:
            return text[: end - max(map(len, ending))]
    return text


@given(LETTERS, STOPS, st.lists(st.integers(0, 120), max_size=12))
def test_pieces_equal_the_whole(text: str, stop: list[str], places: list[int]) -> None:
    """Any stops, any cuts, also inside a character: the text before the stop, and at no time more than that."""
    drawn, stopped = draw(TOKENIZER.encode(text), stop)
    wanted = before_the_stop(text, stop)
    assembler, out = TextAssembler(TOKENIZER.token_bytes, stop), ""
    for piece in cut(drawn, places):
        out += assembler.feed(piece)
        assert wanted.startswith(out)
    assert out + assembler.finish(stopped=stopped) == wanted


@given(st.binary(max_size=40), st.lists(st.integers(0, 40), max_size=8))
def test_bytes_that_are_no_text(raw: bytes, places: list[int]) -> None:
    """What is no UTF-8 becomes U+FFFD, the same in pieces as at once."""
    assembler = TextAssembler(TOKENIZER.token_bytes, [])
    out = "".join(assembler.feed(piece) for piece in cut(list(raw), places))
    assert out + assembler.finish(stopped=False) == raw.decode(errors="replace")


@given(st.binary(max_size=30), STOPS, st.lists(st.integers(0, 40), max_size=8))
def test_stops_among_bytes_that_are_no_text(raw: bytes, stop: list[str], places: list[int]) -> None:
    """The same with stops: pieces and the whole agree, and no stop is shown."""
    drawn, stopped = draw(list(raw), stop)
    whole = TextAssembler(TOKENIZER.token_bytes, stop)
    wanted = whole.feed(drawn) + whole.finish(stopped=stopped)
    assembler = TextAssembler(TOKENIZER.token_bytes, stop)
    out = "".join(assembler.feed(piece) for piece in cut(drawn, places)) + assembler.finish(stopped=stopped)
    assert out == wanted == before_the_stop(bytes(drawn).decode(errors="replace"), stop)


def test_what_may_become_a_stop_is_held_back() -> None:
    """And given out as soon as it cannot."""
    assembler = TextAssembler(TOKENIZER.token_bytes, ["\n\nQ:"])
    shown = [assembler.feed(list(piece)) for piece in (b"A: 1", b"\n", b"\nQ", b"x", b"\n\n")]
    assert shown == ["A: 1", "", "", "\n\nQx", ""]
    assert assembler.finish(stopped=False) == "\n\n"


def test_an_incomplete_character_is_held_back() -> None:
    """A byte of it shows nothing; at the end it is U+FFFD."""
    assembler = TextAssembler(TOKENIZER.token_bytes, [])
    euro = list("€".encode())
    assert [assembler.feed([byte]) for byte in euro] == ["", "", "€"]
    assert assembler.feed(euro[:2]) == ""
    assert assembler.finish(stopped=False) == "\ufffd"


def test_the_stop_that_is_complete_first_wins() -> None:
    """``b`` inside ``abc`` ends the text though ``abc`` began first; of two that end together the longer is cut."""
    cases = [(["abc", "b"], "xabc", "xa"), (["b", "ab"], "xab", "x"), (["cab", "ab", "b"], "ccab", "c")]
    for stop, text, wanted in cases:
        drawn, stopped = draw(list(text.encode()), stop)
        assembler = TextAssembler(TOKENIZER.token_bytes, stop)
        assert assembler.feed(drawn) + assembler.finish(stopped=stopped) == wanted


def test_the_end_symbol_hides_nothing() -> None:
    """Text that only began a stop is shown when the end symbol ends it."""
    assembler = TextAssembler(TOKENIZER.token_bytes, ["stop"])
    shown = assembler.feed([*b"a sto", TOKENIZER.end]) + assembler.finish(stopped=True)
    assert shown == "a sto"
