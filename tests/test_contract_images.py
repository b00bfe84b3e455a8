"""The contract of ``POST /v1/images/*``, as a client sees it: real servers, real sockets, real image files."""

from __future__ import annotations

import asyncio
import io
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import checkpoints_for_tests
import httpx
import numpy as np
import openai
import pytest
from fake_runtime import FakeRuntime, expected, target_logprob
from live import (
    INVALID,
    Client,
    Process,
    assert_error,
    events,
    fake_loader,
    named_events,
    serve,
    serve_app,
    text_of,
    wait_until,
)
from pictures_for_tests import (
    BASE,
    EDITS,
    FORM,
    GENERATIONS,
    HEAD,
    PICTURE,
    SCORE,
    edit,
    encoded,
    generate,
    images,
    kept,
    make_checkpoints,
    pixels,
    prefix,
    score,
)
from PIL import Image

from model.batches import examples
from model.config import Raster
from model.evaluate import per_dimension
from model.generate import draw
from model.pixels import PixelCodec, Pixels, heat_map, to_png
from model.runtime.base import Job
from model.runtime.choice import open_runtime
from model.weights import load

ROW, ALL = 4, 16  # pixels
BIG = PixelCodec(Raster(height=16, width=16), ["blue", "red"], ["plain"])  # of the fake


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of pictures beside one of text."""
    return make_checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def server(checkpoints: Path) -> Iterator[Process]:
    """One real process for all tests."""
    with serve(checkpoints) as process:
        yield process


@pytest.fixture
def fake() -> Iterator[tuple[Client, FakeRuntime]]:
    """The app on a slow fake of 16 x 16 pixels with two slots and one place in the queue."""
    runtime = FakeRuntime(2, seconds_per_token=0.0005, vocab_size=BIG.vocab_size, max_position=BIG.raster.size)
    with serve_app(fake_loader(runtime, codec=BIG), max_queue=1, burst_seconds=0.01) as client:
        yield client, runtime


def drawn(folder: Path, label: str = "red", style: str = "", seed: int = 7, sample: int = 0) -> Pixels:
    """What the process must draw, drawn in this one."""
    *_, last = draw(folder / "pics", label, style, seed=seed, sample=sample)
    return last


def test_a_whole_answer(server: Process) -> None:
    """OpenAI's shape, with the seed; the sub-pixels are the usage."""
    body = generate(server).json()
    assert body["created"] == pytest.approx(time.time(), abs=60)
    (image,) = body.pop("data")
    assert set(image) == {"b64_json"}
    assert pixels(image["b64_json"]).shape == (4, 4, 3)
    usage = {"input_tokens": 1, "output_tokens": 48, "total_tokens": 49}
    details = {"text_tokens": 1, "image_tokens": 0}
    wanted = {**HEAD, "created": body["created"], "seed": 7, "usage": {**usage, "input_tokens_details": details}}
    assert body == wanted


@pytest.mark.parametrize(("label", "style"), [("red", ""), ("blue", "plain"), ("", "plain"), ("", "")])
def test_samples_are_those_drawn_in_process(server: Process, checkpoints: Path, label: str, style: str) -> None:
    """In order, all different, and each is the one that ``draw`` makes of the same seed and sample."""
    found = images(generate(server, prompt=label, style=style or None, n=4))
    assert len({image.tobytes() for image in found}) == 4
    for sample, image in enumerate(found):
        assert (image == drawn(checkpoints, label, style, sample=sample)).all()
    assert generate(server, prompt=label, style=style, n=10).json()["usage"]["output_tokens"] == 480


def test_seeds(server: Process) -> None:
    """The same seed, the same bytes; none: one is drawn and reported, and gives the same image again."""
    one, again, other = (generate(server, seed=seed).json()["data"] for seed in (7, 7, 8))
    assert one == again
    assert one != other
    body = generate(server, seed=None, n=2).json()
    assert generate(server, seed=body["seed"], n=2).json()["data"] == body["data"]
    assert generate(server, seed=None).json()["seed"] != body["seed"]


