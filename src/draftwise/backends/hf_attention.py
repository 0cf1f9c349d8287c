"""Attention over the regions of a `PooledCache`: each feed of a packed row reads its own slot, as a view, without repeating grouped heads.

transformers looks the function up by name for every layer; it is registered, and named in the model's config, only while a forward runs, so
the model stays what its owner made it. Under a name that transformers has no mask for, models make no masks at all: sliding windows
are known from the argument that every windowed layer passes along.

On a CPU, folding a group of heads into the query rows beats repeating the keys, and additive masks in the model's dtype beat boolean ones; above
some hundred rows the native grouped kernel beats folding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from draftwise.backends.hf_cache import Segment

_FOLD = 256  # query rows up to which the heads of a group are folded into one


class Extras(NamedTuple):
    """`softcap`: scores pass through ``softcap * tanh(score / softcap)`` (Gemma 2). `sinks` [heads]: a score of each head that takes its share
    of the softmax and gives nothing (gpt-oss)."""

    softcap: float | None
    sinks: Tensor | None

    @property
    def any(self) -> bool:
        """Whether a fused kernel will not do."""
        return self.softcap is not None or self.sinks is not None


class Attention:
    """The attention function of one backend. `calls` counts the layers of a forward, so that a model which goes its own way is noticed."""

    def __init__(self) -> None:
        self.plan: list[Segment] = []
        self.calls = 0
        self._masks: dict[tuple[int, int | None, int, torch.dtype, torch.device], Tensor] = {}

    def begin(self, plan: list[Segment]) -> None:
        """Takes the plan of the next forward."""
        self.plan, self.calls = plan, 0
        self._masks.clear()

    @contextmanager
    def inside(self, configs: Sequence[Any], plan: list[Segment]) -> Iterator[None]:
        """Makes the modules that hold `configs` use this function for one forward of `plan`."""
        self.begin(plan)
        name, before = f"draftwise-{id(self)}", [config._attn_implementation for config in configs]
        ALL_ATTENTION_FUNCTIONS[name] = self
        try:
            for config in configs:
                config._attn_implementation = name
            yield
        finally:
            for config, own in zip(configs, before, strict=True):  # outer ones first: they set what they contain
                config._attn_implementation = own
            del ALL_ATTENTION_FUNCTIONS[name]

    def __call__(self, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """`query` [1, heads, T, width]; `key`, `value`: the whole buffers [1, groups, rows, width]. Returns [1, T, heads, width]."""
        self.calls += 1
        scale = kwargs.get("scaling")
        window, extras = kwargs.get("sliding_window"), Extras(kwargs.get("softcap"), kwargs.get("s_aux"))
        if kwargs.get("position_bias") is not None:
            raise ValueError(f"{type(module).__name__} adds a position bias to its scores, which the pooled cache does not know; use HFReplay")
        return self.over(query, key, value, window, scale, extras), None

    def over(self, query: Tensor, key: Tensor, value: Tensor, window: int | None, scale: float | None, extras: Extras) -> Tensor:
        """What a layer asks for, with its options read."""
        parts = []
        for i, part in enumerate(self.plan):
            low = 0 if window is None else max(0, part.past - window + 1)  # no token of this feed sees entries before that
            rows = slice(part.start + low, part.start + part.past + part.n)
            own = query if len(self.plan) == 1 else query[:, :, part.first : part.first + part.n]
            parts.append(self._one(i, own, key[:, :, rows], value[:, :, rows], window, low, scale, extras))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _one(self, i: int, query: Tensor, key: Tensor, value: Tensor, window: int | None, low: int, scale: float | None, extras: Extras) -> Tensor:
        """Feed i: `query` [1, heads, n, width] over its own entries from `low` on; [1, n, heads, width]."""
        heads, n = query.shape[1:3]
        groups = key.shape[1]
        group = heads // groups
        part = self.plan[i]
        large = group * n > _FOLD and not extras.any
        causal = large and n > 1 and part.past == 0 and part.seen is None and (window is None or window >= n)
        fold = 1 if causal or (large and query.device.type == "cpu") else group  # on CUDA no fused kernel takes a mask and grouped heads
        mask = None if causal else self._mask(i, window, low, fold, query)
        return attend(query, key, value, mask, fold, scale, extras, causal)

    def _mask(self, i: int, window: int | None, low: int, fold: int, query: Tensor) -> Tensor | None:
        """The additive mask of feed i in the query's dtype, [fold * n, entries from `low` on]; None where a single token sees all of them."""
        part = self.plan[i]
        if part.n == 1:
            return None  # `low` has cut what a window hides
        key = (i, window, fold, query.dtype, query.device)
        if key not in self._masks:
            self._masks[key] = additive(visible(part, window)[:, low:], fold, query.dtype).to(query.device, non_blocking=True)
        return self._masks[key]


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, fold: int, scale: float | None, extras: Extras, causal: bool = False
) -> Tensor:
    """`query` [1, heads, n, width] over `key` and `value` [1, groups, entries, width]; [1, n, heads, width]. `fold`: heads of a group that are folded
    into the query rows, all or 1. `mask`: additive, [fold * n, entries]."""
    heads, n = query.shape[1:3]
    groups = key.shape[1]
    if fold > 1:
        query = query.reshape(1, groups, fold * n, -1)
    if extras.any:
        out = _plain(query, key, value, mask, scale, extras)
    else:
        out = sdpa(query, key, value, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=fold == 1 and heads > groups)
    return out.reshape(1, heads, n, -1).transpose(1, 2)


def additive(seen: Tensor, fold: int, dtype: torch.dtype) -> Tensor:
    """The mask of `attend`, of who sees whom, bool [n, entries]."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf")).repeat(fold, 1)


def visible(part: Segment, window: int | None) -> Tensor:
    """Who sees whom: bool [n, past + n], by "slot and ancestors" and, for windowed layers, by distance in positions."""
    whole = torch.cat([torch.ones(part.n, part.past, dtype=torch.bool), part.among], 1)
    if window is not None:
        whole &= part.positions[:, None] - torch.cat([torch.arange(part.past), part.positions]) < window
    return whole


def _plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None, extras: Extras) -> Tensor:
    """Attention with what no fused kernel here offers, in the order of transformers. `query` [1, groups, group * n, width]."""
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if extras.softcap is not None:
        scores = torch.tanh(scores / extras.softcap) * extras.softcap
    if mask is not None:
        scores = scores + mask
    if extras.sinks is None:
        return scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ value
    group = len(extras.sinks) // key.shape[1]
    sinks = extras.sinks.view(1, -1, group, 1).expand(-1, -1, -1, query.shape[2] // group).reshape(1, key.shape[1], -1, 1)
    weights = torch.cat([scores, sinks.to(scores.dtype)], -1).softmax(-1, dtype=torch.float32)
    return weights[..., :-1].to(query.dtype) @ value
