"""Any body near the schema: a 400 of the one shape, or generations whose every job a runtime takes."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from fake_runtime import FakeRuntime
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from model.automaton import FORBIDDEN
from model.runtime.base import check_jobs
from model.sampling import FORBIDDEN_BIAS
from model.tokenizer import Bytes
from service.completion import at_once, make_generations
from service.engine import Served
from service.errors import ApiError
from service.request import Generation
from service.scheduler import Scheduler
from service.schema.completions import CompletionRequest
from service.schema.parse import parse
from service.settings import Settings

TOKENIZER = Bytes()
SETTINGS = Settings(max_tokens=1000, max_prompt_tokens=40, max_choices=12, max_scored_prompts=16)
TEXTS = st.text(st.characters(codec=None), max_size=12)  # unpaired surrogates too
STRANGE = st.sampled_from(
    [None, True, False, -1, 0, 1, 2**31, 2**63, 10**400, -0.0, 1e-320, 0.5, 1e308, "1", "", [], {}]
)
FLOATS = st.floats(allow_nan=True, allow_infinity=True) | st.floats(-2.5, 2.5) | st.integers(-3, 3)
IDS = st.integers(0, 257) | st.sampled_from([-1, 258, 2**31, 2**64, -(10**30)])
NAMES = st.integers(0, 257).map(str) | st.sampled_from(["258", "-1", "007", "7", "999999999", "1e3", ""])


def near(good: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly what the schema wants."""
    return st.one_of(good, good, good, STRANGE)


FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "max_tokens": near(st.integers(0, 1001)),
    "temperature": near(FLOATS),
    "top_p": near(FLOATS),
    "top_k": near(st.integers(-1, 300)),
    "min_p": near(FLOATS),
    "frequency_penalty": near(FLOATS),
    "presence_penalty": near(FLOATS),
    "repetition_penalty": near(FLOATS),
    "logit_bias": near(
        st.dictionaries(NAMES, near(st.floats(-101, 101) | st.just(-100)), max_size=4)
        | st.integers(0, 258).map(lambda spared: {str(i): -100 for i in range(258) if i != spared})
    ),
    "n": near(st.integers(0, 14)),
    "best_of": near(st.integers(0, 21)),
    "seed": near(st.integers(-(2**63), 2**63 - 1)),
    "stop": near(TEXTS | st.lists(TEXTS, max_size=17)),
    "ignore_eos": near(st.booleans()),
    "echo": near(st.booleans()),
    "logprobs": near(st.integers(-1, 6)),
    "stream": near(st.booleans()),
    "stream_options": near(
        st.dictionaries(
            st.sampled_from(["include_usage", "continuous_usage_stats", "include_obfuscation"]), near(st.booleans())
        )
    ),
    "user": near(TEXTS),
    "suffix": st.none() | STRANGE,
}
PROMPTS = near(
    TEXTS
    | st.lists(TEXTS, max_size=14)
    | st.lists(IDS, max_size=42)
    | st.lists(st.lists(IDS, max_size=5), max_size=14)
    | st.lists(TEXTS | IDS, max_size=3)
    | st.integers(0, 20).map(lambda count: ["ab"] * count)
)


