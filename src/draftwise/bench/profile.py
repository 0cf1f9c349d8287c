"""What a pass of the target over k tokens and a step of the draft cost on this machine, and what acceptance makes drafting pay.

The first half is arithmetic without torch. With each drafted token accepted with chance a, given that all before it were, a round of n drafts
emits ``1 + a + ... + a^n`` tokens (Leviathan, Kalman, Matias 2023, arXiv 2211.17192) and takes ``n * d + v(n + 1)`` seconds, where d is a step
of the draft and v(k) the target's pass over k tokens. Plain decoding emits one token in ``v(1)``.
"""

from __future__ import annotations

import random
import statistics
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from draftwise.protocols import Backend

ACCEPTANCES = tuple(a / 100 for a in range(50, 100, 5))
LENGTHS = (1, 2, 3, 5, 8, 16)
TARGET, DRAFT = "target", "draft"
_TICKS = (1, 1.2, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_CHUNK = 256  # context tokens read in one pass, as the engine does


class Costs(NamedTuple):
    """At one context: `draft_s` seconds of a draft step (0: proposals cost nothing, as when they are copied from the text), `verify` pairs
    (k, seconds of a target pass over k tokens), ascending in k from 1 on."""

    draft_s: float
    verify: tuple[tuple[int, float], ...]

    @property
    def longest(self) -> int:
        """The most tokens a draft may have, so that its pass was measured."""
        return self.verify[-1][0] - 1


class Best(NamedTuple):
    """A draft length (0 = decode plainly) and the speed over plain decoding that it gives."""

    n: int
    speed_up: float


def expected(a: float, n: int) -> float:
    """Tokens a round of `n` drafts emits on average: ``(1 - a^(n+1)) / (1 - a)``, and n + 1 for a = 1."""
    return float(sum(a**i for i in range(n + 1)))


def verify_s(costs: Costs, k: int) -> float:
    """Seconds of a pass over `k` tokens; between two measured ones on the line through them. Raises ValueError beyond them."""
    import numpy as np  # inside, since the command line imports this file for every command

    ks, seconds = zip(*costs.verify, strict=True)
    if not ks[0] <= k <= ks[-1]:
        raise ValueError(f"passes over {ks[0]} to {ks[-1]} tokens were measured, {k} is none of them")
    return float(np.interp(k, ks, seconds))


def speed_up(costs: Costs, n: int, a: float) -> float:
    """Tokens per second with drafts of `n` tokens over those of plain decoding."""
    return expected(a, n) * verify_s(costs, 1) / (n * costs.draft_s + verify_s(costs, n + 1))


def needed(costs: Costs, n: int) -> float | None:
    """The smallest acceptance at which drafts of `n` tokens are no slower than plain decoding; None if there is none."""
    if speed_up(costs, n, 1.0) < 1:
        return None
    low, high = 0.0, 1.0  # by bisection: the speed-up grows with the acceptance
    if speed_up(costs, n, low) >= 1:
        return low
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (low, middle) if speed_up(costs, n, middle) >= 1 else (middle, high)
    return high


def threshold(costs: Costs) -> tuple[float, int] | None:
    """The acceptance from which on some length pays off, and the shortest such length; None if none does."""
    found = [(a, n) for n in range(1, costs.longest + 1) if (a := needed(costs, n)) is not None]
    return min(found) if found else None


def best(costs: Costs, a: float) -> Best:
    """The length that is fastest at acceptance `a`, the shortest of equals."""
    return max([Best(0, 1.0), *(Best(n, speed_up(costs, n, a)) for n in range(1, costs.longest + 1))], key=lambda found: found.speed_up)


def conclusion(costs: Costs, drafter: str, a: float = 0.8) -> str:
    """In a sentence: the acceptance that `drafter` ('this draft') needs here, and what comes of acceptance `a`."""
    found = threshold(costs)
    if found is None:
        return f"{drafter} does not pay off here at any length up to {costs.longest}, even if every token is accepted."
    n, gain = best(costs, a)
    least = f"{drafter} pays off if a drafted token is accepted with a chance of at least {found[0]:.0%} (n = {found[1]})"
    return f"{least}; at {a:.0%} " + (f"the best length is {n} and gives {gain:.2f}x." if n else "plain decoding is faster.")


def pay_off(costs: Costs) -> dict[str, Any]:
    """All of it as plain data: {"threshold": {"acceptance", "n"} or None, "best": [{"acceptance", "n", "speed_up"}], "needed": [{"n",
    "acceptance"}]}; lengths that no measured pass holds are left out."""
    found = threshold(costs)
    return {
        "threshold": found and {"acceptance": found[0], "n": found[1]},
        "best": [{"acceptance": a, **best(costs, a)._asdict()} for a in ACCEPTANCES],
        "needed": [{"n": n, "acceptance": needed(costs, n)} for n in LENGTHS if n <= costs.longest],
    }


class Job(NamedTuple):
    """What is measured: a pass of `model` (TARGET or DRAFT) over `rows` tokens after `context` cached ones, with logits of all of them."""

    model: str
    context: int
    rows: int


Samples = dict[Job, list[float]]
"""Seconds of every pass that was measured."""


def jobs(contexts: Sequence[int], rows: Sequence[int], draft: bool) -> list[Job]:
    """The target's passes and, with a draft, its steps of one token."""
    return [Job(TARGET, c, k) for c in contexts for k in rows] + [Job(DRAFT, c, 1) for c in contexts if draft]


def clip(contexts: Sequence[int], rows: Sequence[int], longest: int) -> list[int]:
    """The contexts, cut so that the widest pass fits into a model of `longest` tokens. Raises ValueError where nothing fits."""
    room = longest - max(rows)
    if room < 1:
        raise ValueError(f"passes over {max(rows)} tokens leave no context in a model of {longest} tokens: measure fewer rows")
    return sorted({min(context, room) for context in contexts})


class Probe:
    """Times passes through the `Backend` seam, as the engine makes them. `backends`: by TARGET and DRAFT. A context is read once, in a slot of
    its own, and every pass is taken back by `keep`. `seed` draws the ids. `now`: a clock in seconds."""

    def __init__(self, backends: Mapping[str, Backend], work: Sequence[Job], seed: int = 0, now: Callable[[], float] = time.perf_counter) -> None:
        import numpy as np
        import torch

        self.work, self._backends, self._now = list(work), dict(backends), now
        self._slots = {context: i for i, context in enumerate(sorted({job.context for job in work}))}
        size = min(backend.vocab_size for backend in backends.values())
        most = max(job.context for job in work) + max(job.rows for job in work)
        self._ids = torch.from_numpy(np.random.default_rng(seed).integers(0, size, most))

    def warm_up(self) -> Iterator[int]:
        """Reads the contexts and makes every pass once, untimed. Yields the tokens fed so far."""
        done = 0
        for job in self.work:
            for fed in self._fill(job):
                done += fed
                yield done
            self.once(job)
            done += job.rows
            yield done

    def once(self, job: Job) -> float:
        """Seconds of one pass, what the model keeps of it included. A model that kept less than the context reads the rest before, untimed."""
        from draftwise.types import Feed

        for _ in self._fill(job):
            pass
        backend, slot = self._backends[job.model], self._slots[job.context]
        feed = Feed(slot, self._ids[job.context : job.context + job.rows], job.rows)
        start = self._time(backend)
        backend.forward([feed])
        backend.keep(slot, job.context)
        return self._time(backend) - start

    def _fill(self, job: Job) -> Iterator[int]:
        from draftwise.types import Feed

        backend, slot = self._backends[job.model], self._slots[job.context]
        while (length := backend.length(slot)) < job.context:
            some = self._ids[length : min(length + _CHUNK, job.context)]
            backend.forward([Feed(slot, some, 0)])
            yield len(some)

    def _time(self, backend: Backend) -> float:
        """The moment at which the backend's device has done all that was asked of it."""
        device = getattr(backend, "device", None)
        if device is not None and device.type == "cuda":
            import torch

            torch.cuda.synchronize(device)
        return self._now()


def measure(probe: Probe, samples: Samples, seconds: float, seed: int = 0, now: Callable[[], float] = time.perf_counter) -> Iterator[int]:
    """Rounds over all jobs, each in an order of its own, until `seconds` are over, at least one. Adds to `samples`, and yields after every
    pass how many of this call's rounds are whole."""
    start = now()
    done, last = 0, 0.0
    earlier = max((len(some) for some in samples.values()), default=0)
    while not done or now() - start + last / 2 < seconds:
        begin = now()
        order = random.Random(f"{seed}/{earlier + done}").sample(probe.work, len(probe.work))
        for i, job in enumerate(order, 1):
            took = probe.once(job)  # before the list is there, so that Ctrl-C leaves no empty one
            samples.setdefault(job, []).append(took)
            yield done + (i == len(order))
        done, last = done + 1, now() - begin


def figures(samples: Samples) -> list[dict[str, Any]]:
    """For each job its median and quartiles in seconds, and of how many passes."""
    import numpy as np

    found = []
    for job, some in sorted(samples.items()):
        low, middle, high = (float(x) for x in np.percentile(some, (25, 50, 75)))
        found.append({**job._asdict(), "median_s": middle, "q1_s": low, "q3_s": high, "passes": len(some)})
    return found


def costs_at(samples: Samples, context: int, draft: bool) -> Costs | None:
    """The medians at a context, with the measured draft or with one that costs nothing; None where too little was measured."""
    medians = {job: statistics.median(some) for job, some in samples.items() if job.context == context and some}
    verify = tuple(sorted((job.rows, s) for job, s in medians.items() if job.model == TARGET))
    step = medians.get(Job(DRAFT, context, 1)) if draft else 0.0
    if step is None or len(verify) < 2 or verify[0][0] != 1:
        return None
    return Costs(step, verify)


def draw(samples: Samples, title: str, path: Path) -> None:
    """The costs (medians, quartiles as bands) and what they allow, side by side, as an SVG or PNG file. Raises ImportError without matplotlib."""
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.hashsalt": "draftwise",
        "axes.grid": True,
        "grid.alpha": 0.25,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(9.6, 5.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        figure.suptitle("\n".join(textwrap.fill(line, 110) for line in title.splitlines()), fontsize=10)
        for context, colour in zip(sorted({job.context for job in samples}), _shades(samples), strict=True):
            _draw_costs(left, samples, context, colour)
            _draw_speed(right, samples, context, colour)
        left.set(xlabel="tokens in the pass (k)", ylabel="time (ms)", title="Cost of a pass of the target, of a step of the draft")
        left.set_ylim(bottom=0)
        right.axhline(1, color="#333333", lw=0.8)
        right.set(xlabel="chance that a drafted token is accepted (%)", ylabel="speed over plain decoding", title="Speed at the best draft length")
        right.set_yscale("log")  # else what costs nothing leaves no room for the rest
        low, high = right.get_ylim()
        right.set_yticks([tick for tick in _TICKS if low <= tick <= high], labels=[f"{tick:g}x" for tick in _TICKS if low <= tick <= high])
        right.minorticks_off()
        for axes in (left, right):
            axes.title.set_fontsize(9)
            lines = sorted(axes.get_legend_handles_labels()[0], key=lambda line: line.get_linestyle())
            kinds = len({line.get_linestyle() for line in lines})
            axes.legend(handles=lines, frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=max(1, kinds))
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=120)


def _shades(samples: Samples) -> list[Any]:
    """A colour for each context, the darker the longer."""
    import matplotlib

    n = len({job.context for job in samples})
    return [matplotlib.colormaps["viridis"](0.8 - 0.75 * i / max(1, n - 1)) for i in range(n)]


def _draw_costs(axes: Any, samples: Samples, context: int, colour: Any) -> None:
    rows = [f for f in figures(samples) if f["context"] == context]
    if passes := [f for f in rows if f["model"] == TARGET]:
        ks = [f["rows"] for f in passes]
        low, middle, high = ([1000 * f[key] for f in passes] for key in ("q1_s", "median_s", "q3_s"))
        axes.plot(ks, middle, "o-", color=colour, ms=3, lw=1.4, label=f"target, context {context}")
        axes.fill_between(ks, low, high, color=colour, alpha=0.2, lw=0)
    for f in (f for f in rows if f["model"] == DRAFT):
        axes.axhline(1000 * f["median_s"], color=colour, ls="--", lw=1.2, label=f"draft step, context {context}")


def _draw_speed(axes: Any, samples: Samples, context: int, colour: Any) -> None:
    grid = [a / 100 for a in range(20, 96)]
    for draft, line, name in ((True, "-", "this draft"), (False, ":", "costless draft")):
        if costs := costs_at(samples, context, draft):
            label = f"{name}, context {context}"
            axes.plot([100 * a for a in grid], [best(costs, a).speed_up for a in grid], line, color=colour, lw=1.4, label=label)