def test_greedy_needs_no_seed(server: Process) -> None:
    """Temperature 0 and top_k 1 agree, whatever seed and sample."""
    found = images(generate(server, temperature=0, n=2)) + images(generate(server, top_k=1, seed=1))
    found += images(generate(server, top_p=1e-9, seed=2))
    assert len({image.tobytes() for image in found}) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"size": "4x4"}, {"size": "auto"}, {"response_format": "b64_json"}, {"output_format": "png"},
        {"quality": "auto"}, {"background": "auto"}, {"moderation": "auto"}, {"output_compression": 100},
        {"user": "me"}, {"stream": False}, {"n": 1}, {"partial_images": 0}, {"top_p": 1}, {"top_k": 0},
        {"style": ""}, dict.fromkeys(("size", "n", "quality", "style", "stream", "user", "top_p", "temperature")),
    ],
)  # fmt: skip
def test_defaults_change_nothing(server: Process, changes: dict[str, Any]) -> None:
    """A field at OpenAI's default, or null, is as if it were not there; in a form, too."""
    assert generate(server, **changes).json()["data"] == generate(server).json()["data"]
    form = {k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in changes.items() if v is not None}
    assert edit(server, kept(5), **form).json()["data"] == edit(server, kept(5)).json()["data"]


@pytest.mark.parametrize(
    ("changes", "param", "words"),
    [
        ({"prompt": "mauve"}, "prompt", ["mauve", "blue, red"]),
        ({"prompt": "a" * 1000}, "prompt", ["blue, red"]),
        ({"style": "oil"}, "style", ["oil", "known: plain"]),
        ({"size": "8x8"}, "size", ["4x4", "8x8"]),
        ({"size": "1024x1024" * 100}, "size", ["4x4"]),
        ({"n": 0}, "n", ["1"]),
        ({"n": 11}, "n", ["10"]),
        ({"response_format": "url"}, "response_format", ["b64_json"]),
        ({"output_format": "jpeg"}, "output_format", ["png"]),
        ({"quality": "high"}, "quality", ["auto"]),
        ({"background": "transparent"}, "background", ["auto"]),
        ({"moderation": "low"}, "moderation", ["auto"]),
        ({"output_compression": 50}, "output_compression", ["100"]),
        ({"temperature": 2.1}, "temperature", ["2"]),
        ({"top_p": 0}, "top_p", ["0"]),
        ({"top_k": -1}, "top_k", ["0"]),
        ({"seed": 2**63}, "seed", []),
        ({"stream": True, "n": 2}, "n", ["must be 1"]),
        ({"stream": True, "partial_images": 4}, "partial_images", ["3"]),
        ({"partial_images": 1}, "partial_images", ["stream"]),
        ({"input_fidelity": "high"}, "input_fidelity", ["unknown field"]),
    ],
)
def test_refused_fields(server: Process, changes: dict[str, Any], param: str | None, words: list[str]) -> None:
    """400 with the field and what is known; in a form, too."""
    assert_error(generate(server, **changes), 400, INVALID, "invalid_value", param, *words)
    form = {k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in changes.items()}
    assert_error(edit(server, kept(5), **form), 400, INVALID, "invalid_value", param, *words)


def test_bodies_are_strict(server: Process) -> None:
    """No strings for numbers in JSON, no missing fields, no other model, no form where JSON is wanted."""
    assert_error(generate(server, n="2"), 400, INVALID, "invalid_value", "n")
    assert_error(server.http.post(GENERATIONS, json={"model": "pics"}), 400, INVALID, "invalid_value", "prompt")
    assert_error(edit(server, kept(5), prompt=None), 400, INVALID, "invalid_value", "prompt")
    assert_error(edit(server, kept(5), model=None), 400, INVALID, "invalid_value", "model")
    assert_error(generate(server, model="huge"), 404, INVALID, "model_not_found", "model", "pics, tiny")
    assert_error(edit(server, kept(5), model="huge"), 404, INVALID, "model_not_found", "model")
    assert_error(server.http.post(GENERATIONS, data=FORM), 400, INVALID, "invalid_value", None, "application/json")


def test_kinds_of_models(server: Process) -> None:
    """Each route takes its own kind, and says where the other goes; the list names both."""
    assert_error(generate(server, model="tiny"), 400, INVALID, "invalid_value", "model", "/v1/completions")
    assert_error(edit(server, kept(5), model="tiny"), 400, INVALID, "invalid_value", "model", "text model")
    assert_error(score(server, kept(5), model="tiny"), 400, INVALID, "invalid_value", "model", "text model")
    response = server.post({"model": "pics", "prompt": "red"})
    assert_error(response, 400, INVALID, "invalid_value", "model", "image model", "/v1/images")
    _, pics, tiny = server.http.get("/v1/models").json()["data"]
    assert (pics["kind"], tiny["kind"]) == ("image", "text")
    assert (pics["labels"], pics["styles"], pics["size"]) == (["blue", "red"], ["plain"], "4x4")
    assert pics["max_model_len"] == 48
    assert "labels" not in tiny


