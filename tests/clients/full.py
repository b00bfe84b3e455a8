"""The openai package in Python against a service with one slot, no queue, keys and a rate. full.mjs does the same.

Arguments: the service's address, a key, another key. Prints JSON.
"""

import json
import sys
import threading
import time
from typing import Any

import openai

url, key, other = sys.argv[1:]
ask: dict[str, Any] = {"model": "shakespeare", "prompt": "", "max_tokens": 5, "seed": 7}
client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


def error(client: openai.OpenAI) -> tuple[str, int, str]:
    """How a completion fails."""
    try:
        client.completions.create(**ask)
    except openai.APIStatusError as failed:
        return type(failed).__name__, failed.status_code, failed.response.headers.get("retry-after", "")
    raise AssertionError("the call succeeds")


endless = client.completions.create(**{**ask, "max_tokens": None}, stream=True)
for _ in range(20):  # until the service knows its rate
    next(endless)
full = error(client)
told: list[str] = []  # how long the attempt that fails is to wait


def leave(response: Any) -> None:
    """Once it has failed, the slot becomes free."""
    if response.status_code == 503:
        told.append(response.headers["retry-after"])
        threading.Timer(0.2, endless.close).start()


patient = openai.DefaultHttpxClient(event_hooks={"response": [leave]})
began = time.monotonic()
text = client.with_options(max_retries=2, http_client=patient).completions.create(**ask).choices[0].text
waited = [time.monotonic() - began, *told]
wrong = error(client.with_options(api_key="wrong"))
busy = client.with_options(api_key=other)
try:
    for _ in range(100):
        busy.models.list()
except openai.RateLimitError:
    limited = error(busy)
json.dump({"full": full, "text": text, "waited": waited, "wrong": wrong, "limited": limited}, sys.stdout)
