"""TLI: a draft with another tokenizer drafts the tokens that both vocabularies have.

    q'(x) = q(x) / sum of q over the shared tokens;  x ~ q', named by its target id;  then rejection sampling against p over the whole vocabulary

Token-level intersection keeps the target's distribution: what p has outside the intersection is reached through the residual. `Translated` shows
the draft as a model over the target's vocabulary: tokens go in and rows come out by target ids, -inf where a token is not shared; figures and
distances are those of the cut row. With that everything that drafts with a model works with a foreign one too. The text, what was
drafted included, is tokenised anew for the draft, from space to space; only what that changes is read again.

Reference: Timor et al. 2025, "Accelerating LLM inference with lossless speculative decoding algorithms for heterogeneous vocabularies"
(arXiv 2502.05202). Ours beyond the paper: the ends of both vocabularies are each other's, a form that a vocabulary has twice is shared once,
and of a text longer than the draft's context the beginning is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from draftwise.methods.draft_model import DraftModel
from draftwise.protocols import Ask, Backend
from draftwise.trees import is_chain
from draftwise.types import Draft, Feed, Outcome, Rows, Text
from draftwise.vocabularies import Pair, Reading, common, window


@dataclass
class _Slot:
    """One text: `tokens` in target ids as far as they were fed, and `fed`, the draft ids its cache holds (or held: the backend knows)."""

    reading: Reading
    tokens: list[int] = field(default_factory=list)
    fed: list[int] = field(default_factory=list)


@dataclass
class _Plan:
    """A feed translated: `ids` are the whole text in draft ids, of which the cache holds `kept`; `ends`: for each wanted row, how many of `ids` it
    follows."""

    slot: _Slot
    tokens: list[int]
    ids: list[int]
    ends: list[int]
    kept: int = 0

    def feed(self, slot: int) -> Feed:
        return Feed(slot, torch.tensor(self.ids[self.kept :], dtype=torch.long), len(self.ids) - self.ends[0] + 1 if self.ends else 0)


class Translated:
    """`backend`, a draft with a vocabulary of its own, as a `Backend` of `vocab_size` tokens, those of the target. `drafter`: the catalog's drafter
    that takes the place of 'draft-model' with it; `note` tells the user. Reads chains only; its texts may be of any length."""

    trees = False

    def __init__(self, backend: Backend, pair: Pair, vocab_size: int, drafter: str = "tli", note: str = "") -> None:
        self.backend, self.pair, self.vocab_size, self.drafter, self.note = backend, pair, vocab_size, drafter, note
        self.max_length = 2**31
        rows = [(i, j) for i, j in pair.shared.items() if i < vocab_size and j < backend.vocab_size]
        self._ours, self._theirs = torch.tensor(rows, dtype=torch.long).reshape(-1, 2).T.contiguous()
        self._slots: dict[int, _Slot] = {}

    @property
    def device(self) -> Any:
        """That of the draft."""
        return getattr(self.backend, "device", torch.device("cpu"))

    @property
    def dtype(self) -> Any:
        """That of the draft."""
        return getattr(self.backend, "dtype", torch.float32)

    def length(self, slot: int) -> int:
        return len(self._slots[slot].tokens) if slot in self._slots else 0

    def forward(self, feeds: Sequence[Feed]) -> list[Rows]:
        plans = [self._plan(feed) for feed in feeds]
        inner = [plan.feed(feed.slot) for plan, feed in zip(plans, feeds, strict=True)]
        rows = self.backend.forward(inner)
        for plan in plans:
            plan.slot.tokens, plan.slot.fed = plan.tokens, plan.ids
        return [Rows(self._map(row.logits[[end - plan.ends[0] for end in plan.ends]]), {}) for row, plan in zip(rows, plans, strict=True)]

    def keep(self, slot: int, length: int, path: Sequence[int] = ()) -> int:
        """What the draft read too much is cut when it reads on."""
        if slot not in self._slots:
            return 0
        held = self._slots[slot]
        held.tokens = held.tokens[: max(length, 0)] + [held.tokens[i] for i in path if i < len(held.tokens)]
        return len(held.tokens)

    def free(self, slot: int) -> None:
        self._slots.pop(slot, None)
        self.backend.free(slot)

    def _plan(self, feed: Feed) -> _Plan:
        if not is_chain(feed.parents):
            raise ValueError("a draft of another vocabulary reads chains, not trees: take a drafter that proposes chains")
        slot = self._slots.setdefault(feed.slot, _Slot(Reading(self.pair)))
        tokens = slot.tokens + feed.tokens.tolist()
        alone = max(feed.want - 1, 0)  # each of the last tokens has a row of its own, so each is read for itself
        ids = self._opened(slot.reading.read(tokens[: len(tokens) - alone]))
        ends = [len(ids)]
        for token in tokens[len(tokens) - alone :]:
            ids += self.pair.piece(token)
            ends.append(len(ids))
        start = min(window(ids, self.backend.max_length), ends[0] - 1)
        plan = _Plan(slot, tokens, ids[start:], [end - start for end in ends] if feed.want else [])
        plan.kept = self._cut(feed.slot, common(slot.fed, plan.ids), plan.ends[0] - 1 if feed.want else len(plan.ids) - 1)
        return plan

    def _opened(self, ids: Sequence[int]) -> list[int]:
        """With what the draft's tokenizer begins texts with; never empty."""
        opening = list(self.pair.draft.opening)
        return [*([] if list(ids[: len(opening)]) == opening else opening), *ids] or [self.pair.draft.end or 0]

    def _cut(self, slot: int, same: int, most: int) -> int:
        """Cuts the draft's cache to what it has in common with the text, less what has to be fed."""
        return self.backend.keep(slot, min(same, most, self.backend.length(slot)))

    def _map(self, logits: Tensor) -> Tensor:
        """Rows over the draft's vocabulary as rows over the target's."""
        if self._ours.device != logits.device:
            self._ours, self._theirs = self._ours.to(logits.device), self._theirs.to(logits.device)
        found = torch.full((len(logits), self.vocab_size), -math.inf, dtype=logits.dtype, device=logits.device)
        found[:, self._ours] = logits[:, self._theirs]
        return found


