"""What a row says of where it was measured."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from draftwise.bench.hosts import total_memory


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def facts(threads: int) -> dict[str, Any]:
    """The machine, without what a worker knows better."""
    return {
        "cpu": _processor(),
        "cores": cores(),
        "threads": threads,
        "memory_bytes": total_memory(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def with_worker(machine: Mapping[str, Any], ready: Mapping[str, Any]) -> dict[str, Any]:
    """And what the worker said of itself."""
    return dict(machine) | {key: ready[key] for key in ("threads", "device", "versions") if key in ready}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor() or platform.machine())
