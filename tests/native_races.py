"""The kernel's threads under the thread sanitizer: a part of `make sanitize`.

    .venv/bin/python tests/native_races.py

The driver runs on 2 and 3 threads and must give the stored logits without a report. Then without the pool's barriers,
where the sanitizer must report: silence would mean that it sees nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from native_build import SRC, Build, copy_sources, dump, replace_once, run, sha256, shipped

from model.runtime.native._kernel import targets

TARGET = targets()[-1]  # which threads may touch what is the same for all of them
BARRIER = "[](void* pool) { static_cast<Pool*>(pool)->barrier(); }"
FIRST = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}  # every later report would take its time
REPORTED = 66  # the sanitizer's exit status


def main() -> None:
    """Build, run, compare; status 1 where there is a race, another logit, or no report of what is broken."""
    checkpoint, stored = shipped()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        root, given = copy_sources(folder / "changed"), folder / "given"
        dump(checkpoint, given)
        build = Build(folder, root, extra=["-fsanitize=thread", "-g1"])
        program = build.program(TARGET)
        for threads in (2, 3):
            _, logits = run([program], given, TARGET, threads)
            if sha256(logits) != stored:
                sys.exit(f"{threads} threads: other logits than the stored ones")
        replace_once(root / SRC / "runtime.cpp", BARRIER, "[](void*) {}")
        build.other(root / SRC / "runtime.cpp")
        broken = build.link(sorted(folder.glob("*.o")), "broken")
        command = [broken, given, folder / "logits", "2", TARGET]
        done = subprocess.run(command, env=FIRST, capture_output=True, text=True, check=False)
        if done.returncode != REPORTED or "WARNING: ThreadSanitizer: data race" not in done.stderr:
            sys.exit("without barriers no race is reported: the sanitizer sees nothing")
    sys.stdout.write("2 and 3 threads: the stored logits and no race; one is reported without barriers\n")


if __name__ == "__main__":
    main()
