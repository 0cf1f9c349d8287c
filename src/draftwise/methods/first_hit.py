"""First hit: the drafters are asked in turn, and the first that has something drafts the round.

    for part in parts:  draft = part.propose(as many tokens as the part's own length policy wants);  if it is not empty: hand it up

Copies from the text or a store come at no cost and are often long, so they go first; a model, which always has something, goes last. Every part
owns a length policy: a lookup and a model differ in how far they are right. A part that was passed over reads what it missed when it is its turn.
Whether a part has anything must depend on the text alone, never on a draw; then the text before a token decides who drafted it, and what
comes out is as exact as the acceptance rule. The order is that of many engines' "n-gram first" switches; no paper claims it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from draftwise.methods.composed import Parts, is_free, usual
from draftwise.protocols import Ask, Drafter, Length
from draftwise.rounds import NOTHING
from draftwise.types import Draft, Outcome, Text


class FirstHit:
    """`parts` in the order they are asked; `length`: see `draftwise.methods.composed.Parts`. The origin of a draft is the part's.

    Raises ValueError for no parts, and for a model that is not the last of them."""

    def __init__(self, parts: Sequence[Drafter], length: Length | None = None) -> None:
        self._own = Parts("first-hit", parts, length)
        for part in parts[:-1]:
            if not is_free(part):
                raise ValueError(f"{type(part).__name__} always has something to propose, so that nobody after it would be asked: put it last")
        self.parts = self._own.drafters
        self.taps, self.has_logits, self.learns_rows = self._own.taps, self._own.has_logits, self._own.learns_rows
        self.trees, self.level = self._own.trees, self._own.level
        self._made: dict[int, tuple[int, Draft]] = {}

    @classmethod
    def from_context(cls, context: Any, *parts: Any, length: Any = None) -> FirstHit:
        """Built by the catalog: prompt lookup and then the draft model, where no parts are named."""
        return cls(parts or usual(context), length)

    def lag(self, text: Text) -> int:
        """Of the part that drafted last."""
        return self.parts[self._made[text.id][0] if text.id in self._made else 0].lag(text)

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        found = [NOTHING] * len(asks)
        waiting = [j for j, ask in enumerate(asks) if ask.n > 0]
        for i, part in enumerate(self.parts):
            own = {j: asked for j in waiting if (asked := self._own.ask(i, asks[j], len(asks))).n > 0}
            for j, draft in zip(own, part.propose(list(own.values())) if own else [], strict=True):
                found[j] = draft
                self._made[asks[j].text.id] = i, draft
            waiting = [j for j in waiting if not len(found[j].tokens)]
        return found

    def observe(self, text: Text, draft: Draft, outcome: Outcome) -> None:
        self._own.observe(text, draft, outcome)
        i, made = self._made.get(text.id, (0, NOTHING))
        if made is draft and outcome.last is not None:
            self._own.update(i, text, draft, outcome.path, len(outcome.relaxed), outcome.fed)

    def free(self, text: Text) -> None:
        self._own.free(text)
        self._made.pop(text.id, None)
