"""The file of a trace: what policies looked at in one answer, in columns, with a header in JSON.

One ``.npz`` per answer, without pickles, written beside its place and renamed. Columns of `ROUNDS` have one entry per round (prompt chunks
included), those of `TOKENS` one per drafted token, round after round. A round may have one token more than it drafted: what the drafter
would have proposed after a fully accepted draft, asked for after the answer was done (``beyond``). Floats are stored in the precision they
were computed in, so that a rule decides on them as it did while decoding. What there is to read is described in docs/replay.md.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from draftwise.files import whole

FORMAT, VERSION = "draftwise-trace", 1
TOP = 8  # entries of a stored row
ROUNDS: dict[str, str] = dict.fromkeys(
    ("drafted", "depth", "accepted", "relaxed", "emitted", "batch", "rows", "asked", "lag", "bonus", "beyond"), "i4"
)
ROUNDS |= dict.fromkeys(("draft_s", "verify_s", "record_s", "now_draft_s"), "f8") | {"finished": "?", "now_costs": "i4"}
TOKENS: dict[str, str] = {"token": "i4", "choice": "i4", "match": "?", "allowed": "?", "u": "f8", "sample": "f8", "distance": "f4"}
LAWS = ("law", "raw", "draft")  # the target's warped law, its raw softmax, the draft's raw softmax
FIGURES = ("prob", "top1", "top2", "entropy")
TOKENS |= {f"{law}_{figure}": "f4" for law in LAWS for figure in FIGURES} | {"q": "f4"}
TOPS = {"target_ids": "i4", "target_probs": "f4", "draft_ids": "i4", "draft_probs": "f4"}  # [tokens, TOP]; id -1 = no such entry
FLAT = {"emitted_tokens": "i4", "cost_rows": "i4", "cost_seconds": "f8"}  # the answer; the costs of `Now`, `now_costs` pairs a round
NEEDED = ("prompt", "limit", "sampling", "length", "accept", "lossless", "coupled", "origin", "any_prefix", "fresh", "budgeted", "about")


@dataclass(frozen=True, eq=False)
class Trace:
    """One answer. `header`: see docs/replay.md. `columns`: name -> array."""

    header: Mapping[str, Any]
    columns: Mapping[str, NDArray[Any]]
    name: str = ""

    @cached_property
    def lists(self) -> dict[str, list[Any]]:
        """The columns as plain Python values."""
        return {name: column.tolist() for name, column in self.columns.items()}

    @cached_property
    def first(self) -> list[int]:
        """Where the tokens of each round begin; one more entry than rounds."""
        counts = self.columns["drafted"] + self.columns["beyond"]
        return [0, *np.cumsum(counts).tolist()]

    @cached_property
    def contexts(self) -> list[int]:
        """Tokens of the text at the start of each round, and at its end."""
        return [self.prompt, *(self.prompt + np.cumsum(self.columns["emitted"])).tolist()]

    @property
    def prompt(self) -> int:
        """Tokens of the prompt."""
        return int(self.header["prompt"])

    @property
    def greedy(self) -> bool:
        """Whether it was decoded at temperature 0."""
        return bool(self.header["sampling"]["temperature"] == 0)


def save(path: str | os.PathLike[str], trace: Trace) -> None:
    """Writes a trace; whoever reads `path` sees the old file or the new one, whole."""
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    header = {"format": FORMAT, "version": VERSION, **trace.header}
    arrays: dict[str, Any] = {"header": np.frombuffer(json.dumps(header, allow_nan=False).encode(), dtype=np.uint8), **trace.columns}
    with whole(place) as file:
        np.savez_compressed(file, **arrays)


def load(path: str | os.PathLike[str]) -> Trace:
    """Reads a trace. Raises ValueError, in one sentence, for a file that is cut off, damaged, of another kind, or newer than this version."""
    place = Path(path)
    try:
        with place.open("rb") as file:
            arrays = _arrays(np.load(file, allow_pickle=False))
        header = json.loads(bytes(arrays.pop("header")))
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError) as error:  # ValueError: no JSON, no UTF-8, or a pickle
        why = " ".join(str(error).split())[:100]
        raise ValueError(f"{place.name} is no trace of draftwise, or was cut off ({why})") from None
    _check_header(place.name, header)
    _check_columns(place.name, arrays)
    return Trace(header, arrays, place.name)


def _arrays(found: Any) -> dict[str, NDArray[Any]]:
    """All arrays of an open archive. Raises ValueError for a single array."""
    if not isinstance(found, np.lib.npyio.NpzFile):
        raise ValueError("a single array")
    with found:
        return {name: found[name] for name in found.files}


def load_all(paths: Iterable[str | os.PathLike[str]]) -> list[Trace]:
    """The traces of files, and of folders with everything below them, by name. Raises ValueError where there is none."""
    found: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(p for p in path.rglob("*.npz") if not p.name.startswith(".")) if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"there is no trace (*.npz) in {path}")
        found += inside
    return [load(path) for path in found]


def _check_header(name: str, header: Any) -> None:
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{name} is no trace of draftwise")
    if header.get("version") != VERSION:
        raise ValueError(f"{name} is a trace of version {header.get('version')}, and this draftwise reads version {VERSION}: update it")
    if missing := [key for key in NEEDED if key not in header]:
        raise ValueError(f"{name} is a damaged trace: its header lacks {', '.join(missing)}")


def _check_columns(name: str, columns: Mapping[str, NDArray[Any]]) -> None:
    """Raises ValueError unless every column is there, of its kind, and as long as the others say."""
    wanted = {**ROUNDS, **TOKENS, **TOPS, **FLAT}
    if missing := [key for key in wanted if key not in columns or columns[key].dtype.kind != np.dtype(wanted[key]).kind]:
        raise ValueError(f"{name} is a damaged trace: it lacks {', '.join(missing)}")
    rounds = len(columns["drafted"])
    tokens = int((columns["drafted"] + columns["beyond"]).sum()) if len({len(columns[key]) for key in ROUNDS}) == 1 else -1
    pairs = int(columns["now_costs"].sum())
    sizes = [(key, rounds) for key in ROUNDS] + [(key, tokens) for key in [*TOKENS, *TOPS]]
    sizes += [("emitted_tokens", int(columns["emitted"].sum())), ("cost_rows", pairs), ("cost_seconds", pairs)]
    if wrong := [key for key, size in sizes if len(columns[key]) != size]:
        raise ValueError(f"{name} is a damaged trace: the lengths of {', '.join(wrong[:4])} do not fit")