@pytest.mark.parametrize("partial_images", [None, 0, 1, 2, 3])
def test_a_stream(server: Process, checkpoints: Path, partial_images: int | None) -> None:
    """So many prefixes of whole rows, then the image, each with its event's name; no [DONE]."""
    response = generate(server, stream=True, partial_images=partial_images)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert "[DONE]" not in response.text
    count = partial_images or 0
    *partial, (last_name, last) = named_events(response.text)
    assert [name for name, _ in partial] == ["image_generation.partial_image"] * count
    wanted = drawn(checkpoints)
    for i, (name, event) in enumerate(partial):
        rows = 4 * (i + 1) // (count + 1)
        assert (pixels(event.pop("b64_json")) == prefix(wanted, rows * ROW)).all()
        created = event.pop("created_at")
        assert event == {"type": name, **HEAD, "partial_image_index": i}
        assert created == last["created_at"] == pytest.approx(time.time(), abs=60)
    assert last_name == last["type"] == "image_generation.completed"
    assert set(last) == {"type", "b64_json", "created_at", *HEAD, "seed", "usage"}
    assert (pixels(last["b64_json"]) == wanted).all()
    whole = generate(server).json()
    assert (last["b64_json"], last["usage"]) == (whole["data"][0]["b64_json"], whole["usage"])


@pytest.mark.parametrize("count", [0, 1, 3, 4, 7, 12, 15])
def test_an_edit_keeps_what_it_was_given(server: Process, checkpoints: Path, count: int) -> None:
    """A seed's own prefix is continued as it was drawn, by the image's alpha, by a mask, by WebP, as ``image[]``."""
    wanted = drawn(checkpoints)
    for response in (
        edit(server, kept(count, wanted)),
        edit(server, kept(count, wanted), file="image[]"),
        edit(server, to_png(wanted), mask=kept(count)),
        edit(server, encoded(Image.fromarray(wanted), "WEBP", lossless=True), mask=kept(count)),
        edit(server, kept(count, prefix(wanted, count)), size="4x4", n="1"),
    ):
        (image,) = images(response)
        assert (image == wanted).all()
        assert response.json()["usage"] == {
            "input_tokens": 1 + 3 * count,
            "output_tokens": 48 - 3 * count,
            "total_tokens": 49,
            "input_tokens_details": {"text_tokens": 1, "image_tokens": 3 * count},
        }


@pytest.mark.parametrize("count", [1, 6, 8, 15])
def test_an_edit_draws_the_rest(server: Process, count: int) -> None:
    """Kept pixels are untouched in each sample, also where JSON would have numbers; samples differ below."""
    found = images(edit(server, kept(count), n="3", prompt="", style="plain"))
    for image in found:
        assert (prefix(image, count) == prefix(PICTURE, count)).all()
    assert len({image.tobytes() for image in found}) == 3


def test_an_edit_streams(server: Process) -> None:
    """What is known already is part of every prefix; a mask in mid-row."""
    whole = edit(server, kept(6)).json()
    (image,) = [pixels(image["b64_json"]) for image in whole["data"]]
    response = edit(server, kept(6), stream="true", partial_images="3")
    *partial, (name, last) = named_events(response.text)
    assert [event for event, _ in partial] == ["image_edit.partial_image"] * 3
    assert [event["partial_image_index"] for _, event in partial] == [0, 1, 2]
    for (_, event), count in zip(partial, (6, 8, 12), strict=True):
        assert (pixels(event["b64_json"]) == prefix(image, count)).all()
    assert name == last["type"] == "image_edit.completed"
    assert (last["b64_json"], last["usage"]) == (whole["data"][0]["b64_json"], whole["usage"])


def test_transparent_pixels_that_are_kept_are_white(server: Process) -> None:
    """A mask decides what is drawn; the image's own alpha then only mixes with white."""
    (image,) = images(edit(server, kept(2), mask=kept(10)))
    assert (prefix(image, 10) == prefix(prefix(PICTURE, 2), 10)).all()


