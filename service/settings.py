"""What can be configured: one table. Environment ``AFT_<NAME>``, or the flags of ``aft serve``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0, le=1e9)]  # 30 years: loops and sockets know no infinity


class Settings(BaseSettings):
    """Every setting of the service. The descriptions are what docs/service.md prints."""

    model_config = SettingsConfigDict(env_prefix="AFT_", frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="address to listen on")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="port to listen on; 0: any free one")
    checkpoints: Path = Field(Path("checkpoints"), description="folder of checkpoints, one folder a model")
    models: list[str] = Field([], description="names to serve, as a JSON list; empty: every folder under `checkpoints`")
    runtime: Literal["auto", "native", "torch"] = Field(
        "auto", description="what advances the models; auto: native where it is built, otherwise torch"
    )
    device: str = Field(
        "cpu", description="what the torch runtime computes on, `cuda` for instance; native knows the CPU alone"
    )
    threads: Annotated[int, Field(ge=0)] = Field(
        0, description="threads of the runtime; 0: the processors available for native, 1 for torch"
    )
    api_keys: list[SecretStr] = Field([], description="keys that clients must send, as a JSON list; empty: none needed")
    api_keys_file: Path | None = Field(
        None, description="file of keys, a line `NAME:SHA256` each (`aft key NAME` makes one); beside `AFT_API_KEYS`"
    )
    rate_limit: str = Field("", description="requests of one key (of one address without keys), as `600/minute`")
    max_choices_per_key: Annotated[int, Field(ge=0)] = Field(
        0, description="slots that one key may hold at once, per model; its other choices wait; 0: any number"
    )
    max_queue_per_key: Annotated[int, Field(ge=0)] = Field(
        0, description="places in the queue that one key may hold, per model; 0: any number"
    )
    allowed_hosts: list[str] = Field(
        [], description="names of a Host header that are served without keys, beside loopback; `*`: any; a JSON list"
    )
    cors_origins: list[str] = Field([], description="origins of web pages that may call, as a JSON list; `*`: any")
    slots: Positive = Field(64, description="streams that a model advances at once; their memory is reserved at start")
    max_queue: Annotated[int, Field(ge=0)] = Field(256, description="choices that may wait for a slot, per model")
    max_choices: Positive = Field(128, description="choices of a request: prompts x the larger of n and best_of")
    max_scored_prompts: Positive = Field(1024, description="prompts of a request that only scores (`max_tokens: 0`)")
    deadline_seconds: Annotated[float, Field(ge=0, le=1e9)] = Field(
        0, description="time that a request has from its head on, body and waiting included; 0: no deadline"
    )
    max_tokens: Positive = Field(1_000_000, description="largest `max_tokens` of a request")
    max_stream_tokens: Positive = Field(2_000_000, description="tokens after which an unlimited stream ends")
    max_stream_seconds: Seconds = Field(
        3600, description="seconds after which an unlimited stream ends, from its slot on"
    )
    max_logprobs: Positive = Field(
        1_000_000,
        description="tokens of a whole answer with `logprobs`, of all choices together; of a stream: any number",
    )
    max_prompt_tokens: Positive = Field(1_000_000, description="longest prompt, in tokens")
    max_body_bytes: Positive = Field(8 << 20, description="largest request body, in bytes")
    max_upload_bytes: Positive = Field(1 << 20, description="largest form with an image, in bytes")
    burst_seconds: Seconds = Field(
        0.05, description="length of a decode burst under steady load; twice that with 64 streams"
    )
    heartbeat_seconds: Seconds = Field(10, description="silence after which a stream gets a heartbeat")
    stalled_reader_seconds: Seconds = Field(
        60,
        description="who takes nothing of a stream, sends nothing of a body, or no whole head, for so long is cut off",
    )
    drain_seconds: Seconds = Field(30, description="time that running streams have to finish after SIGTERM")
    keep_alive_seconds: Positive = Field(75, description="idle time of a kept connection")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe line to log: debug, info, warning, error"
    )
    log_format: Literal["console", "json"] = Field("console", description="console: lines for people; json")


def markdown() -> str:
    """The table for people, as docs/service.md has it; a test compares the two."""
    rows = ["| environment | default | what |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default in ([], None, "") else field.default
        rows.append(f"| `AFT_{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows)


OTHERS = {"AFT_ISA", "AFT_DATA"}  # read by the runtime and for corpora
SENT = "AFT_KEY"  # by `aft bench serve`


def misspelt(environment: Mapping[str, str], settings: Settings) -> str:
    """What is wrong with the names of the environment's variables, ``""``: nothing.

    A setting that is misspelt would be ignored, and a service that was to ask for keys would stand open.
    """
    known = {f"AFT_{name.upper()}" for name in Settings.model_fields}
    given = {name for name in environment if name.upper().startswith("AFT_")}
    for name in sorted(given - {SENT}):
        if name.upper() not in known | OTHERS:
            near = difflib.get_close_matches(name.upper(), known, 1)
            return f"{name} in the environment is no setting" + (f"; is it {near[0]}?" if near else "")
    if SENT in given and not (settings.api_keys or settings.api_keys_file):
        return (
            f"{SENT} is the key that `aft bench serve` sends, and this service asks for none: AFT_API_KEYS has its keys"
        )
    return ""
