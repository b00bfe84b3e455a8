"""Text <-> ids: characters (a sentencepiece model with byte fallback) and plain bytes.

Both reserve a begin and an end symbol: every sequence starts from begin, and end stops a stream. Both are lossless:
``decode(encode(text)) == text`` for every string that UTF-8 can hold.
"""

from __future__ import annotations

import codecs
import io
from pathlib import Path
from typing import Protocol

import sentencepiece

SPACE = "\u2581"  # sentencepiece's own sign for a space
UNKNOWN = "\u2585"  # and for what it does not know: a text that holds it is left out of a training


class Tokenizer(Protocol):
    """What the service and the trainer need of a tokenizer."""

    begin: int
    end: int
    token_bytes: list[bytes]  # what each id writes; b"" for begin and end

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...

    def __hash__(self) -> int: ...


def utf8(text: str) -> bytes:
    """UTF-8 of a text. ValueError, naming the place, where it holds an unpaired surrogate."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise ValueError(f"unpaired surrogate U+{code:04X} at index {error.start} is not text") from None


class _Table:
    """The half that both share: ids -> bytes -> text."""

    begin: int
    end: int
    token_bytes: list[bytes]

    @property
    def vocab_size(self) -> int:
        """Ids, the two symbols included."""
        return len(self.token_bytes)

    def decode(self, ids: list[int]) -> str:
        """Text of ids; what is no valid UTF-8 becomes U+FFFD. ValueError for an id outside the vocabulary."""
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"id {token} is outside the vocabulary of {self.vocab_size}")
        return b"".join(self.token_bytes[token] for token in ids).decode(errors="replace")


class Bytes(_Table):
    """256 bytes, begin, end."""

    begin, end = 256, 257

    def __init__(self) -> None:
        self.token_bytes = [bytes([value]) for value in range(256)] + [b"", b""]

    def encode(self, text: str) -> list[int]:
        """The UTF-8 bytes of a text."""
        return list(utf8(text))


class Characters(_Table):
    """One id a character of the training text, and 256 bytes for every other character."""

    def __init__(self, model: bytes) -> None:
        """From the bytes of a sentencepiece model. ValueError where it is not a char model with byte fallback."""
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError("tokenizer.model is not a sentencepiece model") from error
        self.model = model
        self.begin, self.end = self._processor.bos_id(), self._processor.eos_id()
        if self.begin < 0 or self.end < 0:
            raise ValueError("tokenizer.model has no begin or no end symbol")
        self.token_bytes = [self._bytes_of(token) for token in range(self._processor.vocab_size())]
        self._byte_ids = {
            self.token_bytes[token][0]: token
            for token in range(self._processor.vocab_size())
            if self._processor.is_byte(token)
        }
        if len(self._byte_ids) != 256:
            raise ValueError("tokenizer.model has no byte fallback: some characters would have no id")

    def _bytes_of(self, token: int) -> bytes:
        piece: str = self._processor.id_to_piece(token)
        if self._processor.is_byte(token):
            return bytes([int(piece[3:5], 16)])  # <0xAB>
        if self._processor.is_control(token) or self._processor.is_unknown(token):
            return b""
        return piece.replace(SPACE, " ").encode()

    def encode(self, text: str) -> list[int]:
        """Ids of a text. ValueError for unpaired surrogates."""
        utf8(text)
        ids: list[int] = []
        for i, part in enumerate(text.split(SPACE)):
            if i:  # sentencepiece would read it as a space
                ids.extend(self._byte_ids[byte] for byte in SPACE.encode())
            # a NUL ends a string inside sentencepiece
            for j, piece in enumerate(part.split("\0")):
                if j:
                    ids.append(self._byte_ids[0])
                ids.extend(self._processor.encode(piece))
        return ids


def train_characters(text: str) -> Characters:
    """A character model whose alphabet is all of ``text``'s characters, but for those that sentencepiece reserves."""
    alphabet = sorted(set(text) - {SPACE, UNKNOWN, "\0", "\n", "\r"} | {" "})
    sentences = ["".join(alphabet[i : i + 512]) for i in range(0, len(alphabet), 512)]
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=buffer,
        model_type="char",
        vocab_size=len(alphabet) + 256 + 3,
        hard_vocab_limit=False,
        character_coverage=1.0,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        max_sentence_length=1 << 20,
        num_threads=1,
        minloglevel=2,
    )
    return Characters(buffer.getvalue())


def load_tokenizer(kind: str, path: Path) -> Tokenizer:
    """The tokenizer of a checkpoint: ``bytes``, or ``characters`` with the model at ``path``."""
    if kind == "bytes":
        return Bytes()
    if kind == "characters":
        return Characters(path.read_bytes())
    raise ValueError(f"unknown tokenizer {kind!r}; known: bytes, characters")


class IncrementalDecoder:
    """Ids -> text as they come: a character is given out when its last byte is there."""

    def __init__(self, token_bytes: list[bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, ids: list[int]) -> str:
        """The text that these ids complete."""
        return self._decoder.decode(b"".join(self._token_bytes[token] for token in ids))

    @property
    def incomplete(self) -> bool:
        """Whether a character has begun and is not complete."""
        return bool(self._decoder.getstate()[0])

    def finish(self) -> str:
        """What is left at the end: U+FFFD for an incomplete character, otherwise nothing."""
        return self._decoder.decode(b"", final=True)