def hole(*places: int) -> bytes:
    """A mask that is transparent at some pixels."""
    alpha = np.full(ALL, 255, np.uint8)
    alpha[list(places)] = 0
    return encoded(Image.fromarray(np.dstack([PICTURE, alpha.reshape(4, 4)])))


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (hole(), ["nothing to draw"]),
        (to_png(PICTURE), ["nothing to draw"]),
        (hole(0), ["row 0, column 0", "row 0, column 1"]),
        (hole(5, 6, 7, 8, 12, 13, 14, 15), ["row 1, column 1", "row 2, column 1"]),
        (hole(*range(15)), ["row 0, column 0", "row 3, column 3"]),
    ],
)
def test_masks_that_are_no_end_of_the_raster(server: Process, mask: bytes, words: list[str]) -> None:
    """400 that says where, for a mask and for the image's own alpha."""
    assert_error(edit(server, to_png(PICTURE), mask=mask), 400, INVALID, "invalid_value", "mask", *words)
    assert_error(edit(server, mask), 400, INVALID, "invalid_value", "image", *words)


def test_alpha_is_to_be_drawn_only_where_it_is_0(server: Process) -> None:
    """Half transparent is kept."""
    alpha = np.full((4, 4), 1, np.uint8)
    half = encoded(Image.fromarray(np.dstack([PICTURE, alpha])))
    assert_error(edit(server, half), 400, INVALID, "invalid_value", "image", "alpha 0")


def direct_bits(folder: Path, label: str, style: str = "") -> np.ndarray[Any, np.dtype[np.float64]]:
    """Bits of PICTURE, by one job of a runtime in this process."""
    checkpoint = checkpoints_for_tests.opened(folder / "pics")
    runtime, codec = open_runtime(checkpoint, num_slots=1), checkpoint.pixels
    values = codec.encode(PICTURE)
    (done,) = runtime.run([Job(0, [codec.condition(label, style), *values[:-1]], targets=values)])
    return -np.array(done.target_logprobs).reshape(4, 4, 3) / math.log(2)


@pytest.mark.parametrize(("label", "style"), [("red", ""), ("blue", "plain"), ("", "")])
def test_scores(server: Process, checkpoints: Path, label: str, style: str) -> None:
    """Bits per dimension of the image as it is, those of each sub-pixel, and a heat map of them."""
    wanted = direct_bits(checkpoints, label, style)
    form = {"prompt": label, **({"style": style} if style else {})}
    plain = score(server, to_png(PICTURE), **form).json()
    assert set(plain) == {"bits_per_dim"}
    assert plain["bits_per_dim"] == pytest.approx(wanted.mean(), abs=1e-6)
    checkpoint = checkpoints_for_tests.opened(checkpoints / "pics")
    told = np.array([checkpoint.pixels.prompt(label, style)])
    trained = per_dimension(load(checkpoint).freeze(), *examples(PICTURE[None], told))
    assert plain["bits_per_dim"] == pytest.approx(trained, rel=0.02)  # bf16 beside float32
    body = score(server, to_png(PICTURE), **form, per_pixel="true", heatmap="true").json()
    assert set(body) == {"bits_per_dim", "bits", "heatmap_b64"}
    assert body["bits_per_dim"] == plain["bits_per_dim"]
    assert np.array(body["bits"]).shape == (4, 4, 3)
    assert np.abs(np.array(body["bits"]) - wanted).max() < 2e-6
    shown = pixels(body["heatmap_b64"]).astype(int)
    assert np.abs(shown - heat_map(wanted)).max() <= 1


def test_names(server: Process, checkpoints: Path) -> None:
    """A model that reads names draws by them, in words of any spelling; usage counts their places."""
    known = server.http.get("/v1/models/named").json()
    assert (known["name_length"], known["max_model_len"]) == (6, 54)
    answer = generate(server, model="named", name=" Bob! ")
    (picture,) = images(answer)
    assert (picture == list(draw(checkpoints / "named", "red", name="bob", seed=7))[-1]).all()
    assert not (picture == images(generate(server, model="named"))[0]).all()
    assert answer.json()["usage"]["input_tokens_details"] == {"text_tokens": 7, "image_tokens": 0}
    edited = edit(server, kept(8, picture), model="named", name="bob")
    assert (images(edited)[0][:2] == picture[:2]).all()
    assert (images(edited)[0] == picture).all()  # the same seed at the same positions


