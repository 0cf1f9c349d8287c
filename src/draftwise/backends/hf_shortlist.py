"""Which outputs of a draft's head are computed: for the texts of its slots, a part of the vocabulary.

A head reads as many weights as a third of a small draft's layers, and most of its tokens are never written. A text writes frequent tokens, and of the
others above all those it has already: names, terms, the words of a question. So the blocks of sixteen outputs that hold the ids of `base` are
computed, and of each text those that hold one of its own tokens. A draft never proposes another token: that token's chance is 0, which is its true
law, so that nothing changes for the acceptance rule (`draftwise.narrowing` says more).

A row hangs on the tokens up to it alone: not on those after it in the same feed, not on those that `keep` took back, not on other branches of a tree
and not on the texts beside it. Where the draft verifies the drafts of another, its law would else know what it is asked about.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from draftwise.backends.hf_cache import Segment
from draftwise.backends.hf_grouped import LANES
from draftwise.types import Feed


@dataclass
class _Text:
    """The block of each entry of a slot's cache, and of the blocks besides the common ones the entry where each first stands, ascending."""

    entries: list[int] = field(default_factory=list)
    first: dict[int, int] = field(default_factory=dict)

    def add(self, block: int, known: frozenset[int]) -> None:
        if block not in known:
            self.first.setdefault(block, len(self.entries))
        self.entries.append(block)

    def cut(self, length: int) -> None:
        del self.entries[length:]
        while self.first and next(reversed(self.first.values())) >= length:
            self.first.popitem()


class _Row(NamedTuple):
    """A wanted row: of input i of a feed that lies as `part` says."""

    slot: int
    part: Segment
    i: int


class Shortlist:
    """`base`: ids int64 that every text may be given."""

    def __init__(self, base: Tensor) -> None:
        self._base = np.unique(base.numpy() // LANES).astype(np.int32)
        self._known = frozenset(self._base.tolist())
        self._texts: dict[int, _Text] = {}
        self._last: tuple[tuple[int, ...], NDArray[np.int32]] = (), self._base
        self._rows: list[_Row] = []
        self._extra: tuple[int, ...] = ()  # the blocks besides `base` of all texts whose rows are wanted

    def begin(self, feeds: Sequence[Feed], plan: Sequence[Segment]) -> None:
        """Before a pass over `feeds`, each with its segment."""
        self._rows = []
        for feed, part in zip(feeds, plan, strict=True):
            text = self._texts.setdefault(feed.slot, _Text())
            for token in feed.tokens.tolist():
                text.add(token // LANES, self._known)
            self._rows += [_Row(feed.slot, part, i) for i in range(part.n - feed.want, part.n)]
        self._extra = tuple(dict.fromkeys(block for feed in feeds if feed.want for block in self._texts[feed.slot].first))

    def keep(self, slot: int, length: int, path: Sequence[int]) -> None:
        """Of a slot's text the first `length` tokens stay, and after them those of the entries `path`."""
        if text := self._texts.get(slot):
            kept = [text.entries[i] for i in path]
            text.cut(length)
            for block in kept:
                text.add(block, self._known)

    def free(self, slot: int) -> None:
        """The text of a slot is over."""
        self._texts.pop(slot, None)

    def blocks(self) -> NDArray[np.int32]:
        """Those that the rows of the pass need, as long as no other is begun."""
        if self._last[0] != self._extra:
            self._last = self._extra, np.concatenate([self._base, np.array(self._extra, np.int32)])
        return self._last[1]

    def hide(self, logits: Tensor) -> None:
        """Takes from the rows [wanted, V] what belongs to other texts, and to tokens that they do not see."""
        extra = set(self._extra)
        for row, own in zip(self._rows, logits, strict=True):
            for block in extra - self._seen(row):
                own[block * LANES : (block + 1) * LANES] = -math.inf

    def _seen(self, row: _Row) -> set[int]:
        """Those of the tokens that a row sees: all before its feed, and of the feed itself and those before it, or above it in a tree."""
        text, part, i = self._texts[row.slot], row.part, row.i
        before = part.past + (i + 1 if part.seen is None else 0)
        seen = {block for block, at in text.first.items() if at < before}
        return seen if part.seen is None else seen | {text.entries[part.past + j] for j in part.seen[i].nonzero()[:, 0].tolist()}
