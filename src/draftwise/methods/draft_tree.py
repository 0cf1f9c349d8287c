"""Draft tree: a smaller model drafts several continuations at once, level by level, and the target reads all of them in one pass.

    static:   a token of level d gets shape[d] children:                  shape=4-2-1 is 4 + 8 + 8 tokens
    dynamic:  score(x) = product of the draft's probabilities from the root down to x;  at every level the `width` best leaves are read and get
              `width` children each;  the `nodes` best of all tokens are handed up (children never score above their parents: it is a tree)

Without chance (temperature 0, and under the shared noise of a coupled request, where ln q + g takes the place of ln q) the children of a token are
its likeliest successors. Nothing is read whose children could not be among the best, so that a draft ends early where the model is unsure.

Above temperature 0 siblings are drawn without replacement, one after the other from q without the earlier ones, renormalised. That is
Gumbel-top-k (the k largest of ln q + g), with k random numbers a token and not V. **Why this keeps the target's law:** a judge meets parents before
children and siblings in order, and they were drawn in such an order. So when token x is judged, all that was judged before it had been
drawn before it. If, besides, whether there is to be an x was settled before x was drawn, then x given all that has its stated law, and the rejection
test leaves the target's law whatever the earlier draws were. Hence the drawn tree is never cut back, as EAGLE-2 cuts, by what was drawn. Each level
gets ``nodes / levels`` tokens; a place in it is the j-th child of a token v, worth score(v) times the j-th largest of q(. | v), which is
known before any of them is drawn; the most valuable places are filled, and every token drawn is handed up.

References: Li et al. 2024, "EAGLE-2: faster inference of language models with dynamic draft trees" (arXiv 2406.16858) for the dynamic shape; Miao et
al. 2023, SpecInfer (arXiv 2305.09781) for static ones; Kool, van Hoof, Welling 2019, "Stochastic beams and where to find them"
(arXiv 1903.06059) for siblings without replacement. Differs from EAGLE-2 in drafting with a model of its own, in the early end, and above
temperature 0, where EAGLE-2 takes the likeliest successors as well and judges them as chosen without chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from draftwise import noise, probs, wide
from draftwise.methods.draft_model import DraftModel
from draftwise.protocols import Ask, Backend
from draftwise.rounds import reads, source_for
from draftwise.trees import path_to
from draftwise.types import Draft, DraftStep, Feed, Outcome, Sparse, Text


@dataclass
class _Growing:
    """One ask on its way. Of every token its parent, score, step and (where drawn) law; `frontier`: those whose rows come next (-1: the text's
    end); `fed`: those that the model has read; `best`: of each level the step of the best token."""

    ask: Ask
    levels: int
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    steps: list[DraftStep] = field(default_factory=list)
    laws: list[Tensor | Sparse] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    frontier: list[int] = field(default_factory=lambda: [-1])
    fed: list[int] = field(default_factory=list)
    best: list[DraftStep] = field(default_factory=list)

    @property
    def chosen(self) -> bool:
        """Whether chance has no part in it."""
        return self.ask.text.sampling.temperature == 0 or self.ask.text.noise.coupled

    def score(self, i: int) -> float:
        return self.scores[i] if i >= 0 else 1.0

    def above(self, i: int) -> list[int]:
        """The text and the tokens down to token i."""
        path = path_to(torch.tensor(self.parents), i) if i >= 0 else []
        return [*self.ask.text.tokens, *(self.tokens[j] for j in path)]


class _Drafted:
    """What the model's cache holds of a draft: `base` entries of the text, then the draft's tokens; `at[i]`: where token i lies, or -1."""

    def __init__(self, base: int, at: list[int], tokens: Tensor) -> None:
        self.base, self.at, self.tokens = base, at, tokens


class DraftTree:
    """`backend`: the draft. `shape`: children of a token at each level, as in "4-2-1"; '' = dynamic, with at most `nodes` tokens and `width` as
    above. `vocab_size`, `level`, `chunk`: as in `DraftModel`. Raises ValueError for numbers below 1 and a model that cannot read trees."""

    taps: tuple[int, ...] = ()
    has_logits = True
    learns_rows = False
    trees = True

    def __init__(
        self, backend: Backend, vocab_size: int, shape: str = "", nodes: int = 16, width: int = 4, level: int = 0, chunk: int = 256
    ) -> None:
        if not getattr(backend, "trees", True):
            raise ValueError("this draft reads chains only, by its running state or its own positions: draft-model drafts with it")
        if nodes < 1 or width < 1:
            raise ValueError(f"nodes and width must be at least 1, got {nodes} and {width}")
        self.shape, self.nodes, self.width = _counts(shape), nodes, width
        self.model = DraftModel(backend, vocab_size, level, chunk)
        self.backend, self.level = backend, level
        self._drafted: dict[int, _Drafted] = {}

    @classmethod
    def from_context(cls, context: Any, shape: str | int = "", nodes: int = 16, width: int = 4, model: int | str = 1) -> DraftTree:
        """Built by the catalog. `model`: which of several drafts, by place or name. Raises ValueError where there is no such draft."""
        if context.draft is None:
            raise ValueError("the drafter 'draft-tree' needs a draft: name one with draft=... (--draft on the command line)")
        return cls(context.helper(model), context.vocab_size, str(shape), nodes, width)

    def lag(self, text: Text) -> int:
        known = self._drafted.get(text.id)
        return self.model.lag(text) if known is None else len(text.tokens) - known.base

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        for ask in asks:
            self._forget(ask.text)
        growing = [_Growing(ask, self._levels(ask)) for ask in asks]
        live = [g for g in growing if g.levels > 0 and reads(self.backend, g.ask.text)]
        self.model.catch_up([g.ask.text for g in live])
        while live:
            rows = self.backend.forward([self._feed(g) for g in live])
            for g, row in zip(live, rows, strict=True):
                self._expand(g, self.model.fit(row.logits))
            live = [g for g in live if self._goes_on(g)]
        return [self._draft(g) for g in growing]

    def observe(self, text: Text, draft: Draft, outcome: Outcome) -> None:
        known = self._drafted.pop(text.id, None)
        limit = len(text.tokens) - 1  # a cache is a proper prefix of its text
        if known is None:
            self.backend.keep(text.slot, min(self.backend.length(text.slot), limit))
        else:
            path = [known.at[i] for i in outcome.path] if known.tokens is draft.tokens else []
            end = path.index(-1) if -1 in path else len(path)
            self.backend.keep(text.slot, min(known.base, limit), path[: min(end, max(0, limit - known.base))])

    def free(self, text: Text) -> None:
        self._drafted.pop(text.id, None)
        self.model.free(text)

    def _forget(self, text: Text) -> None:
        """Drops a draft that nobody judged."""
        if text.id in self._drafted:
            self.backend.keep(text.slot, self._drafted.pop(text.id).base)

    def _levels(self, ask: Ask) -> int:
        levels = min(ask.n, self.backend.max_length - len(ask.text.tokens))
        return min(levels, len(self.shape)) if self.shape else levels

    def _feed(self, g: _Growing) -> Feed:
        """The text at first, then all the tokens that have been chosen to be read: what comes last is new."""
        text = g.ask.text
        if g.frontier == [-1]:
            return Feed(text.slot, self.model.unread(text), 1, source=source_for(self.backend, text))
        self.backend.keep(text.slot, len(text.tokens))
        g.fed += g.frontier
        at = {node: i for i, node in enumerate(g.fed)} | {-1: -1}
        tokens = torch.tensor([g.tokens[i] for i in g.fed]).clamp(max=self.backend.vocab_size - 1)
        parents = torch.tensor([at[g.parents[i]] for i in g.fed])
        return Feed(text.slot, tokens, len(g.frontier), parents, source_for(self.backend, text))

    def _expand(self, g: _Growing, logits: Tensor) -> None:
        """Adds a level below the frontier, whose rows are `logits` [F, V], and chooses the next one."""
        text, raw = g.ask.text, logits.float()
        probs.check_finite(raw.amax(-1))
        adjusted = probs.adjust(raw, text.sampling, lambda i: g.above(g.frontier[i]))
        first = len(g.tokens)
        children = self._chosen(g, adjusted) if g.chosen else self._drawn(g, adjusted)
        for row, token, score in children:
            g.tokens.append(token)
            g.parents.append(g.frontier[row])
            g.scores.append(score)
            if g.ask.logits:
                g.logits.append(logits[row : row + 1].clone())
        g.steps += _steps(first, raw, [(row, token) for row, token, _ in children])
        new = sorted(range(first, len(g.tokens)), key=lambda i: -g.scores[i])
        g.best += [g.steps[i]._replace(index=len(g.best)) for i in new[:1]]
        new = [i for i in new if g.tokens[i] not in text.sampling.stop_ids]
        g.frontier = sorted(new if self.shape else self._promising(g, new)[: self.width])

    def _promising(self, g: _Growing, new: list[int]) -> list[int]:
        """Those whose children can still be handed up: where the best are handed up, those that are among the best so far."""
        if not g.chosen or len(g.scores) < self.nodes:
            return new
        least = sorted(g.scores)[-self.nodes]
        return [i for i in new if g.scores[i] > least]

    def _chosen(self, g: _Growing, adjusted: Tensor) -> list[tuple[int, int, float]]:
        """The likeliest children of each row: (row, token, score)."""
        text, k = g.ask.text, self.shape[len(g.best)] if self.shape else self.width
        if text.sampling.temperature > 0:
            law = probs.law(adjusted, text.sampling, checked=False).double().log()
            adjusted = law + text.noise.race(0, len(text.tokens) + len(g.best), 1, self.model.vocab_size).to(law.device)
        found, ids = wide.largest(adjusted, min(k, adjusted.shape[-1]))
        shares = (found - adjusted.logsumexp(-1, keepdim=True)).exp()
        rows = enumerate(zip(ids.tolist(), shares.tolist(), strict=True))
        return [
            (row, token, share * g.score(g.frontier[row]))
            for row, (tokens, some) in rows
            for token, share in zip(tokens, some, strict=True)
            if share > 0
        ]

    def _drawn(self, g: _Growing, adjusted: Tensor) -> list[tuple[int, int, float]]:
        """As `_chosen`, drawn without replacement; `laws` gets the law of each. How many each row gets is settled by the laws alone."""
        rows = [probs.drawn(row[None], g.ask.text.sampling) for row in adjusted]
        found = []
        for row, (law, k) in enumerate(zip(rows, self._places(g, rows), strict=True)):
            whole, u = law, g.ask.text.noise.fresh(noise.DRAFT, self.level, k)
            for j in range(k):
                token = probs.sample(law, u[j : j + 1]).clamp(max=self.model.vocab_size - 1)
                found.append((row, int(token), float(probs.picked(whole, token)) * g.score(g.frontier[row])))
                g.laws.append(law)
                law = without(law, token)
        return found

    def _places(self, g: _Growing, rows: Sequence[Tensor | Sparse]) -> list[int]:
        """How many children each row gets: no more than its law has tokens."""
        k = self.shape[len(g.best)] if self.shape else max(1, (self.nodes - len(g.tokens)) // (g.levels - len(g.best)))
        tops = [wide.largest(law.p if isinstance(law, Sparse) else law, min(k, _width(law)))[0][0].tolist() for law in rows]
        places = [(share * g.score(g.frontier[row]), row) for row, top in enumerate(tops) for share in top if share > 0]
        if not self.shape:
            places = sorted(places, reverse=True)[:k]
        return [sum(row == mine for _, row in places) for mine in range(len(rows))]

    def _goes_on(self, g: _Growing) -> bool:
        if not g.frontier or len(g.best) >= g.levels or (not g.chosen and not self.shape and len(g.tokens) >= self.nodes):
            return False
        return g.ask.more is None or g.ask.more(g.best)

    def _draft(self, g: _Growing) -> Draft:
        """What is handed up; notes where its tokens lie in the model's cache."""
        kept = list(range(len(g.tokens)))
        if g.chosen and not self.shape:
            kept = sorted(sorted(kept, key=lambda i: -g.scores[i])[: self.nodes])
        new, base = {old: i for i, old in enumerate(kept)} | {-1: -1}, len(g.ask.text.tokens)
        at = {old: base + i for i, old in enumerate(g.fed)}
        tokens = torch.tensor([g.tokens[i] for i in kept], dtype=torch.int64)
        if g.best:
            self._drafted[g.ask.text.id] = _Drafted(base, [at.get(i, -1) for i in kept], tokens)
        return Draft(
            tokens,
            probs.stacked(g.laws) if g.laws else None,
            torch.cat([g.logits[i] for i in kept]) if g.logits else None,
            torch.tensor([new[g.parents[i]] for i in kept], dtype=torch.int64),
            tuple(g.steps[old]._replace(index=i) for i, old in enumerate(kept)),
            "draft-tree",
        )