def test_names_that_are_refused(server: Process) -> None:
    """By models that know none, and those that nobody can read; "" is any everywhere."""
    assert_error(generate(server, name="\ufdfa" * 257), 400, INVALID, "invalid_value", "name", "at most 256")
    for model, name, word in (
        ("pics", "bob", "knows no names"),
        ("named", "abcdefg", "at most 6"),
        ("named", "!", "le"),
    ):
        assert_error(generate(server, model=model, name=name), 400, INVALID, "invalid_value", "name", word)
        answer = score(server, to_png(PICTURE), model=model, name=name)
        assert_error(answer, 400, INVALID, "invalid_value", "name", word)
    assert generate(server, name="").json()["data"] == generate(server).json()["data"]


def test_scores_with_a_name(server: Process, checkpoints: Path) -> None:
    """Bits of the sub-pixels alone, as a model is evaluated."""
    checkpoint = checkpoints_for_tests.opened(checkpoints / "named")
    told = np.array([checkpoint.pixels.prompt("red", name="bob")])
    trained = per_dimension(load(checkpoint).freeze(), *examples(PICTURE[None], told))
    body = score(server, to_png(PICTURE), model="named", name="bob", per_pixel="true").json()
    assert body["bits_per_dim"] == pytest.approx(trained, rel=0.02)
    assert np.mean(body["bits"]) == pytest.approx(body["bits_per_dim"], abs=1e-5)
    assert body["bits_per_dim"] != score(server, to_png(PICTURE), model="named").json()["bits_per_dim"]


def test_a_score_needs_no_label(server: Process, checkpoints: Path) -> None:
    """No prompt is any; false is no."""
    body = score(server, to_png(PICTURE), prompt=None, per_pixel="false", heatmap="false").json()
    assert body == {"bits_per_dim": pytest.approx(direct_bits(checkpoints, "").mean(), abs=1e-6)}


def test_refused_scores(server: Process) -> None:
    """Fields that only drawing has, labels that nobody knows, a mask or not."""
    picture = to_png(PICTURE)
    for name, value in (("seed", "1"), ("n", "1"), ("temperature", "1"), ("stream", "true")):
        assert_error(score(server, picture, **{name: value}), 400, INVALID, "invalid_value", name, "unknown field")
    assert_error(score(server, picture, prompt="mauve"), 400, INVALID, "invalid_value", "prompt", "blue, red")
    assert_error(score(server, picture, style="oil"), 400, INVALID, "invalid_value", "style", "plain")
    assert_error(score(server, picture, per_pixel="maybe"), 400, INVALID, "invalid_value", "per_pixel")
    for name, words in (("mask", "unknown file"), ("second", "unknown file")):
        files = {"image": picture, name: picture}
        answer = server.http.post("/v1/images/score", data={"model": "pics"}, files=files)
        assert_error(answer, 400, INVALID, "invalid_value", name, words)
    assert_error(score(server, picture, model="huge"), 404, INVALID, "model_not_found", "model")


def test_the_official_client(server: Process, checkpoints: Path) -> None:
    """Whole and streamed, generations and edits, with a mask and without; its exceptions."""
    wanted = drawn(checkpoints)
    extra: dict[str, Any] = {"extra_body": {"seed": 7}}
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        ask: dict[str, Any] = {"model": "pics", "prompt": "red", **extra}
        whole = client.images.generate(**ask, n=2, size="auto", quality="auto", response_format="b64_json")
        assert whole.data is not None
        assert whole.usage is not None
        assert (pixels(whole.data[0].b64_json or "") == wanted).all()
        assert (len(whole.data), whole.usage.output_tokens, whole.size) == (2, 96, "4x4")
        events = list(client.images.generate(**ask, stream=True, partial_images=3))
        kinds = [event.type for event in events]
        assert kinds == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
        assert [event.partial_image_index for event in events[:-1]] == [0, 1, 2]
        assert (pixels(events[-1].b64_json) == wanted).all()
        picture, mask = ("image.png", to_png(wanted), "image/png"), ("mask.png", kept(6), "image/png")
        for sent in (
            {"image": picture, "mask": mask},
            {"image": [picture], "mask": mask},
            {"image": io.BytesIO(kept(6, wanted))},
        ):
            edited = client.images.edit(**ask, **sent, n=2)
            assert edited.data is not None
            assert (pixels(edited.data[0].b64_json or "") == wanted).all()
            if isinstance(sent["image"], io.BytesIO):
                sent["image"].seek(0)
            stream = list(client.images.edit(**ask, **sent, stream=True, partial_images=1))
            assert [event.type for event in stream] == ["image_edit.partial_image", "image_edit.completed"]
            assert (pixels(stream[-1].b64_json) == wanted).all()
        with pytest.raises(openai.BadRequestError) as unknown:
            client.images.generate(model="pics", prompt="mauve")
        assert unknown.value.param == "prompt"
        assert "blue, red" in unknown.value.message
        with pytest.raises(openai.BadRequestError) as full:
            client.images.edit(model="pics", prompt="red", image=picture)
        assert full.value.param == "image"
        assert full.value.request_id


