"""One request: its tokens, its policies with their states, and when it stops. `commit` is the only writer of the tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from draftwise.protocols import Accept, Ask, Drafter, Length, Relax, always, stops
from draftwise.rounds import Judging, judged
from draftwise.trees import levels
from draftwise.types import Chunk, Draft, DraftStep, Now, Origin, Outcome, Round, Text


class Method(NamedTuple):
    """How one request is decoded. The drafter may be shared by many requests; the two policies are values."""

    length: Length
    accept: Accept
    drafter: Drafter


@dataclass(slots=True)
class Sequence:
    """`text.tokens` holds prompt and output; `prompt` tokens of it were given. `limit`: tokens it may grow to. `rounds`: its record."""

    text: Text
    tokens: list[int]
    method: Method
    length_state: Any
    accept_state: Any
    prompt: int
    limit: int
    relax: Relax = always
    rounds: list[Round] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] | None = None

    def ask(self, now: Now, trees: bool = False) -> Ask:
        """What the drafter is asked for in this round; ``n`` may be 0. `trees`: whether the target reads them."""
        length, state = self.method.length, self.length_state
        n = max(0, min(length.budget(state, now), now.room))
        more = (lambda steps: length.more(state, now, steps)) if stops(length, self.method.drafter) else None
        return Ask(self.text, n, more, self.method.accept.wants_logits, now.room, self._beside(now) if trees else None)

    def _beside(self, now: Now) -> Callable[[Seq[DraftStep]], Seq[int]] | None:
        """Which second choices are wanted; None where none may be: in a chain, for a rule that compares rows, or where tokens are drawn."""
        accept, length, state = self.method.accept, self.method.length, self.length_state
        if not accept.trees or accept.wants_logits or self.text.sampling.temperature:
            return None
        own = getattr(length, "beside", None)
        return lambda steps: own(state, now, steps) if own else ()

    def judging(self, draft: Draft) -> Judging:
        """What `verify` is to judge."""
        return Judging(self.text, draft, self.method.accept, self.accept_state, relax=self.relax)

    def commit(
        self, draft: Draft, outcome: Outcome, batch: int, rows: int, draft_s: float, verify_s: float, lag: int = 0, usual_s: float = math.nan
    ) -> Chunk:
        """Appends what was verified, cut at the first stop id and at the limit, and moves both states on."""
        tokens, origins = emitted(draft, outcome)
        tokens = tokens[: self._cut(tokens)]
        self.tokens.extend(tokens)
        drafted = len(draft.tokens)
        depth, steps = levels(draft.parents, drafted), judged(draft, outcome.path)
        finished = self.finish_reason is not None
        accepted = min(len(outcome.path), len(tokens))
        relaxed = sum(i < accepted for i in outcome.relaxed)
        round = Round(drafted, depth, accepted, relaxed, len(tokens), batch, rows, draft_s, verify_s, finished, steps, draft.origin, lag, usual_s)
        self.rounds.append(round)
        self.accept_state = outcome.state
        if (round.drafted or getattr(self.method.length, "rests", False)) and round.emitted and not finished:
            self.length_state = self.method.length.update(self.length_state, round)
        return Chunk(self.text.id, tuple(tokens), origins[: len(tokens)], self.finish_reason, round, outcome.logprobs[: len(tokens)])

    def _cut(self, tokens: list[int]) -> int:
        """How many of the new tokens stay; sets `finish_reason` where the text ends."""
        room = self.limit - len(self.tokens)
        stop = _first(i for i, token in enumerate(tokens[:room]) if token in self.text.sampling.stop_ids)
        if stop is not None:
            self.finish_reason = "stop"
            return stop + 1
        if len(tokens) >= room:
            self.finish_reason = "length"
        return min(len(tokens), room)


def emitted(draft: Draft, outcome: Outcome) -> tuple[list[int], tuple[Origin, ...]]:
    """The tokens of a round and who wrote each."""
    if outcome.last is None:
        return [], ()
    origins: list[Origin] = ["relaxed" if i in outcome.relaxed else "drafted" for i in range(len(outcome.path))]
    return [*draft.tokens[outcome.path].tolist(), outcome.last], (*origins, "target")


def _first(indices: Iterable[int]) -> int | None:
    return next(iter(indices), None)
