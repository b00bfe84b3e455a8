"""What the service endures, at length: every scenario, or those that are named.

    cd benchmarks && ../.venv/bin/python -m endurance --json results/endurance.json

Each starts a server of its own on 127.0.0.1. The exit status is 1 where a promise was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
import traceback
from pathlib import Path

from endurance.figures import Figures
from endurance.forms import LONG, SHORT, Form
from service.load.report import machine

LIMIT_SECONDS = 2400.0  # of one scenario


async def bounded(form: Form) -> Figures:
    """The figures of one scenario; one that fails or does not end has no more than what it broke."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            figures = await form()
    except Exception as error:  # the next one runs, whatever this one met
        traceback.print_exc()
        figures = {"broken": [f"it ends: {type(error).__name__} {error}"]}
    when = {"date": time.strftime("%Y-%m-%d"), "machine": machine()}
    return {**when, "wall_seconds": time.monotonic() - began, **figures}


def main() -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(LONG)}; default: all")
    parser.add_argument("--json", type=Path, help="file for the figures; those of scenarios that do not run stay")
    parser.add_argument("--short", action="store_true", help="the forms that the tests run")
    arguments = parser.parse_args()
    forms = SHORT if arguments.short else LONG
    if unknown := set(arguments.names) - set(forms):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    path: Path | None = arguments.json
    results = json.loads(path.read_text()) if path is not None and path.exists() else {}
    broken = False
    for name in arguments.names or forms:
        results[name] = asyncio.run(bounded(forms[name]))
        print(json.dumps({name: results[name]}, indent=1), flush=True)
        broken |= bool(results[name]["broken"])
        if path is not None:  # after each: an interrupted run keeps what it has
            path.write_text(json.dumps(results, indent=1) + "\n")
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
