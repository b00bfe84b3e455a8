"""What can be configured: one table. Environment ``AFT_<NAME>``, or the flags of ``aft serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]


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
    threads: Annotated[int, Field(ge=0)] = Field(
        0, description="threads of the runtime; 0: the processors available for native, 1 for torch"
    )
    slots: Positive = Field(64, description="streams that a model advances at once; their memory is reserved at start")
    max_queue: Annotated[int, Field(ge=0)] = Field(256, description="requests that may wait for a slot, per model")
    max_tokens: Positive = Field(1_000_000, description="largest `max_tokens` of a request")
    max_stream_tokens: Positive = Field(2_000_000, description="tokens after which an unlimited stream ends")
    max_stream_seconds: Seconds = Field(3600, description="seconds after which an unlimited stream ends")
    max_prompt_tokens: Positive = Field(1_000_000, description="longest prompt, in tokens")
    max_body_bytes: Positive = Field(8 << 20, description="largest request body, in bytes")
    max_upload_bytes: Positive = Field(1 << 20, description="largest form with an image, in bytes")
    burst_seconds: Seconds = Field(0.05, description="length of a decode burst under steady load")
    heartbeat_seconds: Seconds = Field(10, description="silence after which a stream gets a heartbeat")
    stalled_reader_seconds: Seconds = Field(60, description="a reader that accepts nothing for so long is cut off")
    drain_seconds: Seconds = Field(30, description="time that running streams have to finish after SIGTERM")
    keep_alive_seconds: Positive = Field(75, description="idle time of a kept connection")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe line to log")


def markdown() -> str:
    """The table for people, as docs/service.md has it; a test compares the two."""
    rows = ["| environment | default | what |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = field.default if field.default != [] else "all"
        rows.append(f"| `AFT_{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows)
