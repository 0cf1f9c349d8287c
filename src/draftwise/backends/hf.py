"""Any causal language model of transformers whose attention layers go through its attention interface, as a `Backend`.

All feeds of a forward are packed in one row with explicit positions; keys and values of all slots lie in one pooled cache
(`draftwise.backends.hf_cache`), read without copies (`draftwise.backends.hf_attention`). `keep` is bookkeeping: rejected rows are
overwritten, and only the accepted path of a tree is moved. The LM head sees the wanted rows only.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from draftwise import trees
from draftwise.backends.feeds import check
from draftwise.backends.hf_attention import Attention
from draftwise.backends.hf_cache import PooledCache, Regions, Segment
from draftwise.backends.hf_decoder import Decoder
from draftwise.backends.hf_graphs import FixedAttention, Graphs, Record, entries
from draftwise.backends.hf_lean import Lean
from draftwise.types import Feed, Rows

CACHES = ("past_key_values", "cache", "cache_params", "state")
"""What models call the cache they take and return; the first of transformers' own until 5.23, the second since."""
_LAYERS = {"full_attention", "sliding_attention"}


class HF:
    """`model` is a loaded causal language model (set to eval mode here); `capacity` rows of cache are allocated at once, more on demand.
    `taps`: hidden rows to give with every forward: i = the input of layer i (= the output of layer i-1), -1 = after the final norm.
    `record`: makes graphs of passes over few tokens (`draftwise.backends.hf_graphs`).

    Raises ValueError for a model that this backend cannot run: see `draftwise.backends.hf_replay.wrap`, which knows what can."""

    def __init__(self, model: Any, *, capacity: int | None = None, taps: tuple[int, ...] = (), record: Record | None = None) -> None:
        if reason := unfit(model):
            raise ValueError(f"{type(model).__name__} cannot use the pooled cache: {reason}")
        self.model = model.eval()
        self.taps = taps
        self.vocab_size = vocabulary(model)
        self.max_length = longest(model)
        self._configs = list({id(part.config): part.config for part in model.modules() if hasattr(part, "config")}.values())
        self._sliced = slices(model)
        self._name = cache_name(model) or CACHES[0]
        self._regions = Regions()
        self._narrow = getattr(model, "narrow", None)
        self._lean: Lean | Decoder | None = getattr(model, "lean", None)
        self._shortlist = getattr(self._lean, "shortlist", None)
        self._cache = PooledCache(capacity or 0)
        self._attention = Attention()
        self._graphs = Graphs(self._recordable, self._cache, record) if record and self._lean is None else None

    @property
    def device(self) -> torch.device:
        """Where tokens go in and logits come out."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights as the model was loaded, and of the logits but for a lean pass of 8 bits, whose logits are float32."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def precision(self) -> str:
        """Of the weights, in words."""
        return getattr(self.model, "precision", None) or str(self.dtype).removeprefix("torch.")

    def length(self, slot: int) -> int:
        """Entries the slot's cache holds."""
        region = self._regions.slots.get(slot)
        return region.length if region else 0

    @torch.no_grad()
    def forward(self, feeds: Sequence[Feed]) -> list[Rows]:
        """One packed pass over all feeds. Raises ValueError for feeds that cannot be read; the caches are then unchanged."""
        check(feeds, self)
        plan = [self._segment(feed, first) for feed, first in zip(feeds, _starts(feeds), strict=True)]
        if not any(part.n for part in plan):
            empty = torch.zeros(0, self.vocab_size, dtype=self.dtype, device=self.device)
            return [Rows(empty, nothing(self)) for _ in feeds]
        if self._shortlist:
            self._shortlist.begin(feeds, plan)
        logits, hidden = self._run(feeds, [part for part in plan if part.n])
        logits = logits if self._narrow is None else self._narrow.widen(logits)
        for feed, part in zip(feeds, plan, strict=True):
            region = self._regions.slots[feed.slot]
            region.length += part.n
            region.tree = () if part.seen is None or feed.parents is None else tuple((part.past + feed.parents).tolist())
        rows = torch.split(logits, [feed.want for feed in feeds])
        return [
            Rows(row, {tap: whole[part.first : part.first + part.n] for tap, whole in hidden.items()}) for row, part in zip(rows, plan, strict=True)
        ]

    def keep(self, slot: int, length: int, path: Sequence[int] = ()) -> int:
        """Absolute: the first `length` entries, then those of `path`, as far as they are one path of what was fed."""
        region = self._regions.slots.get(slot)
        if region is None:
            return 0
        length, kept = region.path(max(length, 0), path)
        if kept != list(range(length, length + len(kept))):
            with torch.no_grad():
                first = region.start + length
                self._cache.move(torch.tensor(kept) + region.start, slice(first, first + len(kept)))
        if self._shortlist:
            self._shortlist.keep(slot, length, kept)
        region.length, region.tree = length + len(kept), ()
        return region.length

    def free(self, slot: int) -> None:
        """Empties the slot; its rows can be had by others."""
        region = self._regions.slots.pop(slot, None)
        if self._shortlist:
            self._shortlist.free(slot)
        if self._graphs and region:
            self._cache.clear(region.start, region.room)

    def _segment(self, feed: Feed, first: int) -> Segment:
        """Where a feed goes, with room made for it."""
        n = len(feed.tokens)
        past = self.length(feed.slot)
        if past and self._regions.slots[feed.slot].tree:
            raise ValueError(f"slot {feed.slot} holds a tree: choose a path of it with keep before feeding more")
        if move := self._regions.reserve(feed.slot, past + n):
            self._cache.grow(self._regions.end)
            self._cache.move(slice(move.source, move.source + move.rows), slice(move.target, move.target + move.rows))
        region = self._regions.slots[feed.slot]
        if feed.parents is None or trees.is_chain(feed.parents):
            return Segment(first, n, region.start, past, None, None)
        return Segment(first, n, region.start, past, trees.depths(feed.parents), trees.ancestors(feed.parents))

    def _run(self, feeds: Sequence[Feed], plan: list[Segment]) -> tuple[Tensor, dict[int, Tensor]]:
        """Logits [sum of wants, V] and the tapped hidden rows [T, H] of the packed row."""
        self._cache.grow(entries(self._regions.end) if self._graphs else self._regions.end)
        tokens = torch.cat([feed.tokens.to(self.device, non_blocking=True) for feed in feeds])  # a drafter's own tokens are there already
        if self._graphs and (found := self._graphs.run(tokens, plan)) is not None:
            logits, *hidden = found
            return logits[len(logits) - sum(feed.want for feed in feeds) :], dict(zip(self.taps, hidden, strict=True))
        self._cache.begin(plan)
        positions = torch.cat([part.positions for part in plan])
        ends = [first + len(feed.tokens) for feed, first in zip(feeds, _starts(feeds), strict=True)]
        wanted = torch.cat([torch.arange(end - feed.want, end) for feed, end in zip(feeds, ends, strict=True)])
        packed = torch.cat([positions, wanted]).to(self.device, non_blocking=True)
        positions, wanted = torch.split(packed, [len(positions), len(wanted)])
        if self._lean is not None:
            self._attention.begin(plan)
            return self._lean(tokens, positions, wanted, self._cache, self._attention, self.taps)
        with self._attention.inside(self._configs, plan):
            return self._called(tokens, positions, wanted, self._sliced, self._attention)

    def _called(
        self, tokens: Tensor, positions: Tensor, wanted: Tensor | slice, sliced: bool, attention: Attention
    ) -> tuple[Tensor, dict[int, Tensor]]:
        cache = {"position_ids": positions[None], self._name: self._cache}
        logits, hidden, _ = call(self.model, tokens, wanted, sliced, self.taps, **cache)
        if attention.calls < max(1, len(self._cache.buffers)):
            raise ValueError(f"{type(self.model).__name__} does not send all its layers through transformers' attention interface; use HFReplay")
        return logits, hidden

    def _recordable(self, tokens: Tensor, positions: Tensor, attention: FixedAttention) -> tuple[Tensor, ...]:
        """A pass that takes nothing but addresses from the host; logits of all tokens, then the tapped rows."""
        with attention.inside(self._configs, []):
            logits, hidden = self._called(tokens, positions, slice(None), False, attention)
        return logits, *(hidden[tap] for tap in self.taps)


