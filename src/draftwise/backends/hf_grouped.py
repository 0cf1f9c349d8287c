"""Linear layers with weights of 4 or 8 bits in groups of 32 and inputs rounded to 8 bits group by group, computed by C code of our own
(native/products.h has the formula).

A pass is bound by reading weights, and 4 bits with the steps of their groups are 5 bits a weight, 8 bits are 9. A group is rounded to evenly spaced
levels between its smallest and its largest weight; of 4 bits to 16, or to fewer if they fit better: weights that were of 4 bits in such groups
before, as those of a GGUF file of type Q4_0, Q4_1 or Q4_K, are found again as they were. A target's head keeps 8 bits, since it decides between near
tokens. Norms and the product of the gated layer's halves are computed on the way in.
"""

from __future__ import annotations

import ctypes
import mmap
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from draftwise.backends.hf_product import GATED, Before, Norm, inputs
from draftwise.compiled import NotCompiled, library
from draftwise.files import user_cache

GROUP, LANES = 32, 16
CARRIED = torch.float32
_CHUNK = 256  # outputs that are rounded at once, so that they stay in the caches
_HUGE = 2 << 20  # bytes of a large page
_FEWEST = 7  # levels a group may be rounded to: a group of 6 levels fits one of 12, and so on


class Weights(ctypes.Structure):
    """As struct weights of native/products.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("records", "bias", "norm")),
        *((name, ctypes.c_int64) for name in ("inputs", "outputs", "bits", "gated")),
        ("eps", ctypes.c_double),
    ]


class GroupedLinear:
    """The layer [T, in] -> float32 [T, out] of a weight's `parts` (see `rounded`), its `shape` and a `bias` [out], with what comes `before` it."""

    def __init__(self, parts: dict[str, Tensor], shape: torch.Size, bias: Tensor | None = None, before: Before = None) -> None:
        self.out_features, self.in_features = shape
        records = parts["records"]
        self._kept = [
            _settled(records),
            None if bias is None else bias.detach().float().contiguous(),
            before.weight.float().contiguous() if isinstance(before, Norm) else None,
        ]
        bits = (records.shape[-1] - 4 * LANES) // 64
        self._wide = inputs(before, self.in_features)
        self.own = Weights(
            *(None if part is None else part.data_ptr() for part in self._kept),
            self.in_features,
            self.out_features,
            bits,
            before == GATED,
            before.eps if isinstance(before, Norm) else 0.0,
        )
        self._at = ctypes.addressof(self.own)
        self._native = native()

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """Plus `add` float32 [T, out]."""
        x = x.float().contiguous()
        if x.shape[-1] != self._wide:
            raise ValueError(f"rows are {self._wide} wide here, got {x.shape[-1]}")
        n = len(x)
        out = torch.empty(n, self.out_features)
        scratch = torch.empty(self._native.scratch_of(self._at, n))
        given = None if add is None else add.data_ptr()
        self._native.multiply(self._at, n, torch.get_num_threads(), x.data_ptr(), given, out.data_ptr(), scratch.data_ptr())
        return out


def rounded(weight: Tensor, role: str = "", bits: int = 4, head: int = 8) -> dict[str, Tensor]:
    """The records uint8 [blocks, groups, bytes] of a weight [out, in] with `bits` 4 or 8, for the `role` 'head' with as many as `head` says."""
    bits = head if role == "head" else bits
    parts = [_records(part.float(), bits) for part in torch.split(weight.detach(), _CHUNK)]
    return {"records": torch.cat(parts)}


def possible(device: torch.device) -> str:
    """Why this machine cannot compute so; '' if it can."""
    if device.type != "cpu":
        return f"4-bit products are for the CPU, and the device is {device}"
    try:
        return "" if native().possible() else "its processor has no AVX-512 VNNI, which 4-bit products are written for"
    except NotCompiled as error:
        return str(error)


def native() -> Any:
    """The compiled code of the folder beside this file. Raises NotCompiled."""
    found = library(Path(__file__).with_name("native") / "decoder.c", user_cache() / "compiled")
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    if found.possible():
        found.multiply.argtypes = [pointer, number, number, pointer, pointer, pointer, pointer]
        found.decode.argtypes = found.room.argtypes = [pointer, pointer]
        found.multiply.restype = found.decode.restype = None
        found.scratch_of.argtypes = [pointer, number]
        found.room.restype = found.scratch_of.restype = number
    return found


def _settled(records: Tensor) -> Tensor:
    """The same bytes in memory of their own, in large pages where the system gives them: a pass reads all of it, and of pages of 4 KiB a
    gigabyte has a quarter of a million to be looked up."""
    if records.nbytes < _HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return records.contiguous()
    own = mmap.mmap(-1, records.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        own.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(own, dtype=records.dtype).view(records.shape).copy_(records)


def _records(weight: Tensor, bits: int) -> Tensor:
    outputs, width = weight.shape
    blocks, groups = -(-outputs // LANES), -(-width // GROUP)
    padded = torch.nn.functional.pad(weight, (0, groups * GROUP - width, 0, blocks * LANES - outputs)).view(-1, GROUP)
    step, least, numbers = _fitted(padded, bits)
    ends = [part.half().view(blocks, LANES, groups).transpose(1, 2) for part in (step, least)]
    if bits == 8:
        body = numbers.view(blocks, LANES, groups, 8, 4).permute(0, 2, 3, 1, 4)
    else:
        halves = numbers.view(blocks, LANES, groups, 4, 2, 4).permute(4, 0, 2, 3, 1, 5)
        body = halves[0] | halves[1] << 4
    return torch.cat([*(part.contiguous().view(torch.uint8) for part in ends), body.reshape(blocks, groups, -1)], -1)


def _fitted(weight: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Steps and leasts [n], as float16 holds them, and numbers uint8 [n, GROUP] of the groups [n, GROUP]: weight = step * number - least."""
    low, high = weight.amin(1), weight.amax(1)
    top = 2**bits - 1
    best = _at(weight, low, (high - low) / top, top)
    for levels in range(top - 1, _FEWEST - 1, -1) if bits == 4 else ():
        other = _at(weight, low, (high - low) / levels, top)
        better = other[3] < best[3]
        best = tuple(torch.where(better if old.dim() == 1 else better[:, None], new, old) for new, old in zip(other, best, strict=True))
    return best[0], best[1], best[2].to(torch.uint8)


def _at(weight: Tensor, low: Tensor, step: Tensor, top: int) -> tuple[Tensor, ...]:
    step, least = step.half().float(), (-low).half().float()
    inverse = torch.where(step > 0, 1 / step, 0.0)
    numbers = ((weight + least[:, None]) * inverse[:, None]).round_().clamp_(0, top)
    error = torch.addcmul(-least[:, None], numbers, step[:, None]).sub_(weight).square_().sum(1)
    return step, least, numbers, error
