"""Runs a program that a model wrote, so that its mistakes harm nothing: endless loops, endless memory, files, sockets, processes, signals.

The program gets a process of its own: a bare interpreter (standard library only, nothing installed, fixed hash seed), an empty environment, an
empty temporary folder as working directory, no stdin, and stdout and stderr that lead nowhere. It may compute, and read Python's own library. It
may not open other files, write anywhere (a full disk is then impossible), use the network, start threads or processes, or send signals. Four
layers see to that, each of which does what the system allows:

- limits: CPU seconds, address space (not on macOS), no bytes to any file, open files, no core dump, no new process for ordinary users (setrlimit);
- landlock: the kernel opens, makes and removes no file but those (Linux 5.13 and later);
- seccomp: the kernel refuses the system calls for sockets, processes, signals and administration (Linux on x86_64 and aarch64);
- audit: a hook in the interpreter refuses the same things to Python code (every system).

At the end, however it came, the process group is killed. The two kernel layers hold root as well, need no privilege and no set-up, and were
preferred to namespaces, which many systems and containers refuse to ordinary users.

What this is not: a wall against an attacker. It guards against accidents. A program that looks through the interpreter's frames can find the
token that says "passed"; a hole in the kernel stays a hole; reading file names and sizes is not prevented; and where neither landlock nor seccomp
is there, code that goes around Python (ctypes is refused, other C code is not) is held by the limits alone. `Outcome.layers` says what held.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

LAYERS = ("limits", "landlock", "seccomp", "audit")
_START_S = 60.0  # for the interpreter to come up on a busy machine; the program's own time starts after it
_SLICE_S = 0.05
_LONGEST_LINE = 4096


class Outcome(NamedTuple):
    """`ok`: the program ran to its last line without an exception. `reason`: what happened otherwise, '' if ok. `layers`: those of LAYERS that
    were in force."""

    ok: bool
    reason: str
    layers: tuple[str, ...] = ()


def run(program: str, *, timeout_s: float = 10.0, memory_mb: int = 1024, layers: tuple[str, ...] = LAYERS) -> Outcome:
    """Runs Python source to its end, in at most `timeout_s` seconds of waiting for it and `memory_mb` MiB of address space.

    A program passes only if it says so after its last line with a token it was not told, so `exit(0)` half-way is a failure. `layers` is there for
    tests of single layers. Raises ValueError for impossible limits, and OSError where no process could be started or made safe."""
    if os.name != "posix":
        raise ValueError(f"generated programs are run on Linux and macOS only, this is {sys.platform}")
    if timeout_s <= 0 or memory_mb < 64:
        raise ValueError(f"a program needs more than 0 s and at least 64 MiB, got {timeout_s} s and {memory_mb} MiB")
    token = secrets.token_hex(16)
    job = {"program": program, "token": token, "layers": layers, "cpu_s": math.ceil(timeout_s) + 1, "memory": memory_mb << 20}
    with tempfile.TemporaryDirectory(prefix="draftwise-") as folder, _start(folder) as child:
        assert child.stdin is not None and child.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError), child.stdin as pipe:
                pipe.write(json.dumps(job).encode())
            ready = _hear(child.stdout.fileno(), _START_S)
            verdict = _hear(child.stdout.fileno(), timeout_s) if ready else None
        finally:
            code = _end(child)
    if not ready:
        raise OSError(f"the sandbox for generated programs did not start ({_died(code)}), with {memory_mb} MiB of memory allowed")
    held = tuple(ready["layers"])
    if verdict is None:
        return Outcome(False, f"ran longer than {timeout_s:g} s", held)
    if verdict.get("token") != token:
        return Outcome(False, f"{_died(code)} before its end", held)
    return Outcome(verdict["ok"], verdict["reason"], held)


def _start(folder: str) -> subprocess.Popen[bytes]:
    """The interpreter with `sandboxed.py` as its text, so that it needs no file of ours once the doors are shut. Not -I: it would ignore
    the hash seed; its other parts (no user site, no foreign variables, no folder of ours on the path) hold without it."""
    text = Path(__file__).with_name("sandboxed.py").read_text(encoding="utf-8")
    command = [sys.executable, "-s", "-S", "-B", "-X", "utf8", "-c", text]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=folder, env={"PYTHONHASHSEED": "0"}, start_new_session=True, **pipes)


def _hear(fd: int, seconds: float) -> dict[str, Any] | None:
    """The next line as an object; {} where the other side closed or said something else; None where nothing complete came in time. Time is
    counted in slices waited for in vain: a machine that stood still, the program with it, then counts as one."""
    slices, line = math.ceil(seconds / _SLICE_S), b""
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while not line.endswith(b"\n") and len(line) < _LONGEST_LINE:
            if not selector.select(_SLICE_S):
                slices -= 1
                if slices <= 0:
                    return None
                continue
            byte = os.read(fd, 1)
            if not byte:
                break
            line += byte
    with contextlib.suppress(ValueError):
        heard = json.loads(line)
        return heard if isinstance(heard, dict) else {}
    return {}


def _end(child: subprocess.Popen[bytes]) -> int:
    """Kills what is left of the child's process group, and says how the child itself ended. A dead child keeps its number until it is waited
    for, so the group's number cannot be somebody else's."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    return child.wait()


def _died(code: int) -> str:
    """'ended by SIGSEGV' or 'exited with 0'."""
    with contextlib.suppress(ValueError):
        return f"ended by {signal.Signals(-code).name}"
    return f"exited with {code}"