def test_text_and_images_at_the_same_time(server: Process) -> None:
    """Each answer is that of the request alone."""
    text = [{"model": "tiny", "prompt": "Speak", "seed": i, "max_tokens": 60 + i, "stream": True} for i in range(6)]
    pictures = [{**BASE, "seed": i, "n": 1 + i} for i in range(6)]
    forms = [(path, count) for path in (EDITS, SCORE) for count in (0, 5, 12)]

    async def ask(*, together: bool) -> list[object]:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:

            async def post(path: str, **body: Any) -> object:
                response = await client.post(path, **body)
                assert response.status_code == 200, response.text
                if path == "/v1/completions":
                    return text_of(events(response.text))
                return response.json().get("data") or response.json()["bits_per_dim"]

            form = {"model": "pics", "prompt": "red"}
            jobs = [post("/v1/completions", json=body) for body in text]
            jobs += [post(GENERATIONS, json=body) for body in pictures]
            jobs += [
                post(path, data={**form, **({"seed": "3"} if path == EDITS else {})}, files={"image": kept(count)})
                for path, count in forms
            ]
            return await asyncio.gather(*jobs) if together else [await job for job in jobs]

    assert asyncio.run(ask(together=True)) == asyncio.run(ask(together=False))


def test_metrics(fake: tuple[Client, FakeRuntime]) -> None:
    """One outcome a request, by endpoint; every pixel drawn, and every image's time."""
    client, runtime = fake
    picture, half = to_png(BIG.decode([])), kept(128, BIG.decode([]))
    mine: dict[str, Any] = {"model": "fake0"}
    assert len(images(generate(client, **mine, n=3))) == 3
    assert len(named_events(generate(client, **mine, stream=True, partial_images=2).text)) == 3
    assert len(images(edit(client, half, **mine))) == 1
    assert score(client, picture, **mine).status_code == 200
    for response in (generate(client, **mine, n=11), edit(client, picture, **mine), score(client, b"", **mine)):
        assert response.status_code == 400
    counts = {
        (dict(labels)["model"], dict(labels)["endpoint"], dict(labels)["outcome"]): value
        for (name, labels), value in client.metrics().items()
        if name == "aft_requests_total"
    }
    assert counts == {
        ("fake0", "images_generations", "stop"): 2,
        ("fake0", "images_edits", "stop"): 1,
        ("fake0", "images_score", "stop"): 1,
        ("", "images_generations", "rejected"): 1,  # before the model was known
        ("fake0", "images_edits", "rejected"): 1,
        ("fake0", "images_score", "rejected"): 1,
    }
    assert client.metric("aft_image_pixels_total", model="fake0") == 4 * 256 + 128
    assert client.metric("aft_image_duration_seconds_count", model="fake0") == 5
    assert client.metric("aft_request_duration_seconds_count", endpoint="images_score") == 1
    assert client.metric("aft_generation_tokens_total") == 3 * (4 * 256 + 128)
    runtime.fail_at = {len(runtime.calls)}
    assert_error(generate(client, **mine), 500, "server_error", "internal_error")
    assert client.metric("aft_requests_total", endpoint="images_generations", outcome="error") == 1
    assert client.free("fake0")


