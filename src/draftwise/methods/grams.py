"""STAND's store: for each run of up to `order` tokens the mean law of the target after it, cut to its `top` likeliest tokens.

    k-th repeat of a run:  D <- k/(k+1) D + 1/(k+1) P      over the union of ids; the largest `top` stay, not renormalised

An id that never dropped out of the top keeps its exact mean. Laws are raw softmaxes, so that one store serves requests of any temperature.

Memory: at most `size` runs of (8 top + 4 order + about 150) bytes, in two generations. What is learned goes to the young one, where runs of the
old one follow when they are seen again; when the young one is full the old one leaves, so that half of what is held is what was seen last.
"""

from __future__ import annotations

import hashlib
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from draftwise import wide
from draftwise.files import whole

FORMAT = "draftwise grams 1"
_BITS = 21  # of a token id in a key
_FEW = 16  # rows whose float32 copies exist at once


class Generation:
    """Runs by key, and their figures in arrays that double: `ids` int32 [n, top], -1 where there is none, `p` float32 [n, top], `repeats` [n]."""

    def __init__(self, order: int, top: int, room: int = 64) -> None:
        self.index: dict[int, int] = {}
        self.grams = np.full((room, order), -1, np.int32)
        self.ids = np.full((room, top), -1, np.int32)
        self.p = np.zeros((room, top), np.float32)
        self.repeats = np.zeros(room, np.int32)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays and of the dictionary with its keys."""
        arrays = self.grams.nbytes + self.ids.nbytes + self.p.nbytes + self.repeats.nbytes
        return arrays + sys.getsizeof(self.index) + 2 * 36 * len(self.index)

    def place(self, key: int, gram: Sequence[int]) -> int:
        """Where a run is kept; a new run gets an empty place."""
        at = self.index.get(key)
        if at is None:
            at = self.index[key] = len(self.index)
            if at == len(self.ids):
                grown = Generation(self.grams.shape[1], self.ids.shape[1], 2 * at)
                for name in ("grams", "ids", "p", "repeats"):
                    getattr(grown, name)[:at] = getattr(self, name)
                    setattr(self, name, getattr(grown, name))
            self.grams[at, self.grams.shape[1] - len(gram) :] = gram
        return at

    def copy(self, at: int, other: Generation, there: int) -> None:
        """Takes over the law of a run of another generation."""
        self.ids[at], self.p[at], self.repeats[at] = other.ids[there], other.p[there], other.repeats[there]


class Grams:
    """The store. Raises ValueError for sizes out of range."""

    def __init__(self, order: int = 4, top: int = 10, size: int = 200_000) -> None:
        if order < 1 or top < 1 or size < 2:
            raise ValueError(f"order and top must be at least 1 and size at least 2 runs, got {order}, {top} and {size}")
        self.order, self.top, self.size = order, top, size
        self.young, self.old = Generation(order, top), Generation(order, top)

    def __len__(self) -> int:
        return len(self.young.index) + sum(key not in self.young.index for key in self.old.index)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.young.nbytes + self.old.nbytes

    def find(self, tails: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """For each text the law after the longest run at its end that is known: ids and p [m, top], largest first; all -1 and 0 where none is."""
        ids = np.full((len(tails), self.top), -1, np.int64)
        p = np.zeros((len(tails), self.top))
        for i, tail in enumerate(tails):
            for key in reversed(keys(tail, self.order)):
                at = self.young.index.get(key)
                generation = self.young if at is not None else self.old
                at = self.old.index.get(key) if at is None else at
                if at is not None:
                    ids[i], p[i] = generation.ids[at], generation.p[at]
                    break
        return ids, p

    def learn(self, tails: Sequence[Sequence[int]], logits: Tensor) -> None:
        """Merges rows: raw `logits` [n, V], row i after ``tails[i]``."""
        for start in range(0, len(tails), _FEW):
            self._learn(tails[start : start + _FEW], logits[start : start + _FEW].float())

    def _learn(self, tails: Sequence[Sequence[int]], logits: Tensor) -> None:
        mass = logits.logsumexp(-1, keepdim=True)
        values, found = wide.largest(logits, min(2 * self.top, logits.shape[-1]))  # twice: as many as `top` may be there already
        p, ids = (values - mass).exp().cpu().numpy(), found.to(torch.int32).cpu().numpy()
        pairs = [(key, row, tail[len(tail) - n :]) for row, tail in enumerate(tails) for n, key in enumerate(keys(tail, self.order), 1)]
        while pairs:
            wave = {key: (row, gram) for key, row, gram in reversed(pairs)}  # the first pair of each run; its repeats wait
            rest = [pair for pair in pairs if wave[pair[0]][0] != pair[1]]
            if len(self.young.index) + len(wave) > max(self.size // 2, 1) and self.young.index:
                self.old, self.young = self.young, Generation(self.order, self.top)
            places = np.array([self._place(key, gram) for key, (_, gram) in wave.items()])
            rows = np.array([row for row, _ in wave.values()])
            self._merge(places, p[rows], ids[rows], self._at(logits, mass, rows, self.young.ids[places]))
            pairs = rest

    def _place(self, key: int, gram: Sequence[int]) -> int:
        known = key in self.young.index
        at = self.young.place(key, gram)
        if not known and key in self.old.index:
            self.young.copy(at, self.old, self.old.index[key])
        return at

    @staticmethod
    def _at(logits: Tensor, mass: Tensor, rows: NDArray[Any], ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """The new rows' probabilities of the ids that are held: [m, top], 0 where there is none."""
        r, c = torch.from_numpy(rows).to(logits.device)[:, None], torch.from_numpy(ids.clip(0)).long().to(logits.device)
        found: NDArray[np.float32] = (logits[r, c] - mass[r, 0]).exp().cpu().numpy()
        return np.where(ids >= 0, found, np.float32(0))

    def _merge(self, places: NDArray[Any], p: NDArray[np.float32], ids: NDArray[np.int32], held: NDArray[np.float32]) -> None:
        """The running mean over the union of ids. A mean is rounded to float32 once a repeat."""
        young = self.young
        k = young.repeats[places].astype(np.float64)[:, None]
        old = (k * young.p[places] + held) / (k + 1)
        new = np.where((ids[:, :, None] == young.ids[places][:, None, :]).any(-1), 0, p / (k + 1))
        both, every = np.concatenate([old, new], 1), np.concatenate([young.ids[places], ids], 1)
        order = np.argsort(-both, 1, kind="stable")[:, : self.top]
        kept = np.take_along_axis(both, order, 1)
        young.p[places] = kept
        young.ids[places] = np.where(kept > 0, np.take_along_axis(every, order, 1), -1)
        young.repeats[places] += 1

    def save(self, file: str | Path, model: str) -> None:
        """Writes all runs, those seen last at the end, beside the file and renames. `model`: whose rows they are."""
        fresh = [at for key, at in self.old.index.items() if key not in self.young.index]
        arrays: dict[str, Any] = {
            name: np.concatenate([getattr(self.old, name)[fresh], getattr(self.young, name)[: len(self.young.index)]])
            for name in ("grams", "ids", "p", "repeats")
        }
        with whole(file) as out:
            np.savez(out, **arrays, format=np.array(FORMAT), model=np.array(model))

    def load(self, file: str | Path, model: str) -> None:
        """Takes over the runs of a file, the latest that fit. Raises ValueError for a file that is none, or of another model."""
        found = _read(file)
        if str(found["format"]) != FORMAT:
            raise ValueError(f"{file} is a store of another version ({found['format']}, not {FORMAT}): take another file")
        if str(found["model"]) != model:
            raise ValueError(f"{file} holds rows of another model ({found['model']}), and this one is {model}: take another file")
        order, top = found["grams"].shape[1], found["ids"].shape[1]
        if (order, top) != (self.order, self.top):
            raise ValueError(f"{file} was made with order={order} and top={top}, not {self.order} and {self.top}: set them, or take another file")
        half, n = max(self.size // 2, 1), len(found["ids"])
        self.old, self.young = (self._filled(found, part) for part in (slice(max(0, n - 2 * half), max(0, n - half)), slice(max(0, n - half), n)))

    def _filled(self, found: Any, part: slice) -> Generation:
        grams = found["grams"][part]
        made = Generation(self.order, self.top, max(64, len(grams)))
        for gram in grams.tolist():
            run = [token for token in gram if token >= 0]
            made.place(keys(run, self.order)[-1], run)
        for name in ("ids", "p", "repeats"):
            getattr(made, name)[: len(grams)] = found[name][part]
        return made


def keys(tail: Sequence[int], order: int) -> list[int]:
    """One number for each of the last 1, 2, ... `order` tokens of a text, different for different runs."""
    found, low = [], 0
    for n, token in enumerate(reversed(tail[-order:])):
        low |= token << _BITS * n
        found.append(low | 1 << _BITS * (n + 1))
    return found


def identity(backend: Any) -> str:
    """What tells one model from another, whatever folder it lies in and whatever dtype it is loaded in: its class, the width of its rows, and
    the signs of some of its embeddings."""
    name, weights = type(backend).__name__, ""
    model = getattr(backend, "model", None)
    if model is not None and hasattr(model, "get_input_embeddings"):
        name = type(model).__name__
        flat = model.get_input_embeddings().weight.detach().flatten()
        signs = (flat[:: max(1, len(flat) // 4096)] > 0).cpu().numpy()
        weights = ", weights " + hashlib.sha256(np.packbits(signs).tobytes()).hexdigest()[:12]
    return f"{name} of {getattr(backend, 'vocab_size', 0)} tokens{weights}"


def _read(file: str | Path) -> dict[str, Any]:
    try:
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as found:  # numpy would leave a torn file open
            read = {name: found[name] for name in ("format", "model", "grams", "ids", "p", "repeats")}
        lengths = {len(read[name]) for name in ("grams", "ids", "p", "repeats")}
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} is no store of n-grams ({error}): take another file") from None
    if len(lengths) != 1:
        raise ValueError(f"{file} is no store of n-grams (its parts differ in length): take another file")
    return read
