"""Where a run of tokens occurred before: hash chains over a ring of tokens, as data compressors keep them.

For each length L of `LEVELS` and each token, the L tokens before it are hashed; ``heads[hash]`` is the last place with that hash and
``chains[place]`` the one before. Reading a token costs one link a level; looking something up walks a chain and compares, latest place first.
A ring forgets its oldest tokens by being written over. Memory: 48 bytes a token of room, all of it allotted at once (a text without a
limit doubles its room).

Reference: the hash chains of Deutsch 1996 (RFC 1951, section 4), for tokens instead of bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LEVELS = (1, 2, 4, 8, 16)
_LAST = 2**31 - 2  # places are kept as int32
NONE = -1
"""Stands where a text ends: no token, matched by nothing."""


class Places(NamedTuple):
    """Occurrences of a run, latest first: `lengths` [n] of the match, at most the depth that was asked for; `after` [n][span] the tokens that
    follow, `NONE` from where the text ends."""

    lengths: list[int]
    after: list[list[int]]


class History:
    """Holds the last `room` tokens (a power of two); with ``grows`` all of them, and `room` is where it starts."""

    def __init__(self, room: int, grows: bool = False) -> None:
        if room < 2 * LEVELS[-1] or room & (room - 1):
            raise ValueError(f"a history has room for a power of two of at least {2 * LEVELS[-1]} tokens, got {room}")
        self.grows, self.total = grows, 0
        self._allot(room)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.tokens.nbytes + self.heads.nbytes + self.chains.nbytes

    def extend(self, text: Sequence[int], start: int = 0) -> None:
        """Reads ``text[start:]``; the tokens before `start` are the last that were read."""
        if self.total + len(text) - start > _LAST:
            self._allot(self.room)  # after two thousand million tokens it starts afresh
            start = 0
        if self.grows and self.total + len(text) - start > self.room:
            held = self.tokens[: self.total].tolist()
            self._allot(1 << (self.total + len(text) - start).bit_length())
            self._read(held, 0)
        self._read(text, start)

    def end(self) -> None:
        """A text ends here: no run goes beyond."""
        self._write(self.total, NONE)
        self.total += 1

    def cut(self, length: int) -> None:
        """Forgets all but the first `length` tokens. Only while nothing has been written over."""
        for place in range(self.total - 1, max(length, 0) - 1, -1):
            before = self._tokens[max(0, place - LEVELS[-1]) : place].tolist()
            for level, size in enumerate(LEVELS[: self._levels(place)]):
                self._heads[level][hash(tuple(before[-size:])) & self._mask] = self._chains[level][place & self._mask]
            self.total = place

    def find(self, tail: Sequence[int], level: int, most: int, depth: int, span: int) -> Places:
        """At most `most` occurrences of the last ``LEVELS[level]`` tokens of `tail`, how far each matches back (up to `depth`), and what follows."""
        places = self._walk(tail, level, most) if len(tail) >= LEVELS[level] else []
        if not places:
            return Places([], [])
        at = np.array(places)[:, None]
        back = at - 1 - np.arange(min(depth, len(tail)))
        same = (self.tokens[back & self._mask] == np.array(tail[: -depth - 1 : -1])) & (back >= max(0, self.total - self.room))
        ahead = at + np.arange(span)
        after = np.where(ahead < self.total, self.tokens[ahead & self._mask], NONE)
        return Places(np.logical_and.accumulate(same, 1).sum(1).tolist(), after.tolist())

    def _allot(self, room: int) -> None:
        self.room = room
        self._mask = room - 1
        self.total = 0
        self.tokens: NDArray[np.int32] = np.full(2 * room, NONE, np.int32)  # each token twice, so that no run wraps around
        self.heads = np.zeros((len(LEVELS), room), np.int32)  # place + 1; 0 = none
        self.chains = np.zeros((len(LEVELS), room), np.int32)
        self._tokens: memoryview[int] = self.tokens.data  # for single entries many times as fast as numpy
        self._heads: list[memoryview[int]] = [row.data for row in self.heads]
        self._chains: list[memoryview[int]] = [row.data for row in self.chains]

    def _read(self, text: Sequence[int], start: int) -> None:
        mask, tables = self._mask, [*zip(LEVELS, self._heads, self._chains, strict=True)]
        for i in range(start, len(text)):
            place = self.total
            before = text[max(0, i - LEVELS[-1]) : i]
            for size, heads, chains in tables:
                if i < size:
                    break
                key = hash(tuple(before[-size:])) & mask
                chains[place & mask] = heads[key]
                heads[key] = place + 1
            self._write(place, text[i])
            self.total = place + 1

    def _write(self, place: int, token: int) -> None:
        self._tokens[place & self._mask] = self._tokens[(place & self._mask) + self.room] = token

    @staticmethod
    def _levels(place: int) -> int:
        return sum(size <= place for size in LEVELS)

    def _walk(self, tail: Sequence[int], level: int, most: int) -> list[int]:
        """Places after the last ``LEVELS[level]`` tokens of `tail`, latest first. Chains mix runs of equal hash, so it gives up after some steps."""
        size, chain, mask = LEVELS[level], self._chains[level], self._mask
        found: list[int] = []
        run = list(tail[len(tail) - size :])
        wanted = np.array(run, np.int32).tobytes()
        oldest = max(0, self.total - self.room) + size
        place = self._heads[level][hash(tuple(run)) & mask] - 1
        for _ in range(4 * most):
            if place < oldest or len(found) == most:
                break
            first = (place - size) & mask
            if self._tokens[first : first + size].tobytes() == wanted:
                found.append(place)
            place = chain[place & mask] - 1
        return found
