"""The results folder: a configuration that must not change, and rows that are whole whatever happens to the process.

``config.json`` says what was asked for, ``rows.jsonl`` holds one `Row` a line. A row is on the disk before the next job starts; a line that a
killed process left torn is cut off when the folder is opened again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from draftwise import files
from draftwise.bench import schema
from draftwise.bench.schema import Key, Row, from_json, to_json

INFORMATIVE = ("draftwise", "command", "baseline")
"""Keys of config.json that may differ when a run is resumed."""


class Journal:
    """A file of JSON lines that only grows. Opening it cuts off a torn last line. One process may hold it at a time.

    Raises ValueError for a line in the middle that is no JSON object and for a file that another process holds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._lock()
            self.lines = self._whole()
        except BaseException:
            os.close(self._file)
            raise

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes a line through to the disk. If there is no room for all of it, nothing of it stays. Raises OSError."""
        data = (json.dumps(record, ensure_ascii=False) + "\n").encode()
        before = os.fstat(self._file).st_size
        try:
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, before)
            kept = f"{error.strerror}; the {len(self.lines)} lines so far are whole: make room, then resume with the same command"
            raise OSError(error.errno, kept, str(self.path)) from error
        self.lines.append(dict(record))

    def close(self) -> None:
        """Lets another process have it."""
        os.close(self._file)

    def _lock(self) -> None:
        import fcntl  # not on every system that can import this package

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{self.path} is in use by another process: wait for it, or name another folder") from None

    def _whole(self) -> list[dict[str, Any]]:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.ftruncate(self._file, whole)
            os.fsync(self._file)
        return [_object(line, f"{self.path}, line {i}") for i, line in enumerate(data[:whole].splitlines(), 1)]


class Store:
    """The rows of one configuration in `folder`, with the memory figures beside them."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._rows = Journal(folder / "rows.jsonl")
        try:
            self._configure(config)
            self._memory = Journal(folder / "memory.jsonl")
        except BaseException:
            self._rows.close()
            raise

    @property
    def rows(self) -> list[Row]:
        """All rows, oldest first."""
        return [from_json(line) for line in self._rows.lines]

    @property
    def keys(self) -> set[Key]:
        """The keys of the rows that are there."""
        return {schema.key(line["task"], line["id"], line["variant"], line.get("sample")) for line in self._rows.lines}

    @property
    def peaks(self) -> dict[str, int]:
        """Peak bytes of the variants whose memory was measured."""
        return {line["variant"]: int(line["peak_bytes"]) for line in self._memory.lines}

    def add(self, row: Row) -> None:
        """Keeps a row; it is on the disk when this returns."""
        self._rows.append(to_json(row))

    def weigh(self, record: Mapping[str, Any]) -> None:
        """Keeps the memory figure of one variant."""
        self._memory.append(record)

    def close(self) -> None:
        """Lets another process have the folder."""
        self._rows.close()
        self._memory.close()

    def _configure(self, config: Mapping[str, Any]) -> None:
        path = self.folder / "config.json"
        if path.exists() and self._rows.lines:
            there = _object(path.read_bytes(), str(path))
            if found := list(differences(there, json.loads(json.dumps(config)))):
                raise ValueError(f"{self.folder} holds rows of another configuration ({'; '.join(found)}): name another folder, or the same options")
        elif self._rows.lines:
            raise ValueError(f"{self.folder} holds rows and no config.json: name another folder")
        else:
            with files.whole(path) as file:
                file.write((json.dumps(config, indent=1, ensure_ascii=False) + "\n").encode())


@contextmanager
def opened(folder: Path, config: Mapping[str, Any]) -> Iterator[Store]:
    """The store of a folder, closed at the end. Raises ValueError for a folder of another configuration, with the difference."""
    store = Store(folder, config)
    try:
        yield store
    finally:
        store.close()


def differences(there: Mapping[str, Any], here: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """'key: X there, Y here' for each key that must match and does not, also below tasks and the like."""
    for key in [*there, *(key for key in here if key not in there)]:
        old, new = there.get(key), here.get(key)
        if old == new or (not within and key in INFORMATIVE):
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{within}{key}.")
        else:
            yield f"{within}{key}: {json.dumps(old, ensure_ascii=False)} there, {json.dumps(new, ensure_ascii=False)} here"


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{where} is no JSON object: the file was changed by something else")
    return found
