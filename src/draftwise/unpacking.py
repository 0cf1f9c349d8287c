"""From files to a model with its tokenizer. What takes long to make is kept in a cache folder, as transformers saves it.

The cache is a convenience: what cannot be written is done without, what cannot be read is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import shutil
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import torch

Progress = Callable[[str], None]
"""Told in a sentence what takes long, before it does."""
Made = TypeVar("Made")
_HEADER = struct.Struct("<4sIQQ")  # of a GGUF file: its letters, version, numbers of tensors and of fields
_STRING, _LONGEST = 8, 256  # the type of a field; the bytes of its name or value that are looked at
_STALE_S = 3600  # an unfinished cache entry this old belongs to a process that died


class Keeping(NamedTuple):
    """Where things are kept that take long to make, and who is told of it."""

    cache: Path
    tell: Progress

    def get(self, key: str, name: str, read: Callable[[Path], Made], make: Callable[[], Made], write: Callable[[Made, Path], None]) -> Made:
        """What the entry `key` holds as `read` gives it, or what `make` gives, which `write` puts into a folder first. `name`: of what is made."""
        if (kept := self.kept(key, read)) is not None:
            return kept
        self.tell(f"Unpacking {name} (once; it is then kept in {self.cache})")
        made = make()
        self.keep(key, name, "unpacked", lambda folder: write(made, folder))
        return made

    def kept(self, key: str, read: Callable[[Path], Made]) -> Made | None:
        """What the entry `key` holds as `read` gives it; None, and no entry, where it holds nothing that can be read."""
        entry = self.cache / key
        if entry.is_dir():
            try:
                return read(entry)
            except Exception:  # a disk that lied, or another version's files: what it was made from is still there
                shutil.rmtree(entry, ignore_errors=True)
        return None

    def keep(self, key: str, name: str, done: str, write: Callable[[Path], None]) -> None:
        """Makes the entry `key` of what `write` puts into a folder. `name`: of what was made; `done`: what was done to it."""
        try:
            store(self.cache / key, write)
        except Exception as error:  # a full disk, a read-only home: what is in memory is as good
            self.tell(f"{name} could not be kept in {self.cache} and will be {done} again next time: {first_line(error)}")


def dequantised(path: Path, dtype: torch.dtype, keeping: Keeping) -> tuple[Any, Any]:
    """A GGUF file as a model of transformers, and its tokenizer. Raises ValueError for a file that is none."""
    _check(path)

    def write(made: tuple[Any, Any], folder: Path) -> None:
        for part in made:
            part.save_pretrained(folder)

    entry = key([path], path.stem, str(dtype).removeprefix("torch."))
    return keeping.get(entry, path.name, lambda folder: pretrained(str(folder), dtype), lambda: _dequantise(path, dtype), write)


def gguf_tokenizer(path: Path, keeping: Keeping) -> Any:
    """The tokenizer of a GGUF file. Raises ValueError for a file that is none."""
    from transformers import AutoTokenizer

    _check(path)

    def make() -> Any:
        with _readable(path), contextlib.redirect_stderr(io.StringIO()):
            return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)

    def write(made: Any, folder: Path) -> None:
        made.save_pretrained(folder)

    return keeping.get(key([path], path.stem, "tokenizer"), f"the tokenizer of {path.name}", AutoTokenizer.from_pretrained, make, write)


def architecture(path: Path) -> str:
    """What a GGUF file says its model is, as 'qwen2'; '' where it does not say so first, as the format asks it to."""
    with contextlib.suppress(OSError, struct.error, UnicodeDecodeError), path.open("rb") as file:
        file.seek(_HEADER.size)
        name, (kind,), value = _string(file), struct.unpack("<I", file.read(4)), _string(file)
        return value if (name, kind) == ("general.architecture", _STRING) else ""
    return ""


def _string(file: BinaryIO) -> str:
    (size,) = struct.unpack("<Q", file.read(8))
    return file.read(min(size, _LONGEST)).decode()


def has_llamacpp() -> bool:
    """Whether llama-cpp-python is installed."""
    return importlib.util.find_spec("llama_cpp") is not None


def pretrained(name: str, dtype: torch.dtype, **options: Any) -> tuple[Any, Any]:
    """What transformers loads from a folder or from the Hub: the model, decoder-only or with an encoder, and its tokenizer."""
    from transformers import AutoConfig, AutoTokenizer

    from draftwise.backends.hf_seq2seq import auto_class

    tokenizer = AutoTokenizer.from_pretrained(name, **options)
    maker = auto_class(AutoConfig.from_pretrained(name, **options))
    return maker.from_pretrained(name, dtype=dtype, **options), tokenizer


def first_line(error: BaseException) -> str:
    """What an error says, in one line for the middle of a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".:")


def store(entry: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a folder beside the entry and renames it, so that an entry is whole or absent whatever happens meanwhile."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    for old in entry.parent.glob(".new-*"):
        if time.time() - old.stat().st_mtime > _STALE_S:
            shutil.rmtree(old, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=entry.parent))
    try:
        write(new)
        try:
            new.rename(entry)
        except OSError:
            if not entry.is_dir():  # else another process was faster
                raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _check(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"'{path}' is not a GGUF file: it does not begin with the letters GGUF")


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ValueError(f"'{path}' is truncated, damaged, or of a kind that transformers cannot read ({first_line(error)})") from error


def _dequantise(path: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    import transformers

    options: dict[str, Any] = {"gguf_file": path.name, "dtype": dtype}
    if config := getattr(transformers, "GgufConfig", None):  # before it existed, dequantising was the only way
        options["quantization_config"] = config(gguf_file=path.name, dequantize=True)
    with _readable(path), contextlib.redirect_stderr(io.StringIO()):  # its unpacking draws a progress bar that no setting switches off
        model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, **options)
        return model, transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def key(files: Sequence[Path], stem: str, what: str) -> str:
    """The cache folder of files and what is made of them: by content, so that every environment with the same package shares one. Samples of 64 KiB
    tell files apart that differ anywhere on purpose, without reading all of a large one."""
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"1 {size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(1 << 20))
            for i in range(64):
                file.seek(size * i // 64)
                digest.update(file.read(1 << 16))
    return f"{stem}-{what}-{digest.hexdigest()[:16]}"