def call(
    model: Any, tokens: Tensor, wanted: Tensor | slice, sliced: bool, taps: tuple[int, ...], **cache: Any
) -> tuple[Tensor, dict[int, Tensor], Any]:
    """One pass over `tokens` [T]: logits [len(wanted), V] of the rows `wanted` (numbers or a slice), hidden rows {tap: [T, H]}, and the model's whole
    output. `sliced` as `slices` says."""
    if sliced:
        cache["logits_to_keep"] = wanted
    out = model(input_ids=tokens[None], use_cache=True, output_hidden_states=bool(taps), return_dict=True, **cache)
    return out.logits[0] if sliced else out.logits[0, wanted], {tap: out.hidden_states[tap][0] for tap in taps}, out


def slices(model: Any) -> bool:
    """Whether the model can send chosen rows only through its head; else all of a feed's rows go, and only the choice is kept."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def cache_name(model: Any) -> str | None:
    """By which of `CACHES` the model takes its cache; None where it takes none."""
    taken = inspect.signature(model.forward).parameters
    return next((name for name in CACHES if name in taken), None)


def nothing(backend: Any) -> dict[int, Tensor]:
    """The hidden rows of no token: {tap: [0, H]}."""
    width = backend.model.config.get_text_config(decoder=True).hidden_size
    return {tap: torch.zeros(0, width, dtype=backend.dtype, device=backend.device) for tap in backend.taps}


def unfit(model: Any) -> str:
    """Why a model cannot use the pooled cache; '' if it can."""
    config = model.config.get_text_config(decoder=True)
    if getattr(model.config, "is_encoder_decoder", False):
        return "it is an encoder-decoder model"
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention does not go through transformers' attention interface"
    if odd := set(getattr(config, "layer_types", None) or ()) - _LAYERS:
        return f"it has layers of type {', '.join(sorted(odd))}; only {' and '.join(sorted(_LAYERS))} can be rewound row by row"
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return "it takes no position_ids"
    return ""


def vocabulary(model: Any) -> int:
    """The width of the logits, which may exceed the tokenizer's vocabulary. A head that was cut gives all of them still."""
    if (narrow := getattr(model, "narrow", None)) is not None:
        return int(narrow.size)
    head = getattr(model.get_output_embeddings(), "out_features", None)  # wider than the config says where the head is padded
    return int(head or model.config.get_text_config(decoder=True).vocab_size)


def longest(model: Any) -> int:
    """The context length a model was made for; without bound (2**31) where its config names none."""
    return int(getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or 2**31)


def _starts(feeds: Sequence[Feed]) -> list[int]:
    """Where each feed begins in the packed row."""
    starts = [0]
    for feed in feeds:
        starts.append(starts[-1] + len(feed.tokens))
    return starts[:-1]
