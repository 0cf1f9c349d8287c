"""Seconds on the device that does the work: wall time on a CPU, stream events on CUDA, read at the end of a step."""

from __future__ import annotations

import time
from typing import Any

import torch


class Clock:
    """`device`: where the work runs; None or a CPU = wall time."""

    def __init__(self, device: torch.device | str | None = None) -> None:
        self._cuda = device is not None and torch.device(device).type == "cuda"

    def mark(self) -> Any:
        """A moment, to hand to `seconds`."""
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """Seconds between two moments; waits for the device where it has to."""
        if not self._cuda:
            return float(end - start)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000