def test_a_score_of_several_chunks() -> None:
    """768 sub-pixels are two chunks of a prompt, and not one of them is lost or drawn."""
    runtime = FakeRuntime(2, vocab_size=BIG.vocab_size, max_position=BIG.raster.size)
    picture = np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8)
    with serve_app(fake_loader(runtime, codec=BIG), burst_seconds=10) as client:  # chunks are whole, however slow
        body = score(client, to_png(picture), model="fake0", per_pixel="true").json()
    logprobs = [target_logprob(i, int(value)) for i, value in enumerate(picture.reshape(-1))]
    assert body["bits_per_dim"] == pytest.approx(-np.mean(logprobs) / math.log(2), rel=1e-12)
    assert np.allclose(np.array(body["bits"]).reshape(-1), -np.array(logprobs) / math.log(2), atol=1e-6)
    assert [len(job.tokens) for call in runtime.calls for job in call] == [512, 256]
    assert all(job.draw is None for call in runtime.calls for job in call)


def test_images_are_admitted_together_or_not_at_all(fake: tuple[Client, FakeRuntime]) -> None:
    """Two slots and one place: three images are drawn, four never can be; what does not fit leaves nothing behind."""
    client, runtime = fake
    for n in (4, 10):
        assert_error(generate(client, model="fake0", n=n), 400, INVALID, "invalid_value", "n", "at most 3")
        assert client.free("fake0")
    runtime.gate.clear()
    body = {"model": "fake0", "prompt": "", "stream": True}
    with client.http.stream("POST", "/v1/images/generations", json=body):
        assert runtime.blocked.wait(timeout=30)
        for _ in range(2):
            refused = generate(client, model="fake0", n=3)
            assert_error(refused, 503, "overloaded_error", "queue_full", None, "no room for 3 choices")
        runtime.gate.set()
    wait_until(lambda: client.free("fake0"))
    found = images(generate(client, model="fake0", n=3))
    for sample, image in enumerate(found):
        assert image.tobytes() == expected("", 7 + sample, 768).encode()
    assert client.metric("aft_admission_rejections_total", reason="queue_full") == 2
    assert client.metric("aft_requests_total", endpoint="images_generations", outcome="rejected") == 4


def test_partial_images_come_before_the_image_is_complete(fake: tuple[Client, FakeRuntime]) -> None:
    """Each as soon as its rows are there; a fault then is an event of the name error, and the last."""
    client, runtime = fake
    runtime.seconds_per_token = 0.005  # some seconds an image
    body = {**BASE, "model": "fake0", "stream": True, "partial_images": 3}
    with client.http.stream("POST", GENERATIONS, json=body) as response:
        received = ""
        parts = response.iter_text()
        while "partial_image" not in received:
            received += next(parts)
        assert client.metric("aft_slots_in_use") == 1
        runtime.fail_at = set(range(len(runtime.calls), len(runtime.calls) + 3))
        received += "".join(parts)
    *partial, (name, last) = named_events(received)
    assert [event for event, _ in partial] == ["image_generation.partial_image"] * len(partial)
    assert (name, last["error"]["code"]) == ("error", "internal_error")
    wait_until(lambda: client.metric("aft_requests_total", outcome="error") == 1)
    assert client.free("fake0")


@pytest.mark.parametrize("changes", [{"n": 3}, {"stream": True}, {"stream": True, "partial_images": 3}])
def test_a_client_that_vanishes_frees_all_slots(fake: tuple[Client, FakeRuntime], changes: dict[str, Any]) -> None:
    """Also the places of its images that still wait; counted once."""
    client, runtime = fake
    runtime.seconds_per_token = 0.005  # some seconds an image
    sock = client.send({**BASE, "model": "fake0", **changes}, GENERATIONS)
    wait_until(lambda: client.metric("aft_image_pixels_total") > 0)
    sock.close()
    wait_until(lambda: client.free("fake0"))
    runtime.seconds_per_token = 0.0
    assert client.metric("aft_requests_total", outcome="cancelled") == 1
    assert client.metric("aft_client_disconnects_total", phase="decode") == 1
    assert client.metric("aft_requests_total") == 1
    assert client.metric("aft_image_duration_seconds_count") == 0
    assert len(images(generate(client, model="fake0", n=3))) == 3


