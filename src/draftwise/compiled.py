"""The C sources of this package, compiled on the machine that runs them, once, with the compiler that is there.

Threads are OpenMP's. torch brings its own copy of that library: a second one would keep a second team of threads, which spin for the same cores. So
the symbols are left open and found in torch's copy, where there is one.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-fopenmp")


class NotCompiled(ValueError):
    """The message says what is missing."""


@cache
def library(source: Path, folder: Path) -> ctypes.CDLL:
    """The shared library of a C file and the headers beside it, which is kept in `folder`. Raises NotCompiled."""
    shared = _shared_openmp()
    parts = [path.read_bytes() for path in (source, *sorted(source.parent.glob("*.h")))]
    digest = hashlib.sha256(b"".join(parts) + repr((_FLAGS, shared)).encode()).hexdigest()[:16]
    if shared is not None:
        ctypes.CDLL(str(shared), mode=ctypes.RTLD_GLOBAL)
    path = folder / f"{source.stem}-{digest}.so"
    try:
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            _compile(source, path, shared is None)
    except OSError:  # a full disk, a read-only home: this process can have it all the same
        with tempfile.TemporaryDirectory() as other:
            _compile(source, Path(other) / path.name, shared is None)
            return _loaded(Path(other) / path.name)
    return _loaded(path)


def _loaded(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NotCompiled(f"'{path}' cannot be loaded: {error}") from error


def _shared_openmp() -> Path | None:
    """torch's own copy of GNU's OpenMP."""
    return next(iter(sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))), None)


def _compile(source: Path, path: Path, openmp: bool) -> None:
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise NotCompiled(f"{source.name} is compiled on first use, and there is no C compiler: install one ({', '.join(_COMPILERS)} are looked for)")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        parts = [Path(folder) / "part.o", Path(folder) / path.name]
        _call(compiler, *_FLAGS, "-c", str(source), "-o", str(parts[0]))
        _call(compiler, "-shared", str(parts[0]), "-o", str(parts[1]), "-lm", *["-fopenmp"] * openmp)
        os.replace(parts[1], path)


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise NotCompiled(f"{Path(command[0]).name} could not compile it: {next((line for line in lines if 'error' in line), lines[0])}")