def some(names: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    """A body with these fields."""
    return st.fixed_dictionaries({"prompt": PROMPTS, **{name: FIELDS[name] for name in names}})


BODIES = st.lists(st.sampled_from(sorted(FIELDS)), max_size=4, unique=True).flatmap(some)
# one field beside a good prompt: most of these are taken
NEARLY_GOOD = st.sampled_from(sorted(FIELDS)).flatmap(
    lambda name: st.fixed_dictionaries({"prompt": st.just("ab"), name: FIELDS[name]})
)


def served(**runtime: Any) -> Served:
    """A fake with three slots and four places."""
    fake = FakeRuntime(3, **runtime)
    return Served("fake", fake, TOKENIZER, Scheduler(fake, 4, 0.05), 0, 8)


def assert_refusal(error: ApiError) -> None:
    """A 400 of the one shape, which can be sent."""
    assert (error.status, error.type, error.code) == (400, "invalid_request_error", "invalid_value")
    content = json.loads(bytes(error.response().body))["error"]
    assert set(content) == {"message", "type", "param", "code"}
    assert 0 < len(content["message"]) < 400
    assert content["param"] is None or len(content["param"]) < 80


def assert_in_range(generation: Generation) -> None:
    """Everything that a runtime computes with."""
    p = generation.params
    floats = [p.temperature, p.top_p, p.min_p, p.frequency_penalty, p.presence_penalty, p.repetition_penalty]
    assert all(isinstance(value, float | int) and not isinstance(value, bool) for value in floats)
    assert all(math.isfinite(value) for value in [*floats, *p.logit_bias.values()])
    assert 0 <= p.temperature <= 2
    assert 0 < p.top_p <= 1
    assert 0 <= p.min_p <= 1
    assert -2 <= p.frequency_penalty <= 2
    assert -2 <= p.presence_penalty <= 2
    assert 1e-3 <= p.repetition_penalty <= 1e3
    assert 0 <= p.top_k < 2**31
    assert -(2**63) <= p.seed < 2**63
    assert 0 <= p.sample < 128
    assert all(-100 <= value <= 100 for value in p.logit_bias.values())
    assert 0 <= generation.max_tokens <= SETTINGS.max_stream_tokens
    assert 0 <= generation.top <= 5
    assert len(generation.prompt) <= SETTINGS.max_prompt_tokens + 1
    assert generation.prompt[0] == TOKENIZER.begin
    allowed = generation.automaton.next[0] != FORBIDDEN
    assert any(allowed[i] and p.logit_bias.get(i, 0) > FORBIDDEN_BIAS for i in range(TOKENIZER.vocab_size))


def check(body: dict[str, Any], model: Served) -> None:
    """Refused in the one way, or run for a few steps."""
    try:
        request = parse(json.dumps({**body, "model": "fake"}).encode(), CompletionRequest)
        generations = make_generations(request, model, TOKENIZER, SETTINGS)
    except ApiError as error:
        assert_refusal(error)
        return
    assert len(generations) == len(request.prompt) * request.samples
    assert len(generations) <= max(SETTINGS.max_choices, SETTINGS.max_scored_prompts)
    assert len({generation.params.seed for generation in generations}) == 1
    assert [generation.params.sample for generation in generations] == [
        sample for _ in request.prompt for sample in range(request.samples)
    ]
    scheduler = model.scheduler
    scheduler.add(*generations[: at_once(model, SETTINGS)])
    for generation in generations:
        assert_in_range(generation)
    for _ in range(3):
        work = scheduler.schedule(0.0)
        jobs = [job for _, job in work]
        check_jobs(jobs, model.runtime)
        for (generation, job), done in zip(work, model.runtime.run(jobs), strict=True):
            if generation.num_computed < len(generation.prompt):
                generation.num_computed += len(job.tokens)
            assert len(done.drawn) <= generation.max_tokens - generation.num_generated
            generation.num_generated += len(done.drawn)
            generation.last_token = done.drawn[-1] if done.drawn else generation.last_token
            complete = generation.num_computed == len(generation.prompt)
            if done.stopped is not None or (complete and generation.num_generated >= generation.max_tokens):
                scheduler.remove(generation)


quick = examples(max_examples=150, suppress_health_check=[HealthCheck.too_slow])


@quick
@given(BODIES)
def test_any_body(body: dict[str, Any]) -> None:
    """A few fields, each near the schema."""
    check(body, served())


@quick
@given(NEARLY_GOOD)
def test_any_value_near_a_fields_range(body: dict[str, Any]) -> None:
    """This gets deepest."""
    check(body, served())


@examples(max_examples=60)
@given(PROMPTS)
def test_any_prompt_of_a_model_that_ends(prompt: Any) -> None:
    """What does not fit into its positions is refused before it runs."""
    check({"prompt": prompt, "max_tokens": 3}, served(max_position=6))


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "ab", "n": 7}, {"prompt": ["ab"] * 7}, {"prompt": [[257], [0]], "best_of": 3},
        {"prompt": [], "n": 1}, {"prompt": ["a"] * 16, "max_tokens": 0, "echo": True, "logprobs": 5},
        {"prompt": "ab", "stream": True, "max_tokens": None, "ignore_eos": True, "logit_bias": {"257": -100}},
        {"prompt": "ab", "temperature": 1e-320}, {"prompt": "ab", "temperature": -0.0, "seed": -(2**63)},
    ],
)  # fmt: skip
def test_some_bodies(body: dict[str, Any]) -> None:
    """Borders that chance seldom meets."""
    check(body, served())


def test_samples_share_what_they_read() -> None:
    """A prompt and its targets are kept once, however many samples there are."""
    body = CompletionRequest(model="m", prompt=["abc", "de"], n=3, max_tokens=3, echo=True, logprobs=0)
    made = make_generations(body, served(), TOKENIZER, SETTINGS)
    assert len(made) == 6
    assert len({id(generation.prompt) for generation in made}) == 2
    assert len({id(generation.targets) for generation in made}) == 2


def test_many_prompts_may_be_scored_and_few_samples() -> None:
    """The larger limit is of prompts: samples of a prompt that is only read would be its copies."""
    many = CompletionRequest(model="m", prompt=["a"] * 16, max_tokens=0, echo=True, logprobs=0)
    assert len(make_generations(many, served(), TOKENIZER, SETTINGS)) == 16
    copies = CompletionRequest(model="m", prompt=["a"] * 7, n=2, max_tokens=0, echo=True, logprobs=0)
    with pytest.raises(ApiError, match="14 choices, at most 7"):
        make_generations(copies, served(), TOKENIZER, SETTINGS)
