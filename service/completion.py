"""Completions: from a validated body to generations, and from bursts to choices."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import Response

from model.automaton import FORBIDDEN, Automaton, stops
from model.sampling import FORBIDDEN_BIAS, SamplingParams
from model.tokenizer import Tokenizer
from service import answer, errors, sse
from service.choice import Choice
from service.engine import Served
from service.exchange import Exchange
from service.request import Generation
from service.schema.completions import DEFAULT_MAX_TOKENS, CompletionRequest, Head, usage
from service.settings import Settings
from service.text import encode


def make_generations(
    body: CompletionRequest, model: Served, tokenizer: Tokenizer, settings: Settings, key: str = ""
) -> list[Generation]:
    """What the engine is to do for a key: the samples of the first prompt, of the second, and so on.

    ApiError for what this model or server cannot do.
    """
    _check_choices(body, at_once(model, settings, key), settings)
    max_tokens = _max_tokens(body, settings)
    prompts = [_ids(prompt, model, tokenizer, settings) for prompt in body.prompt]
    _check_logprobs(body, prompts, max_tokens, settings)
    automaton = _automaton(body, model, tokenizer)
    bias = body.logit_bias or {}
    for token in bias:
        if token >= tokenizer.vocab_size:
            raise errors.invalid(f"logit_bias: id {token}, the vocabulary has {tokenizer.vocab_size} ids", "logit_bias")
    if all(automaton.next[0, i] == FORBIDDEN or bias.get(i, 0) <= FORBIDDEN_BIAS for i in range(tokenizer.vocab_size)):
        raise errors.invalid("logit_bias: it forbids every token", "logit_bias")
    # 53 bits: a number that JavaScript, too, can send back
    seed = secrets.randbits(53) if body.seed is None else body.seed
    scored = bool(body.echo) and body.logprobs is not None
    answer_id = f"cmpl-{secrets.token_hex(12)}"
    # samples share the lists: nothing changes them
    read = [[tokenizer.begin, *ids] for ids in prompts]
    # after the last token comes no target of the text
    targets = [[*ids, tokenizer.end] if scored else None for ids in prompts]
    return [
        Generation(
            id=answer_id,
            model=model.name,
            prompt=prompt,
            params=_sampling(body, seed, sample),
            max_tokens=max_tokens,
            automaton=automaton,
            targets=wanted,
            top=body.logprobs or 0,
            max_seconds=settings.max_stream_seconds if body.unlimited else None,
        )
        for prompt, wanted in zip(read, targets, strict=True)
        for sample in range(body.samples)
    ]


def _sampling(body: CompletionRequest, seed: int, sample: int) -> SamplingParams:
    return SamplingParams(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=body.top_k or 0,
        min_p=body.min_p or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        logit_bias=body.logit_bias or {},
        seed=seed,
        sample=sample,
    )


def echoes(body: CompletionRequest, generations: list[Generation], tokenizer: Tokenizer) -> list[str]:
    """The text of each prompt as it stands before its samples; empty where it does not, or comes as it is scored."""
    if not body.echo or body.logprobs is not None:
        return [""] * len(body.prompt)
    read = [generation.prompt for generation in generations[:: body.samples]]
    return [tokenizer.decode(ids if _begins(body.prompt[i], tokenizer) else ids[1:]) for i, ids in enumerate(read)]


def _automaton(body: CompletionRequest, model: Served, tokenizer: Tokenizer) -> Automaton:
    """Of the stops; without any it is the same for all requests, and made once."""
    ignore_end = body.unlimited or bool(body.ignore_eos)
    if not body.stops and ignore_end in model.automata:
        return model.automata[ignore_end]
    made = stops(tokenizer.token_bytes, [stop.encode() for stop in body.stops], tokenizer.end, ignore_end=ignore_end)
    if not body.stops:
        model.automata[ignore_end] = made
    return made


def at_once(model: Served, settings: Settings, key: str = "") -> int:
    """Generations of one request that may wait or run together; those of a longer scoring follow as others end."""
    return min(settings.max_choices, model.scheduler.room(key))


def _check_choices(body: CompletionRequest, most: int, settings: Settings) -> None:
    given = len(body.prompt) * body.samples
    if body.max_tokens == 0 and body.samples == 1:
        most = max(most, settings.max_scored_prompts)
    if given > most:
        raise errors.invalid(
            f"{len(body.prompt)} prompts x {body.samples} samples are {given} choices, at most {most} are taken",
            "prompt" if len(body.prompt) > 1 else "best_of" if body.best_of else "n",
        )


def _check_logprobs(body: CompletionRequest, prompts: list[list[int]], max_tokens: int, settings: Settings) -> None:
    """What a whole answer holds in memory has a bound."""
    if body.logprobs is None or body.stream:
        return
    echoed = sum(map(len, prompts)) if body.echo else 0
    if (most := (echoed + len(prompts) * max_tokens) * body.samples) > settings.max_logprobs:
        limit = f"without stream: true at most {settings.max_logprobs} are taken"
        raise errors.invalid(f"logprobs: of up to {most} tokens; {limit}", "logprobs")


def _max_tokens(body: CompletionRequest, settings: Settings) -> int:
    if body.unlimited:
        return settings.max_stream_tokens
    given = body.max_tokens if "max_tokens" in body.model_fields_set else None
    if given is None:
        return min(DEFAULT_MAX_TOKENS, settings.max_tokens)
    if given > settings.max_tokens:
        raise errors.invalid(
            f"max_tokens: {errors.clip(str(given))} is above the server's cap of {settings.max_tokens}", "max_tokens"
        )
    return given


def _begins(prompt: str | list[int], tokenizer: Tokenizer) -> bool:
    """Whether ids name the begin symbol themselves: it is not put before them again, and an echo has it."""
    return isinstance(prompt, list) and prompt[:1] == [tokenizer.begin]


def _ids(prompt: str | list[int], model: Served, tokenizer: Tokenizer, settings: Settings) -> list[int]:
    """A prompt as ids, without begin."""
    limit = settings.max_prompt_tokens
    if isinstance(prompt, str):
        ids = encode(tokenizer, prompt, limit)
    else:
        ids = prompt[1:] if _begins(prompt, tokenizer) else prompt
        if ids and not 0 <= min(ids) <= max(ids) < tokenizer.vocab_size:
            wrong = errors.clip(str(min(ids) if min(ids) < 0 else max(ids)))
            raise errors.invalid(f"prompt: id {wrong}, the vocabulary has {tokenizer.vocab_size} ids", "prompt")
    if len(ids) > limit:
        raise errors.invalid(f"prompt: {len(ids)} tokens, at most {limit} are taken", "prompt")
    longest = model.runtime.max_position
    if longest is not None and len(ids) + 1 > longest:
        raise errors.invalid(f"prompt: {len(ids)} tokens, the model ends after {longest - 1}", "prompt")
    return ids


class Completion:
    """One answer with all of its choices."""

    def __init__(
        self, exchange: Exchange, model: Served, tokenizer: Tokenizer, body: CompletionRequest, echoes: list[str]
    ) -> None:
        self._exchange, self._body = exchange, body
        self._choices = {
            generation: Choice(
                generation,
                self._index(i),
                body,
                tokenizer,
                echoes[i // body.samples],
                begins=_begins(body.prompt[i // body.samples], tokenizer),
            )
            for i, generation in enumerate(exchange.generations)
        }
        head = Head(
            id=exchange.generations[0].id,
            created=int(time.time()),
            model=model.name,
            system_fingerprint=model.runtime.fingerprint[:12],
        )
        self._head = head.body([])

    def _index(self, place: int) -> int:
        """Of the place-th sample, where all are choices: sample + prompt x n."""
        prompt, sample = divmod(place, self._body.samples)
        return sample + prompt * self._body.num_choices

    def _usage(self) -> dict[str, int]:
        prompts = self._exchange.generations[:: self._body.samples]
        written = sum(choice.num_tokens for choice in self._choices.values())
        return usage(sum(generation.num_prompt_tokens for generation in prompts), written)

    async def events(self) -> AsyncGenerator[bytes]:
        """A stream's events."""
        options = self._body.stream_options
        with_usage = options is not None and bool(options.include_usage)
        always = options is not None and bool(options.continuous_usage_stats)
        async with aclosing(self._exchange.bursts()) as bursts:
            async for generation, burst in bursts:
                part = self._choices[generation].add(burst)
                if part is not None:
                    extra = {"usage": self._usage()} if always else {"usage": None} if with_usage else {}
                    yield sse.event({**self._head, "choices": [part], **extra})
        if with_usage:
            yield sse.event({**self._head, "usage": self._usage()})
        yield sse.DONE

    async def whole(self) -> Response:
        """One answer."""
        made = {generation: answer.GatheredChoice() for generation in self._choices}
        async for generation, burst in self._exchange.bursts():
            part = self._choices[generation].add(burst)
            if part is not None:
                made[generation].add(part)
        samples, wanted = self._body.samples, self._body.num_choices
        generations = self._exchange.generations
        chosen: list[Generation] = []
        for first in range(0, len(generations), samples):
            of_prompt = generations[first : first + samples]
            if wanted < samples:
                of_prompt = sorted(of_prompt, key=lambda each: -self._choices[each].mean_logprob)[:wanted]
            chosen += of_prompt
        return answer.whole(self._head, [made[generation] for generation in chosen], self._usage())
