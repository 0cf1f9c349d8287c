"""What a CUDA graph does, without the device: operations are recorded with every number of the host baked in, and run again on the same tensors."""

from __future__ import annotations

from typing import Any

from torch.fx.experimental.proxy_tensor import make_fx

from draftwise.backends.hf import HF
from draftwise.backends.hf_graphs import Run


def record(run: Run) -> Run:
    """As `draftwise.backends.hf_graphs.captured`. Raises RuntimeError, as CUDA does, for what waits for the device."""
    run()
    graph = make_fx(run)()  # it refuses numbers that are brought to the host
    if any("nonzero" in str(node.target) for node in graph.graph.nodes):
        raise RuntimeError("operation not permitted when stream is capturing: nonzero")
    return graph


def backend(model: Any, after: int = 2, **options: Any) -> HF:
    """A backend whose short passes are recorded when they come for the time `after`."""
    made = HF(model, record=record, **options)
    assert made._graphs is not None
    made._graphs.after = after
    return made
