"""What drafters made of drafters share: each part has a length policy of its own, with a state for each text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from draftwise.methods.draft_model import DraftModel
from draftwise.methods.gammatune import GammaTune, GammaTunePlus
from draftwise.methods.prompt_lookup import PromptLookup
from draftwise.protocols import Ask, Drafter, Length, needs_steps
from draftwise.rounds import judged
from draftwise.trees import levels
from draftwise.types import Draft, DraftStep, Now, Outcome, Round, Text

Passes = tuple[tuple[int, float], ...]
"""(rows, seconds) of target passes."""


class Cost(NamedTuple):
    """Of one round of one part: seconds of its proposal and of the pass, how many tokens it had not read, and what such a round usually takes."""

    draft_s: float = 0.0
    verify_s: float = 0.0
    lag: int = 0
    usual_s: float = math.nan


FREE = Cost()


class Parts:
    """`drafters` and, one for each, `lengths`. A drafter without rows cannot be stopped by its confidence: where `length` cannot do without that it
    gets GammaTune's lengths instead. Without a `length` drafters with rows have GammaTune+'s. Raises ValueError for no drafters."""

    def __init__(self, owner: str, drafters: Sequence[Drafter], length: Length | None = None) -> None:
        if not drafters:
            raise ValueError(f"{owner!r} needs at least one drafter: {owner}:[prompt-lookup],[draft-model]")
        self.drafters = tuple(drafters)
        own = length or GammaTunePlus()
        self.lengths = tuple(GammaTune() if needs_steps(own, part) else own for part in drafters)
        self.taps = tuple(sorted({tap for part in drafters for tap in part.taps}))
        self.has_logits = all(part.has_logits for part in drafters)
        self.learns_rows = any(part.learns_rows for part in drafters)
        self.trees = any(getattr(part, "trees", False) for part in drafters)
        self.level = max(getattr(part, "level", 0) for part in drafters)
        self.states: dict[int, list[Any]] = {}
        self._last: list[Any] = [None] * len(drafters)  # of the text that ended last

    def ask(self, i: int, ask: Ask, batch: int, costs: tuple[float, Passes] = (math.nan, ())) -> Ask:
        """What part `i` is asked for where the whole is asked for `ask`: no more than its own policy wants. `costs`: as `Now.draft_s` and
        `Now.verify_s`, the latter by the rows of one sequence."""
        length, state = self.lengths[i], self._state(ask.text)[i]
        now = Now(batch, len(ask.text.tokens), max(ask.n, ask.most), self.drafters[i].lag(ask.text), *costs)

        def more(steps: Sequence[DraftStep]) -> bool:
            return (not length.per_token or length.more(state, now, steps)) and (ask.more is None or ask.more(steps))

        n = max(0, min(length.budget(state, now), ask.n))
        chosen = getattr(length, "beside", None)
        beside = (lambda steps: chosen(state, now, steps)) if ask.beside and chosen else ask.beside
        return ask._replace(n=n, more=more if length.per_token or ask.more else None, beside=beside)

    def expected(self, i: int, text: Text, steps: Sequence[DraftStep]) -> float | None:
        """The tokens of a round with a draft of part `i`, as its policy sees it; None where it does not say, or has no steps to say it by."""
        expects = getattr(self.lengths[i], "expected", None)
        return float(expects(self._state(text)[i], steps)) if expects and steps else None

    def foreseen(self, i: int, text: Text, n: float) -> float | None:
        """The tokens of a round in which part `i` drafts so many, as its policy sees it before; None where it does not say."""
        foresees = getattr(self.lengths[i], "foreseen", None)
        return float(foresees(self._state(text)[i], n)) if foresees else None

    def update(self, i: int, text: Text, draft: Draft, path: list[int], relaxed: int = 0, rows: int = 0, cost: Cost = FREE) -> None:
        """Part `i`'s policy hears what was accepted of its draft; not of an empty draft, nor where the text ended."""
        if (n := len(draft.tokens)) and text.tokens[-1] not in text.sampling.stop_ids:
            steps = judged(draft, path)
            depth, (draft_s, verify_s, lag, usual_s) = levels(draft.parents, n), cost
            round = Round(n, depth, len(path), relaxed, len(path) + 1, 1, rows, draft_s, verify_s, steps=steps, lag=lag, usual_s=usual_s)
            self._hear(i, text, round)

    def rest(self, i: int, text: Text, rows: int, verify_s: float, emitted: int = 1) -> None:
        """Part `i`'s policy hears of a round in which it had no draft, if it wants to."""
        if getattr(self.lengths[i], "rests", False):
            self._hear(i, text, Round(0, 0, 0, 0, emitted, 1, rows, 0.0, verify_s))

    def observe(self, text: Text, draft: Draft, outcome: Outcome) -> None:
        """All parts hear of it, whoever drafted."""
        for part in self.drafters:
            part.observe(text, draft, outcome)

    def free(self, text: Text) -> None:
        for part in self.drafters:
            part.free(text)
        self._last = self.states.pop(text.id, self._last)

    def _hear(self, i: int, text: Text, round: Round) -> None:
        states = self._state(text)
        states[i] = self.lengths[i].update(states[i], round)

    def _state(self, text: Text) -> list[Any]:
        if text.id not in self.states:
            self.states[text.id] = [length.init(last) for length, last in zip(self.lengths, self._last, strict=True)]
        return self.states[text.id]


def usual(context: Any) -> tuple[Drafter, ...]:
    """Prompt lookup, and the draft model where there is one."""
    return (PromptLookup(), DraftModel.from_context(context)) if context.draft is not None else (PromptLookup(),)


def is_free(part: Drafter) -> bool:
    """Whether a proposal costs next to nothing: no model is asked."""
    return not any(models(part))


def models(drafter: Any) -> Iterator[Any]:
    """The models at work in a drafter and below it."""
    if (own := getattr(drafter, "backend", None)) is not None:
        yield own
    for below in (*filter(None, [getattr(drafter, "inner", None)]), *getattr(drafter, "parts", ())):
        yield from models(below)
