"""What can be asked of the tokenizer routes, ours under /v1 and vLLM's at the root, and what they answer."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from service.schema.base import Strict

# the first bad one is enough: a list of millions would make as many errors
Ids = Annotated[list[int], Field(fail_fast=True)]


class TokenizeRequest(Strict):
    """A text of one model."""

    model: str
    prompt: str


class DetokenizeRequest(Strict):
    """Ids of one model."""

    model: str
    tokens: Ids


class RootTokenizeRequest(Strict):
    """vLLM's shape. No symbol is added, whatever ``add_special_tokens`` says."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool | None = None


class RootDetokenizeRequest(Strict):
    """vLLM's shape."""

    model: str | None = None
    tokens: Ids


class Tokens(BaseModel):
    """The ids of a text, without the begin symbol."""

    tokens: list[int]
    count: int


class RootTokens(Tokens):
    """And the longest sequence of the model; null where it has no end."""

    max_model_len: int | None


class Prompt(BaseModel):
    """The text of ids."""

    prompt: str


class TokenizerInfo(BaseModel):
    """The names and ids of the two symbols."""

    model: str
    bos_token: str
    bos_token_id: int
    eos_token: str
    eos_token_id: int
    vocab_size: int
    max_model_len: int | None
