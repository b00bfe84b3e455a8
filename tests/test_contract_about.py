"""What the service says of itself: version, models, the description of its routes, and the page that shows it."""

from __future__ import annotations

import json
import platform
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import checkpoints_for_tests
import httpx
import pytest
from fake_runtime import FakeRuntime
from live import INVALID, Process, assert_error, fake_loader, serve, serve_app

from model.config import preset
from service.metrics import Metrics
from service.settings import Settings

JSON = "application/json"
BODIES = {
    "/v1/completions": JSON,
    "/v1/images/generations": JSON,
    "/v1/images/edits": "multipart/form-data",
    "/v1/images/score": "multipart/form-data",
    "/v1/tokenize": JSON,
    "/v1/detokenize": JSON,
    "/tokenize": JSON,
    "/detokenize": JSON,
}
READ = {"/v1/models", "/v1/models/{name}", "/tokenizer_info", "/version"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A model of text beside one of pictures, in a real process."""
    folder = tmp_path_factory.mktemp("checkpoints")
    checkpoints_for_tests.ending(folder / "short")
    checkpoints_for_tests.characters(folder / "tiny", window=5)
    checkpoints_for_tests.pictures(folder / "pics", window=12)
    with serve(folder) as process:
        yield process


@pytest.fixture(scope="module")
def description(server: Process) -> dict[str, Any]:
    """/openapi.json."""
    answer = server.http.get("/openapi.json")
    assert answer.headers["content-type"] == JSON
    found: dict[str, Any] = answer.json()
    return found


def test_the_address_itself_leads_to_the_page(server: Process, description: dict[str, Any]) -> None:
    """By relative addresses: under a prefix both are there, too."""
    answer = server.http.get("/")
    assert (answer.status_code, answer.headers["location"]) == (307, "docs")
    assert server.http.head("/").status_code == 307
    assert_error(server.http.post("/"), 405, INVALID, "method_not_allowed")
    assert description["servers"] == [{"url": "."}]


def test_examples_can_be_sent(server: Process, description: dict[str, Any]) -> None:
    """What /docs fills in is answered as it stands, once it names a model that is served."""
    sent = 0
    for path, item in description["paths"].items():
        for operation in item.values():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if body is None:
                continue
            image = "images" in path
            example = {**body["example"], "model": "pics" if image else "tiny", **({"prompt": "red"} if image else {})}
            assert set(body["example"]) <= set(body["schema"]["properties"])
            assert server.http.post(path, json=example).status_code == 200, path
            sent += 1
    assert sent == 6


def test_version(server: Process) -> None:
    """What runs, and for each model what advances it; the fingerprint of its answers."""
    answer = server.http.get("/version").json()
    assert (answer["version"], answer["python"]) == (version("aft-serve"), platform.python_version())
    assert set(answer) == {"version", "python", "models"}
    assert list(answer["models"]) == ["pics", "short", "tiny"]
    for build in answer["models"].values():
        assert set(build) == {"runtime", "isa", "threads", "fingerprint"}
        assert build["threads"] == 1
    completion = server.post({"model": "tiny", "prompt": "", "max_tokens": 1}).json()
    assert answer["models"]["tiny"]["fingerprint"] == completion["system_fingerprint"]
    assert len({build["fingerprint"] for build in answer["models"].values()}) == 3


def test_version_while_loading() -> None:
    """An operator may ask before the models are there."""
    loaded = threading.Event()

    def load(settings: Settings, metrics: Metrics) -> Any:
        assert loaded.wait(timeout=30)
        return fake_loader(FakeRuntime(1))(settings, metrics)

    with serve_app(load, ready=False) as client:
        assert client.http.get("/version").json()["models"] == {}
        loaded.set()


def test_models(server: Process) -> None:
    """Every fact, and nothing of pictures where text is written."""
    pics, short, tiny = server.http.get("/v1/models").json()["data"]
    text = {"id", "object", "created", "owned_by", "kind", "vocab_size", "window", "state_bytes", "max_model_len"}
    assert set(tiny) == set(short) == text
    assert set(pics) == text | {"labels", "styles", "name_length", "size"}
    assert [model["window"] for model in (pics, short, tiny)] == [12, preset("tiny", 300).window, 5]
    assert [model["max_model_len"] for model in (pics, short, tiny)] == [48, 64, None]
    assert (pics["labels"], pics["styles"], pics["size"], pics["kind"]) == (["blue", "red"], ["plain"], "4x4", "image")
    for model in (pics, short, tiny):
        assert server.http.get(f"/v1/models/{model['id']}").json() == model


def test_every_route_is_described(description: dict[str, Any]) -> None:
    """Its body, its success, and errors that all have the one shape."""
    paths = description["paths"]
    assert set(paths) == set(BODIES) | READ
    for path, media in BODIES.items():
        (operation,) = paths[path].values()
        assert list(operation["requestBody"]["content"]) == [media]
        assert operation["requestBody"]["required"]
        assert {"400", "404", "413", "415", "500", "503"} <= set(operation["responses"])
    for item in paths.values():
        for operation in item.values():
            assert operation["description"]
            assert operation["responses"]["200"]["content"][JSON]["schema"]
            assert "422" not in operation["responses"]
            for status, answer in operation["responses"].items():
                if status != "200":
                    assert answer == {"$ref": f"#/components/responses/Error{status}"}
            assert ("401" in operation["responses"]) == ("security" in operation)
    streamed = {path for path, item in paths.items() if "text/event-stream" in json.dumps(item)}
    assert streamed == {"/v1/completions", "/v1/images/generations", "/v1/images/edits"}
    assert "404" in paths["/v1/models/{name}"]["get"]["responses"]


def test_keys_are_described(description: dict[str, Any]) -> None:
    """A route says that it may need a key exactly where it does."""
    with serve_app(fake_loader(FakeRuntime(1)), api_keys=["sk-" + "a" * 32], ready=False) as client:
        for path, item in description["paths"].items():
            for method, operation in item.items():
                refused = client.http.request(method, path.replace("{name}", "x")).status_code == 401
                assert refused == ("401" in operation["responses"]), path
        assert client.http.get("/openapi.json").status_code == client.http.get("/docs").status_code == 200


def test_a_form_has_no_null(description: dict[str, Any]) -> None:
    """Its fields are strings; JSON's fields may be null."""
    for path, media in BODIES.items():
        schema = description["paths"][path]["post"]["requestBody"]["content"][media]["schema"]
        assert ('"null"' in json.dumps(schema)) == (media == JSON and path not in ("/v1/tokenize", "/v1/detokenize"))
        assert "image" not in schema["properties"] or schema["properties"]["image"]["format"] == "binary"


def test_references_lead_somewhere(description: dict[str, Any]) -> None:
    """No schema is left behind, and none of FastAPI's own errors."""
    text = json.dumps(description)
    assert "$defs" not in text
    assert "ValidationError" not in text
    found = set(re.findall(r'"\$ref": "#/([^"]+)"', text))
    assert "components/schemas/StreamOptions" in found
    for reference in found:
        place: Any = description
        for step in reference.split("/"):
            assert step in place, reference
            place = place[step]


def test_errors_are_as_described(server: Process, description: dict[str, Any]) -> None:
    """The four fields, and no more."""
    error = server.http.get("/v1/models/x").json()
    schema = description["components"]["schemas"]["Error"]
    assert set(error) == set(schema["required"]) == set(schema["properties"])
    inner = schema["properties"]["error"]
    assert set(error["error"]) == set(inner["required"]) == set(inner["properties"])


def test_the_first_requests_may_come_at_once() -> None:
    """The description is made once asked for, in threads."""
    with serve_app(fake_loader(FakeRuntime(1))) as client:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: httpx.get(f"{client.url}/openapi.json").json(), range(4)))
        assert all(answer == client.http.get("/openapi.json").json() for answer in answers)


