"""llama.cpp's server with a random model of as many parameters as a checkpoint's, for `aft bench serve`.

    pip install llama-cpp-python gguf
    python benchmarks/llama_server.py BIN/llama-server --port 8100 &
    aft bench serve http://127.0.0.1:8100 --concurrency 1,16,64

Its vocabulary is as large and each token is a character, so that prompts and answers are as long as the service's. It
samples as the service does by default: temperature 1, all tokens, and no end before the answer is as long as asked.
Options that are not known here, as ``-fa off``, go to the server.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from peers.llama import write_model

from model.checkpoint import Checkpoint

LENGTH = 512  # positions of a stream: 64 of a prompt and 256 of an answer fit


def main() -> None:
    """Write the model, become the server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", type=Path, help="llama-server, built for this processor")
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/shakespeare"))
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--length", type=int, default=LENGTH)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--port", type=int, default=8100)
    arguments, others = parser.parse_known_args()
    path = Path(tempfile.mkdtemp()) / "random.gguf"
    write_model(path, Checkpoint(arguments.checkpoint), characters=True)
    # as many slots as streams; 0 MiB of its cache of prompts, which no prompt of the bench could use
    options = f"""-m {path} --host 127.0.0.1 --port {arguments.port} --parallel {arguments.streams}
        --ctx-size {arguments.streams * arguments.length} --threads {arguments.threads} --cache-ram 0 --no-webui
        --temp 1 --top-k 0 --top-p 1 --min-p 0 --ignore-eos"""
    os.execv(arguments.server, [str(arguments.server), *options.split(), *others])


if __name__ == "__main__":
    main()
