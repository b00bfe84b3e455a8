"""Text <-> ids is lossless for every string that UTF-8 can hold, whole or in pieces."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.tokenizer import (
    SPACE,
    UNKNOWN,
    Bytes,
    Characters,
    IncrementalDecoder,
    Tokenizer,
    load_tokenizer,
    train_characters,
)

TRAINING_TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.  \tÆsop said: é, €, 猫, 🙂.\r\n"
TOKENIZERS: dict[str, Tokenizer] = {"bytes": Bytes(), "characters": train_characters(TRAINING_TEXT)}
TEXT = st.text(st.characters(exclude_categories=["Cs"]))  # all of Unicode but the surrogates
# strings in which sentencepiece's special cases meet: its own sign, NUL, spaces at any place, its names of symbols
TRICKY = st.lists(
    st.sampled_from([" ", "  ", "\n", "\r", "\r\n", "\t", "\0", SPACE, "a", "é", "e\u0301", "\u00a0", "\u3000", "<s>",
                     "</s>", "<unk>", "<0x41>", "\ufeff", "\ufffd", "\u200b", "ﬁ", "Ａ", "🙂", "\U0010ffff"])
).map("".join)  # fmt: skip

both = pytest.mark.parametrize("kind", TOKENIZERS)


@both
@given(text=TEXT | TRICKY)
def test_round_trip(kind: str, text: str) -> None:
    """decode(encode(text)) is text, and the ids write exactly its UTF-8."""
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(tokenizer.token_bytes[token] for token in ids) == text.encode()
    assert tokenizer.begin not in ids
    assert tokenizer.end not in ids


@both
@pytest.mark.parametrize(
    "text",
    ["", " ", "     ", "  a", "a  ", "a   b", "\n", "\n\n\n", "\r\n", " \n ", SPACE, f"a{SPACE} {SPACE}b", "\0",
     "a\0\0b", "\0 a", "<s>", "</s><unk><0x00>", "ﬁＡ", "e\u0301", "\ufeffa", TRAINING_TEXT],
)  # fmt: skip
def test_round_trip_of_known_traps(kind: str, text: str) -> None:
    """No space is added, merged or lost, nothing is normalised, no name of a symbol is read as one."""
    tokenizer = TOKENIZERS[kind]
    assert tokenizer.decode(tokenizer.encode(text)) == text


@both
@given(first=TEXT | TRICKY, second=TEXT | TRICKY)
def test_encoding_in_pieces(kind: str, first: str, second: str) -> None:
    """A prompt and what follows it, encoded apart, are the ids of the whole."""
    tokenizer = TOKENIZERS[kind]
    assert tokenizer.encode(first) + tokenizer.encode(second) == tokenizer.encode(first + second)


@pytest.mark.parametrize("text", [TRAINING_TEXT, "say\nso", "é€猫🙂", "  "])
def test_known_characters_take_one_id(text: str) -> None:
    """Every character of the training text is one id; a line end is its byte."""
    tokenizer = TOKENIZERS["characters"]
    ids = tokenizer.encode(text)
    assert [tokenizer.token_bytes[i] for i in ids] == [c.encode() for c in text]


@both
@pytest.mark.parametrize(("text", "index"), [("\ud800", 0), ("ab\udfff", 2), ("a \udc80 b", 2)])
def test_surrogates_are_refused(kind: str, text: str, index: int) -> None:
    """An unpaired surrogate is no text: ValueError with its place."""
    with pytest.raises(ValueError, match=f"surrogate U\\+{ord(text[index]):04X} at index {index}") as caught:
        TOKENIZERS[kind].encode(text)
    assert not isinstance(caught.value, UnicodeError)


@both
@given(data=st.data())
def test_incremental_decoding(kind: str, data: st.DataObject) -> None:
    """Ids in any pieces, symbols and broken UTF-8 among them, give the text of the whole."""
    tokenizer = TOKENIZERS[kind]
    every = st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30)
    ids = data.draw(every | TEXT.map(tokenizer.encode))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=6)))
    decoder = IncrementalDecoder(tokenizer.token_bytes)
    ends = [0, *cuts, len(ids)]
    pieces = [decoder.feed(ids[a:b]) for a, b in itertools.pairwise(ends)]
    assert "".join(pieces) + decoder.finish() == tokenizer.decode(ids)


def test_incremental_decoding_holds_back_what_is_incomplete() -> None:
    """A character is given out with its last byte, and never changed afterwards."""
    decoder = IncrementalDecoder(Bytes().token_bytes)
    assert [decoder.feed([byte]) for byte in "é🙂!".encode()] == ["", "é", "", "", "", "🙂", "!"]
    assert decoder.finish() == ""
    assert decoder.feed([0xF0, 0x9F]) == ""
    assert decoder.finish() == "\ufffd"


@both
@given(raw=st.binary())
def test_every_byte_string_has_ids(kind: str, raw: bytes) -> None:
    """Any bytes can be written by ids, one each; what is no UTF-8 becomes U+FFFD as Python has it."""
    tokenizer = TOKENIZERS[kind]
    by_byte = {written[0]: i for i, written in reversed(list(enumerate(tokenizer.token_bytes))) if len(written) == 1}
    assert len(by_byte) == 256
    ids = [by_byte[byte] for byte in raw]
    assert b"".join(tokenizer.token_bytes[token] for token in ids) == raw
    assert tokenizer.decode(ids) == raw.decode(errors="replace")


@both
def test_ids_outside_are_refused(kind: str) -> None:
    """-1 and the size of the vocabulary are no ids, also beside good ones."""
    tokenizer = TOKENIZERS[kind]
    for wrong in (-1, tokenizer.vocab_size, 2**40):
        with pytest.raises(ValueError, match=f"id {wrong} is outside the vocabulary of {tokenizer.vocab_size}"):
            tokenizer.decode([0, wrong])


@both
def test_symbols_write_nothing(kind: str) -> None:
    """Begin and end are two ids of the vocabulary with no text."""
    tokenizer = TOKENIZERS[kind]
    assert tokenizer.begin != tokenizer.end
    assert {tokenizer.begin, tokenizer.end} <= set(range(tokenizer.vocab_size))
    assert tokenizer.decode([tokenizer.begin, *tokenizer.encode("hi"), tokenizer.end]) == "hi"


def test_sizes() -> None:
    """Bytes: 256 and two symbols. Characters: the alphabet, 256 bytes, begin, end, unknown."""
    assert TOKENIZERS["bytes"].vocab_size == 258
    alphabet = set(TRAINING_TEXT) - {"\n", "\r"}
    assert TOKENIZERS["characters"].vocab_size == len(alphabet) + 256 + 3


@pytest.mark.parametrize("text", ["\n\n", "a", SPACE, UNKNOWN, "abc \u2583\u2584\u2585\u2586", "\0", " ", "\n \n"])
def test_alphabets_of_almost_nothing(text: str) -> None:
    """A text of line ends or signs alone still makes a lossless tokenizer."""
    tokenizer = train_characters(text)
    for sample in (text, "other\0 text\n"):
        assert tokenizer.decode(tokenizer.encode(sample)) == sample


def test_large_alphabet() -> None:
    """Thousands of characters: each is one id."""
    text = "".join(chr(0x4E00 + i) for i in range(5000))
    tokenizer = train_characters(text)
    assert len(tokenizer.encode(text)) == 5000
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_load(tmp_path: Path) -> None:
    """A stored model gives the same ids; what is no model is refused."""
    trained = TOKENIZERS["characters"]
    assert isinstance(trained, Characters)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(trained.model)
    loaded = load_tokenizer("characters", path)
    assert loaded.token_bytes == trained.token_bytes
    assert loaded.encode(TRAINING_TEXT) == trained.encode(TRAINING_TEXT)
    assert load_tokenizer("bytes", tmp_path / "none").vocab_size == 258
    with pytest.raises(ValueError, match="unknown tokenizer 'words'"):
        load_tokenizer("words", path)
    path.write_bytes(b"not a model")
    with pytest.raises(ValueError, match="not a sentencepiece model"):
        load_tokenizer("characters", path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"tokenizer\.model"):
        load_tokenizer("characters", path)


def test_training_is_reproducible() -> None:
    """The same text gives the same model, byte for byte."""
    assert train_characters(TRAINING_TEXT).model == train_characters(TRAINING_TEXT).model
