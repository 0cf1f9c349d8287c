"""A smaller model of the same vocabulary drafts token by token.

The rule: ``q_i = warp(draft logits)``, ``x_i ~ q_i`` (the argmax at temperature 0; ``argmax(ln q_i + g)`` with the target's own Gumbel noise
where the request is coupled). All live sequences go through the draft in one pass a step, and one leaves when its policy says stop. At
temperature 0 the policy may want second choices: the likeliest token but one of a step, as a leaf beside the first, at the price of a row.

Reference: Leviathan, Kalman, Matias 2023 (arXiv 2211.17192); Chen et al. 2023 (arXiv 2302.01318). Differs from them in nothing but that
the draft's cache may lag any number of tokens behind: it reads what it lacks before it drafts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from draftwise import noise, probs, wide
from draftwise.hostrow import HostRow
from draftwise.protocols import Ask, Backend, Encodes
from draftwise.rounds import reads, source_for
from draftwise.types import Draft, DraftStep, Feed, Outcome, Sparse, Text


@dataclass
class _Growing:
    """One ask on its way: `tokens` int64 [1] each, on the draft's device until somebody asks for them."""

    ask: Ask
    tokens: list[Tensor] = field(default_factory=list)
    laws: list[Tensor | Sparse] = field(default_factory=list)
    logits: Tensor | None = None  # room for all rows, of which as many are filled as there are tokens
    figures: list[Tensor] = field(default_factory=list)
    steps: list[DraftStep] = field(default_factory=list)
    seconds: list[int | Tensor] = field(default_factory=list)  # of each step the likeliest token but one, where that may be wanted

    def note(self, token: int, figures: Sequence[float]) -> None:
        """Adds the step of a token. Raises BadLogits."""
        if not math.isfinite(sum(figures)):
            probs.check_finite(torch.tensor(figures))
        self.steps.append(DraftStep(len(self.steps), token, *figures))


