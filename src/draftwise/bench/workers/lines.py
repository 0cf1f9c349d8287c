"""The worker's side of the bench's protocol: one JSON object a line, requests on stdin, answers on stdout.

Only the standard library is used, since workers of other engines run under interpreters in which draftwise is not installed: their scripts lie
beside this file and say ``import lines``. First comes ``{"ready": {...}}`` or ``{"error": "one sentence"}``, then one line for each request.
``{"memory": true}`` and ``{"quit": true}`` are answered here.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

Answer = Callable[[dict[str, Any]], dict[str, Any]]
_PR_SET_PDEATHSIG = 1


def serve(ready: dict[str, Any], answer: Answer) -> None:
    """Says that the worker is ready and answers requests until it is told to quit or its parent is gone."""
    run(lambda: (ready, answer))


def run(start: Callable[[], tuple[dict[str, Any], Answer]]) -> None:
    """As `serve`, with loading done by `start`, so that what a library prints meanwhile goes to stderr, and what it raises becomes the first
    line. An exception in `answer` becomes ``{"error": ...}``, and the worker goes on."""
    requests, replies = _private_streams()
    die_with_parent()
    try:
        ready, answer = start()
    except Exception as error:
        _send(replies, {"error": sentence(error)})
        raise SystemExit(1) from None
    _send(replies, {"ready": ready})
    for line in iter(requests.readline, ""):
        request = json.loads(line)
        if request.get("quit"):
            break
        _send(replies, _reply(request, answer))


def _reply(request: dict[str, Any], answer: Answer) -> dict[str, Any]:
    try:
        return {"peak_bytes": peak_bytes()} if request.get("memory") else answer(request)
    except Exception as error:
        return {"error": sentence(error)}


def sentence(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def die_with_parent() -> None:
    """On Linux this process is killed when its parent dies, even by kill -9. Also good as ``preexec_fn`` of a worker's own children."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def peak_bytes() -> int:
    """Most resident memory so far, of this process and those below it, in bytes: the sum of each one's own peak."""
    if sys.platform.startswith("linux"):
        return sum(_high_water(pid) for pid in _family(os.getpid()))
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) * unit


def _high_water(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it ended meanwhile
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def _family(pid: int) -> Iterator[int]:
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            below = children.read_text().split()
        except OSError:
            continue
        for child in below:
            yield from _family(int(child))


def _private_streams() -> tuple[TextIO, TextIO]:
    """Copies of stdin and stdout for the protocol. What else reads stdin finds it empty; what else prints ends up on stderr."""
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, replies


def _send(replies: TextIO, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(_finite(reply), ensure_ascii=False) + "\n")
    replies.flush()


def _finite(value: Any) -> Any:
    """The value with numbers that JSON lacks (nan, inf) as None."""
    if isinstance(value, dict):
        return {key: _finite(some) for key, some in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(some) for some in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
