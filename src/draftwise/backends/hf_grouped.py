"""Linear layers with weights of 4 or 8 bits and inputs rounded to 8 bits in groups of 32, computed by C code of our own (native/products.h has
the formula).

A pass over few rows is bound by reading weights: 4 bits with the steps of their groups are 4.6 bits a weight, 8 bits with a step for eight groups
8.1. A group of 4 bits is rounded to 16 evenly spaced levels between its smallest weight, or 0, and its largest, or to fewer if they fit better:
weights that were of 4 bits in such groups before, as those of a GGUF file of type Q4_0, Q4_1 or Q4_K, are nearly found again as they were. A target's
head keeps 8 bits, since it decides between near tokens, but is read in 4 of them: the others are added for those tokens alone that are near the best.
Norms and the product of the gated layer's halves are computed on the way in.
"""

from __future__ import annotations

import ctypes
import mmap
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from draftwise.backends.hf_product import GATED, Before, Norm, inputs
from draftwise.compiled import NotCompiled, library
from draftwise.files import user_cache

GROUP, LANES, RECORD = 32, 16, 8
CARRIED = torch.float32
_CHUNK = 256  # outputs that are rounded at once, so that they stay in the caches
_HUGE = 2 << 20  # bytes of a large page
_MIDDLE = 128  # the level of a weight of 0
_EACH = 8  # levels from number to number of 4 bits
_FEWEST = 7  # levels a group may be rounded to: a group of 6 levels fits one of 12, and so on