class DraftModel:
    """`backend`: the draft. `vocab_size`: width of the target's rows; the draft's are cut or padded with -inf to it (members of one family
    are often padded to different widths). `level`: of its random streams. `chunk`: most text tokens read in one pass.

    Where the target has an encoder, a draft with one reads the same source (and drafts nothing for a source it cannot read). A draft without one
    sees what the target's decoder has written; `source` puts the ids of the source before that. It is worth it for a draft that was trained to go
    on from such a text; features, and ids of an encoder with a vocabulary of its own, are left out."""

    taps: tuple[int, ...] = ()
    has_logits = True
    learns_rows = False

    def __init__(self, backend: Backend, vocab_size: int, level: int = 0, chunk: int = 256, source: bool = False) -> None:
        self.backend, self.vocab_size, self.level, self.chunk = backend, vocab_size, level, chunk
        self.source = source and not isinstance(backend, Encodes)

    @classmethod
    def from_context(cls, context: Any, model: int | str = 1, source: bool = False) -> DraftModel:
        """Built by the catalog. `model`: which of several drafts, by place or name. Raises ValueError where there is no such draft."""
        if context.draft is None:
            raise ValueError("the drafter 'draft-model' needs a draft: name one with draft=... (--draft on the command line)")
        return cls(context.helper(model), context.vocab_size, source=source)

    def lag(self, text: Text) -> int:
        encodes = text.source is not None and not self.backend.length(text.slot) and isinstance(self.backend, Encodes)
        return self._behind(text) + (text.source.shape[-1] if text.source is not None and encodes else 0)

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        growing = [_Growing(ask) for ask in asks]
        live = [g for g in growing if self._room(g) > 0 and reads(self.backend, g.ask.text)]
        self.catch_up([g.ask.text for g in live])
        while live:
            rows = self.backend.forward([self._feed(g) for g in live])
            for g, row in zip(live, rows, strict=True):
                self._extend(g, self.fit(row.logits[-1:]))
            self._to_host([g for g in live if g.ask.more])
            live = [g for g in live if self._goes_on(g)]
        self._to_host(growing)
        return [self._draft(g) for g in growing]

    def observe(self, text: Text, draft: Draft, outcome: Outcome) -> None:
        chain = next((k for k, i in enumerate(outcome.path) if i != k), len(outcome.path))  # what follows was not read here
        known = self._ahead(text) + len(text.tokens) - 1 - (len(outcome.path) - chain)
        self.backend.keep(text.slot, min(self.backend.length(text.slot), known))

    def free(self, text: Text) -> None:
        if text.slot >= 0:
            self.backend.free(text.slot)

    def _room(self, g: _Growing) -> int:
        """How many more tokens fit: the ask, and the draft's own context."""
        return min(g.ask.n, self.backend.max_length - self._ahead(g.ask.text) - len(g.ask.text.tokens)) - len(g.tokens)

    def _ahead(self, text: Text) -> int:
        """Ids of the source that stand before the text; features and foreign ids do not."""
        return len(source) if self.source and (source := text.copyable()) is not None else 0

    def _behind(self, text: Text) -> int:
        """Tokens that the cache lacks."""
        return self._ahead(text) + len(text.tokens) - self.backend.length(text.slot)

    def catch_up(self, texts: Sequence[Text]) -> None:
        """Reads long texts in chunks, so that no attention mask or activation of a whole prompt is made."""
        while behind := [text for text in texts if self._behind(text) > self.chunk]:
            self.backend.forward([Feed(text.slot, self.unread(text)[: self.chunk], 0, source=source_for(self.backend, text)) for text in behind])

    def _feed(self, g: _Growing) -> Feed:
        text = g.ask.text
        return Feed(text.slot, g.tokens[-1] if g.tokens else self.unread(text), 1, source=source_for(self.backend, text))

    def unread(self, text: Text) -> Tensor:
        """What the draft's cache lacks, int64. An id that a narrower draft does not know is read as its last one: worse drafts, no harm."""
        read = self.backend.length(text.slot) - self._ahead(text)
        unread = torch.tensor(text.tokens[max(read, 0) :])
        if read < 0 and text.source is not None:
            unread = torch.cat([text.source[read:].to(unread), unread])
        return unread.clamp(max=self.backend.vocab_size - 1)

    def fit(self, logits: Tensor) -> Tensor:
        """The draft's rows as wide as the target's."""
        missing = self.vocab_size - logits.shape[-1]
        return logits[:, : self.vocab_size] if missing <= 0 else torch.nn.functional.pad(logits, (0, missing), value=-math.inf)

    def _extend(self, g: _Growing, logits: Tensor) -> None:
        row = logits.float()
        known = None if row.device.type != "cpu" else HostRow(row[0]).read(g.ask.text.sampling)
        token, law = self._choose(g, row, known)
        g.tokens.append(token)
        if law is not None:
            g.laws.append(law)
        if known is None:
            g.figures.append(torch.cat([token.double()[:, None], probs.confidence(row, token).double()], -1))
        else:
            g.note(int(token), known.figures(int(token)))
        if g.ask.logits:
            if g.logits is None:
                g.logits = logits.new_empty(g.ask.n, self.vocab_size)
            g.logits[len(g.tokens) - 1] = logits[0]

    def _choose(self, g: _Growing, logits: Tensor, known: HostRow | None) -> tuple[Tensor, Tensor | Sparse | None]:
        """The next token int64 [1] after the row [1, V] (`known`: the same on a host), and the law it was drawn from unless chance had no part."""
        text = g.ask.text
        adjusted = probs.adjust(logits, text.sampling, lambda _: [*text.tokens, *(int(token) for token in g.tokens)])
        if known and adjusted is not logits:
            known = HostRow(adjusted[0])
        if text.sampling.temperature == 0:
            if g.ask.beside and adjusted.shape[-1] > 1:
                g.seconds.append(known.second() if known else adjusted.topk(2, -1).indices[0, 1])
            return torch.tensor([known.argmax()]) if known else wide.argmax(adjusted), None  # what the one-hot law would give
        if text.noise.coupled:
            law = probs.law(adjusted, text.sampling, checked=False)
            race = text.noise.race(0, len(text.tokens) + len(g.tokens), 1, self.vocab_size).to(law.device)
            return (law.double().log() + race).argmax(-1), None
        support = probs.drawn(adjusted, text.sampling, known)
        token = probs.sample(support, text.noise.fresh(noise.DRAFT, self.level, 1))
        return token.clamp(max=self.vocab_size - 1), support  # a law that processors left empty has no token; what it proposes is refused

    @staticmethod
    def _to_host(growing: Sequence[_Growing]) -> None:
        """Brings all figures that are still on the device over in one transfer."""
        if not (waiting := [(g, figures) for g in growing for figures in g.figures]):
            return
        figures = torch.cat([figures for _, figures in waiting])
        for (g, _), (token, *rest) in zip(waiting, figures.tolist(), strict=True):
            g.note(int(token), rest)
        for g in growing:
            g.figures.clear()

    def _goes_on(self, g: _Growing) -> bool:
        if self._room(g) <= 0:
            return False
        return g.ask.more is None or (g.steps[-1].token not in g.ask.text.sampling.stop_ids and g.ask.more(g.steps))

    @staticmethod
    def _draft(g: _Growing) -> Draft:
        laws = probs.stacked(g.laws) if g.laws else None
        logits = None if g.logits is None else g.logits[: len(g.steps)]
        beside = g.ask.beside(g.steps) if g.ask.beside and g.seconds else ()
        steps = [*g.steps, *(_second(g.steps[level], int(g.seconds[level])) for level in beside)]
        parents = torch.tensor([*range(-1, len(g.steps) - 1), *(level - 1 for level in beside)]) if beside else None
        return Draft(torch.tensor([step.token for step in steps], dtype=torch.long), laws, logits, parents, tuple(steps), "draft-model")


def _second(step: DraftStep, token: int) -> DraftStep:
    """The step of the second choice."""
    return step._replace(token=token, prob=step.top2)
