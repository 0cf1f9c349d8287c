"""SLEM: a draft with another tokenizer writes text, and the target's tokenizer makes draft tokens of it.

    draft greedily -> its bytes after the committed text -> target tokens, as far as they are settled;  probs = None

String-level exact match: the target samples its own token and a draft token stays where it is the same. That is the rejection test against a
one-point law, so the target's law is kept whatever was written. Budgets, steps and rounds are in target tokens: a target token has the figures
of the draft tokens that begin in it (probabilities multiply, entropies add; where none begins it is certain).

The new text is tokenised together with the last stretches of committed text; where that changes a committed token, for itself. A last token is
settled if the draft ended a token of its own with the very same bytes there; otherwise it may merge with what follows and waits, as half a
character does.

Reference: Timor et al. 2025, "Accelerating LLM inference with lossless speculative decoding algorithms for heterogeneous vocabularies"
(arXiv 2502.05202). Boundaries and settling are a reconstruction. Differs from the paper in that the draft writes greedily at every temperature:
against a one-point law the likeliest text is accepted most often.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from draftwise.methods.draft_model import DraftModel
from draftwise.methods.tli import Translated, translated
from draftwise.protocols import Ask
from draftwise.types import Draft, DraftStep, Outcome, Sampling, Text
from draftwise.vocabularies import Pair, Reading, common, whole, window

_EACH = 4  # draft tokens that a target token may take before the draft gives up


class Written(NamedTuple):
    """What a draft wrote: draft `ids` after the committed target `tokens`. `tail`: the last of those, from where a stretch of text begins. `half`:
    committed bytes that the draft has to write again, the beginning of a character. `ended`: the draft has ended its text."""

    tokens: Sequence[int]
    tail: Sequence[int]
    half: bytes
    ids: Sequence[int]
    ended: bool


Align = Callable[[Pair, Written], list[int]]
"""The target tokens that follow the committed ones."""


class SLEM:
    """The draft model of a `Translated` draft, writing text."""

    taps: tuple[int, ...] = ()
    has_logits = False
    has_steps = True
    learns_rows = False

    def __init__(self, view: Translated) -> None:
        self._writer = Writer(view, settled, "slem")

    @classmethod
    def from_context(cls, context: Any, model: int | str = 1) -> SLEM:
        """Built by the catalog. `model`: which of several drafts, by place or name. Raises ValueError for one of the target's vocabulary."""
        return cls(translated(context, "slem", model))

    def lag(self, text: Text) -> int:
        return self._writer.lag(text)

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        return self._writer.propose(asks)

    def observe(self, text: Text, draft: Draft, outcome: Outcome) -> None:
        self._writer.observe(text, draft)

    def free(self, text: Text) -> None:
        self._writer.free(text)


@dataclass
class _Own:
    """The draft's side of one text: the committed part, all ids it has (or had) in its cache, and how many target tokens it has read."""

    reading: Reading
    ids: list[int] = field(default_factory=list)
    read: int = 0


@dataclass
class _Growing:
    """One ask on its way: the draft's `ids` before it writes, and what it wrote so far as target tokens."""

    ask: Ask
    own: _Own
    ids: list[int]
    tail: list[int]
    half: bytes
    tokens: list[int] = field(default_factory=list)
    steps: list[DraftStep] = field(default_factory=list)
    done: bool = False


