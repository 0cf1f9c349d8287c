"""From a planned hierarchy to what runs: its spec, and how fast it is beside plain decoding and the best single draft on prompts of their own."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from draftwise.bench.hierarchy import Plan
from draftwise.methods.hsd import Hierarchy

if TYPE_CHECKING:
    from draftwise.api import Speculator

_WARM_UP = 8  # tokens that nobody counts


class Spec(NamedTuple):
    """What `draftwise generate` takes: `drafts` largest first, a method, and a drafter ('' for plain decoding)."""

    drafts: tuple[str, ...]
    method: str
    drafter: str


class Checked(NamedTuple):
    """One way to decode, run: times plain decoding as `predicted` and as `measured`, the latter over `tokens` in all."""

    name: str
    predicted: float
    measured: float
    tokens_per_second: float
    tau: float
    tokens: int


def spec(names: Sequence[str], some: Hierarchy, copier: str | None = None) -> Spec:
    """How a hierarchy is asked for. `names`: of all models, cheapest first, the target last. `copier`: which of them is no model."""
    if len(some.models) == 1:
        return Spec((), "plain", "")
    drafts = [names[m] for m in reversed(some.models[:-1]) if names[m] != copier]
    drafter = ""
    for level, m in enumerate(some.models[:-1]):
        place = f"model={drafts.index(names[m]) + 1}" if names[m] != copier else ""
        if level == 0:
            drafter = f"draft-model:{place}" if place else names[m]
        else:
            drafter = f"cascade:{place},length=[fixed:n={some.buffers[level - 1]}],[{drafter}]"
    return Spec(tuple(drafts), f"fixed:n={some.buffers[-1]}", drafter)


def candidates(found: Plan) -> dict[str, Hierarchy]:
    """What is run: plain decoding, the best single draft, and the best hierarchy of more levels."""
    plain = next(some for some in found.ranked if len(some.models) == 1)
    deep = next((some for some in found.ranked if len(some.models) > 2), None)
    chosen = {"plain": plain, "best single draft": found.single, "best hierarchy": deep}
    return {name: some for name, some in chosen.items() if some is not None}


def check(
    speculator: Speculator,
    backends: Mapping[str, Any],
    found: Plan,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    temperature: float,
    seed: int,
    copier: str | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Checked]:
    """Runs the `candidates` on the same prompts, in an order of their own for each, after an answer that does not count."""
    chosen = candidates(found)
    methods = {name: _method(speculator, backends, spec(found.measured.names, some, copier)) for name, some in chosen.items()}
    for name, method in methods.items():
        tell(f"warming up: {name}")
        speculator.generate(list(prompts[0]), _WARM_UP, temperature, seed=seed, method=method)
    stats: dict[str, list[Any]] = {name: [] for name in chosen}
    for i, name in _order([*chosen], len(prompts), seed):
        tell(f"prompt {i + 1} of {len(prompts)}: {name}")
        stats[name].append(speculator.generate(list(prompts[i]), max_tokens, temperature, seed=seed + i, method=methods[name]).stats)
    speeds = {name: sum(s.tokens for s in some) / sum(s.seconds for s in some) for name, some in stats.items()}
    return [
        Checked(
            name, found.plain / chosen[name].latency, speeds[name] / speeds["plain"], speeds[name],
            sum(s.tokens for s in some) / sum(s.rounds for s in some), sum(s.tokens for s in some),
        )
        for name, some in stats.items()
    ]  # fmt: skip


def _order(names: Sequence[str], prompts: int, seed: int) -> Iterator[tuple[int, str]]:
    draw = random.Random(seed)
    for i in range(prompts):
        yield from ((i, name) for name in draw.sample(names, len(names)))


def _method(speculator: Speculator, backends: Mapping[str, Any], wanted: Spec) -> Any:
    from draftwise import catalog

    drafts = tuple(backends[name] for name in wanted.drafts)
    context = speculator.context._replace(draft=next(iter(drafts), None), drafts=drafts, names=wanted.drafts)
    return catalog.method(wanted.method, context, drafter=wanted.drafter or None)
