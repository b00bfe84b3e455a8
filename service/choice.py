"""One sample of a completion as its client reads it: text, log-probabilities, an echo, why it ended."""

from __future__ import annotations

from typing import Any, Literal

from model.tokenizer import IncrementalDecoder, Tokenizer
from service.request import Burst, Generation, Outcome
from service.schema.completions import CompletionRequest, choice
from service.schema.logprobs import Logprobs, vocabulary
from service.text import TextAssembler

Reason = Literal["stop", "length"]
REASONS: dict[Outcome, Reason] = {Outcome.STOP: "stop", Outcome.LENGTH: "length"}


class Choice:
    """One sample as the client reads it."""

    def __init__(
        self,
        generation: Generation,
        index: int,
        body: CompletionRequest,
        tokenizer: Tokenizer,
        echo: str,
        *,
        begins: bool,
    ) -> None:
        """``echo``: the prompt's text, where it is not scored; ``begins``: an echo has the begin symbol."""
        self.index, self._generation = index, generation
        self._text = TextAssembler(tokenizer.token_bytes, body.stops)
        self._logprobs = None if body.logprobs is None else Logprobs(vocabulary(tokenizer), body.logprobs)
        self._echo = echo  # what is left to be said of it
        self._first = 0 if begins else 1  # of the prompt's tokens in an echo
        self._num_scored = 0  # of the prompt's targets
        self._decoder = IncrementalDecoder(tokenizer.token_bytes)  # of the echo
        self.num_tokens, self._sum = 0, 0.0

    @property
    def mean_logprob(self) -> float:
        """Of its tokens: what best_of compares."""
        return self._sum / self.num_tokens if self.num_tokens else 0.0

    def add(self, burst: Burst) -> dict[str, Any] | None:
        """What the client gets for a burst; None where that is nothing yet."""
        text, scored = self._echo_of(burst), False
        text += self._text.feed(burst.tokens)
        self.num_tokens += len(burst.tokens)
        self._sum += sum(burst.logprobs)
        if self._logprobs is not None:
            for i, token in enumerate(burst.tokens):
                self._logprobs.add(token, burst.logprobs[i], burst.top[i] if burst.top else [])
            scored = bool(self._logprobs.tokens)
        reason = None if burst.outcome is None else REASONS[burst.outcome]
        if burst.outcome is not None:
            text += self._text.finish(stopped=burst.outcome is Outcome.STOP)
        if not (text or reason or scored):
            return None
        logprobs = None if self._logprobs is None else self._logprobs.take()
        return choice(self.index, text, logprobs, reason, self._generation.params.seed)

    def _echo_of(self, burst: Burst) -> str:
        """The prompt, once; where log-probabilities are asked for, as they come."""
        if self._generation.targets is not None and self._logprobs is not None:
            return self._scored(self._logprobs, burst)
        if not (burst.tokens or burst.outcome):
            return ""
        text, self._echo = self._echo, ""
        return text

    def _scored(self, logprobs: Logprobs, burst: Burst) -> str:
        """The part of an echo whose targets a burst brings: each target is the token after those computed."""
        ids, first, count = self._generation.prompt, self._num_scored, len(burst.target_logprobs)
        if first == len(ids):
            return ""
        # what stands first has no probability in OpenAI's shape, though the model gives it one after begin
        if not first and self._first < len(ids):
            logprobs.add(ids[self._first], None, [])
        top = burst.target_top or [[]] * count
        for place, (logprob, likeliest) in enumerate(zip(burst.target_logprobs, top, strict=True), first + 1):
            if self._first < place < len(ids):  # the last target is of no token of the text
                logprobs.add(ids[place], logprob, likeliest)
        text = self._decoder.feed(ids[first + 1 if first else self._first : first + count + 1])
        self._num_scored = first + count
        if self._num_scored < len(ids):
            return text
        logprobs.end_echo()
        return text + self._decoder.finish()
