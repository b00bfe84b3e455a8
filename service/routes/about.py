"""``/version``: what runs here. ``/openapi.json``, and ``/docs``: Swagger UI, whose files are served from here."""

from __future__ import annotations

import asyncio
import importlib.metadata
import platform
from importlib.resources import files

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response

from service.openapi import document
from service.state import Service

router = APIRouter()
FILES = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}  # of the package fastapi-offline
# Swagger UI sets styles of its own; nothing is loaded from, or sent to, another host
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# relative addresses: the service may stand under a prefix
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>aft-serve</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<noscript>This page needs JavaScript; <a href="openapi.json">openapi.json</a> describes the same.</noscript>
<div id="page"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
# the validator is a service on another host
START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#page", deepLinking: true, validatorUrl: null});\n'


class Build(BaseModel):
    """What advances one model. Equal fingerprints: the same weights, tokenizer and numerics."""

    runtime: str
    isa: str
    threads: int
    fingerprint: str


class Version(BaseModel):
    """What runs here; no models while they are being loaded."""

    version: str
    python: str
    models: dict[str, Build]


@router.get("/version")
async def version(request: Request) -> Version:
    """Versions, and for each model what advances it."""
    service: Service = request.app.state.service
    served = service.engine.served.values() if service.engine is not None else ()
    builds = {
        model.name: Build(
            runtime=model.runtime.name,
            isa=model.runtime.isa,
            threads=model.runtime.threads,
            fingerprint=model.runtime.fingerprint[:12],
        )
        for model in served
    }
    release = importlib.metadata.version("aft-serve")
    return Version(version=release, python=platform.python_version(), models=builds)


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request) -> Response:
    """The description of all routes."""
    return JSONResponse(await asyncio.to_thread(document, request.app))


def _headers(**more: str) -> dict[str, str]:
    return {"X-Content-Type-Options": "nosniff", **more}


@router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
async def root() -> Response:
    """Who opens the address that the log names gets the page."""
    return RedirectResponse("docs")


@router.get("/docs", include_in_schema=False)
async def docs() -> Response:
    """The page."""
    return HTMLResponse(PAGE, headers=_headers(**{"Content-Security-Policy": POLICY}))


@router.get("/docs/start.js", include_in_schema=False)
async def start() -> Response:
    """The page's own line: a policy that forbids scripts in the page needs it to be a file."""
    return Response(START, headers=_headers(), media_type="text/javascript")


@router.get("/docs/swagger-ui-bundle.js", include_in_schema=False)
@router.get("/docs/swagger-ui.css", include_in_schema=False)
async def swagger_file(request: Request) -> Response:
    """A file of Swagger UI."""
    name = request.url.path.rpartition("/")[2]
    path = files("fastapi_offline") / "static" / name
    return FileResponse(str(path), headers=_headers(), media_type=FILES[name])
