"""One answer of every method, each token coloured by who wrote it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from draftwise.bench.page.canvas import visible
from draftwise.bench.schema import ORIGINS, Row
from draftwise.text import pieces

FILE = "samples.json"
_TOKENS = 110  # of an answer that are shown
_NAMES = {letter: name for name, letter in ORIGINS.items()}


class Sample(NamedTuple):
    """One answer: `runs` are texts with their origin ('drafted', 'relaxed', 'target', or '' where nothing tells the tokens apart)."""

    variant: str
    runs: tuple[tuple[str, str], ...]
    cut: bool


def choose(table: Mapping[str, Sequence[Row]]) -> int | None:
    """The problem to show: the one with most relaxed tokens, of those with equally many the one with most drafted ones. None without origins."""
    n = len(next(iter(table.values()), ()))
    told = ([rows[i].turns[0].origins[:_TOKENS] for rows in table.values() if rows[i].turns and rows[i].turns[0].origins] for i in range(n))
    scores = {i: tuple(sum(origins.count(letter) for origins in some) for letter in "rd") for i, some in enumerate(told) if some}
    return max(scores, key=lambda i: scores[i], default=None)


def samples(table: Mapping[str, Sequence[Row]], folder: Path, tokenizer: Any = None) -> tuple[str, list[Sample]]:
    """The title of the problem, and its answers. Texts of single tokens come from `tokenizer`, which leaves them in ``samples.json`` so that the
    page can be made again where the model is not; without either, answers are shown whole and uncoloured."""
    at = choose(table)
    if at is None:
        return "", []
    rows = {variant: some[at] for variant, some in table.items() if some[at].turns and some[at].turns[0].origins}
    first = next(iter(rows.values()))
    title = f"{first.task}, {first.id}"
    split = _split(rows, tokenizer) if tokenizer is not None else _kept(folder / FILE, title)
    if tokenizer is not None:
        (folder / FILE).write_text(json.dumps({"problem": title, "pieces": split}, ensure_ascii=True) + "\n", encoding="utf-8")
    return title, [_sample(variant, row, split.get(variant)) for variant, row in rows.items()]


def _split(rows: Mapping[str, Row], tokenizer: Any) -> dict[str, list[str]]:
    return {variant: pieces(tokenizer, row.turns[0].tokens)[:_TOKENS] for variant, row in rows.items()}


def _kept(path: Path, title: str) -> dict[str, list[str]]:
    """What an earlier report left, if it is of the same problem."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return dict(found["pieces"]) if isinstance(found, dict) and found.get("problem") == title else {}


def _sample(variant: str, row: Row, split: Sequence[str] | None) -> Sample:
    turn = row.turns[0]
    cut = len(turn.tokens) > _TOKENS
    if split is None or len(split) != min(len(turn.tokens), _TOKENS) or len(turn.origins) != len(turn.tokens):
        return Sample(variant, ((visible(turn.text[: 5 * _TOKENS]), ""),), len(turn.text) > 5 * _TOKENS)
    told = zip(split, turn.origins, strict=False)
    runs = tuple((visible("".join(piece for piece, _ in run)), _NAMES.get(letter, "")) for letter, run in groupby(told, key=_letter))
    return Sample(variant, runs, cut)


def _letter(pair: tuple[str, str]) -> str:
    return pair[1]
