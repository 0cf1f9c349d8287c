"""An n-gram table model: an exact oracle for tests and documentation, with no weights to load.

The logits after a text are a fixed function of its last `order` tokens: normal numbers drawn from a counter-based generator keyed by the
context, or literal rows where some are given. `twist` mixes in a second table, so that ``Table(V, twist=0.5)`` is a plausible draft for
``Table(V)``: related laws, not the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from draftwise.trees import levels, path_to
from draftwise.types import Feed, Rows


class Table:
    """`vocab_size` V, `order` tokens of context, `sharpness` the standard deviation of the logits. `rows` maps contexts (tuples of at most
    `order` tokens) to literal **probabilities** [V]. It counts the fed tokens in `fed` and the forwards in `forwards`."""

    def __init__(
        self,
        vocab_size: int = 8,
        order: int = 2,
        seed: int = 0,
        sharpness: float = 2.0,
        twist: float = 0.0,
        max_length: int = 4096,
        rows: Mapping[tuple[int, ...], Sequence[float]] | None = None,
    ) -> None:
        if vocab_size < 1 or order < 0:
            raise ValueError(f"a table needs vocab_size >= 1 and order >= 0, got {vocab_size} and {order}")
        self.vocab_size, self.order, self.seed, self.sharpness, self.twist, self.max_length = vocab_size, order, seed, sharpness, twist, max_length
        self.rows = {context: _logs(law) for context, law in (rows or {}).items()}
        self.slots: dict[int, list[int]] = {}
        self.fed = self.forwards = 0

    def row(self, tokens: Sequence[int]) -> Tensor:
        """The logits after `tokens`: float32 [V]."""
        context = tuple(tokens[max(0, len(tokens) - self.order) :])
        if context not in self.rows:
            self.rows[context] = self.sharpness * (self._normal(0, context) + self.twist * self._normal(1, context))
        return self.rows[context]

    def length(self, slot: int) -> int:
        return len(self.slots.get(slot, []))

    def forward(self, feeds: Sequence[Feed]) -> list[Rows]:
        self.forwards += 1
        return [self._read(feed) for feed in feeds]

    def keep(self, slot: int, length: int, path: Sequence[int] = ()) -> int:
        tokens = self.slots.get(slot, [])
        self.slots[slot] = tokens[:length] + [tokens[i] for i in path if i < len(tokens)]
        return len(self.slots[slot])

    def free(self, slot: int) -> None:
        self.slots.pop(slot, None)

    def _read(self, feed: Feed) -> Rows:
        before = list(self.slots.get(feed.slot, []))
        tokens = feed.tokens.tolist()
        if (reach := len(before) + levels(feed.parents, len(tokens))) > self.max_length:
            raise ValueError(f"the table holds {self.max_length} tokens a slot, slot {feed.slot} would hold {reach}")
        self.fed += len(tokens)
        self.slots[feed.slot] = before + tokens
        wanted = range(len(tokens) - feed.want, len(tokens))
        contexts = [before + [tokens[j] for j in self._path(feed.parents, i)] for i in wanted]
        return Rows(torch.stack([self.row(context) for context in contexts]) if contexts else torch.zeros(0, self.vocab_size), {})

    @staticmethod
    def _path(parents: Tensor | None, i: int) -> Sequence[int]:
        return range(i + 1) if parents is None else path_to(parents, i)

    def _normal(self, table: int, context: tuple[int, ...]) -> Tensor:
        key = 0
        for token in (*context, len(context)):
            key = (key * 1_000_003 + token + 1) % 2**63
        generator = np.random.Generator(np.random.Philox(key=np.array([self.seed * 2 + table, key], dtype=np.uint64)))
        return torch.from_numpy(generator.standard_normal(self.vocab_size)).float()


def _logs(law: Sequence[float]) -> Tensor:
    return torch.tensor([math.log(p) if p > 0 else -math.inf for p in law])