def without(law: Tensor | Sparse, token: Tensor) -> Tensor | Sparse:
    """A law [1, V] of more than one token, given that it is not `token` (int64 [1])."""
    if isinstance(law, Sparse):
        rest = law.p.masked_fill(law.ids == token, 0)
        return Sparse(law.ids, rest / rest.sum(dtype=torch.float64).clamp(min=1e-38))
    rest = law.clone()
    rest[0, token] = 0
    return rest.div_(rest.sum(dtype=torch.float64).clamp(min=1e-38))


def _width(law: Tensor | Sparse) -> int:
    return int((law.p if isinstance(law, Sparse) else law).shape[-1])


def _steps(first: int, raw: Tensor, found: Sequence[tuple[int, int]]) -> list[DraftStep]:
    """The steps of tokens ``first ..``, which follow the rows `raw` [F, V]: pairs (row, token)."""
    if not found:
        return []
    rows, tokens = (torch.tensor(side, device=raw.device) for side in zip(*found, strict=True))
    figures = probs.confidence(raw, wide.argmax(raw)).tolist()
    shares = (raw[rows, tokens] - raw.amax(-1)[rows]).exp().tolist()
    known = enumerate(zip(found, shares, strict=True), first)
    return [DraftStep(i, token, share * figures[row][1], *figures[row][1:]) for i, ((row, token), share) in known]


def _counts(shape: str) -> tuple[int, ...]:
    """ "4-2-1" as numbers."""
    try:
        counts = tuple(int(part) for part in shape.split("-")) if shape else ()
    except ValueError:
        counts = (0,)
    if any(count < 1 for count in counts):
        raise ValueError(f"shape must be children per level, such as 4-2-1, or '' for a dynamic tree, got {shape!r}")
    return counts
