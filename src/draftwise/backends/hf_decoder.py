"""The whole pass of a `draftwise.backends.hf_lean.Lean` with grouped products in one call of C (native/decoder.c): between the products of a small
model, calls from Python take as long as its weights. Rows do not depend on their neighbours there, attention included: a greedy text is the same to
the last bit, however many tokens were drafted.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding

from draftwise.backends.hf_cache import PooledCache
from draftwise.backends.hf_grouped import GroupedLinear, Weights, native
from draftwise.backends.hf_lean import Lean
from draftwise.backends.hf_product import prepared
from draftwise.backends.hf_shortlist import Shortlist

_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_int64
_WIDEST = 256  # lanes of a head


def _fields(*parts: tuple[Any, str]) -> list[tuple[str, Any]]:
    return [(name, kind) for kind, names in parts for name in names.split()]


class _Shape(ctypes.Structure):
    _fields_ = _fields((_NUMBER, "heads groups width half"), (ctypes.c_double, "scale eps"))


class _Segment(ctypes.Structure):
    _fields_ = _fields((_NUMBER, "first n start past"), (_POINTER, "seen"))


class _Layer(ctypes.Structure):
    _fields_ = _fields((Weights, "qkv out gated down"), (_POINTER, "query key"))


class _Model(ctypes.Structure):
    _fields_ = _fields((_Shape, "shape"), (Weights, "head"), (_NUMBER, "count"), (_POINTER, "layers"))


class _Pass(ctypes.Structure):
    _fields_ = _fields(
        (_NUMBER, "count segments wanted taps rows threads whole"),
        (_POINTER, "segment keys values cosine sine want tap x hidden logits scratch"),
    )


class Decoder:
    """Takes the place of `lean`, whose products must all be `GroupedLinear`. Raises ValueError for others and for heads of more than 256 numbers.
    `shortlist`: of a draft that is to compute a part of its vocabulary, the other logits being -inf."""

    def __init__(self, lean: Lean) -> None:
        products = [lean.head, *(product for layer in lean.layers for product in (layer.qkv, layer.out, layer.gated, layer.down))]
        if not all(isinstance(product, GroupedLinear) for product in products) or lean.width > _WIDEST:
            raise ValueError(f"a pass in one call needs grouped products and heads of at most {_WIDEST} numbers")
        self._lean = lean
        self._norms = [tuple(norm.float().contiguous() for norm in layer.heads) for layer in lean.layers]
        self._dtype = torch.bfloat16 if lean.dtype == torch.bfloat16 else torch.float32
        self._layers = (_Layer * len(lean.layers))()
        for i, (layer, norms) in enumerate(zip(lean.layers, self._norms, strict=True)):
            for name in ("qkv", "out", "gated", "down"):
                setattr(self._layers[i], name, getattr(layer, name).own)
            if norms:
                self._layers[i].query, self._layers[i].key = (norm.data_ptr() for norm in norms)
        shape = _Shape(lean.heads, lean.groups, lean.width, self._dtype == torch.bfloat16, lean.width**-0.5, lean.eps)
        self._model = _Model(shape, getattr(lean.head, "own"), len(lean.layers), ctypes.addressof(self._layers))  # noqa: B009
        self._native = native()
        self.shortlist: Shortlist | None = None

    def __call__(
        self, tokens: Tensor, positions: Tensor, wanted: Tensor, cache: PooledCache, attention: Any, taps: Sequence[int]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """As `Lean`; `attention` is not asked, since the cache has the plan."""
        lean = self._lean
        cache.ready(len(lean.layers), lean.groups, lean.width, self._dtype)
        x = embedding(tokens, lean.embed).float()
        angles = [part.reshape(len(x), -1).float().contiguous() for part in lean.angles(positions)]
        inner = sorted({tap for tap in taps if tap >= 0})
        hidden = torch.empty(len(inner), *x.shape)
        logits = self._rows(len(wanted))
        seen = [None if part.seen is None else part.seen.to(torch.uint8).contiguous() for part in cache.plan]
        segments = [
            _Segment(part.first, part.n, part.start, part.past, None if mask is None else mask.data_ptr())
            for part, mask in zip(cache.plan, seen, strict=True)
        ]
        buffers = zip(*(cache.buffers[i] for i in range(len(lean.layers))), strict=True)
        given: list[ctypes.Array[Any]] = [
            (_Segment * len(segments))(*segments),
            *((_POINTER * len(lean.layers))(*(part.data_ptr() for part in parts)) for parts in buffers),
            (_NUMBER * len(inner))(*inner),
        ]
        segment, keys, values, tap = (ctypes.addressof(part) for part in given)
        numbers = len(x), len(segments), len(wanted), len(inner), cache.rows, torch.get_num_threads(), -1 in taps
        own = _Pass(*numbers, segment, keys, values)
        own.cosine, own.sine, own.want, own.tap = angles[0].data_ptr(), angles[1].data_ptr(), wanted.data_ptr(), tap
        own.x, own.hidden, own.logits = x.data_ptr(), hidden.data_ptr(), logits.data_ptr()
        scratch = torch.empty(self._native.room(ctypes.byref(self._model), ctypes.byref(own)))
        own.scratch = scratch.data_ptr()
        self._native.decode(ctypes.byref(self._model), ctypes.byref(own))
        if self.shortlist:
            self.shortlist.hide(logits)
        found = {tap: row.to(lean.dtype) for tap, row in zip(inner, hidden, strict=True)}
        return logits, found | ({-1: prepared(x, lean.norm).to(lean.dtype)} if -1 in taps else {})

    def _rows(self, count: int) -> Tensor:
        """Room for logits; with a shortlist the head is told which of them to compute."""
        if self.shortlist is None:
            return torch.empty(count, self._lean.vocabulary)
        blocks = self.shortlist.blocks()
        self._model.head.chosen, self._model.head.choices = blocks.ctypes.data, len(blocks)
        return torch.full((count, self._lean.vocabulary), -math.inf)
