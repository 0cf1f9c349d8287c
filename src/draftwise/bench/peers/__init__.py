"""Other engines in the same run. One file here and one worker script make a peer; the table names it.

A peer is named by a spec: ``transformers``, ``vllm:python=/path/to/its/bin/python``. Nothing here imports the peer's own packages.
"""

from __future__ import annotations

import importlib
from typing import NamedTuple, Protocol, cast

from draftwise import catalog
from draftwise.spec import parse

PEERS: dict[str, str] = {
    "draftwise": "draftwise.bench.peers.ourselves:Ourselves",
    "transformers": "draftwise.bench.peers.transformers:Transformers",
    "llamacpp": "draftwise.bench.peers.llamacpp:LlamaCpp",
    "vllm": "draftwise.bench.peers.vllm:Vllm",
    "openvino": "draftwise.bench.peers.openvino:OpenVino",
}


class Setup(NamedTuple):
    """What every peer is given alike. `target` and `draft` as typed; `dtype`: 'bfloat16', 'float32', 'float16'. `threads`: for the engine's own
    option; the environment of the worker says the same. `max_context`: prompt and answer of the longest job, in tokens. `device`: as typed,
    for engines that can use another than the CPU. Only our own engine takes `further`, drafts besides `draft`, `backend`,
    `quantize` and the draft's `vocabulary`."""

    target: str
    draft: str | None
    dtype: str
    threads: int
    max_context: int
    device: str = "cpu"
    further: tuple[str, ...] = ()
    backend: str | None = None
    quantize: str | None = None
    vocabulary: str | None = None


class Peer(Protocol):
    """A frozen dataclass whose fields are the options of its spec. `variants`: names unique in a run, such as 'vllm', 'vllm-draft';
    `install`: the command that would install it."""

    @property
    def name(self) -> str: ...

    @property
    def install(self) -> str: ...

    @property
    def variants(self) -> tuple[str, ...]: ...

    def missing(self, setup: Setup) -> str | None:
        """Why it cannot run, in a sentence, or None. Quick: asked before anything starts, without importing heavy packages."""
        ...

    def command(self, setup: Setup, variant: str) -> list[str]:
        """The argv of a worker that can run this variant; variants with equal argv share one process. Raises ValueError where this variant
        alone cannot run (no draft model): it is then named as skipped."""
        ...


def create(text: str) -> Peer:
    """The peer that a spec names. Raises ValueError for an unknown name or option, with what is possible."""
    spec = parse(text)
    if spec.name not in PEERS:
        raise ValueError(f"there is no peer {spec.name!r}: {catalog.suggest(spec.name, list(PEERS))}")
    module, _, attribute = PEERS[spec.name].partition(":")
    factory = getattr(importlib.import_module(module), attribute)
    known = list(getattr(factory, "__dataclass_fields__", {}))
    for key in spec.options:
        if key not in known:
            raise ValueError(f"the peer {spec.name!r} has no option {key!r}: {catalog.suggest(key, known)}")
    if spec.parts and not hasattr(factory, "of"):
        raise ValueError(f"the peer {spec.name!r} takes options written key=value, got {text!r}")
    return cast(Peer, factory.of(spec.parts, **spec.options) if spec.parts else factory(**spec.options))
