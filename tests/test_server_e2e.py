"""What a newcomer does: train on a text of one's own, serve it, stream from it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from live import AFT, serve, text_of

LINES = [
    f"the {size} {animal} {verb} over the {place}.\n"
    for size in ("small", "big", "old")
    for animal in ("fox", "dog", "cat", "hen")
    for verb in ("jumps", "looks", "walks")
    for place in ("wall", "road", "hill")
]


def test_train_serve_stream(tmp_path: Path) -> None:
    """Two commands; then the model streams what it has learned, and ends well."""
    (tmp_path / "my.txt").write_text("".join(LINES) * 3)
    command = [AFT, "train", "my.txt", "--name", "mine", "--minutes", "0.05", "--threads", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    with serve(tmp_path / "checkpoints") as process:
        (model,) = process.http.get("/v1/models").json()["data"]
        assert (model["id"], model["max_model_len"]) == ("mine", None)
        body = {"model": "mine", "prompt": "the ", "max_tokens": 200, "temperature": 0.5, "seed": 1}
        chunks = process.stream(body)
        text = text_of(chunks)
        whole = process.post(body).json()
        assert whole["choices"][0]["text"] == text
        # the text's own alphabet of 20 signs, of 278 ids: learned however short the training was
        known = sum(sign in set("".join(LINES)) for sign in text)
        assert known >= 0.9 * len(text) > 0
        process.signal()
        status, stderr = process.wait()
        assert status == 0
        assert "Traceback" not in stderr
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["mine"]
