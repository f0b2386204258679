"""llama.cpp through its C interface: load a GGUF file, and time decodes and prefills as the engine's bench does.

The libraries are those of the npm package `@node-llama-cpp/linux-x64`, which holds a build for each instruction set.
Its parameter structs change between versions, so they are passed as blocks larger than any version. The x86-64 calling
convention passes large structs in memory, so the library finds its fields in front. Only the first four fields are set
here, and read back through functions.
"""

from __future__ import annotations

import ctypes
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_CONTEXT_FIELDS = ("n_ctx", "n_batch", "n_ubatch", "n_seq_max")
Item = tuple[int, int, bool]  # position, sequence, whether logits are wanted


class _Parameters(ctypes.Structure):
    _fields_ = (("words", ctypes.c_uint32 * 256),)


class _Batch(ctypes.Structure):
    """`llama_batch` of llama.h."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


_Log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_SILENT = _Log(lambda *_: None)


class LlamaCpp:
    """A model on `num_threads` threads, by the build for `variant` (haswell, skylakex, zen4, sapphirerapids)."""

    def __init__(self, folder: Path, variant: str, model: Path, num_threads: int) -> None:
        self._library = _open(folder, variant)
        parameters = self._library.llama_model_default_params()
        self._model = ctypes.c_void_p(self._library.llama_model_load_from_file(str(model).encode(), parameters))
        assert self._model.value, f"llama.cpp does not load {model}"
        self._num_threads = num_threads
        self._context = ctypes.c_void_p()
        self._batch = self._library.llama_batch_init(2048, 0, 1)
        self._random = random.Random(0)
        info = self._library.llama_print_system_info()
        self.description = f"llama.cpp, {variant} build: {info.decode().strip()}"

    def open_context(self, tokens_per_sequence: int, num_sequences: int, chunk: int) -> None:
        """Begin anew with room for `num_sequences`; a step computes up to `chunk` tokens."""
        if self._context.value:
            self._library.llama_free(self._context)
        wanted = (tokens_per_sequence * num_sequences, 2048, chunk, num_sequences)
        parameters = self._library.llama_context_default_params()
        parameters.words[:4] = wanted
        self._context = ctypes.c_void_p(self._library.llama_init_from_model(self._model, parameters))
        got = tuple(getattr(self._library, f"llama_{name}")(self._context) for name in _CONTEXT_FIELDS)
        assert got == wanted, f"llama.cpp took {_CONTEXT_FIELDS} {wanted} as {got}: another version's parameters"
        self._library.llama_set_n_threads(self._context, self._num_threads, self._num_threads)
        self._memory = ctypes.c_void_p(self._library.llama_get_memory(self._context))

    def decode(self, num_sequences: int, context: int) -> float:
        """Return the seconds of one token for each of `num_sequences`, which hold `context` tokens; forget it again."""
        duration_s = self._run([(context, sequence, True) for sequence in range(num_sequences)])
        for sequence in range(num_sequences):
            self._library.llama_memory_seq_rm(self._memory, sequence, context, -1)
        return duration_s

    def prefill(self, num_tokens: int, sequence: int = 0) -> float:
        """Return the seconds of a prompt in an empty sequence."""
        self._library.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        return self._run([(position, sequence, position == num_tokens - 1) for position in range(num_tokens)])

    def _run(self, items: Sequence[Item]) -> float:
        batch = self._batch
        batch.n_tokens = len(items)
        for i, (position, sequence, wants_logits) in enumerate(items):
            batch.token[i], batch.pos[i] = self._random.randrange(100, 40_000), position
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, sequence, wants_logits
        started_s = time.perf_counter()
        code = self._library.llama_decode(self._context, batch)
        self._library.llama_synchronize(self._context)
        duration_s = time.perf_counter() - started_s
        assert code == 0, f"llama_decode of {len(items)} tokens returned {code}"
        return duration_s


def _open(folder: Path, variant: str) -> Any:
    """Load the libraries and the backend of one instruction set."""
    for pattern in ("libggml-base.so*", "libggml.*so*", "libllama.*so*"):
        path = next(iter(sorted(folder.glob(pattern))))
        library = ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    library.llama_log_set(_SILENT, None)
    library.ggml_backend_load.restype = ctypes.c_void_p
    backend = folder / f"libggml-cpu-{variant}.so"
    assert library.ggml_backend_load(str(backend).encode()), f"{backend} does not load on this processor"
    library.llama_backend_init()
    signatures = {
        "llama_model_default_params": (_Parameters, []),
        "llama_context_default_params": (_Parameters, []),
        "llama_model_load_from_file": (ctypes.c_void_p, [ctypes.c_char_p, _Parameters]),
        "llama_init_from_model": (ctypes.c_void_p, [ctypes.c_void_p, _Parameters]),
        "llama_get_memory": (ctypes.c_void_p, [ctypes.c_void_p]),
        "llama_batch_init": (_Batch, [ctypes.c_int32] * 3),
        "llama_decode": (ctypes.c_int32, [ctypes.c_void_p, _Batch]),
        "llama_print_system_info": (ctypes.c_char_p, []),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
