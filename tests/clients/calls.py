"""What the tests ask of the openai package in Python; calls.mjs asks the same of the one in Node. Prints JSON.

Arguments: the service's address, an image, a mask.
"""

import asyncio
import json
import re
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai

URL, IMAGE, MASK = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
ASK: dict[str, Any] = {"model": "shakespeare", "prompt": "ROMEO:\n", "max_tokens": 40, "seed": 7}
DRAW: dict[str, Any] = {
    "model": "emoji",
    "prompt": "Food & Drink",
    "extra_body": {"seed": 7},
}  # OpenAI has no seed here
client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)


def stream(**more: Any) -> dict[str, Any]:
    """A streamed completion, put together."""
    chunks = list(client.completions.create(**{**ASK, **more}, stream=True))
    choices = [choice for chunk in chunks for choice in chunk.choices]
    scored = [choice.logprobs for choice in choices if choice.logprobs]
    return {
        "text": "".join(choice.text for choice in choices),
        "finish_reason": choices[-1].finish_reason,
        "token_logprobs": [value for each in scored for value in each.token_logprobs or []],
        "usage": chunks[-1].usage.model_dump() if chunks[-1].usage else None,
    }


def error(call: Callable[[], Any]) -> list[Any]:
    """How a call fails."""
    try:
        call()
    except openai.APIStatusError as failed:
        return [type(failed).__name__, failed.status_code, failed.type, failed.code, failed.param]
    except openai.APIError as failed:
        return [type(failed).__name__]
    return []


def slots_in_use() -> float:
    """What /metrics says of the text model."""
    with urllib.request.urlopen(f"{URL}/metrics") as answer:
        found = re.search(r'^aft_slots_in_use\{model="shakespeare"\} (.*)$', answer.read().decode(), re.MULTILINE)
    return float(found[1]) if found else -1


def wait_until_free() -> None:
    """For ten seconds at most."""
    deadline = time.monotonic() + 10
    while slots_in_use() and time.monotonic() < deadline:
        time.sleep(0.05)


def leave_early() -> list[float]:
    """Slots in use while a stream without an end is read, and soon after it is left."""
    wait_until_free()
    with client.completions.create(**{**ASK, "max_tokens": None}, stream=True) as endless:
        for _ in endless:
            break
        during = slots_in_use()
    wait_until_free()
    return [during, slots_in_use()]


async def many(num: int) -> list[str]:
    """Streams at once, each with a seed of its own."""
    async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0) as at_once:

        async def one(seed: int) -> str:
            chunks = await at_once.completions.create(**{**ASK, "seed": seed}, stream=True)
            return "".join([choice.text async for chunk in chunks for choice in chunk.choices])

        return await asyncio.gather(*map(one, range(num)))


def edit() -> dict[str, Any]:
    """A streamed edit: the events' types and the last image."""
    events = list(client.images.edit(**DRAW, image=IMAGE, mask=MASK, stream=True, partial_images=1))
    return {"types": [event.type for event in events], "image": events[-1].b64_json}


ids: Any = client.post("/tokenize", cast_to=object, body={"model": "shakespeare", "prompt": ASK["prompt"]})
echo = client.completions.create(**{**ASK, "max_tokens": 0}, echo=True, logprobs=2).choices[0].logprobs
answers = {
    "version": openai.__version__,
    "whole": client.completions.create(**ASK).model_dump(),
    "again": client.completions.create(**ASK).choices[0].text,
    "stream": stream(stream_options={"include_usage": True}),
    "stream_logprobs": stream(logprobs=0),
    "stop": stream(stop=["\n"]),
    "n": [choice.text for choice in client.completions.create(**ASK, n=2).choices],
    "prompts": [
        choice.text for choice in client.completions.create(**{**ASK, "prompt": ["ROMEO:\n", "JULIET:\n"]}).choices
    ],
    "ids": client.completions.create(**{**ASK, "prompt": ids["tokens"]}).choices[0].text,
    "echo": echo.model_dump() if echo else None,
    "models": [[model.id, model.object] for model in client.models.list()],
    "model": client.models.retrieve("emoji").id,
    "image": client.images.generate(**DRAW).data[0].b64_json,
    "edit": edit(),
    "errors": {
        "model": error(lambda: client.completions.create(**{**ASK, "model": "nobody"})),
        "one_model": error(lambda: client.models.retrieve("nobody")),
        "range": error(lambda: client.completions.create(**ASK, temperature=3)),
        "unknown": error(lambda: client.completions.create(**ASK, extra_body={"nonsense": 1})),
        "route": error(lambda: client.embeddings.create(model="shakespeare", input="x")),
        "timeout": error(lambda: client.completions.create(**{**ASK, "max_tokens": 100_000}, timeout=0.05)),
    },
    "leave_early": leave_early(),
    "many": asyncio.run(many(16)),
}
json.dump(answers, sys.stdout)