class Weights(ctypes.Structure):
    """As struct weights of native/products.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("records", "rest", "bias", "norm", "chosen")),
        *((name, ctypes.c_int64) for name in ("inputs", "outputs", "bits", "choices", "gated")),
        ("eps", ctypes.c_double),
    ]


class GroupedLinear:
    """The layer [T, in] -> float32 [T, out] of a weight's `parts` (see `rounded`), its `shape` and a `bias` [out], with what comes `before` it."""

    def __init__(self, parts: dict[str, Tensor], shape: torch.Size, bias: Tensor | None = None, before: Before = None) -> None:
        self.out_features, self.in_features = shape
        bits = 8 if "levels" in parts else 4
        self._kept = [
            _settled(parts["levels" if bits == 8 else "records"]),
            _settled(parts["rest"]) if "rest" in parts else None,
            None if bias is None else bias.detach().float().contiguous(),
            before.weight.float().contiguous() if isinstance(before, Norm) else None,
        ]
        self._wide = inputs(before, self.in_features)
        self.own = Weights(
            *(None if part is None else part.data_ptr() for part in self._kept),
            None,
            self.in_features,
            self.out_features,
            bits,
            0,
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
    """A weight [out, in] with `bits` 4 or 8: 'records', or 'levels' where they are of 8 bits, uint8 [blocks, bytes]. For the `role` 'head' with as
    many bits as `head` says, of which 8 are records of 4 and their 'rest' uint8 [blocks, groups, 256]."""
    parts = torch.split(weight.detach(), _CHUNK)
    if role == "head" and head == 8:
        records, rest = zip(*(_halved(part.float()) for part in parts), strict=True)
        return {"records": torch.cat(records), "rest": torch.cat(rest)}
    bits = head if role == "head" else bits
    return {"levels" if bits == 8 else "records": torch.cat([_records(part.float(), bits) for part in parts])}


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
    groups = -(-weight.shape[1] // GROUP)
    ends, numbers = _fitted(_grouped(weight), bits)
    return _joined(ends, _quads(numbers) if bits == 8 else _nibbles(numbers), groups)


def _halved(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Records of the upper 4 of 8 bits, and the lower ones: step * (8 * (upper + (lower - 7.5) / 16) + offset - 128)."""
    groups = -(-weight.shape[1] // GROUP)
    ends, numbers = _sixteenths(_grouped(weight))
    return _joined(ends, _nibbles(numbers >> 4), groups), _nibbles(numbers & 15)[:, :groups].contiguous()


def _grouped(weight: Tensor) -> Tensor:
    """[out, in] -> [blocks * LANES, records, RECORD, GROUP], filled up with zeros."""
    outputs, width = weight.shape
    return torch.nn.functional.pad(weight, (0, -width % (RECORD * GROUP), 0, -outputs % LANES)).view(-1, -(-width // (RECORD * GROUP)), RECORD, GROUP)


class Ends(NamedTuple):
    """What the numbers of groups [..., RECORD, GROUP] mean: value = step * (number - 128) of 8 bits, and of 4 step * (8 * number + offset - 128);
    step = unit * part, where there are parts. `units` float32 [...], `parts` and `offsets` uint8 [..., RECORD]."""

    units: Tensor
    parts: Tensor | None = None
    offsets: Tensor | None = None

    @property
    def steps(self) -> Tensor:
        """float32 [..., RECORD], or 1 for all groups."""
        return self.units[..., None] if self.parts is None else self.units[..., None] * self.parts

    def values(self, numbers: Tensor) -> Tensor:
        """float32, of numbers as they are rounded to."""
        levels = numbers if self.offsets is None else _EACH * numbers.float() + self.offsets[..., None]
        return self.steps[..., None] * (levels - float(_MIDDLE))


def _fitted(weight: Tensor, bits: int) -> tuple[Ends, Tensor]:
    """Ends and numbers uint8 of the groups [..., RECORD, GROUP]."""
    if bits == 8:
        ends = Ends(weight.abs().amax((-1, -2)) / (_MIDDLE - 1))
        return ends, _numbers(weight, ends.steps, 1, _MIDDLE, 255)
    low, high = weight.amin(-1).clamp(max=0), weight.amax(-1)
    step = (high - low) / 15
    best = _error(weight, low, step, 15)
    for levels in range(14, _FEWEST - 1, -1):
        other = (high - low) / levels
        error = _error(weight, low, other, 15)
        step, best = torch.where(error < best, other, step), torch.minimum(error, best)
    ends = _shifted(_stepped(step / _EACH), -low)
    return ends, _numbers(weight, ends.steps, _EACH, _zero(ends), 15)


def _sixteenths(weight: Tensor) -> tuple[Ends, Tensor]:
    """As `_fitted`, for numbers of 8 bits and ends for their upper 4: two levels of 256 are left for what an offset leaves out."""
    low, high = weight.amin(-1).clamp(max=0), weight.amax(-1)
    ends = _stepped((high - low) / 253 * 16 / _EACH, up=True)
    ends = _shifted(ends, -low - 7.5 / 16 * _EACH * ends.steps)
    return ends, _numbers(weight, ends.steps, _EACH / 16, 16 * _zero(ends) + 7.5, 255)


def _stepped(steps: Tensor, up: bool = False) -> Ends:
    """Of steps [..., RECORD] the nearest that bytes can say, or (`up`) the next larger. What is more than 0 stays so."""
    units = steps.amax(-1) / 255
    parts = steps / torch.where(units > 0, units, 1.0)[..., None]
    return Ends(units, torch.where(steps > 0, (parts.ceil() if up else parts.round()).clamp(1, 255), 0.0).to(torch.uint8))


def _shifted(ends: Ends, least: Tensor) -> Ends:
    """With the offsets for which the number 0 is nearest to -least [..., RECORD], as far as all levels are bytes."""
    down = torch.where(ends.steps > 0, least / ends.steps, 0.0).round_()
    return ends._replace(offsets=(_MIDDLE - down).clamp_(0, 255 - 15 * _EACH).to(torch.uint8))


def _zero(ends: Ends) -> Tensor:
    """The number, not a whole one, that means 0: [..., RECORD, 1]."""
    assert ends.offsets is not None
    return (_MIDDLE - ends.offsets[..., None].float()) / _EACH


def _numbers(weight: Tensor, steps: Tensor, each: float, zero: Tensor | float, top: int) -> Tensor:
    """The nearest to a weight, of numbers that are `each` levels apart."""
    inverse = torch.where(steps > 0, 1 / (each * steps), 0.0)
    return (weight * inverse[..., None] + zero).round_().clamp_(0, top).to(torch.uint8)


def _error(weight: Tensor, low: Tensor, step: Tensor, top: int) -> Tensor:
    """The sum of squares of what is lost in groups [..., GROUP]."""
    inverse = torch.where(step > 0, 1 / step, 0.0)
    numbers = ((weight - low[..., None]) * inverse[..., None]).round_().clamp_(0, top)
    return torch.addcmul(low[..., None], numbers, step[..., None]).sub_(weight).square_().sum(-1)


def _blocks(numbers: Tensor) -> Tensor:
    """[blocks * LANES, records, ...] -> [blocks, LANES, records, ...]."""
    return numbers.view(-1, LANES, *numbers.shape[1:])


def _quads(numbers: Tensor) -> Tensor:
    """Numbers of 8 bits as a block has them: [blocks, groups, bytes]."""
    own = _blocks(numbers).flatten(2, 3)
    return own.view(*own.shape[:3], 8, 4).permute(0, 2, 3, 1, 4).reshape(len(own), own.shape[2], -1)


def _nibbles(numbers: Tensor) -> Tensor:
    """Those of 4 bits."""
    own = _blocks(numbers).flatten(2, 3)
    low, high = own.view(*own.shape[:3], 4, 2, 4).permute(4, 0, 2, 3, 1, 5)
    joined: Tensor = low | high << 4
    return joined.reshape(len(own), own.shape[2], -1)


def _joined(ends: Ends, numbers: Tensor, groups: int) -> Tensor:
    """The records [blocks, bytes] of a block's numbers [blocks, groups filled up, bytes]."""
    units = _blocks(ends.units).transpose(1, 2).contiguous().view(torch.uint8)
    each = [_blocks(part).permute(0, 2, 3, 1).flatten(2) for part in (ends.parts, ends.offsets) if part is not None]
    records = torch.cat([units, *each, numbers.view(len(numbers), -1, RECORD * numbers.shape[-1])], -1).flatten(1)
    return records[:, : records.shape[1] - (-groups % RECORD) * numbers.shape[-1]].contiguous()
