"""Made-up requests over the OpenAPI document against a live service: `make fuzz`.

    .venv/bin/python tests/fuzz.py build/fuzz/bin/st [EXAMPLES]

So many examples for each operation, valid and not: no answer is a 5xx, and every one has the shape that the document
says. What OpenAPI cannot state (fields that need each other, ids of a vocabulary) makes valid-looking bodies a 400, so
the check that all of them are taken is left out.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from live import serve

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
LEAST = 5_000  # requests, or the run proves too little


def main(program: str, examples: int) -> int:
    """Status 0 where every answer is as described; the report says what is not."""
    # short answers: a made-up max_tokens may be a million
    limits = {"max_tokens": 64, "max_stream_tokens": 64, "deadline_seconds": 20, "log_level": "warning"}
    with serve(CHECKPOINTS, **limits) as server, tempfile.TemporaryDirectory() as folder:
        report, description = Path(folder) / "events.ndjson", Path(folder) / "openapi.json"
        content = server.http.get("/openapi.json").json()
        _name_models(content, [model["id"] for model in server.http.get("/v1/models").json()["data"]])
        description.write_text(json.dumps(content))
        command = [
            program, "run", str(description), "--url", server.url, "--phases", "fuzzing", "--mode", "all",
            "--exclude-checks", "positive_data_acceptance",
            # schemathesis 4.32 breaks at this form's optional file ("Unsupported type: 'Binary'")
            "--exclude-path", "/v1/images/edits", "--max-examples", str(examples), "--workers", "2",
            "--request-timeout", "60", "--seed", "1", "--report", "ndjson", "--report-ndjson-path", str(report),
        ]  # fmt: skip
        status = subprocess.run(command, check=False, cwd=folder).returncode
        answers: dict[int, int] = {}
        for line in report.read_text().splitlines():
            _count(json.loads(line), answers)
    print("answers:", dict(sorted(answers.items())), "in all:", sum(answers.values()))
    if sum(answers.values()) < LEAST:
        print(f"fewer than {LEAST} requests")
        return 1
    return status or any(code >= 500 for code in answers)


def _name_models(content: object, names: list[str]) -> None:
    """Put the models' names into the description: a made-up name is a 404, and its body is never read."""
    if isinstance(content, dict):
        fields = content.get("properties")
        if isinstance(fields, dict) and isinstance(fields.get("model"), dict):
            fields["model"] = {"type": "string", "enum": names}
        for value in content.values():
            _name_models(value, names)
    elif isinstance(content, list):
        for value in content:
            _name_models(value, names)


def _count(event: object, answers: dict[int, int]) -> None:
    """Every answer in an event, wherever it stands."""
    if isinstance(event, dict):
        if isinstance(event.get("status_code"), int):
            answers[event["status_code"]] = answers.get(event["status_code"], 0) + 1
        for value in event.values():
            _count(value, answers)
    elif isinstance(event, list):
        for value in event:
            _count(value, answers)


if __name__ == "__main__":
    sys.exit(main(str(Path(sys.argv[1]).resolve()), int(sys.argv[2]) if len(sys.argv) > 2 else 760))
