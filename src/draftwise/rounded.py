"""A model of 8 bits for the lean pass, rounded once and kept: rounding reads and writes all weights several times, and what is kept is half as large.

A folder of the cache holds the tokenizer, the configurations, and one safetensors file: the weights that are not rounded under their own names,
and the i-th product, in the order in which `draftwise.backends.hf_lean.Lean` asks for them, as ``i.weight``, ``i.scale`` and ``i.bias``.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from draftwise.backends.hf_int8 import Int8Linear, quantize, rounded
from draftwise.backends.hf_lean import Lean, unfit
from draftwise.unpacking import Keeping, first_line, key, store

_FILE = "rounded.safetensors"


def load(files: Sequence[Path], name: str, dtype: torch.dtype, keeping: Keeping, find: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
    """The model that is made of `files`, with its lean pass of 8 bits, and its tokenizer. `find` loads both in full. A model without a lean pass gets
    8-bit modules and is not kept."""
    entry = keeping.cache / key(files, name, f"{str(dtype).removeprefix('torch.')}-int8")
    if entry.is_dir():
        try:
            return _read(entry, dtype)
        except Exception:  # a disk that lied, or another version's files: the model is still there
            shutil.rmtree(entry, ignore_errors=True)
    model, tokenizer = find()
    model = model.eval()
    model.precision = "int8"
    if unfit(model):
        quantize(model)
        return model, tokenizer
    keeping.tell(f"Rounding {name} to 8 bits (once; it is then kept in {keeping.cache})")
    parts: dict[str, Tensor] = {}
    numbers = itertools.count()

    def make(weight: Tensor, bias: Tensor | None) -> Int8Linear:
        levels, scale = rounded(weight)
        number = next(numbers)
        parts.update({f"{number}.weight": levels, f"{number}.scale": scale} | ({} if bias is None else {f"{number}.bias": bias.detach()}))
        return Int8Linear(levels, scale, bias)

    model.lean = Lean(model, make)
    try:
        store(entry, lambda folder: _write(model, tokenizer, parts, folder))
    except Exception as error:  # a full disk, a read-only home: what is in memory is as good
        keeping.tell(f"{name} could not be kept in {keeping.cache} and will be rounded again next time: {first_line(error)}")
    return model, tokenizer


def _write(model: Any, tokenizer: Any, parts: dict[str, Tensor], folder: Path) -> None:
    from safetensors.torch import save_file

    tokenizer.save_pretrained(folder)
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    save_file({name: weight.contiguous() for name, weight in {**model.state_dict(), **parts}.items()}, folder / _FILE)


def _read(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    from accelerate import init_empty_weights
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    tensors = load_file(folder / _FILE)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=dtype)
    model.load_state_dict({name: weight for name, weight in tensors.items() if not name[0].isdigit()}, strict=False, assign=True)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    numbers = itertools.count()

    def make(_: Tensor, __: Tensor | None) -> Int8Linear:
        number = next(numbers)
        return Int8Linear(tensors[f"{number}.weight"], tensors[f"{number}.scale"], tensors.get(f"{number}.bias"))

    model.precision = "int8"
    model.lean = Lean(model.eval(), make)
    return model, AutoTokenizer.from_pretrained(folder)
