"""Measures several models and plans the best hierarchy of them: what `draftwise plan` shows.

Costs are seconds of a pass at several widths (`draftwise.bench.profile`), agreement is ``sum min(p_i, p_j)`` of two models' laws, averaged over
the places of texts that the target wrote itself, and the search is `draftwise.methods.hsd`.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from draftwise.bench.profile import Job, Samples
from draftwise.methods.hsd import Chance, Hierarchy, shortlist

if TYPE_CHECKING:
    from torch import Tensor

    from draftwise.protocols import Backend

WIDTHS = (1, 2, 3, 5, 9)
_CHUNK = 256


class Text(NamedTuple):
    """Ids of a prompt, and the ids that the target wrote after it."""

    prompt: tuple[int, ...]
    written: tuple[int, ...]


class Measured(NamedTuple):
    """`names`: cheapest first, the target last. `seconds[j]`: of a pass of model j by its width. `alpha[i][j]`: agreement, at `places` places."""

    names: tuple[str, ...]
    seconds: tuple[dict[int, float], ...]
    alpha: tuple[tuple[float, ...], ...]
    places: int


class Plan(NamedTuple):
    """`ranked`: every chain of models with its best buffers, best first; latencies are seconds per token. `plain`: the target alone."""

    measured: Measured
    ranked: tuple[Hierarchy, ...]
    plain: float

    @property
    def best(self) -> Hierarchy:
        """Of all chains; only the target where nothing pays."""
        return self.ranked[0]

    @property
    def single(self) -> Hierarchy | None:
        """The best with one draft; None without helpers."""
        return next((some for some in self.ranked if len(some.models) == 2), None)


def jobs(names: Sequence[str], context: int, t_max: int) -> list[Job]:
    """What is to be timed: every model at every width up to one more than the largest buffer."""
    return [Job(name, context, width) for name in names for width in sorted({*(w for w in WIDTHS if w <= t_max), t_max + 1})]


def agreement(backends: Mapping[str, Backend], texts: Sequence[Text], temperature: float) -> dict[tuple[str, str], float]:
    """For each pair of models the mean of ``sum min(p, q)`` over all written places; at temperature 0 the share of equal choices. Rows are cut to
    the narrowest vocabulary."""
    import torch

    from draftwise import probs
    from draftwise.types import Sampling

    vocab, sampling = min(backend.vocab_size for backend in backends.values()), Sampling(temperature)
    totals = dict.fromkeys(itertools.combinations(backends, 2), 0.0)
    for text in texts:
        laws = {name: probs.law(rows(backend, text)[:, :vocab], sampling) for name, backend in backends.items()}
        for one, other in totals:
            totals[one, other] += float(torch.minimum(laws[one], laws[other]).sum())
    places = sum(len(text.written) for text in texts)
    return {pair: total / places for pair, total in totals.items()}


def rows(backend: Backend, text: Text) -> Tensor:
    """The model's raw rows at the written places: [len(written), V], in a slot that is empty before and after."""
    import torch

    from draftwise.types import Feed

    ids, start = torch.tensor([*text.prompt, *text.written[:-1]]), len(text.prompt) - 1
    backend.free(0)
    while (length := backend.length(0)) < start:
        backend.forward([Feed(0, ids[length : min(length + _CHUNK, start)], 0)])
    found = backend.forward([Feed(0, ids[start:], len(text.written))])[0].logits.clone()
    backend.free(0)
    return found


def measured(names: Sequence[str], samples: Samples, agreed: Mapping[tuple[str, str], float], places: int) -> Measured:
    """Medians by width, models ordered by the cost of a step; the last of `names` is the target."""
    medians: dict[str, dict[int, float]] = {name: {} for name in names}
    for job, some in sorted(samples.items()):
        medians[job.model][job.rows] = statistics.median(some)
    order = [*sorted(names[:-1], key=lambda name: medians[name][1]), names[-1]]
    alpha = [[1.0 if one == other else agreed[one, other] if (one, other) in agreed else agreed[other, one] for other in order] for one in order]
    return Measured(tuple(order), tuple(medians[name] for name in order), tuple(tuple(row) for row in alpha), places)


def plan(found: Measured, t_max: int, laws: Mapping[tuple[str, str], Chance] | None = None) -> Plan:
    """The search, with each cost at the width it verifies, on a line between the measured widths. `laws`: as in `hsd.shortlist`, by names."""
    import numpy as np

    def cost(seconds: dict[int, float]) -> Any:
        return lambda width: float(np.interp(width, list(seconds), list(seconds.values())))

    places = {name: i for i, name in enumerate(found.names)}
    told = {(places[one], places[other]): law for (one, other), law in (laws or {}).items()}
    ranked = shortlist([cost(seconds) for seconds in found.seconds], found.alpha, t_max, told)
    return Plan(found, tuple(ranked), found.seconds[-1][1])
