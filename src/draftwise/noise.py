"""The random streams of one sequence: numbers that are a function of (seed, stream, level, counter) and of nothing else.

Philox is counter-based, so any slice of a stream can be read at any time: preemption, resumption and neighbours in the batch change
nothing. `ACCEPT` and `DRAFT` are counted by use, `SAMPLE` and `RACE` by output position; every level of a cascade has its own.
Draft tokens never read the target's `SAMPLE` stream: sharing it biases rejection sampling. Under the coupled rule, and only there,
draft and target read the same `RACE` stream.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox4x64, as in numpy).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ACCEPT, SAMPLE, DRAFT, RACE = range(4)
_WORDS = 4  # 64-bit words of one Philox block
_AHEAD = 256  # numbers of a stream that are made at once: a generator costs as much as hundreds of numbers


def uniforms(seed: int, stream: int, level: int, start: int, n: int) -> NDArray[np.float64]:
    """Entries ``start .. start+n-1`` of a stream: float64 [n] in [0, 1)."""
    block, skip = divmod(start, _WORDS)
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, stream << 32 | level], dtype=np.uint64), counter=block))
    return generator.random(skip + n)[skip:]


@dataclass(slots=True)
class Noise:
    """The streams of one sequence. `coupled`: the drafter draws with `race`, not with `fresh`. Only `fresh` moves a counter."""

    seed: int
    coupled: bool = False
    used: dict[tuple[int, int], int] = field(default_factory=dict)
    _made: dict[tuple[int, int], tuple[int, NDArray[np.float64]]] = field(default_factory=dict, repr=False, compare=False)

    def fresh(self, stream: int, level: int, n: int) -> Tensor:
        """The next `n` unused numbers of a stream counted by use: float64 [n], on the host."""
        start = self.used.get((stream, level), 0)
        self.used[stream, level] = start + n
        return self.at(stream, level, start, n)

    def at(self, stream: int, level: int, position: int, n: int) -> Tensor:
        """The numbers of output positions ``position .. position+n-1``: float64 [n], on the host."""
        first, made = self._made.get((stream, level), (0, np.zeros(0)))
        if not first <= position <= position + n <= first + len(made):
            first, made = position, uniforms(self.seed, stream, level, position, max(n, _AHEAD))
            self._made[stream, level] = first, made
        return torch.from_numpy(made[position - first : position - first + n].copy())

    def race(self, level: int, position: int, n: int, vocab: int) -> Tensor:
        """Gumbel noise of `n` output positions: float64 [n, vocab], on the host. Row d depends on its position and `vocab` only."""
        u = uniforms(self.seed, RACE, level, position * vocab, n * vocab).reshape(n, vocab)
        return torch.from_numpy(-np.log(-np.log(np.maximum(u, 2.0**-54))))  # finite: u = 0 would give -inf