def test_real_clients_that_vanish(server: Process) -> None:
    """The same with the real process, at whatever moment."""
    for i in range(10):
        with server.send({**BASE, "n": 10}, GENERATIONS):
            time.sleep(0.004 * i)
    wait_until(lambda: server.free("pics"), 10)
    assert len(images(generate(server, n=10))) == 10


def test_guidance(server: Process, checkpoints: Path) -> None:
    """As drawn in process, for drawings and for the rest of one; what changes nothing takes no second slot."""
    plain = images(generate(server))[0]
    found = images(generate(server, guidance=4, n=2))
    for sample, image in enumerate(found):
        *_, wanted = draw(checkpoints / "pics", "red", guidance=4, seed=7, sample=sample)
        assert (image == wanted).all()
    assert (found[0] != plain).any()
    for same in ({"guidance": 1}, {"guidance": None}):
        assert (images(generate(server, **same))[0] == plain).all()
    anything = images(generate(server, prompt=""))[0]
    assert (images(generate(server, prompt="", guidance=9))[0] == anything).all()
    assert (images(generate(server, guidance=0))[0] == anything).all()  # only the guide counts
    rest = images(edit(server, kept(5, found[0]), guidance="4"))[0]
    assert (rest == found[0]).all()
    assert server.free("pics")


def test_guidance_takes_two_slots(fake: tuple[Client, FakeRuntime]) -> None:
    """Which are free again afterwards, also where a step failed; the condition is not told to the guide."""
    client, runtime = fake
    wanted = generate(client, model="fake0", seed=5)
    assert generate(client, model="fake0", seed=5, guidance=2).json()["data"] == wanted.json()["data"]
    told = [job for call in runtime.calls for job in call if job.draw is not None and job.draw.guide is not None]
    assert told[0].tokens == BIG.prompt("red")
    assert list(told[0].draw.guide.tokens) == BIG.prompt()
    runtime.fail_at = {len(runtime.calls) + 1}
    assert_error(generate(client, model="fake0", seed=5, guidance=2), 500, "server_error", "internal_error")
    assert client.free("fake0")
    assert generate(client, model="fake0", seed=5, guidance=2).status_code == 200


def test_guidance_is_refused_where_it_cannot_be() -> None:
    """Out of range, and on a server of one slot."""
    runtime = FakeRuntime(1, vocab_size=BIG.vocab_size, max_position=BIG.raster.size)
    with serve_app(fake_loader(runtime, codec=BIG)) as client:
        refused = generate(client, model="fake0", guidance=2)
        assert_error(refused, 400, INVALID, "invalid_value", "guidance", "takes two slots")
        assert generate(client, model="fake0", guidance=1).status_code == 200
        for wrong in (-0.1, 20.1, "much"):
            assert_error(generate(client, model="fake0", guidance=wrong), 400, INVALID, "invalid_value", "guidance")


def test_a_guided_prompt_of_several_parts(fake: tuple[Client, FakeRuntime]) -> None:
    """An edit of more known values than a step reads: booked once, also where a part fails or its client leaves."""
    client, runtime = fake
    picture = np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8)
    how = {"model": "fake0", "seed": "5"}
    plain = edit(client, kept(250, picture), **how).json()
    before = client.metric("aft_prompt_tokens_total", model="fake0")
    guided = edit(client, kept(250, picture), guidance="2", **how).json()
    assert (guided["data"], guided["usage"]) == (plain["data"], plain["usage"])
    assert client.metric("aft_prompt_tokens_total", model="fake0") - before == 1 + 750
    parts = [job for call in runtime.calls for job in call if job.slot == 1]
    assert sum(len(job.tokens) for job in parts) >= 256  # the last part is read with the draw
    runtime.fail_at = {len(runtime.calls)}
    assert_error(edit(client, kept(250, picture), guidance="2", **how), 500, "server_error", "internal_error")
    assert client.free("fake0")
    runtime.gate.clear()
    runtime.seconds_per_token = 0.005  # some seconds an image
    with client.http.stream("POST", GENERATIONS, json={**BASE, **how, "seed": 5, "guidance": 2, "stream": True}):
        wait_until(runtime.blocked.is_set)
        assert client.metric("aft_slots_in_use", model="fake0") in (0, 2)
        runtime.gate.set()
        wait_until(lambda: client.metric("aft_slots_in_use", model="fake0") == 2)
    wait_until(lambda: client.free("fake0"))
