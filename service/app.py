"""The application: ``create_app(settings)``. Nothing is made at import."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from prometheus_client import GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.registry import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.responses import Response

from service import errors
from service.access import Access, Cors, read_rules
from service.engine import Engine, Served
from service.loading import load_models
from service.metrics import Metrics
from service.middleware import Envelope, Faults
from service.routes import about, completions, health, images, models, tokenizer
from service.settings import Settings
from service.state import Service

log = logging.getLogger("aft")
LOADING = "loading"  # name of the thread
Loader = Callable[[Settings, Metrics], list[Served]]


def create_app(
    settings: Settings, *, load: Loader = load_models, on_failure: Callable[[Exception], None] | None = None
) -> FastAPI:
    """A service with its own registry. ``load`` makes the models, in a thread; ``on_failure`` hears if it cannot.

    SettingError where keys, hosts or the rate cannot be read.
    """
    rules = read_rules(settings)
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    service = Service(settings, Metrics(registry))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # the port opens when this yields, so that /readyz can say that models are being loaded
        loading = asyncio.create_task(_load(service, load, on_failure))
        yield
        loading.cancel()
        if service.engine is not None:
            await asyncio.to_thread(service.engine.close)

    version = importlib.metadata.version("aft-serve")
    app = FastAPI(title="aft-serve", version=version, lifespan=lifespan, openapi_url=None, redirect_slashes=False)
    app.state.service = service
    for route in (completions, images, models, health, tokenizer, about):
        app.include_router(route.router)
    app.add_exception_handler(errors.ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    # the last is the outermost: every answer has an id, and a page may read the refusals and faults too
    app.add_middleware(Access, rules=rules, metrics=service.metrics)
    app.add_middleware(Faults)
    if settings.cors_origins:
        app.add_middleware(
            Cors,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # Authorization, Content-Type, and a dozen that OpenAI's client adds
            expose_headers=["x-request-id", "retry-after", "retry-after-ms", "x-should-retry"],
        )
    app.add_middleware(Envelope, metrics=service.metrics)
    return app


async def _in_thread(work: Callable[[], list[Served]]) -> list[Served]:
    """As asyncio.to_thread, but a process that ends does not wait for it."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[list[Served]] = loop.create_future()

    def done(served: list[Served] | None, error: BaseException | None) -> None:
        if result.cancelled():
            return
        if error is not None:
            result.set_exception(error)
        elif served is not None:
            result.set_result(served)

    def main() -> None:
        served, failed = None, None
        try:
            served = work()
        except BaseException as error:  # whatever it is, who waits hears of it
            failed = error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(done, served, failed)

    threading.Thread(target=main, name=LOADING, daemon=True).start()
    return await result


async def _load(service: Service, load: Loader, on_failure: Callable[[Exception], None] | None) -> None:
    try:
        served = await _in_thread(lambda: load(service.settings, service.metrics))
    except Exception as error:  # a damaged checkpoint, no memory: the process cannot serve
        log.error("the models cannot be loaded: %s", error)
        if on_failure is not None:
            on_failure(error)
        return
    service.engine = Engine(served, service.metrics, asyncio.get_running_loop())
    seconds = time.perf_counter() - service.started
    service.metrics.startup_seconds.labels("", "ready").set(seconds)
    version = importlib.metadata.version("aft-serve")
    for model in served:
        runtime = model.runtime
        service.metrics.build_info.labels(model.name, version, runtime.name, runtime.isa, runtime.fingerprint[:12]).set(
            1
        )
        state = runtime.num_slots * runtime.state_bytes / 1e6
        log.info(
            "serving %s on the %s runtime (%s, threads: %d): weights %.1f MB, workspace %.1f MB, %d slots x %d bytes "
            "of state = %.1f MB",
            model.name, runtime.name, runtime.isa, runtime.threads, runtime.weight_bytes / 1e6,
            runtime.workspace_bytes / 1e6, runtime.num_slots, runtime.state_bytes, state,
        )  # fmt: skip
    log.info("ready after %.2f s", seconds)


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, errors.ApiError)
    return error.response()


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    return (errors.method_not_allowed(headers) if error.status_code == 405 else errors.not_found()).response()
