"""GGUF models in llama.cpp, through the low-level API of llama-cpp-python, as a `Backend`.

All slots share one memory of keys and values, which grows on demand; a slot is a sequence id of it, and `keep` is an operation on sequence ids that
moves nothing. A tree is fed with one spare id for each leaf: a token belongs to the ids of all leaves below it, so that it sees its own ancestors
only, and the path that is kept is what its leaf's id holds. Logits come out as a view of llama.cpp's own memory.

Models with a running state (recurrent layers) cannot forget single tokens. Before tokens that may be rejected the state is marked by a spare id,
which costs a copy of that state; `keep` goes back to the newest mark that is short enough and returns less than it was asked for.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from draftwise import trees
from draftwise.backends.feeds import check, cuts_of, risky
from draftwise.backends.llamacpp_context import Context, Entry, Model
from draftwise.types import Feed, Rows

_CELLS = 4096  # tokens of memory at the start
_LEAVES = 64  # spare ids for trees
_MARKS = 6  # remembered states of one slot at most


class _Tree(NamedTuple):
    """A tree that was fed and not decided: entries before it, its parents, and {leaf: id}."""

    past: int
    parents: Tensor
    leaves: dict[int, int]


class LlamaCpp:
    """`path`: a GGUF file. `ctx`: the longest sequence (default: what the model was made for). `threads`: of the processor (default: as many as
    torch uses). `gpu_layers`: how many layers lie on a GPU (-1: all). `slots`: most sequences at once; a model with a running
    state holds up to twice as many states. `cache`:
    the precision of keys and values: f32, f16 or q8_0. `flash`: allow llama.cpp's fused attention, which is fast and rounds (float16 on a CPU).

    Raises ValueError for a missing package and for a file that llama.cpp cannot load."""

    taps: tuple[int, ...] = ()

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        ctx: int | None = None,
        threads: int | None = None,
        gpu_layers: int = 0,
        slots: int = 16,
        cache: str = "f16",
        flash: bool = True,
    ) -> None:
        for name, value in (("ctx", ctx), ("threads", threads), ("slots", slots)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self._model = Model(Path(path), gpu_layers)
        self.vocab_size = self._model.vocab_size
        self.max_length = min(ctx or 2**31, self._model.trained_for or 2**31)
        self.trees = not self._model.running
        self.most_slots = slots
        ids = slots + (max(_MARKS, slots) if self._model.running else _LEAVES)
        self._spare = list(range(slots, ids))
        self._lengths: dict[int, int] = {}
        self._undecided: dict[int, _Tree] = {}
        self._marks: dict[int, list[tuple[int, int]]] = {}  # (length, id), the newest last
        self._context = Context(self._model, ids, min(self.max_length, _CELLS), threads or torch.get_num_threads(), cache, flash)

    @property
    def device(self) -> torch.device:
        """Where tokens go in and logits come out."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of the logits."""
        return torch.float32

    @property
    def precision(self) -> str:
        """Of the weights, with the architecture and size, as the file tells them."""
        return self._model.description()

    @functools.cached_property
    def eos_token_id(self) -> tuple[int, ...]:
        """The ids that end a text."""
        return self._model.ends()

    def length(self, slot: int) -> int:
        """Entries the slot's sequence holds."""
        return self._lengths.get(slot, 0)

    def forward(self, feeds: Sequence[Feed]) -> list[Rows]:
        """One decode for all feeds (one for each where the model keeps a running state). Raises ValueError for feeds that cannot be read; the caches
        are then unchanged."""
        self._check(feeds)
        self._make_room(sum(len(feed.tokens) for feed in feeds))
        if self._model.running:
            parts = [self._read_running(feed, last=feed is feeds[-1]) for feed in feeds]
            return [Rows(part, {}) for part in parts]
        rows = self._context.read([entry for feed in feeds for entry in self._entries(feed)])
        for feed in feeds:
            self._lengths[feed.slot] = self.length(feed.slot) + len(feed.tokens)
        return [Rows(part, {}) for part in torch.split(rows, [feed.want for feed in feeds])]

    def keep(self, slot: int, length: int, path: Sequence[int] = ()) -> int:
        """Absolute: the first `length` entries, then those of `path`, as far as they are one path of what was fed. A running state goes back to a
        mark, so that often less is kept."""
        held = self.length(slot)
        length = min(max(length, 0), held)
        if slot in self._undecided:
            kept = self._settle(slot, length, path)
        else:
            for i in path:
                length += i == length < held
            kept = length if length == held else self._back(slot, length)
        if held:
            self._lengths[slot] = kept
        return kept

    def free(self, slot: int) -> None:
        """Empties the slot."""
        self._release(slot)
        if self._lengths.pop(slot, 0):
            self._context.cut(slot)

    def close(self) -> None:
        """Gives all memory back; the backend cannot be used afterwards."""
        self._context.close()
        self._model.close()

    def __del__(self) -> None:
        for part in ("_context", "_model"):
            if hasattr(self, part):
                getattr(self, part).close()

    def _check(self, feeds: Sequence[Feed]) -> None:
        check(feeds, self)
        for feed in feeds:
            if not 0 <= feed.slot < self.most_slots:
                raise ValueError(f"slot {feed.slot} is not among the {self.most_slots} that this context was made for: ask for more with slots=...")
            if feed.slot in self._undecided:
                raise ValueError(f"slot {feed.slot} holds a tree: choose a path of it with keep before feeding more")
            if self._model.running and not trees.is_chain(feed.parents):
                raise ValueError(f"'{self._model.path.name}' keeps a running state and cannot read a tree of drafts, only a chain")
        leaves = sum(len(trees.leaves(feed.parents)) for feed in feeds if feed.parents is not None and not trees.is_chain(feed.parents))
        if leaves > len(self._spare) and self.trees:
            raise ValueError(f"trees of {leaves} leaves are more than the {len(self._spare)} that this context can tell apart: use smaller trees")

    def _make_room(self, tokens: int) -> None:
        """What is shared is counted as often as it is held, since a larger memory does not share it."""
        if self._model.recurrent or sum(self._lengths.values()) + tokens <= self._context.cells:
            return
        held = {slot: length for slot, length in self._lengths.items() if length}
        held |= {id: length for marks in self._marks.values() for length, id in marks}
        held |= {id: tree.past + len(tree.parents) for tree in self._undecided.values() for id in tree.leaves.values()}
        self._context.grow(sum(held.values()) + tokens, held)

    def _entries(self, feed: Feed) -> Iterator[Entry]:
        """What one feed gives to read; a tree gets its ids here."""
        past, n, tokens = self.length(feed.slot), len(feed.tokens), feed.tokens.tolist()
        if feed.parents is None or trees.is_chain(feed.parents):
            for i, token in enumerate(tokens):
                yield Entry(token, past + i, (feed.slot,), i >= n - feed.want)
            return
        leaves = {leaf: self._spare.pop() for leaf in trees.leaves(feed.parents)}
        self._undecided[feed.slot] = _Tree(past, feed.parents, leaves)
        below: list[list[int]] = [[] for _ in tokens]
        for leaf, id in leaves.items():
            self._context.copy(feed.slot, id)
            for i in trees.path_to(feed.parents, leaf):
                below[i].append(id)
        for i, depth in enumerate(trees.depths(feed.parents).tolist()):
            yield Entry(tokens[i], past + depth, tuple(below[i]), i >= n - feed.want)

    def _settle(self, slot: int, length: int, path: Sequence[int]) -> int:
        """Gives the slot the path of its tree, as far as it is one, and takes the spare ids back. What the slot holds then."""
        past, parents, leaves = self._undecided[slot]
        above: list[int] = parents.tolist()
        own: list[int] = []
        for i in (one - past for one in [*range(past, length), *path] if length >= past):
            if not (0 <= i < len(above) and above[i] == (own[-1] if own else -1)):
                break
            own.append(i)
        if own:
            leaf = next(leaf for leaf in leaves if own[-1] in trees.path_to(parents, leaf))
            self._context.copy(leaves[leaf], slot, past, past + len(own))
        self._release(slot)
        if length < past:
            self._context.cut(slot, length)
        return min(length, past) + len(own)

    def _back(self, slot: int, length: int) -> int:
        """Takes back what lies beyond `length`: to the newest mark before it where single tokens cannot be forgotten."""
        if not self._model.running:
            self._context.cut(slot, length)
            return length
        marks = self._marks.pop(slot, [])
        while marks and marks[-1][0] > length:
            self._spare.append(self._cut(marks.pop()[1]))
        self._context.cut(slot)
        if not marks or not length:
            self._marks[slot] = marks
            self._release(slot)
            return 0
        kept, id = marks.pop()
        self._context.copy(id, slot)
        self._spare.append(self._cut(id))
        self._marks[slot] = marks
        return kept

    def _read_running(self, feed: Feed, last: bool) -> Tensor:
        """Reads a chain with marks before what may be rejected."""
        slot, n = feed.slot, len(feed.tokens)
        entries, cuts = list(self._entries(feed)), cuts_of(feed)
        parts = []
        for a, b in zip(cuts, cuts[1:], strict=False):
            if risky(feed, b) and self.length(slot):
                self._mark(slot)
            rows = self._context.read(entries[a:b])
            self._lengths[slot] = self.length(slot) + b - a
            parts.append(rows if last and b == n else rows.clone())
        return torch.cat(parts) if len(parts) != 1 else parts[0]

    def _mark(self, slot: int) -> None:
        """Remembers the state. Where there are too many marks every other one goes, never the oldest: the further back, the sparser. Without one,
        keep returns less, nothing else."""
        marks = self._marks.setdefault(slot, [])
        if len(marks) == _MARKS or not self._spare:
            self._spare += [self._cut(id) for _, id in marks[1::2]]
            del marks[1::2]
        if not self._spare:
            return
        id = self._spare.pop()
        self._context.copy(slot, id)
        marks.append((self.length(slot), id))

    def _release(self, slot: int) -> None:
        """Takes back all spare ids of a slot."""
        tree = self._undecided.pop(slot, None)
        ids = [*(tree.leaves.values() if tree else ()), *(id for _, id in self._marks.pop(slot, ()))]
        self._spare += [self._cut(id) for id in ids]

    def _cut(self, id: int) -> int:
        self._context.cut(id)
        return id

