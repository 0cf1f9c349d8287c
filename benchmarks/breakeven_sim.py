"""`breakeven` against every fixed length in hindsight, in simulated worlds whose costs were measured on real machines.

    python benchmarks/breakeven_sim.py                      # a table: share of the best fixed length's speed, and of plain decoding's
    python benchmarks/breakeven_sim.py --plot regret.svg    # seconds behind the best fixed length, over the tokens of a run

A world draws for each token the draft's confidence (a logit that wanders from token to token), accepts it with that probability bent by the
draft's miscalibration, and charges each round what the table says, with noise. A run is `--requests` answers of `--tokens` tokens each, the state
handed on as the engine does. What is printed is the median of `--seeds` runs.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from draftwise.methods.breakeven import Breakeven
from draftwise.methods.breakeven_fit import seconds
from draftwise.methods.fixed import Fixed
from draftwise.protocols import Length
from draftwise.stats import Costs
from draftwise.types import DraftStep, Now, Round

FLAT = ((1, 170.0), (2, 170.0), (4, 171.0), (8, 172.0), (16, 175.0), (32, 210.0))
GGUF = ((1, 58.0), (2, 92.0), (4, 103.0), (6, 153.0), (8, 185.0), (16, 215.0), (32, 400.0))
INT8 = ((1, 69.0), (2, 75.0), (4, 81.0), (6, 86.0), (8, 96.0), (12, 126.0), (16, 155.0), (32, 300.0))
INT4 = ((1, 39.0), (2, 43.0), (4, 47.0), (5, 49.0), (6, 56.0), (8, 65.0), (12, 92.0), (16, 118.0), (32, 230.0))
FIXED = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20)


class World(NamedTuple):
    """`logit` and `spread` of the draft's confidence, `sticky` from token to token; accepted with the chance of ``bend * logit + shift``. `draft` and
    `passes`: milliseconds. `rows`: whether the draft has any."""

    logit: float
    draft: float
    passes: tuple[tuple[int, float], ...]
    spread: float = 1.5
    sticky: float = 0.5
    bend: float = 1.0
    shift: float = 0.0
    rows: bool = True
    reads: float = 0.1  # steps (plain passes) that the draft (the target) takes to read a token of a text
    slip: float = 0.0  # chance that a token is refused however sure the draft is
    bursts: float = 0.02  # chance that a step or a pass takes up to twice its time


WORLDS = {
    "bf16, good draft": World(2.2, 77, FLAT),
    "bf16, fair draft": World(0.8, 77, FLAT),
    "bf16, poor draft": World(-0.8, 77, FLAT),
    "bf16, overconfident draft": World(2.2, 77, FLAT, bend=0.5, shift=-0.5),
    "bf16, useless draft": World(2.0, 77, FLAT, bend=0.0, shift=-4),
    "bf16, draft as dear as the target": World(2.2, 170, FLAT),
    "bf16, lookup": World(0.5, 0.1, FLAT, spread=3, sticky=0.9, rows=False),
    "gguf, good draft": World(2.2, 34, GGUF),
    "gguf, fair draft": World(0.8, 34, GGUF),
    "gguf, useless draft": World(2.0, 34, GGUF, bend=0.0, shift=-4),
    "gguf, lookup": World(0.5, 0.1, GGUF, spread=3, sticky=0.9, rows=False),
    "int8, good draft": World(2.2, 25, INT8),
    "int8, fair draft": World(0.8, 25, INT8),
    "int8, lookup": World(-1.0, 0.1, INT8, spread=3, sticky=0.9, rows=False),
    "int4, good draft": World(2.2, 13, INT4),
    "int4, good draft, busy machine": World(2.2, 13, INT4, bursts=0.1),
    "int4, fair draft": World(0.8, 13, INT4),
    "int4, hard and easy places": World(1.5, 13, INT4, spread=2.5, sticky=0.9),
    "int4, sure and now and then wrong": World(4, 13, INT4, spread=3, slip=0.06),
    "int4, poor draft": World(-0.8, 13, INT4),
    "int4, lookup": World(-1.0, 0.1, INT4, spread=3, sticky=0.9, rows=False),
}


class Text:
    """What draft and target make of one answer: token i of it is accepted where ``accepted[i]``, and the draft's probability of it is ``prob[i]``."""

    def __init__(self, world: World, tokens: int, draw: random.Random) -> None:
        z, self.prob, self.accepted = draw.gauss(0, 1), [], []
        for _ in range(tokens):
            z = world.sticky * z + math.sqrt(1 - world.sticky**2) * draw.gauss(0, 1)
            logit = world.logit + world.spread * z
            self.prob.append(_sigmoid(logit))
            self.accepted.append(draw.random() < (1 - world.slip) * _sigmoid(world.bend * logit + world.shift))


