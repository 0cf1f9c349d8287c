"""llama.cpp below `draftwise.backends.llamacpp`: its library, one open model, one context with a memory that grows."""

from __future__ import annotations

import ctypes
import functools
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

MOST_IDS = 256  # sequences that a context can tell apart
_BATCH = 512  # tokens of one decode
_LEAST = 256  # tokens of memory; with fewer than there are ids the library aborts
_ERROR = 4  # the level of the library's messages that say why something failed
_CACHES = {"f32": 0, "f16": 1, "q8_0": 8}  # as the file format numbers types


class Entry(NamedTuple):
    """One token to read: where it stands, the sequence ids it belongs to, and whether its logits are wanted."""

    token: int
    position: int
    ids: tuple[int, ...]
    want: bool


class Library:
    """The low-level bindings, silenced; what the library complains of is kept for the sentence that we raise."""

    def __init__(self) -> None:
        try:
            import llama_cpp
        except ImportError as error:
            raise ValueError(f"the backend 'llamacpp' needs llama-cpp-python ({error}): pip install 'draftwise[llamacpp]'") from None
        self.c: Any = llama_cpp
        self.errors: deque[str] = deque(maxlen=2)
        self._hear = llama_cpp.llama_log_callback(self._log)  # held here, since the library keeps the bare pointer
        llama_cpp.llama_log_set(self._hear, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()

    def why(self) -> str:
        """Its complaints, in brackets and ready for a sentence; '' if there are none."""
        said = "; ".join(line for line in self.errors if line)
        self.errors.clear()
        return f" ({said})" if said else ""

    def _log(self, level: int, text: bytes, _: Any) -> None:
        if level == _ERROR:
            self.errors.append(text.decode(errors="replace").strip().rstrip(".:"))


@functools.cache
def library() -> Library:
    """Loaded once, since the library's settings are those of the process."""
    return Library()


class Model:
    """The weights of one GGUF file. Raises ValueError for a file that cannot be loaded."""

    def __init__(self, path: Path, gpu_layers: int) -> None:
        self.library, self.path = library(), path
        c = self.library.c
        if not path.is_file():
            raise ValueError(f"there is no file '{path}': name a .gguf file")
        params = c.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        self.library.errors.clear()
        self.pointer = c.llama_model_load_from_file(str(path).encode(), params)
        if not self.pointer:
            reason = "it is truncated, damaged, or of an architecture that this build does not know"
            raise ValueError(f"llama.cpp cannot load '{path}'{self.library.why()}: {reason}")
        self.vocab = c.llama_model_get_vocab(self.pointer)
        self.vocab_size = int(c.llama_vocab_n_tokens(self.vocab))
        self.trained_for = int(c.llama_model_n_ctx_train(self.pointer))
        self.recurrent = bool(c.llama_model_is_recurrent(self.pointer))
        self.running = self.recurrent or bool(c.llama_model_is_hybrid(self.pointer))

    def ends(self) -> tuple[int, ...]:
        """The ids that end a text, as the file says."""
        return tuple(token for token in range(self.vocab_size) if self.library.c.llama_vocab_is_eog(self.vocab, token))

    def description(self) -> str:
        """Architecture, size and precision, as 'qwen2 1.5B Q4_K - Medium'."""
        buffer = ctypes.create_string_buffer(256)
        self.library.c.llama_model_desc(self.pointer, buffer, len(buffer))
        return buffer.value.decode(errors="replace")

    def close(self) -> None:
        """Gives the weights back."""
        if self.pointer:
            self.library.c.llama_model_free(self.pointer)
            self.pointer = None


class Context:
    """A memory of `cells` tokens for `ids` sequences of a model, and reading into it."""

    def __init__(self, model: Model, ids: int, cells: int, threads: int, cache: str, flash: bool) -> None:
        if cache not in _CACHES:
            raise ValueError(f"keys and values cannot be kept as {cache!r}: possible are {', '.join(_CACHES)}")
        if not 0 < ids <= MOST_IDS:
            raise ValueError(f"llama.cpp tells {MOST_IDS} sequences apart, and {ids} are needed: ask for fewer with slots=...")
        self._c, self.model = model.library.c, model
        self._ids, self._threads, self._cache, self._flash = ids, threads, _CACHES[cache], flash
        self._pointer, self._memory, self._batch = None, None, None
        self._open(cells)
        self._batch = self._c.llama_batch_init(_BATCH, 0, ids)

    def read(self, entries: Sequence[Entry]) -> Tensor:
        """Reads all entries in order: logits float32 [wanted, V], where it can be a view of the library's own memory, which the next `read`
        overwrites. Raises ValueError where the memory is full; what was read until then stays."""
        parts = []
        for at in range(0, len(entries), _BATCH):
            rows = self._decode(entries[at : at + _BATCH])
            parts.append(rows if at + _BATCH >= len(entries) else rows.clone())
        return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else torch.zeros(0, self.model.vocab_size)

    def copy(self, source: int, target: int, start: int = -1, end: int = -1) -> None:
        """Lets the id `target` hold what `source` holds at positions [start, end); nothing is moved."""
        self._c.llama_memory_seq_cp(self._memory, source, target, start, end)

    def cut(self, id: int, start: int = -1) -> bool:
        """Takes back what an id holds from `start` on; False where that cannot be forgotten."""
        return bool(self._c.llama_memory_seq_rm(self._memory, id, start, -1))

    def grow(self, cells: int, held: Iterable[int]) -> None:
        """A memory of at least `cells` tokens, in which the ids `held` hold what they held. Raises ValueError where there is no room; nothing is
        changed then."""
        if cells <= self.cells:
            return
        states = {id: self._state(id) for id in held}
        old = self._pointer
        self._open(max(cells, 2 * self.cells))
        self._c.llama_free(old)
        for id, state in states.items():
            if not self._c.llama_state_seq_set_data(self._pointer, state, len(state), id):
                self.cut(id)
                raise ValueError(f"llama.cpp could not take sequence {id} over into a larger memory")

    def close(self) -> None:
        """Gives the memory back."""
        if self._pointer:
            if self._batch is not None:
                self._c.llama_batch_free(self._batch)
            self._c.llama_free(self._pointer)
            self._pointer = None

    def _open(self, cells: int) -> None:
        params = self._c.llama_context_default_params()
        params.n_ctx = max(cells, _LEAST)
        params.n_seq_max = self._ids
        params.n_batch = params.n_ubatch = _BATCH
        params.n_threads = params.n_threads_batch = self._threads
        params.type_k = params.type_v = self._cache
        params.flash_attn_type = -1 if self._flash else 0  # -1: where it can
        params.kv_unified = True  # ids share what they hold in common, and one text may take all the room
        params.swa_full = True  # a window that slides cannot be taken back
        params.no_perf = True
        library = self.model.library
        library.errors.clear()
        pointer = self._c.llama_init_from_model(self.model.pointer, params)
        if not pointer:
            raise ValueError(f"llama.cpp has no memory for {cells} tokens of '{self.model.path.name}'{library.why()}: ask for less with ctx=...")
        self._pointer, self._memory = pointer, self._c.llama_get_memory(pointer)
        self.cells = int(self._c.llama_n_ctx(pointer))

    def _state(self, id: int) -> Any:
        size = self._c.llama_state_seq_get_size(self._pointer, id)
        state = (ctypes.c_uint8 * size)()
        self._c.llama_state_seq_get_data(self._pointer, state, size, id)
        return state

    def _decode(self, entries: Sequence[Entry]) -> Tensor:
        self._fill(entries)
        if status := self._c.llama_decode(self._pointer, self._batch):
            why = self.model.library.why()
            if status == 1:
                raise ValueError(f"llama.cpp's memory of {self.cells} tokens has no room for {len(entries)} more: ask for more with ctx=...")
            raise RuntimeError(f"llama.cpp could not read {len(entries)} tokens: status {status}{why}")
        wanted = sum(entry.want for entry in entries)
        if not wanted:
            return torch.zeros(0, self.model.vocab_size)
        pointer = ctypes.cast(self._c.llama_get_logits(self._pointer), ctypes.POINTER(ctypes.c_float))
        return torch.from_numpy(np.ctypeslib.as_array(pointer, shape=(wanted, self.model.vocab_size)))

    def _fill(self, entries: Sequence[Entry]) -> None:
        batch, n = self._batch, len(entries)
        assert batch is not None
        batch.n_tokens = n
        columns = zip(*((entry.token, entry.position, len(entry.ids), entry.want) for entry in entries), strict=True)
        for array, column in zip((batch.token, batch.pos, batch.n_seq_id, batch.logits), columns, strict=True):
            np.ctypeslib.as_array(array, shape=(n,))[:] = column
        for i, entry in enumerate(entries):
            for j, id in enumerate(entry.ids):
                batch.seq_id[i][j] = id
