"""Cascade: a model that verifies a smaller drafter's tokens is itself a drafter.

    until n tokens are there:  the inner drafter proposes, this model verifies, and what it emits is appended
    handed up: all of them, with this model's own laws (never those of the residuals they were drawn from)

With a lossless rule the tokens are exact samples of this model whatever proposed them, so the level above verifies against q = this model's rows.
With a lossy rule their law is not known; they are then handed up without one, and the level above still is exact. What a round brings beyond
n is kept as far as the text has room. Cascades nest: HSD's hierarchies of any depth, FLy's second level (a draft model sped up by prompt lookup).

References: Globerson et al. 2025, "Fast inference via hierarchical speculative decoding" (arXiv 2510.19705); Li et al. 2025 (FLy, arXiv 2511.22972).
Every level reads streams of its own, counted by use: a position that is drafted again gets new numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from draftwise import probs
from draftwise.methods.composed import models
from draftwise.methods.coupled import Coupled
from draftwise.methods.fixed import Fixed
from draftwise.methods.prompt_lookup import PromptLookup
from draftwise.methods.speculative import Speculative
from draftwise.protocols import Accept, Ask, Backend, Drafter, Length, needs_steps, stops
from draftwise.rounds import NOTHING, Judging, judged, reads, verify
from draftwise.trees import levels
from draftwise.types import Draft, DraftStep, Now, Outcome, Round, Text


@dataclass
class _Growing:
    """One ask on its way: `text` with what was emitted so far; its states outlive the ask."""

    ask: Ask
    text: Text
    tokens: list[int]
    begin: int
    laws: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    steps: list[DraftStep] = field(default_factory=list)

    @property
    def most(self) -> int:
        return max(self.ask.n, self.ask.most)

    @property
    def emitted(self) -> int:
        return len(self.tokens) - self.begin


class Cascade:
    """`backend` verifies what `inner` proposes, `length` and `accept` being this level's own policies. `vocab_size`: of the target's rows.

    Raises ValueError for parts that do not fit together."""

    taps: tuple[int, ...] = ()
    has_logits = True
    learns_rows = False

    def __init__(self, backend: Backend, vocab_size: int, inner: Drafter, length: Length, accept: Accept, chunk: int = 256) -> None:
        if needs_steps(length, inner):
            raise ValueError(f"{type(length).__name__} stops on a draft's confidence, and {type(inner).__name__} has none: use another length")
        if accept.wants_logits and not inner.has_logits:
            raise ValueError(f"{type(accept).__name__} compares laws, and {type(inner).__name__} has none: use another rule")
        if getattr(inner, "trees", False) and not (accept.trees and getattr(backend, "trees", True)):
            raise ValueError(f"{type(inner).__name__} proposes trees, and {type(accept).__name__} or the model of this level knows chains only")
        if any(below is backend for below in models(inner)):
            raise ValueError("a level cannot verify its own drafts: each level of a hierarchy needs a model of its own (model=2 is the second)")
        if backend.vocab_size != vocab_size:
            raise ValueError(f"a level of {backend.vocab_size} tokens cannot verify for a target of {vocab_size}: all levels share one vocabulary")
        self.backend, self.inner, self.length, self.accept, self.chunk = backend, inner, length, accept, chunk
        self.level = getattr(inner, "level", 0) + 1
        self._states: dict[int, tuple[Any, Any]] = {}

    @classmethod
    def from_context(cls, context: Any, inner: Any = None, length: Any = None, accept: Any = None, model: int | str = 1) -> Cascade:
        """Built by the catalog. `model`: which of several drafts verifies here, by place or name. Raises ValueError where there is no such draft."""
        if context.draft is None:
            raise ValueError("the drafter 'cascade' needs a draft that verifies: name one with draft=... (--draft on the command line)")
        return cls(context.helper(model), context.vocab_size, inner or PromptLookup(), length or Fixed(4), accept or Speculative())

    def lag(self, text: Text) -> int:
        return len(text.tokens) - self.backend.length(text.slot)

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        growing = [self._begin(ask) for ask in asks]
        live = [g for g in growing if self._goes_on(g) and reads(self.backend, g.text)]
        while live:
            drafts = self._drafts(live)
            rules = [self._rule(g) for g in live]
            judgings = [
                Judging(g.text, draft, rule, self._states[g.text.id][1], self.level, laws=self._lawful(g))
                for g, draft, rule in zip(live, drafts, rules, strict=True)
            ]
            for g, draft, outcome in zip(live, drafts, verify(self.backend, judgings, self.chunk), strict=True):
                self._take(g, draft, outcome, len(live))
            live = [g for g in live if self._goes_on(g)]
        return [self._draft(g) for g in growing]

    def observe(self, text: Text, draft: Draft, outcome: Outcome) -> None:
        self.backend.keep(text.slot, min(self.backend.length(text.slot), len(text.tokens) - 1))
        self.inner.observe(text, draft, outcome)

    def free(self, text: Text) -> None:
        if text.slot >= 0:
            self.backend.free(text.slot)
        self.inner.free(text)
        self._states.pop(text.id, None)

    def _begin(self, ask: Ask) -> _Growing:
        tokens = list(ask.text.tokens)
        self._states.setdefault(ask.text.id, (self.length.init(None), self.accept.init(None)))
        return _Growing(ask, ask.text._replace(tokens=tokens), tokens, len(tokens))

    def _room(self, g: _Growing) -> int:
        """How many more tokens can be emitted."""
        return min(g.most - g.emitted, self.backend.max_length - len(g.tokens))

    def _goes_on(self, g: _Growing) -> bool:
        if g.emitted >= g.ask.n or self._room(g) <= 0:
            return False
        if g.emitted and g.tokens[-1] in g.text.sampling.stop_ids:
            return False
        return not g.steps or g.ask.more is None or g.ask.more(g.steps)

    def _drafts(self, live: Sequence[_Growing]) -> list[Draft]:
        """What the inner drafter proposes, asked once for all that are not still reading their prompt."""
        asks: dict[int, Ask] = {}
        for i, g in enumerate(live):
            state, lag = self._states[g.text.id][0], self.lag(g.text)
            now = Now(len(live), len(g.tokens), self._room(g) - 1, self.inner.lag(g.text))
            n = 0 if lag > self.chunk else max(0, min(self.length.budget(state, now), now.room))
            if n:
                asked = stops(self.length, self.inner)
                more = (lambda steps, state=state, now=now: self.length.more(state, now, steps)) if asked else None
                asks[i] = Ask(g.text, n, more, self.accept.wants_logits, now.room)
        found = dict(zip(asks, self.inner.propose(list(asks.values())), strict=True)) if asks else {}
        return [found.get(i, NOTHING) for i in range(len(live))]

    def _rule(self, g: _Growing) -> Accept:
        """A coupled request is coupled on all levels: each then emits its own argmax under the shared noise."""
        return Coupled() if g.text.noise.coupled else self.accept

    def _lawful(self, g: _Growing) -> bool:
        return self.accept.lossless and g.text.sampling.temperature > 0 and not g.text.noise.coupled

    def _take(self, g: _Growing, draft: Draft, outcome: Outcome, batch: int) -> None:
        """Appends what this level emitted, with its rows, and moves the states on."""
        if outcome.last is None:
            return
        emitted = [*draft.tokens[outcome.path].tolist(), outcome.last]
        rows = outcome.rows.logits[[0, *(i + 1 for i in outcome.path)]]
        figures = probs.confidence(rows, torch.tensor(emitted, device=rows.device)).tolist()
        g.steps += [DraftStep(len(g.steps) + i, token, *row) for i, (token, row) in enumerate(zip(emitted, figures, strict=True))]
        if outcome.laws is not None:
            g.laws.append(outcome.laws)
        if g.ask.logits:
            g.logits.append(rows.clone())
        g.tokens += emitted
        n, accepted = len(draft.tokens), len(outcome.path)
        depth, steps = levels(draft.parents, n), judged(draft, outcome.path)
        round = Round(n, depth, accepted, len(outcome.relaxed), len(emitted), batch, outcome.fed, 0.0, 0.0, steps=steps)
        state = self._states[g.text.id][0]
        self._states[g.text.id] = (self.length.update(state, round) if n else state), outcome.state
        self.inner.observe(g.text, draft, outcome)

    def _draft(self, g: _Growing) -> Draft:
        tokens = torch.tensor(g.tokens[g.begin :][: g.most], dtype=torch.long)
        n = len(tokens)
        laws = torch.cat(g.laws)[:n] if g.laws else None
        return Draft(tokens, laws, torch.cat(g.logits)[:n] if g.logits else None, None, tuple(g.steps[:n]), "cascade")