def test_docs(server: Process) -> None:
    """A page whose every file comes from here, under a policy that allows no other host."""
    page = server.http.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.strip().partition(" ")[::2] for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert "//" not in page.headers["content-security-policy"]
    assert "//" not in page.text.removeprefix("<!doctype html>")
    wanted = {"docs/swagger-ui.css": "text/css", "docs/swagger-ui-bundle.js": "text/javascript"}
    wanted["docs/start.js"] = "text/javascript"
    assert {*re.findall(r'(?:src|href)="([^"]+)"', page.text)} == {*wanted, "data:,", "openapi.json"}
    for name, media in wanted.items():
        answer = server.http.get(f"/{name}")
        assert answer.headers["content-type"].partition(";")[0] == media
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert int(answer.headers["content-length"]) == len(answer.content) > 0
    start = server.http.get("/docs/start.js").text
    assert "SwaggerUIBundle({" in start
    assert 'url: "openapi.json"' in start
    assert b"SwaggerUIBundle" in server.http.get("/docs/swagger-ui-bundle.js").content
    for other in ("/docs/", "/docs/x.js", "/docs/redoc.standalone.js", "/docs/..%2f__init__.py", "/redoc"):
        assert_error(server.http.get(other), 404, INVALID, "not_found")


def test_the_styles_load_nothing() -> None:
    """Swagger UI's own files ask no other host for fonts or pictures."""
    css = Path(str(files("fastapi_offline") / "static" / "swagger-ui.css")).read_text()
    addresses = re.findall(r"url\(\"?(.{5})", css)
    assert addresses
    assert set(addresses) == {"data:"}
    assert "@import" not in css
