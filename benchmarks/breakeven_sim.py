"""`breakeven` against every fixed length in hindsight, in simulated worlds whose costs were measured on real machines.

    python benchmarks/breakeven_sim.py                      # a table: share of the best fixed length's speed, and of plain decoding's
    python benchmarks/breakeven_sim.py --plot regret.svg    # seconds behind the best fixed length, over the tokens of a run
    python benchmarks/breakeven_sim.py --texts benchmarks/breakeven/texts.json    # recorded texts and drafts instead of drawn ones
    python benchmarks/breakeven_sim.py --texts FOLDER --keep texts.json           # those of the traces of `draftwise bench --trace`

A world draws for each token the draft's confidence (a logit that wanders from token to token), accepts it with that probability bent by the
draft's miscalibration, and charges each round what the table says, with noise. A run is `--requests` answers of `--tokens` tokens each, the state
handed on as the engine does. What is printed is the median of `--seeds` runs. A greedy trace of a draft model knows for each token whether the draft
would have proposed it, and how sure it was: then the texts are real, in another order for each seed, and only the prices are a table's.
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

from draftwise.bench import trace as traces
from draftwise.bench.recorded import Path as Recording
from draftwise.bench.recorded import Recorded, Spot
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
_BEYOND = 64  # tokens that may be drafted beyond the end of a text
_COLD = 1.4  # times as long take the first two passes of a width
_LIMIT = 128  # tokens that an answer may have
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


RECORDED = {
    "bf16": World(0, 56, FLAT, reads=0.05),
    "int8": World(0, 25, INT8, reads=0.1),
    "int4": World(0, 13, INT4, reads=0.15),
    "int4, busy machine": World(0, 13, INT4, reads=0.15, bursts=0.1),
    "gguf": World(0, 26, GGUF, reads=0.2),
    "a draft as dear as the target": World(0, 39, INT4, reads=0.15),
}


class Text(NamedTuple):
    """What draft and target make of one answer of `tokens` tokens to a `prompt` of so many: token i of it is accepted where ``accepted[i]``, and the
    draft's probability of it is ``prob[i]`` and the entropy of its row ``entropy[i]``, some beyond the end included."""

    tokens: int
    prompt: int
    prob: list[float]
    entropy: list[float]
    accepted: list[bool]


def drawn(world: World, tokens: int, prompt: int, draw: random.Random) -> Text:
    """A text of a world."""
    z, prob, accepted = draw.gauss(0, 1), [], []
    for _ in range(tokens + _BEYOND):
        z = world.sticky * z + math.sqrt(1 - world.sticky**2) * draw.gauss(0, 1)
        logit = world.logit + world.spread * z
        prob.append(_sigmoid(logit))
        accepted.append(draw.random() < (1 - world.slip) * _sigmoid(world.bend * logit + world.shift))
    return Text(tokens, prompt, prob, [2.5 * (1 - p) for p in prob], accepted)


def recorded(path: Path) -> Text | None:
    """The text of a trace, if a draft model drafted it; a token that the trace does not know counts as refused."""
    trace = traces.load(path)
    if not trace.greedy or trace.header["origin"] != "draft-model":
        return None
    known = Recording(trace)
    places = range(trace.prompt, known.end)
    rows = [known.at.get(place) for place in places]
    steps = [None if row is None else Recorded(known, [Spot(row)], True, False).step(0) for row in rows]
    accepted = [step is not None and known.is_text(place, step.token) for place, step in zip(places, steps, strict=True)]
    prob = [0.5 if step is None else round(step.prob, 4) for step in steps]
    entropy = [2.0 if step is None else round(step.entropy, 4) for step in steps]
    beyond = [0.5] * _BEYOND, [2.0] * _BEYOND, [False] * _BEYOND
    return Text(len(places), trace.prompt, prob + beyond[0], entropy + beyond[1], accepted + beyond[2])


def read(path: Path) -> list[Text]:
    """The recorded texts of a folder of traces, or of a file with one text a line."""
    if path.is_file():
        return [Text(*json.loads(line)) for line in path.read_text().splitlines()]
    return [text for trace in sorted(path.glob("*.npz")) if (text := recorded(trace))]


