"""Passes over few tokens of one slot as CUDA graphs: recorded once for each number of tokens, and then one launch instead of hundreds.

A pass of a draft over one token takes a GPU less time than Python takes to ask for it. A graph repeats the kernels of one run with all their
addresses and numbers, so whatever changes from pass to pass has to lie in tensors: tokens, positions, how many entries come before them, and who of
them sees whom (a tree). Attention reads a fixed number of entries, the next power of two, and masks what is not there.

What is no single short feed runs as without graphs: prompts, and steps over several slots. So does everything after a pass that could not be
recorded. The recording itself has not been run on a GPU yet, and is off unless asked for; tests run the rest with a stand-in that bakes in as much.
"""

from __future__ import annotations

import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from draftwise.backends.hf_attention import Attention, Extras, additive, attend
from draftwise.backends.hf_cache import PooledCache, Segment

WIDEST = 16  # tokens of a pass that is recorded
_MOST = 64  # recorded passes that are kept: each holds the launches of a whole model
_OFTEN = 2  # times that a kind of pass comes before it is recorded, which takes as long as a few of them
_LEAST = 256  # entries that attention reads at least

Rows: TypeAlias = tuple[Tensor, ...]
"""Logits [n, V], then the tapped rows [n, H] in the order of the taps."""
Run: TypeAlias = Callable[[], Rows]
Record: TypeAlias = Callable[[Run], Run]
"""From a run over fixed tensors to one that repeats its operations on them. The rows may be overwritten by the next run of any recording."""


def entries(n: int) -> int:
    """So many that attention over `n` entries reads: the next power of two."""
    return max(_LEAST, 1 << (n - 1).bit_length())


class Given(NamedTuple):
    """What a recorded pass over n tokens reads, on the device. `facts` int64 [1 + n + n * n]: entries before the tokens, positions, who sees whom."""

    tokens: Tensor
    facts: Tensor

    @property
    def past(self) -> Tensor:
        """int64 []."""
        return self.facts[0]

    @property
    def positions(self) -> Tensor:
        """int64 [n]."""
        return self.facts[1 : 1 + len(self.tokens)]

    @property
    def seen(self) -> Tensor:
        """int64 [n, n], 1 where token i sees token j."""
        return self.facts[1 + len(self.tokens) :].view(len(self.tokens), -1)


def facts(part: Segment) -> Tensor:
    """`Given.facts` of a feed, on the host."""
    return torch.cat([torch.tensor([part.past]), part.positions, part.among.flatten().long()])


class FixedAttention(Attention):
    """Attention of the tokens of `given` over the buffer rows ``start .. start + length - 1``, of which those before and of the feed are seen."""

    def __init__(self, given: Given, start: int, length: int) -> None:
        super().__init__()
        self.given, self.start, self.length = given, start, length

    def over(self, query: Tensor, key: Tensor, value: Tensor, window: int | None, scale: float | None, extras: Extras) -> Tensor:
        fold = query.shape[1] // key.shape[1]
        rows = slice(self.start, self.start + self.length)
        kind = (0, window, fold, query.dtype, query.device)
        if kind not in self._masks:  # made anew in every run, and shared by its layers
            self._masks[kind] = additive(self._visible(window), fold, query.dtype)
        return attend(query, key[:, :, rows], value[:, :, rows], self._masks[kind], fold, scale, extras)

    def _visible(self, window: int | None) -> Tensor:
        """bool [n, length], as `draftwise.backends.hf_attention.visible` without numbers of the host."""
        given, n = self.given, len(self.given.tokens)
        column = torch.arange(self.length, device=given.facts.device)
        behind = column - given.past  # of the feed's own tokens 0 .. n - 1
        own = behind.clamp(0, n - 1)
        seen = (behind < 0) | ((behind < n) & (given.seen.index_select(1, own) > 0))
        if window is not None:
            at = torch.where(behind < 0, column, given.positions.index_select(0, own))
            seen = seen & (given.positions[:, None] - at < window)
        return seen


class Graphs:
    """The recorded passes of one model. `forward`: (tokens [n], positions [n], attention) -> `Rows`, through `cache`. A kind of pass is recorded when
    it comes for the time `after`. `broken`: why nothing is recorded any more."""

    def __init__(self, forward: Callable[[Tensor, Tensor, FixedAttention], Rows], cache: PooledCache, record: Record) -> None:
        self._forward, self._cache, self._record = forward, cache, record
        self._recorded: OrderedDict[tuple[int, int, int], tuple[Given, Run]] = OrderedDict()
        self._met: Counter[tuple[int, int, int]] = Counter()
        self._rows = 0
        self.after = _OFTEN
        self.broken = ""

    def run(self, tokens: Tensor, plan: Sequence[Segment]) -> Rows | None:
        """The rows of all `tokens`; None where the pass is not one for a graph: see above."""
        if self.broken or len(plan) != 1 or plan[0].n > WIDEST:
            return None
        part, length = plan[0], entries(plan[0].past + plan[0].n)
        self._cache.grow(part.start + length)
        if self._rows != self._cache.rows:  # the buffers lie elsewhere now
            self._recorded.clear()
            self._rows = self._cache.rows
        key = part.n, part.start, length
        self._met[key] += 1
        if key not in self._recorded and (self._met[key] < self.after or not self._add(key, tokens, part)):
            return None
        given, run = self._recorded[key]
        self._recorded.move_to_end(key)
        given.tokens.copy_(tokens)
        given.facts.copy_(facts(part), non_blocking=True)
        return tuple(row.clone() for row in run())

    def _add(self, key: tuple[int, int, int], tokens: Tensor, part: Segment) -> bool:
        given = Given(tokens.clone(), facts(part).to(tokens.device))
        attention = FixedAttention(given, part.start, key[2])

        def run() -> Rows:
            self._cache.fixed(part.start + given.past + torch.arange(part.n, device=tokens.device))
            return self._forward(given.tokens, given.positions, attention)

        try:
            self._recorded[key] = given, self._record(run)
        except RuntimeError as error:
            self.broken = str(error).partition("\n")[0]
            warnings.warn(f"decoding goes on without CUDA graphs, since a pass could not be recorded: {self.broken}", stacklevel=2)
            return False
        if len(self._recorded) > _MOST:
            self._recorded.popitem(last=False)
        return True


def captured(device: torch.device) -> Record:
    """Records on a CUDA device; the recordings share their memory."""
    pool: Any = torch.cuda.graph_pool_handle()

    def record(run: Run) -> Run:
        with torch.cuda.device(device):
            side, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)  # type: ignore[no-untyped-call]
            side.wait_stream(current)
            with torch.cuda.stream(side):
                run()  # libraries choose their kernels and make their rooms now
            current.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):  # other threads may use the device meanwhile
                rows = run()

        def again() -> Rows:
            graph.replay()
            return rows

        return again

    return record
