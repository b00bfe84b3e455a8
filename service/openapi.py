"""``/openapi.json``: what FastAPI gathers from the routes, put right where this service differs from its defaults."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from service.access import is_guarded

Json = dict[str, Any]
ERROR: Json = {
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
CASES = {
    "400": "Malformed, out of range, or an unknown field",
    "401": "No key, or a wrong one, where keys are set",
    "403": "A Host header that names another service, where no keys are set",
    "404": "Unknown model",
    "408": "Nothing more of the body came",
    "413": "The body is too large",
    "415": "The body has a content-encoding",
    "429": "Too many requests of this key",
    "500": "A fault of the engine; others go on",
    "503": "Loading, full, or shutting down; Retry-After says when to come back",
    "504": "The deadline has passed",
}


def json_body(body: type[BaseModel], **example: Any) -> Json:
    """What the document says of a JSON body, with one that can be sent as it stands."""
    content = {"application/json": {"schema": body.model_json_schema(), "example": example}}
    return {"requestBody": {"required": True, "content": content}}


def document(app: FastAPI) -> Json:
    """The description: each route with the bodies and the errors that it has. Takes a tenth of a second, once."""
    if app.openapi_schema is None:
        # a fresh one a call: two threads at the first requests do not meet
        servers = [{"url": "."}]  # beside the document: the service may stand under a prefix
        made = get_openapi(title=app.title, version=app.version, routes=app.routes, servers=servers)
        app.openapi_schema = _corrected(made)
    return app.openapi_schema


def _corrected(schema: Json) -> Json:
    components = schema.setdefault("components", {})
    schemas: Json = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["Error"] = ERROR
    components["responses"] = {f"Error{status}": _error(text) for status, text in CASES.items()}
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, item in schema["paths"].items():
        for operation in item.values():
            _correct(path, operation, schemas)
    return schema


def _error(text: str) -> Json:
    return {"description": text, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}


def _correct(path: str, operation: Json, schemas: Json) -> None:
    """One operation of one path."""
    responses: Json = operation["responses"]
    responses.pop("422", None)  # what FastAPI would answer; here a bad value is a 400 of the one shape
    statuses = {"403", "500"}
    if is_guarded(path):
        operation["security"] = [{}, {"key": []}]
        statuses |= {"401", "429", "503"}
    if "parameters" in operation:
        in_query = operation["parameters"][0]["in"] == "query"
        statuses |= {"400", "404"} if in_query else {"404"}
    success = responses["200"]["content"]
    for media, body in operation.get("requestBody", {}).get("content", {}).items():
        statuses |= {"400", "404", "408", "413", "415"}
        # a schema's own definitions would be looked for at the top of this document
        schemas.update({name: _moved(part) for name, part in body["schema"].pop("$defs", {}).items()})
        body["schema"] = _moved(body["schema"])
        if media != "application/json":
            fields = body["schema"]["properties"]
            fields.update({name: _without_null(field) for name, field in fields.items()})
        if not success["application/json"]["schema"]:
            success["application/json"]["schema"] = {"type": "object"}
            statuses.add("504")
        if "stream" in body["schema"].get("properties", {}):
            success["text/event-stream"] = {"schema": {"type": "string"}}
    for status in sorted(statuses):
        responses[status] = {"$ref": f"#/components/responses/Error{status}"}


def _without_null(field: Json) -> Json:
    """A field of a form: no string says null, it is left out instead."""
    kinds = [kind for kind in field.get("anyOf", []) if kind != {"type": "null"}]
    rest = {key: value for key, value in field.items() if key not in ("anyOf", "default")}
    return {**rest, **kinds[0]} if len(kinds) == 1 else field


def _moved(part: Any) -> Any:
    """A schema whose references to definitions of its own lead to the shared ones."""
    if isinstance(part, dict):
        return {
            key: value.replace("#/$defs/", "#/components/schemas/") if key == "$ref" else _moved(value)
            for key, value in part.items()
        }
    return [_moved(value) for value in part] if isinstance(part, list) else part
