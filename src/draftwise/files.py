"""Files that are whole or absent, whatever happens to the process or the disk; and where those lie that can be made again."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A binary file to write: it takes the place of `path` when the block has ended and its bytes are on the disk. If anything raises, what was at
    `path` stays and nothing is left beside it."""
    place = Path(path)
    handle, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, place)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def user_cache() -> Path:
    """Where what is made of this user's models lies; XDG_CACHE_HOME is respected on every system."""
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "draftwise"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "draftwise"
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "draftwise"
