"""Models of 8 and 4 bits: which precisions there are, and a model rounded once and kept, since rounding reads and writes all weights several times.

A folder of the cache holds the tokenizer, the configurations, and one safetensors file: the weights that are not rounded under their own names,
and the parts of the i-th product, in the order in which `draftwise.backends.hf_lean.Lean` asks for them, as ``i.part`` and ``i.bias``; and the ids of
a vocabulary that was cut.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from draftwise.backends import hf_grouped, hf_int8
from draftwise.backends.hf_decoder import Decoder
from draftwise.backends.hf_lean import Lean, unfit
from draftwise.backends.hf_product import Before, InPlace, Make, Product, put
from draftwise.narrowing import narrow
from draftwise.unpacking import Keeping, key

_FILE = "rounded.safetensors"
_CUT = "narrow.ids"
_SMALL = 1 << 16  # weights with fewer entries gain nothing in the place of single layers


class Precision(NamedTuple):
    """`name`: of what is kept, which begins with the bits. `rounded`: the parts of a weight [out, in] with a role; `linear`: the product of parts,
    shape, bias and what comes before; `carried`: the dtype of what a lean pass adds up; `whole`: what is made of a lean pass; `possible`: why a
    device cannot compute so."""

    name: str
    rounded: Callable[[Tensor, str], dict[str, Tensor]]
    linear: Callable[[dict[str, Tensor], torch.Size, Tensor | None, Before], Product]
    carried: torch.dtype
    whole: Callable[[Lean], Any]
    possible: Callable[[torch.device], str]

    @property
    def bits(self) -> str:
        """In words, as 'int4'."""
        return self.name.partition("-")[0]

    def make(self, role: str, weight: Tensor, bias: Tensor | None, before: Before) -> Product:
        """A product from a weight in full."""
        return self.linear(self.rounded(weight, role), weight.shape, bias, before)

    def lean(self, model: Any, make: Make) -> Any:
        """What runs a model with a lean pass."""
        return self.whole(Lean(model, make, self.carried))


def _grouped(bits: int, head: int) -> Precision:
    rounded = partial(hf_grouped.rounded, bits=bits, head=head)
    return Precision(f"int{bits}-levels{head}", rounded, hf_grouped.GroupedLinear, hf_grouped.CARRIED, Decoder, hf_grouped.possible)


_INT8 = Precision("int8", hf_int8.rounded, hf_int8.Int8Linear, hf_int8.CARRIED, lambda lean: lean, hf_int8.possible)

PRECISIONS = {
    "int8": (_grouped(8, 8), _INT8),
    "int4": (_grouped(4, 8),),
    "int4-all": (_grouped(4, 4),),
    "least": (_grouped(4, 4), _INT8),
}
"""The ways to compute in so many bits, the best first. 'int4' leaves the head 8 bits, which a draft does not need: see `draftwise.picking`."""


def precision(quantize: str, device: torch.device) -> Precision:
    """The first way of a name that this machine can go. Raises ValueError for a name that there is not, or if it can go none."""
    if quantize not in PRECISIONS:
        raise ValueError(f"weights cannot be made {quantize!r}: possible are {', '.join(PRECISIONS)}")
    reason = ""
    for way in PRECISIONS[quantize]:
        if not (reason := way.possible(device)):
            return way
    raise ValueError(f"weights cannot be made {quantize} here: {reason}")


def in_place(model: Any, quantize: str, lean: bool = True) -> Any:
    """A model that is ours to change, rounded here and now: by a lean pass, or layer by layer where it has none or must not."""
    way = precision(quantize, model.device)
    model.precision = way.bits
    if not lean or unfit(model):
        put(model, lambda weight: weight.numel() >= _SMALL, lambda linear: InPlace(linear, way.make))
    else:
        model.lean = way.lean(model, way.make)
    return model


class Entry(NamedTuple):
    """What is kept of a model: its `files`, a `name` for people, the dtype of what is not rounded, the bits, and what its vocabulary was cut to."""

    files: Sequence[Path]
    name: str
    dtype: torch.dtype
    quantize: str
    vocabulary: str = ""


def load(asked: Entry, device: torch.device, keeping: Keeping, find: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
    """The model that was asked for, with its lean pass of few bits, and its tokenizer. `find` loads both in full. A model without a lean pass is
    rounded layer by layer and not kept. Raises ValueError for bits that there are not, or not on the device."""
    files, name, dtype, quantize, vocabulary = asked
    way = precision(quantize, device)
    entry = key(files, name, "-".join(filter(None, (str(dtype).removeprefix("torch."), way.name, vocabulary))))
    if (kept := keeping.kept(entry, lambda folder: _read(folder, dtype, way))) is not None:
        return kept
    model, tokenizer = find()
    model = model.eval()
    if unfit(model):
        return in_place(model, quantize), tokenizer
    keeping.tell(f"Rounding {name} to {way.bits[3]} bits (once; it is then kept in {keeping.cache})")
    written: dict[str, Tensor] = {}
    numbers = itertools.count()

    def make(role: str, weight: Tensor, bias: Tensor | None, before: Before) -> Product:
        parts, number = way.rounded(weight, role), next(numbers)
        written.update({f"{number}.{part}": value for part, value in (parts | ({} if bias is None else {"bias": bias.detach()})).items()})
        return way.linear(parts, weight.shape, bias, before)

    model.precision = way.bits
    model.lean = way.lean(model, make)
    keeping.keep(entry, name, "rounded", lambda folder: _write(model, tokenizer, written, folder))
    return model, tokenizer


def _write(model: Any, tokenizer: Any, parts: dict[str, Tensor], folder: Path) -> None:
    from safetensors.torch import save_file

    tokenizer.save_pretrained(folder)
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    if (cut := getattr(model, "narrow", None)) is not None:
        parts = {**parts, _CUT: cut.ids}
    save_file({name: weight.contiguous() for name, weight in {**model.state_dict(), **parts}.items()}, folder / _FILE)


def _read(folder: Path, dtype: torch.dtype, way: Precision) -> tuple[Any, Any]:
    from accelerate import init_empty_weights
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    tensors = load_file(folder / _FILE)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=dtype)
    if (ids := tensors.pop(_CUT, None)) is not None:
        narrow(model, ids.clone())
    model.load_state_dict({name: weight for name, weight in tensors.items() if not name[0].isdigit()}, strict=False, assign=True)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    numbers = itertools.count()

    def make(_: str, weight: Tensor, __: Tensor | None, before: Before) -> Product:
        own = f"{next(numbers)}."
        parts = {name.removeprefix(own): tensor.clone() for name, tensor in tensors.items() if name.startswith(own)}  # the file may change
        return way.linear(parts, weight.shape, parts.pop("bias", None), before)

    model.precision = way.bits
    model.lean = way.lean(model.eval(), make)
    return model, AutoTokenizer.from_pretrained(folder)