class TLI:
    """The draft model over a `Translated` draft. Its rows are the draft's, cut to the shared tokens."""

    taps: tuple[int, ...] = ()
    has_logits = True
    learns_rows = False

    def __init__(self, view: Translated, vocab_size: int) -> None:
        self.backend = view
        self._inner = DraftModel(view, vocab_size)

    @classmethod
    def from_context(cls, context: Any, model: int | str = 1) -> TLI:
        """Built by the catalog. `model`: which of several drafts, by place or name. Raises ValueError for one of the target's vocabulary."""
        view = translated(context, "tli", model)
        if not view.pair.shared:
            raise ValueError("the vocabularies of target and draft share no token, and 'tli' drafts only those: take 'slem'")
        return cls(view, context.vocab_size)

    def lag(self, text: Text) -> int:
        return self._inner.lag(text)

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        return [draft._replace(origin="tli") for draft in self._inner.propose(asks)]

    def observe(self, text: Text, draft: Draft, outcome: Outcome) -> None:
        self._inner.observe(text, draft, outcome)

    def free(self, text: Text) -> None:
        self._inner.free(text)


def translated(context: Any, drafter: str, model: int | str) -> Translated:
    """The foreign draft of a context. Raises ValueError where there is none."""
    draft = context.helper(model)
    if not isinstance(draft, Translated):
        found = "there is none" if draft is None else "this one has the target's: take 'draft-model'"
        raise ValueError(f"the drafter {drafter!r} needs a draft of another vocabulary than the target's, and {found}")
    return draft
