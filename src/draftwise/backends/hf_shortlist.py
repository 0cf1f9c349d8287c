"""Which outputs of a draft's head are computed: for the texts of its slots, a part of the vocabulary.

A head reads as many weights as a third of a small draft's layers, and most of its tokens are never written. A text writes frequent tokens, and of the
others above all those it has already: names, terms, the words of a question. So the blocks of sixteen outputs that hold the ids of `base` are
computed, and of each text those that hold one of its own tokens. A draft never proposes another token: that token's chance is 0, which is its true
law, so that nothing changes for the acceptance rule (`draftwise.narrowing` says more). What a text gets hangs on its tokens alone, not on the texts
beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from draftwise.backends.hf_grouped import LANES
from draftwise.types import Feed


class Shortlist:
    """`base`: ids int64 of a vocabulary of `size` that every text may be given."""

    def __init__(self, base: Tensor, size: int) -> None:
        self.size = size
        self._base = np.unique(base.numpy() // LANES).astype(np.int32)
        self._known = frozenset(self._base.tolist())
        self._own: dict[int, dict[int, None]] = {}  # of each slot the blocks besides, in the order of its text
        self._last: tuple[tuple[int, ...], NDArray[np.int32]] = (), self._base
        self._owners: list[int] = []

    def begin(self, feeds: Sequence[Feed]) -> None:
        """Before a pass over `feeds`."""
        for feed in feeds:
            own = self._own.setdefault(feed.slot, {})
            own.update(dict.fromkeys(block for token in feed.tokens.tolist() if (block := token // LANES) not in self._known))
        self._owners = [feed.slot for feed in feeds for _ in range(feed.want)]

    def free(self, slot: int) -> None:
        """The text of a slot is over."""
        self._own.pop(slot, None)

    def blocks(self) -> NDArray[np.int32]:
        """int32: those that the rows of the pass need, as long as no other is begun."""
        slots = dict.fromkeys(self._owners)
        extra = dict.fromkeys(block for slot in slots for block in self._own[slot])
        key = tuple(extra)
        if self._last[0] != key:
            self._last = key, np.concatenate([self._base, np.fromiter(extra, np.int32, len(extra))])
        return self._last[1]

    def hide(self, logits: Tensor) -> None:
        """Takes from the rows [wanted, V] what they have of other slots' texts."""
        slots = dict.fromkeys(self._owners)
        if len(slots) < 2:
            return
        for i, slot in enumerate(self._owners):
            others = {block for other in slots if other != slot for block in self._own[other]} - self._own[slot].keys()
            for block in others:
                logits[i, block * LANES : (block + 1) * LANES] = -math.inf
