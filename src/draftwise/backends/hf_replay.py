"""Models whose cache cannot drop rows (Mamba, linear attention, hybrids), and whatever else the pooled cache of `HF` does not fit.

One transformers cache a slot. A state that has read a rejected token cannot forget it, so a copy is taken before tokens that may be rejected;
`keep` goes back to the newest copy that is short enough and returns less than it was asked for, and the caller feeds the rest again.
Caches of plain attention layers are cropped instead.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from draftwise import trees
from draftwise.backends.feeds import check, committed, cuts_of, risky
from draftwise.backends.hf import CACHES, HF, cache_name, call, longest, nothing, slices, unfit, vocabulary
from draftwise.backends.hf_graphs import captured
from draftwise.backends.hf_seq2seq import HFSeq2Seq
from draftwise.types import Feed, Rows

_MARKS = 64  # copies a slot holds at most; with fewer, keep returns less, nothing else
_PROBE = 12  # tokens of the test text


@dataclass(slots=True)
class _Slot:
    length: int = 0
    cache: Any = None
    marks: list[tuple[int, Any]] = field(default_factory=list)


class HFReplay:
    """A `Backend` over any decoder-only model of transformers that takes and returns its cache. No trees: its states know one past each.

    `taps` as in `HF`. A few short passes over the model find out how it can be read. Raises ValueError for one that keeps its state to itself."""

    trees = False

    def __init__(self, model: Any, *, taps: tuple[int, ...] = ()) -> None:
        name = cache_name(model)
        if name is None or getattr(model.config, "is_encoder_decoder", False):
            raise ValueError(f"{type(model).__name__} cannot be run: it must be decoder-only and take its cache as one of {', '.join(CACHES)}")
        self.model = model.eval()
        self.taps = taps
        self.vocab_size = vocabulary(model)
        self.max_length = longest(model)
        self._name = name
        self._narrow = getattr(model, "narrow", None)
        self._sliced = slices(model)
        self._slots: dict[int, _Slot] = {}
        self._continues = self._probe()

    @property
    def device(self) -> torch.device:
        """Where tokens go in and logits come out."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, and of the logits."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    def length(self, slot: int) -> int:
        """Entries the slot's cache holds."""
        return self._slots[slot].length if slot in self._slots else 0

    @torch.no_grad()
    def forward(self, feeds: Sequence[Feed]) -> list[Rows]:
        """One pass for each feed. Raises ValueError for feeds that cannot be read; the caches are then unchanged."""
        check(feeds, self)
        for feed in feeds:
            if feed.parents is not None and not trees.is_chain(feed.parents):
                raise ValueError(f"{type(self.model).__name__} keeps a running state and cannot read a tree of drafts, only a chain")
        return [self._read(feed) for feed in feeds]

    def keep(self, slot: int, length: int, path: Sequence[int] = ()) -> int:
        """Goes back to the newest state that has read no more than the chain ``length + path``; often less."""
        text = self._slots.get(slot)
        if text is None:
            return 0
        wanted = min(max(length, 0), text.length)
        for i in path:
            wanted += i == wanted < text.length
        if wanted < text.length:
            self._rewind(text, wanted)
        return text.length

    def free(self, slot: int) -> None:
        """Empties the slot."""
        self._slots.pop(slot, None)

    def _read(self, feed: Feed) -> Rows:
        n = len(feed.tokens)
        text = self._slots.setdefault(feed.slot, _Slot())
        tokens = feed.tokens.to(self.device)
        cuts = self._cuts(text, feed)
        parts = []
        for a, b in zip(cuts, cuts[1:], strict=False):
            if risky(feed, b) and text.length and not croppable(text.cache):
                text.marks = [*text.marks[1 - _MARKS :], (text.length, copy.deepcopy(text.cache))]
            parts.append(self._pass(text, tokens[a:b], max(0, min(b - a, feed.want - n + b))))
        if not parts:
            return Rows(torch.zeros(0, self.vocab_size, dtype=self.dtype, device=self.device), nothing(self))
        logits = torch.cat([part.logits for part in parts])
        logits = logits if self._narrow is None else self._narrow.widen(logits)
        return Rows(logits, {tap: torch.cat([part.hidden[tap] for part in parts]) for tap in self.taps})

    def _cuts(self, text: _Slot, feed: Feed) -> list[int]:
        """Where the passes over a feed begin and end."""
        if not self._continues:
            return [0, *range(1 if text.length else max(committed(feed), 1), len(feed.tokens) + 1)]
        return cuts_of(feed)

    def _pass(self, text: _Slot, tokens: Tensor, want: int) -> Rows:
        """Reads `tokens` [n > 0] after the slot's state; logits of the last `want`."""
        wanted = torch.arange(len(tokens) - want, len(tokens), device=tokens.device)
        logits, hidden, out = call(self.model, tokens, wanted, self._sliced, self.taps, **({self._name: text.cache} if text.length else {}))
        if out.get(self._name) is None:
            raise ValueError(f"{type(self.model).__name__} cannot be run: it returns no {self._name}, so its state cannot be kept")
        text.cache = out[self._name]
        text.length += len(tokens)
        return Rows(logits, hidden)

    @torch.no_grad()
    def _probe(self) -> bool:
        """Whether several tokens can be read after a state in one pass: some models of transformers then start from an empty state. The
        yardstick is the rounding error of reading them one by one. Raises ValueError for a model that cannot even do that."""
        tokens = torch.arange(_PROBE, device=self.device) * 7919 % self.vocab_size

        def read(cuts: list[int]) -> Tensor:
            text = _Slot()
            return torch.cat([self._pass(text, tokens[a:b], b - a).logits for a, b in zip(cuts, cuts[1:], strict=False)]).float()

        whole, single = read([0, _PROBE]), read([0, *range(3, _PROBE + 1)])
        noise, scale = float((whole - single).abs().max()), float(whole.std())
        if not noise <= 0.5 * scale:
            raise ValueError(f"{type(self.model).__name__} cannot be run: read in parts, a text gives other logits than read at once")
        return float((whole - read([0, 3, _PROBE])).abs().max()) <= 4 * noise + 1e-4 * scale

    def _rewind(self, text: _Slot, wanted: int) -> None:
        if wanted and croppable(text.cache):
            text.cache.crop(wanted - text.length)
            text.length = wanted
            return
        text.marks = [mark for mark in text.marks if mark[0] <= wanted]
        text.length, text.cache = text.marks.pop() if text.marks else (0, None)


def croppable(cache: Any) -> bool:
    """Whether every layer holds one row for each token and nothing else."""
    layers = getattr(cache, "layers", None)
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers or ())


def wrap(model: Any, *, capacity: int | None = None, taps: tuple[int, ...] = ()) -> HF | HFReplay | HFSeq2Seq:
    """The backend that fits `model`: for a decoder the pooled cache where its layers allow it, else replay; and the one with an encoder. Where the
    model says ``graphs = True`` the first of them records its short passes on CUDA; the others have no use for it."""
    if getattr(model.config, "is_encoder_decoder", False):
        return HFSeq2Seq(model, taps=taps)
    if unfit(model):
        return HFReplay(model, taps=taps)
    return HF(model, capacity=capacity, taps=taps, record=captured(model.device) if getattr(model, "graphs", False) else None)