def run(world: World, policy: Length, texts: Sequence[Text], seed: int) -> list[float]:
    """Seconds after each token of a run."""
    noise = random.Random(seed + 1)
    costs, last, clock, marks = Costs(), None, 0.0, []
    for text in texts:
        state, at, unread, first = policy.init(last), 0, text.prompt, True
        while at < text.tokens:
            now = Now(1, text.prompt + at, max(0, _LIMIT - at - 1), unread, costs.draft_s, costs.verify_s)
            budget = max(0, min(policy.budget(state, now), now.room, _BEYOND))
            steps: list[DraftStep] = []
            while len(steps) < budget:
                p, entropy = text.prob[at + len(steps)], text.entropy[at + len(steps)]
                steps.append(DraftStep(len(steps), 0, p, p, 0.0, entropy))
                if world.rows and policy.per_token and not policy.more(state, now, steps):
                    break
            n = len(steps)
            accepted = next((i for i in range(n) if not text.accepted[at + i]), n)
            reading = world.draft * world.reads * max(0, unread - 1) / 1e3 if n and world.rows else 0.0
            draft_s = (world.draft * n / 1e3 + reading) * wobble(world.bursts, noise)
            whole = world.passes[0][1] * world.reads * text.prompt if first else 0.0
            cold = 1.0 if len(costs.passes.seen.get(n + 1, ())) > 1 else _COLD
            verify_s = (seconds(world.passes, n + 1) * cold + whole) / 1e3 * wobble(world.bursts, noise)
            clock += draft_s + verify_s
            rows = n + 1 + (text.prompt if first else 0)
            costs.verified(rows, verify_s)
            if n and unread <= 8:
                costs.drafted(n, draft_s)
            emitted = min(accepted + 1, text.tokens - at)
            marks += [clock] * emitted
            at += emitted
            usual = costs.drafting(n) + costs.verifying(rows)
            lag, unread = unread, (1 if n else unread + emitted)
            told = tuple(steps) if world.rows else ()
            round = Round(n, n, min(accepted, emitted), 0, emitted, 1, rows, draft_s, verify_s, at >= text.tokens, told, "draft", lag, usual)
            first = False
            if at < text.tokens and (n or getattr(policy, "rests", False)):
                state = policy.update(state, round)
        last = state
    return marks


def wobble(bursts: float, noise: random.Random) -> float:
    """By what a time is longer than usual; `bursts`: the chance of up to twice as long."""
    return 1 + abs(noise.gauss(0, 0.05)) + (noise.random() if noise.random() < bursts else 0.0)


def _sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, z))))


def texts_of(world: World, args: argparse.Namespace, seed: int) -> list[Text]:
    """The answers of a run: recorded ones in an order of their own, or drawn ones."""
    draw = random.Random(seed)
    if args.recorded:
        return draw.sample(args.recorded, len(args.recorded))
    return [drawn(world, args.tokens, args.prompt, draw) for _ in range(args.requests)]


def measure(world: World, args: argparse.Namespace) -> dict[str, object]:
    """Rates of all policies over the same texts, medians over the seeds."""
    policies: dict[str, Length] = {"plain": Fixed(0), "breakeven": Breakeven()} | {f"fixed {n}": Fixed(n) for n in FIXED}
    ends: dict[str, list[float]] = {name: [] for name in policies}
    for seed in range(0, 1000 * args.seeds, 1000):
        texts = texts_of(world, args, seed)
        for name, policy in policies.items():
            ends[name].append(run(world, policy, texts, seed)[-1])
    found = {name: median(values) for name, values in ends.items()}
    best = min((name for name in found if name != "breakeven"), key=lambda name: found[name])
    floor = [plain / own for plain, own in zip(ends["plain"], ends["breakeven"], strict=True)]
    return {"best": best, "of_best": found[best] / found["breakeven"], "over_plain": median(floor), "worst_over_plain": min(floor)}


def plot(path: Path, args: argparse.Namespace) -> None:
    """Seconds behind the best fixed length in hindsight, over the tokens."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 5))
    for name, world in worlds(args).items():
        best = str(measure(world, args)["best"])
        other = Fixed(0) if best == "plain" else Fixed(int(best.split()[1]))
        curves = []
        for seed in range(0, 1000 * args.seeds, 1000):
            texts = texts_of(world, args, seed)
            own, ideal = (run(world, policy, texts, seed) for policy in (Breakeven(), other))
            curves.append([a - b for a, b in zip(own, ideal, strict=True)])
        middle = [median(points) for points in zip(*curves, strict=True)][::8]
        style = {"bf16": "-", "gguf": "--", "int8": ":", "int4": "-."}[name.split(",")[0]]
        axes.plot(range(0, 8 * len(middle), 8), middle, style, label=f"{name} (best: {best})", linewidth=1.2)
    axes.set_xlabel("tokens")
    axes.set_ylabel("seconds behind the best fixed length")
    axes.axhline(0, color="black", linewidth=0.5)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.tight_layout()
    figure.savefig(path)


def worlds(args: argparse.Namespace) -> dict[str, World]:
    """Those that are played: recorded texts have their own chances, and need prices only."""
    return RECORDED if args.recorded else WORLDS


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--prompt", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--texts", type=Path, help="a folder of traces of greedy answers, or a file that --keep has written")
    parser.add_argument("--keep", type=Path, help="write the recorded texts there")
    args = parser.parse_args(argv)
    args.recorded = read(args.texts) if args.texts else []
    if args.keep:
        args.keep.write_text("".join(json.dumps(text) + "\n" for text in args.recorded))
    rows = {name: measure(world, args) for name, world in worlds(args).items()}
    for name, row in rows.items():
        print(f"{name:36} best {row['best']:9} of it {row['of_best']:.3f}  over plain {row['over_plain']:.3f}  worst {row['worst_over_plain']:.3f}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    if args.plot:
        plot(args.plot, args)


if __name__ == "__main__":
    main()