def run(world: World, policy: Length, requests: int, tokens: int, prompt: int, seed: int) -> list[float]:
    """Seconds after each token of a run."""
    texts, noise = random.Random(seed), random.Random(seed + 1)
    costs, last, clock, marks = Costs(), None, 0.0, []
    for _ in range(requests):
        text, state, at, unread = Text(world, tokens + 64, texts), policy.init(last), 0, prompt
        first = True
        while at < tokens:
            now = Now(1, prompt + at, tokens - at - 1, unread, costs.draft_s, costs.verify_s)
            budget = max(0, min(policy.budget(state, now), now.room))
            steps: list[DraftStep] = []
            while len(steps) < budget:
                p = text.prob[at + len(steps)]
                steps.append(DraftStep(len(steps), 0, p, p, 0.0, 2.5 * (1 - p)))
                if world.rows and policy.per_token and not policy.more(state, now, steps):
                    break
            n = len(steps)
            accepted = next((i for i in range(n) if not text.accepted[at + i]), n)
            reading = world.draft * world.reads * max(0, unread - 1) / 1e3 if n and world.rows else 0.0
            draft_s = (world.draft * n / 1e3 + reading) * _wobble(world, noise)
            whole = world.passes[0][1] * world.reads * prompt if first else 0.0
            verify_s = (seconds(world.passes, n + 1) + whole) / 1e3 * _wobble(world, noise)
            clock += draft_s + verify_s
            rows = n + 1 + (prompt if first else 0)
            costs.verified(rows, verify_s)
            if n and unread <= 8:
                costs.drafted(n, draft_s)
            emitted = min(accepted + 1, tokens - at)
            marks += [clock] * emitted
            at += emitted
            lag, unread = unread, (1 if n else unread + emitted)
            told = tuple(steps) if world.rows else ()
            round = Round(n, n, min(accepted, emitted), 0, emitted, 1, rows, draft_s, verify_s, at >= tokens, told, "draft", lag)
            first = False
            if at < tokens and (n or getattr(policy, "rests", False)):
                state = policy.update(state, round)
        last = state
    return marks


def _wobble(world: World, noise: random.Random) -> float:
    return 1 + abs(noise.gauss(0, 0.05)) + (noise.random() if noise.random() < world.bursts else 0.0)


def _sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, z))))


def measure(world: World, args: argparse.Namespace) -> dict[str, object]:
    """Rates of all policies over the same texts, medians over the seeds."""
    policies: dict[str, Length] = {"plain": Fixed(0), "breakeven": Breakeven()} | {f"fixed {n}": Fixed(n) for n in FIXED}
    ends: dict[str, list[float]] = {name: [] for name in policies}
    for seed in range(args.seeds):
        for name, policy in policies.items():
            ends[name].append(run(world, policy, args.requests, args.tokens, args.prompt, 1000 * seed)[-1])
    found = {name: median(values) for name, values in ends.items()}
    best = min((name for name in found if name != "breakeven"), key=lambda name: found[name])
    floor = [plain / own for plain, own in zip(ends["plain"], ends["breakeven"], strict=True)]
    return {"best": best, "of_best": found[best] / found["breakeven"], "over_plain": median(floor), "worst_over_plain": min(floor)}


def plot(path: Path, args: argparse.Namespace) -> None:
    """Seconds behind the best fixed length in hindsight, over the tokens."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5))
    for name, world in WORLDS.items():
        best = str(measure(world, args)["best"])
        other = Fixed(0) if best == "plain" else Fixed(int(best.split()[1]))
        curves = []
        for seed in range(args.seeds):
            own, ideal = (run(world, policy, args.requests, args.tokens, args.prompt, 1000 * seed) for policy in (Breakeven(), other))
            curves.append([a - b for a, b in zip(own, ideal, strict=True)])
        middle = [median(points) for points in zip(*curves, strict=True)][::8]
        style = {"bf16": "-", "gguf": "--", "int8": ":", "int4": "-."}[name.split(",")[0]]
        axes.plot(range(0, 8 * len(middle), 8), middle, style, label=f"{name} (best: {best})", linewidth=1.2)
    axes.set_xlabel("tokens")
    axes.set_ylabel("seconds behind the best fixed length")
    axes.axhline(0, color="black", linewidth=0.5)
    axes.legend(fontsize=6, ncol=2)
    figure.tight_layout()
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--prompt", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args(argv)
    rows = {name: measure(world, args) for name, world in WORLDS.items()}
    for name, row in rows.items():
        print(f"{name:36} best {row['best']:9} of it {row['of_best']:.3f}  over plain {row['over_plain']:.3f}  worst {row['worst_over_plain']:.3f}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    if args.plot:
        plot(args.plot, args)


if __name__ == "__main__":
    main()
