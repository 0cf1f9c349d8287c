"""UAG: a draft with another tokenizer writes text, which is tokenised anew with a few tokens before it and aligned with them.

    c = target tokens of (text of the last `lookbehind` tokens + what the draft wrote)
    of all diagonals between those last tokens and c the one with most equal tokens; what lies beyond their end on it is drafted;  probs = None

Universal assisted generation needs no clean boundary: where the new text merges with the committed one, the tokens behind the change are still
taken. Nothing waits for being settled, half characters aside. Verified by exact match, so greedy decoding is unchanged; as one-point laws the
tokens keep the target's law above temperature 0 too. Budgets, steps and rounds are in target tokens, as in `slem`.

Reference: Korat et al. 2024, "Universal assisted generation" (transformers' candidate generator for different tokenizers). Differs from it in
that the draft's side of the context is kept by its own list of ids (there: another window and another alignment), and in that committed
tokens that tokenise anew in another way stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from draftwise.methods.slem import Writer, Written, new_text
from draftwise.methods.tli import Translated, translated
from draftwise.protocols import Ask
from draftwise.types import Draft, Outcome, Text
from draftwise.vocabularies import Pair


class UAG:
    """The draft model of a `Translated` draft, writing text. `lookbehind`: committed tokens to align with. Raises ValueError below 1."""

    taps: tuple[int, ...] = ()
    has_logits = False
    has_steps = True
    learns_rows = False

    def __init__(self, view: Translated, lookbehind: int = 10) -> None:
        if lookbehind < 1:
            raise ValueError(f"lookbehind must be at least 1 token, got {lookbehind}")
        self.lookbehind = lookbehind
        self._writer = Writer(view, partial(aligned, lookbehind), "uag")

    @classmethod
    def from_context(cls, context: Any, lookbehind: int = 10, model: int | str = 1) -> UAG:
        """Built by the catalog. `model`: which of several drafts, by place or name. Raises ValueError for one of the target's vocabulary."""
        return cls(translated(context, "uag", model), lookbehind)

    def lag(self, text: Text) -> int:
        return self._writer.lag(text)

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        return self._writer.propose(asks)

    def observe(self, text: Text, draft: Draft, outcome: Outcome) -> None:
        self._writer.observe(text, draft)

    def free(self, text: Text) -> None:
        self._writer.free(text)


def aligned(lookbehind: int, pair: Pair, written: Written) -> list[int]:
    """The target tokens beyond the end of the committed ones on the best diagonal."""
    last = list(written.tokens[-lookbehind:])
    before, new = new_text(pair, written, last)
    return beyond(last, pair.target.encode(before + new)) if new else []


def beyond(last: Sequence[int], found: Sequence[int]) -> list[int]:
    """What follows `last` in `found`, aligned where most tokens are equal (of several such places the one that moves least); nothing if none is."""
    shifts = range(-len(last) + 1, len(found))
    equal = {shift: sum(token == found[i + shift] for i, token in enumerate(last) if 0 <= i + shift < len(found)) for shift in shifts}
    best = max(equal, key=lambda shift: (equal[shift], -abs(shift)), default=0)
    return list(found[max(0, best + len(last)) :]) if equal.get(best) else []