class Writer:
    """Lets a foreign draft write and hands up target tokens; `align` says which. Every text has a list of draft ids of its own."""

    def __init__(self, view: Translated, align: Align, origin: str) -> None:
        self.backend, self.pair, self.vocab_size = view.backend, view.pair, view.vocab_size
        self.align, self.origin = align, origin
        self._inner = DraftModel(view.backend, view.backend.vocab_size)
        end = view.pair.draft.end
        self._ends = () if end is None else (end,)
        self._owns: dict[int, _Own] = {}

    def lag(self, text: Text) -> int:
        own = self._owns.get(text.id)
        return len(text.tokens) - (min(own.read, len(text.tokens)) if own else 0)

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        live = [self._begin(ask) for ask in asks if ask.n > 0]
        for g, draft in zip(live, self._inner.propose([self._inward(g) for g in live]), strict=True):
            g.own.ids = g.ids + draft.tokens.tolist()
            self._settle(g, draft.steps, ended=bool(draft.steps) and draft.steps[-1].token in self._ends)
        found = {id(g.ask): g for g in live}
        return [self._draft(found.get(id(ask))) for ask in asks]

    def observe(self, text: Text, draft: Draft) -> None:
        """The next `propose` compares and cuts; what was accepted, the draft has written itself."""
        if text.id in self._owns and len(draft.tokens):
            self._owns[text.id].read = len(text.tokens) - 1

    def free(self, text: Text) -> None:
        self._owns.pop(text.id, None)
        if text.slot >= 0:
            self.backend.free(text.slot)

    def _begin(self, ask: Ask) -> _Growing:
        text = ask.text
        own = self._owns.setdefault(text.id, _Own(Reading(self.pair)))
        read = list(own.reading.read(text.tokens))
        opening = list(self.pair.draft.opening)
        ids = [*([] if read[: len(opening)] == opening else opening), *read] or [self.pair.draft.end or 0]
        room = self.backend.max_length - min(_EACH * ask.n, self.backend.max_length // 2)
        ids = ids[window(ids, room) :]
        self.backend.keep(text.slot, min(common(own.ids, ids), len(ids) - 1, self.backend.length(text.slot)))
        own.ids, own.read = ids, len(text.tokens)
        marks = own.reading.marks[-2:]
        tail = list(text.tokens[marks[0][0] if marks else 0 :])
        committed = self.pair.target.text(tail)
        half = committed[whole(committed) :]
        return _Growing(ask, own, ids, tail, b"" if self.pair.draft.text(ids[-4:]).endswith(half) else half)

    def _inward(self, g: _Growing) -> Ask:
        """The ask in draft tokens: greedy, until the draft ends its text or enough target tokens are there."""
        text = Text(g.ask.text.id, g.ask.text.slot, g.ids, Sampling(stop_ids=self._ends), g.ask.text.noise)
        return Ask(text, _EACH * g.ask.n, lambda steps: self._settle(g, steps))

    def _settle(self, g: _Growing, steps: Sequence[DraftStep], ended: bool = False) -> bool:
        """Brings the target tokens up to date and says whether to go on. The policy is asked of each token in turn, and those after the one it
        stops at are left."""
        stops = g.ask.text.sampling.stop_ids
        ids = [step.token for step in steps][: len(steps) - ended]
        found = [] if g.done else self.align(self.pair, Written(g.ask.text.tokens, g.tail, g.half, ids, ended))
        if ended and not g.done and (end := self._end(g)) is not None:
            found.append(end)
        found = found[: g.ask.n]
        figures = self._figures(found, steps, len(g.half))
        for i in range(common(found, g.tokens), len(found)):
            g.tokens, g.steps = found[: i + 1], figures[: i + 1]
            g.done = i + 1 == g.ask.n or found[i] in stops or (g.ask.more is not None and not g.ask.more(g.steps))
            if g.done:
                break
        return not g.done

    def _end(self, g: _Growing) -> int | None:
        """The target's end of text: its own, or the first that ends this request."""
        own = self.pair.target.end
        return own if own is not None else next(iter(g.ask.text.sampling.stop_ids), None)

    def _figures(self, tokens: Sequence[int], steps: Sequence[DraftStep], lead: int) -> list[DraftStep]:
        """The steps of target tokens: of each, those of the draft tokens that begin in its bytes."""
        begins, at = [], -lead
        for step in steps:
            begins.append(max(at, 0))
            at += len(self.pair.draft.text([step.token])) if step.token not in self._ends else 0
        found, start = [], 0
        for i, token in enumerate(tokens):
            end = start + len(self.pair.target.text([token]))
            last = math.inf if token == self.pair.target.end else end
            found.append(_joined(i, token, [step for step, begin in zip(steps, begins, strict=True) if start <= begin < last]))
            start = end
        return found

    def _draft(self, g: _Growing | None) -> Draft:
        tokens = torch.tensor(g.tokens if g else [], dtype=torch.long)
        return Draft(tokens, steps=tuple(g.steps) if g else (), origin=self.origin)


def settled(pair: Pair, written: Written) -> list[int]:
    """The target tokens of the new text that nothing that follows can change."""
    before, new = new_text(pair, written)
    if not new:
        return []
    found = pair.target.encode(before + new)
    if found[: len(written.tail)] == list(written.tail):
        found = found[len(written.tail) :]
    elif whole(before) == len(before):
        found = pair.target.encode(new)
    else:
        return []  # the rest of a character, which has no tokens of its own
    last = pair.draft.text(written.ids[-1:])
    return found if written.ended or not found or pair.target.text(found[-1:]) == last else found[:-1]


def new_text(pair: Pair, written: Written, last: Sequence[int] | None = None) -> tuple[bytes, bytes]:
    """(the bytes of the `last` committed tokens, those that follow them without a character that is unfinished). The second is b'' where the
    draft did not go on with a character that is half there."""
    before, text = pair.target.text(written.tail if last is None else last), pair.draft.text(written.ids)
    return before, text[len(written.half) : whole(text)] if text.startswith(written.half) else b""


def _joined(i: int, token: int, parts: Sequence[DraftStep]) -> DraftStep:
    """One step of several: the chance of all of them, the likeliest way through, the best way that leaves it once, and the sum of entropies."""
    prob, top1 = math.prod((part.prob for part in parts), start=1.0), math.prod((part.top1 for part in parts), start=1.0)
    top2 = max((top1 / part.top1 * part.top2 for part in parts), default=0.0)
    return DraftStep(i, token, prob, top1, top2, sum((part.entropy for part in parts), 0.0))
