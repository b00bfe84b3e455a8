"""Train and score the runs of a table, one process each.

    cd benchmarks
    ../.venv/bin/python -m trials text.toml --jobs 2           every run, two at a time, a thread each
    ../.venv/bin/python -m trials text.toml base window-8      these
    ../.venv/bin/python -m trials text.toml --table            what is known so far, as Markdown

A run that was interrupted goes on from its last saved step; one whose row stands in results/trials-text.json, made with
the same fields, is done.
Rows are scored on the validation split, with overlapping windows: choices are made there, not on the test split.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tomllib
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from trials.training import run

HERE = Path(__file__).parent


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The base with changes; tables merge by key."""
    both = {key: {**base[key], **value} for key, value in changes.items() if isinstance(value, dict) and key in base}
    return {**base, **changes, **both}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown, differences to the base."""
    reference = rows.get("base", {}).get("validation")
    lines = ["| run | parameters | minutes | training | validation | against base |", "|---|---|---|---|---|---|"]
    for name, row in rows.items():
        against = f"{row['validation'] - reference:+.3f}" if reference is not None and name != "base" else ""
        lines.append(
            f"| {name} | {row['parameters']:,} | {row['minutes']:.0f} | {row['train']:.3f} | {row['validation']:.3f} "
            f"| {against} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trials", type=Path, help="a table of runs in this folder, or a path")
    parser.add_argument("names", nargs="*", metavar="NAME", help="runs; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--runs", type=Path, default=Path("../runs/trials"), help="folder of resumable states")
    parser.add_argument("--results", type=Path, default=HERE.parent / "results", help="folder of the rows")
    parser.add_argument("--table", action="store_true", help="print what is known and train nothing")
    arguments = parser.parse_intermixed_args()
    path = arguments.trials if arguments.trials.exists() else HERE / arguments.trials
    content = tomllib.loads(path.read_text())
    results = arguments.results / f"trials-{path.stem}.json"
    rows: dict[str, dict[str, Any]] = json.loads(results.read_text()) if results.exists() else {}
    trials = content["trial"]
    if unknown := set(arguments.names) - set(trials):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(trials)}")
    wanted = {name: merged(content["base"], changes) for name, changes in trials.items()}
    # a row whose run is written otherwise by now says nothing of it
    rows = {name: row for name, row in rows.items() if name in wanted and row["fields"] == wanted[name]}
    missing = [name for name in arguments.names or trials if name not in rows]
    failed = False
    if not arguments.table:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(arguments.jobs, context, max_tasks_per_child=1) as pool:
            waiting = {pool.submit(run, name, wanted[name], arguments.runs / path.stem): name for name in missing}
            for future in as_completed(waiting):
                name = waiting[future]
                if (error := future.exception()) is not None:
                    print(f"{name}: {type(error).__name__} {error}", file=sys.stderr, flush=True)
                    failed = True
                    continue
                rows[name] = {"fields": wanted[name], **future.result()}
                rows = {key: rows[key] for key in trials if key in rows}  # in the table's order
                partial = results.with_suffix(".partial")
                partial.write_text(json.dumps(rows, indent=1) + "\n")
                partial.replace(results)
    print(table(rows))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
