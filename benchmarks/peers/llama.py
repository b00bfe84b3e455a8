"""llama.cpp beside the runtime: a LLaMA of about as many parameters, random weights in F16.

Its packages: `pip install llama-cpp-python gguf` compiles llama.cpp for this processor.
"""

from __future__ import annotations

import ctypes
import tempfile
import time
from pathlib import Path

import gguf
import llama_cpp as llama
import numpy as np

from model.bench import matrix_parameters
from model.checkpoint import Checkpoint

MAX_DEPTH = 8192
LONGEST = 512  # tokens of a decode run after the deepest position
CHUNK = 512
HEAD = 32  # channels of an attention head


def write_model(path: Path, checkpoint: Checkpoint, *, characters: bool = False) -> None:
    """A GGUF file with the checkpoint's layers, channels and vocabulary, its MLP as wide as makes the sizes equal.

    ``characters``: every token but three is a character, for a server; otherwise there is no tokenizer.
    """
    config = checkpoint.config.model
    rng = np.random.default_rng(0)
    dim, layers, vocab = config.dim, config.num_layers, config.vocab_size
    inside = (matrix_parameters(config) - vocab * dim) // layers
    hidden = (inside - 4 * dim * dim) // (3 * dim)  # a gated MLP has three matrices
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(MAX_DEPTH + LONGEST)
    writer.add_embedding_length(dim)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(dim // HEAD)
    writer.add_head_count_kv(dim // HEAD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HEAD)
    writer.add_vocab_size(vocab)
    if characters:
        # printable ones from "!" on; SentencePiece writes a blank as a bar below
        letters = ["\u2581", *(chr(i) for i in range(0x21, 0x21 + 2 * vocab) if chr(i).isprintable())]
        writer.add_tokenizer_model("llama")
        writer.add_token_list(["<unk>", "<s>", "</s>", *letters[: vocab - 3]])
        writer.add_token_scores([0.0] * vocab)
        kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
        writer.add_token_types([*kinds, *[gguf.TokenType.NORMAL] * (vocab - 3)])
        writer.add_add_space_prefix(False)
    else:
        writer.add_tokenizer_model("no_vocab")

    def add(name: str, *shape: int) -> None:
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
        else:
            writer.add_tensor(f"{name}.weight", rng.normal(0, 0.02, shape).astype(np.float16))

    add("token_embd", vocab, dim)
    for i in range(layers):
        add(f"blk.{i}.attn_norm", dim)
        for part in "qkv":
            add(f"blk.{i}.attn_{part}", dim, dim)
        add(f"blk.{i}.attn_output", dim, dim)
        add(f"blk.{i}.ffn_norm", dim)
        add(f"blk.{i}.ffn_gate", hidden, dim)
        add(f"blk.{i}.ffn_up", hidden, dim)
        add(f"blk.{i}.ffn_down", dim, hidden)
    add("output_norm", dim)
    add("output", vocab, dim)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@llama.llama_log_callback
def _quiet(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    pass


class Llama:
    """One context with a sequence a stream."""

    name = "llama.cpp"
    max_depth = MAX_DEPTH

    def __init__(self, checkpoint: Checkpoint, slots: int, threads: int) -> None:
        llama.llama_log_set(_quiet, ctypes.c_void_p(0))
        llama.llama_backend_init()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "random.gguf"
            write_model(path, checkpoint)
            params = llama.llama_model_default_params()
            params.use_mmap = False
            self._model = llama.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise RuntimeError("llama.cpp refuses its random model")
        self._vocab, self._threads = checkpoint.config.model.vocab_size, threads
        self._context, self._streams, self._filled = None, 0, 0

    def _open(self, streams: int, length: int) -> None:
        """A context for so many sequences of at most ``length``: as small as serves, which is fastest."""
        if self._context is not None:
            llama.llama_free(self._context)
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = streams * length, max(CHUNK, streams), CHUNK
        params.n_seq_max = streams
        params.n_threads = params.n_threads_batch = self._threads
        self._context = llama.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError("llama.cpp gives no context")
        self._streams, self._length, self._filled = streams, length, 0

    def _feed(self, tokens: list[int], positions: list[int], sequences: list[int], wanted: list[bool]) -> None:
        batch = llama.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, positions[i], wanted[i]
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequences[i]
        if llama.llama_decode(self._context, batch):
            raise RuntimeError("llama.cpp cannot decode")
        assert llama.llama_get_logits_ith(self._context, -1)  # waits for the numbers
        llama.llama_batch_free(batch)

    def _fill(self, length: int) -> None:
        """Sequence 0 holds exactly ``length`` positions."""
        memory = llama.llama_get_memory(self._context)
        if self._filled > length:
            llama.llama_memory_clear(memory, False)
            self._filled = 0
        while self._filled < length:
            count = min(CHUNK, length - self._filled)
            places = list(range(self._filled, self._filled + count))
            tokens = np.random.default_rng(self._filled).integers(0, self._vocab, count).tolist()
            self._feed(tokens, places, [0] * count, [i == count - 1 for i in range(count)])
            self._filled += count

    def decode(self, streams: int, depth: int, steps: int) -> float:
        """Every step is one call for all streams."""
        steps = min(steps, LONGEST)
        length = MAX_DEPTH + LONGEST if depth else LONGEST
        if (self._streams, self._length if self._context else 0) != (streams, length):
            self._open(streams, length)
        memory = llama.llama_get_memory(self._context)
        if depth:
            self._fill(depth)
        else:
            llama.llama_memory_clear(memory, False)
            self._filled = 0
        tokens = np.random.default_rng(0).integers(0, self._vocab, (steps, streams)).tolist()
        began = time.perf_counter()
        for step in range(steps):
            self._feed(tokens[step], [depth + step] * streams, list(range(streams)), [True] * streams)
        rate = steps * streams / (time.perf_counter() - began)
        if depth:
            llama.llama_memory_seq_rm(memory, 0, depth, -1)
        return rate

    def prefill(self, length: int) -> float:
        """In batches of 512."""
        if self._streams != 1 or self._length != length:
            self._open(1, length)
        llama.llama_memory_clear(llama.llama_get_memory(self._context), False)
        self._filled = 0
        began = time.perf_counter()
        self._fill(length)
        return length / (time.perf_counter() - began)


def open_peer(checkpoint: Checkpoint, slots: int, threads: int) -> Llama:
    """The contestant of `aft bench`."""
    return Llama(checkpoint, slots, threads)
