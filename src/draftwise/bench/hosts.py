"""Worker processes from the outside: started, asked, stopped while others are measured, ended with everything below them.

Each is a process group of its own, so that Ctrl-C reaches the bench only, and one signal reaches a server's helpers too.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

_TICK_S = 1.0
_GRACE_S = 5.0
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "RAYON_NUM_THREADS")

Argv = tuple[str, ...]


class WorkerError(Exception):
    """A worker died, said nothing in time, or answered with an error. One sentence."""


class Host:
    """One worker. `log` gets what it writes to stderr. `ready`: what it said of itself. `warm`: variants that have run in it. `learnt`: by variant,
    the problem of which it has seen how many samples."""

    def __init__(self, argv: Sequence[str], threads: int, log: Path) -> None:
        self.argv, self._log = tuple(argv), log
        self.ready: dict[str, Any] = {}
        self.warm: set[str] = set()
        self.learnt: dict[str, tuple[str, str, int]] = {}
        self._buffer = b""
        environment = os.environ | dict.fromkeys(_THREADS, str(threads)) | {"TOKENIZERS_PARALLELISM": "false"}
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as errors:
            self._start = errors.tell()
            try:
                self._process = subprocess.Popen(
                    self.argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment, bufsize=0, start_new_session=True
                )
            except OSError as error:
                raise WorkerError(f"{self.argv[0]} could not be started: {error.strerror}") from None
        self._requests: Any = self._process.stdin
        self._replies: Any = self._process.stdout

    def wait(self, timeout: float, tick: Callable[[], None]) -> None:
        """Until it is ready; `tick` is called every second. Raises WorkerError."""
        reply = self._read(timeout, tick)
        if "ready" not in reply:
            raise WorkerError(f"did not get ready: {reply}")
        self.ready = dict(reply["ready"])

    def ask(self, request: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """Its answer. Raises WorkerError."""
        try:
            self._requests.write((json.dumps(request) + "\n").encode())
        except OSError:
            raise WorkerError(self._obituary()) from None
        return self._read(timeout, _nothing)

    def peak(self) -> int:
        """Its most resident memory so far, in bytes, with that of its children."""
        return int(self.ask({"memory": True}, 60)["peak_bytes"])

    def pause(self) -> None:
        """Stops all of its processes where they are."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets them go on."""
        self._signal(signal.SIGCONT)

    def end(self) -> None:
        """Asks it to quit, and after some seconds kills what is left of its group."""
        self.resume()
        with contextlib.suppress(OSError):
            self._requests.write(b'{"quit": true}\n')
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_S)
        finally:  # a second Ctrl-C too
            self.kill()

    def kill(self) -> None:
        """Ends it at once."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._requests, self._replies):
            with contextlib.suppress(OSError):
                pipe.close()

    def _read(self, timeout: float, tick: Callable[[], None]) -> dict[str, Any]:
        """The next JSON object; other lines are skipped."""
        deadline = time.monotonic() + timeout
        while True:
            while b"\n" in self._buffer:
                line, _, self._buffer = self._buffer.partition(b"\n")
                if (reply := _object(line)) is not None:
                    if "error" in reply:
                        raise WorkerError(str(reply["error"]))
                    return reply
            self._more(deadline, timeout, tick)

    def _more(self, deadline: float, timeout: float, tick: Callable[[], None]) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise WorkerError(f"gave no answer within {timeout:g} s")
        output = self._replies
        if not select.select([output], [], [], min(left, _TICK_S))[0]:
            if self._process.poll() is not None and not select.select([output], [], [], 0)[0]:
                raise WorkerError(self._obituary())
            return tick()
        data = os.read(output.fileno(), 1 << 16)
        if not data:
            raise WorkerError(self._obituary())
        self._buffer += data

    def _obituary(self) -> str:
        """How it ended, and its last words."""
        try:
            code = self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            return "closed its output"
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        words = self._log.read_bytes()[self._start :].decode(errors="replace").split("\n") if self._log.exists() else []
        last = next((line.strip() for line in reversed(words) if line.strip()), "")
        return how + (f" (its last words: {last[:300]})" if last else "")

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


class Pool:
    """All workers of a run, of which one runs at a time. `reserve`: bytes of memory that stay available; below it, workers that are not wanted
    now are ended, the one longest unused first. `limit_s`: how long a worker may take to get ready."""

    def __init__(self, threads: int, logs: Path, reserve: int | None = None, limit_s: float = 1800.0) -> None:
        self.threads, self.logs, self.limit_s = threads, logs, limit_s
        self.reserve = max(2 << 30, total_memory() // 10) if reserve is None else reserve
        self._hosts: dict[Argv, Host] = {}  # the one longest unused first
        self._needs: dict[Argv, int] = {}

    def turn(self, argv: Sequence[str], name: str) -> Host:
        """The worker of this argv, running while all others are stopped. `name`: of its log. Raises WorkerError."""
        key = tuple(argv)
        host = self._hosts.pop(key, None)
        for other in self._hosts.values():
            other.pause()
        if host is None:
            host = self._start(key, name)
        self._hosts[key] = host
        host.resume()
        self._relieve(key, 0)
        return host

    def drop(self, argv: Sequence[str]) -> None:
        """Ends the worker of this argv at once, if there is one."""
        if (host := self._hosts.pop(tuple(argv), None)) is not None:
            host.kill()

    def close(self) -> None:
        """Ends all of them."""
        while self._hosts:
            self._hosts.popitem()[1].end()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        while kind is not None and self._hosts:  # Ctrl-C in the middle of an answer: nobody waits for its end
            self._hosts.popitem()[1].kill()
        self.close()

    def _start(self, key: Argv, name: str) -> Host:
        self._relieve(key, self._needs.get(key, 0))
        host = Host(key, self.threads, self.logs / f"{name}.log")
        try:
            host.wait(self.limit_s, lambda: self._relieve(key, 0))
            self._needs[key] = host.peak()
        except BaseException:
            host.kill()
            raise
        return host

    def _relieve(self, wanted: Argv, need: int) -> None:
        idle = [key for key in self._hosts if key != wanted]
        while idle and available_memory() - need < self.reserve:
            self._hosts.pop(idle.pop(0)).end()


def available_memory() -> int:
    """Bytes that new processes can have; without end where the system does not tell. Files that are mapped do not count, though the system could
    take their pages back: weights are mapped, and a worker whose weights are read from the disk again for each token measures the disk."""
    return _meminfo("MemAvailable", 1 << 62) - _meminfo("Mapped", 0)


def total_memory() -> int:
    """Bytes of main memory; 0 where the system does not tell."""
    return _meminfo("MemTotal", 0)


def _meminfo(name: str, otherwise: int) -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return otherwise
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":")), otherwise)


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _nothing() -> None:
    pass
