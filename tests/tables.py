"""Small pairs of table models and a shorthand for running one request, shared by the engine's tests."""

from __future__ import annotations

from draftwise import catalog
from draftwise.backends.table import Table
from draftwise.context import Context
from draftwise.engine import Engine
from draftwise.types import Sampling

PROMPT = [1, 2, 3, 1]


def pair(vocab: int = 8, twist: float = 0.6, seed: int = 0, **options: float) -> Context:
    """A target table and a draft that agrees with it most of the time."""
    return Context(Table(vocab, seed=seed, **options), Table(vocab, seed=seed, twist=twist, **options), vocab)


def run(context: Context, spec: str, prompt: list[int] = PROMPT, chunk: int = 256, **sampling: object) -> list[int]:
    """The tokens one method writes after a prompt."""
    engine = Engine(context.target, chunk)
    return engine.generate([prompt], Sampling(**sampling), catalog.method(spec, context))[0]
