"""The default and its rivals over recorded greedy texts at the prices of a machine: real drafters, real policies, a clock that counts.

    python benchmarks/default_sim.py benchmarks/breakeven/pairs.jsonl [--world int4] [--methods plain,suffix,auto,foresight] [--seeds 3]
    python benchmarks/default_sim.py pairs.jsonl --record --target DIR --draft DIR --data FOLDER [--quantize int4] [--limit 4]

A recorded text has the prompt and the greedy answer of the target, and for each token of the answer what the draft would have said there: its two
likeliest tokens, how sure it was of them, and the entropy of its row. Two models that say just that take the places of target and draft; each of
their passes moves the clock on by its price, with noise. So what is compared are decisions alone, without the noise of a machine. What a draft says
behind a wrong token nobody recorded: it is given what it said there of the right one. Texts come in another order for each seed; what was learnt of
one is there for the next. Printed: tokens a second by group, for 'auto' the ratio to the best other, and for all the ratio to plain, whose last
column is the geometric mean over the groups. The method 'foresight' is what no policy can be: it knows how many of the draft model's tokens will be
accepted and drafts as many of them as pay. What it does not reach, no choice of lengths for this draft does. 'chains/auto' is 'auto' without second
choices beside a draft's first.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from breakeven_sim import wobble  # beside this file
from draftwise import catalog
from draftwise.bench.plan import split
from draftwise.context import Context
from draftwise.engine import Engine
from draftwise.methods.breakeven_fit import seconds
from draftwise.trees import depths as depths_of
from draftwise.types import Feed, Now, Rows, Sampling

_CHAINS = "chains/"
_ALIKE = 4096  # ids that share the rest of a row's probability, at most


class World(NamedTuple):
    """Milliseconds: of a pass by its rows, of a token read beyond 16 by the target, of a draft step, of a token read by the draft."""

    passes: tuple[tuple[int, float], ...]
    reads: float
    step: float
    draft_reads: float


WORLDS = {  # an AMD EPYC of two cores (benchmarks/profile), drafts of 4 bits but for bf16
    "int4": World(((1, 28.2), (2, 29.1), (4, 30.2), (6, 32.0), (8, 40.3), (16, 76.8)), 3.9, 8.1, 1.2),
    "int8": World(((1, 45.1), (2, 45.1), (4, 45.1), (6, 47.1), (8, 51.6), (16, 88.6)), 3.9, 8.0, 1.2),
    "bf16": World(((1, 95.8), (2, 95.8), (4, 98.0), (6, 98.0), (8, 128.0), (16, 177.0)), 7.0, 40.9, 2.5),
    "gguf": World(((1, 32.6), (2, 55.9), (4, 90.5), (6, 133.0), (8, 213.0), (16, 242.0)), 9.5, 8.0, 1.2),
}


class Said(NamedTuple):
    """One recorded text; of each place of the answer what the draft said."""

    group: str
    prompt: list[int]
    answer: list[int]
    token: list[int]
    prob: list[float]
    entropy: list[float]
    second: list[int]
    second_prob: list[float]


class Clock:
    """Seconds that prices add up to."""

    def __init__(self, seed: int) -> None:
        self.now, self._noise = 0.0, random.Random(seed)

    def __call__(self) -> float:
        return self.now

    def spend(self, milliseconds: float) -> None:
        self.now += milliseconds / 1e3 * wobble(0.02, self._noise)

    def mark(self) -> float:
        return self.now

    def seconds(self, start: float, end: float) -> float:
        return end - start


class Model:
    """A `Backend` that knows one text: after the first n tokens of it, what stands there. `own`: whether as the draft said."""

    max_length = 1 << 20
    trees = True

    def __init__(self, vocab_size: int, clock: Clock, world: World, own: bool) -> None:
        self.vocab_size, self.clock, self.world, self.own = vocab_size, clock, world, own
        self.text: Said | None = None
        self.slots: dict[int, int] = {}

    def length(self, slot: int) -> int:
        return self.slots.get(slot, 0)

    def forward(self, feeds: Sequence[Feed]) -> list[Rows]:
        rows = sum(len(feed.tokens) for feed in feeds)
        self.clock.spend(self.price(rows))
        return [self._read(feed) for feed in feeds]

    def price(self, rows: int) -> float:
        """Milliseconds of a pass."""
        if self.own:
            return self.world.step + max(0, rows - 1) * self.world.draft_reads
        return seconds(self.world.passes, min(rows, 16)) + max(0, rows - 16) * self.world.reads

    def keep(self, slot: int, length: int, path: Sequence[int] = ()) -> int:
        self.slots[slot] = min(length, self.length(slot)) + len(path)
        return self.slots[slot]

    def free(self, slot: int) -> None:
        self.slots.pop(slot, None)

    def _read(self, feed: Feed) -> Rows:
        begin, n = self.length(feed.slot), len(feed.tokens)
        self.slots[feed.slot] = begin + n
        depths = range(n) if feed.parents is None else depths_of(feed.parents).tolist()
        rows = [self._row(begin + depth + 1) for depth in depths[n - feed.want :]]
        return Rows(torch.stack(rows) if rows else torch.zeros(0, self.vocab_size), {})

    def _row(self, place: int) -> Tensor:
        """The logits of the token at a place of the text; beyond its end the last one again."""
        assert self.text is not None
        i = min(place - len(self.text.prompt), len(self.text.answer) - 1)
        if not self.own or i < 0:
            row = torch.full((self.vocab_size,), -30.0)
            row[self.text.answer[max(i, 0)]] = 0.0
            return row
        prob = min(max(self.text.prob[i], 1e-4), 1 - 2e-4)
        second = min(max(self.text.second_prob[i], 1e-5), prob, 1 - prob - 1e-5)
        rest = 1 - prob - second  # shared by tokens alike, as many as give the entropy: H = -p ln p - s ln s - rest ln(rest / alike)
        left = self.text.entropy[i] + prob * math.log(prob) + second * math.log(second)
        alike = rest * math.exp(min(max(left / rest, 0.0), 12.0))
        alike = min(max(1, math.ceil(rest / second), round(alike)), _ALIKE, self.vocab_size - 1)
        row = torch.full((self.vocab_size,), -60.0)
        row[(self.text.token[i] + 1 + torch.arange(alike)) % self.vocab_size] = math.log(rest / alike)
        row[self.text.second[i]] = math.log(second) + 1e-6
        row[self.text.token[i]] = math.log(prob) + 2e-6
        return row


class Foresight:
    """The length that pays most, by somebody who knows the text."""

    per_token = False

    def __init__(self, target: Model, world: World) -> None:
        self.target, self.world = target, world

    def init(self, last: object) -> None:
        return None

    def budget(self, state: None, now: Now) -> int:
        text = self.target.text
        assert text is not None
        begin = now.context - len(text.prompt)
        right = next((i for i in range(begin, len(text.answer)) if text.token[i] != text.answer[i]), len(text.answer)) - begin
        return max(range(right + 1), key=lambda n: (n + 1) / (self.world.step * n + seconds(self.world.passes, n + 1)))

    def more(self, state: None, now: Now, steps: object) -> bool:
        return True

    def update(self, state: None, round: object) -> None:
        return None


def play(world: World, spec: str, texts: Sequence[Said], vocabulary: int, seed: int) -> dict[str, tuple[int, float]]:
    """Tokens and seconds of each group under a method."""
    clock = Clock(seed)
    target, draft = (Model(vocabulary, clock, world, own) for own in (False, True))
    target.trees = not spec.startswith(_CHAINS)
    context = Context(target, draft, vocabulary, (draft,), ("draft",))
    method = catalog.method("breakeven" if spec == "foresight" else spec.removeprefix(_CHAINS), context)
    if spec == "foresight":
        method = method._replace(length=Foresight(target, world))
    engine = Engine(target)
    engine._clock = clock  # type: ignore[assignment]
    if hasattr(method.drafter, "meter"):
        method.drafter.meter.clock = clock
    found: dict[str, tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    for text in texts:
        target.text = draft.text = text
        start = clock.now
        (answer,) = engine.generate([text.prompt], Sampling(max_tokens=len(text.answer)), method)
        if answer != text.answer:
            raise ValueError(f"{spec} wrote another text than the recorded one")
        tokens, took = found[text.group]
        found[text.group] = tokens + len(answer), took + clock.now - start
    return found


def compact(texts: Sequence[Said]) -> tuple[list[Said], int]:
    """The same with small ids, and how many there are."""
    ids: dict[int, int] = {}

    def small(tokens: Sequence[int]) -> list[int]:
        return [ids.setdefault(token, len(ids)) for token in tokens]

    short = [text._replace(**{name: small(getattr(text, name)) for name in ("prompt", "answer", "token", "second")}) for text in texts]
    return short, len(ids)


def record(args: argparse.Namespace) -> None:
    """Writes a line for each turn of problems of Spec-Bench."""
    import draftwise
    from draftwise.bench import rendering, tasks

    ours = draftwise.load(args.target, args.draft, dtype=args.dtype, quantize=args.quantize)
    render, draft = rendering.load(args.target), ours.context.draft
    with args.texts.open("w") as out:
        for problem in tasks.load("specbench", args.data, args.limit):
            answers: list[str] = []
            for turn in range(len(problem.turns)):
                prompt = render.ids(problem.turns[: turn + 1], answers)
                answer = ours.generate(prompt, args.max_tokens, method="suffix").tokens
                answers.append(render.text(answer))
                rows = [draft.forward([Feed(99, torch.tensor(tokens), 1)])[0].logits for tokens in (prompt, *([token] for token in answer[:-1]))]
                law = torch.cat(rows).float().log_softmax(-1)
                draft.free(99)
                (first, second), ids = law.topk(2).values.exp().T, law.topk(2).indices.T.tolist()
                entropy = -(law.exp() * law).nan_to_num().sum(-1)
                said = Said(problem.group, prompt, list(answer), ids[0], _short(first), _short(entropy), ids[1], _short(second))
                out.write(json.dumps(said) + "\n")
                out.flush()


def _short(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


def main() -> None:
    args = arguments()
    if args.record:
        record(args)
        return
    if not args.texts.is_file():
        raise SystemExit(f"there is no file {args.texts}: record one with --record")
    texts, vocabulary = compact([Said(*json.loads(line)) for line in args.texts.read_text().splitlines()])
    groups = sorted({text.group for text in texts})
    for name in args.world.split(","):
        speeds: dict[str, list[float]] = {}
        for spec in split(args.methods):
            runs = []
            for seed in range(args.seeds):
                order = random.Random(seed).sample(texts, len(texts))
                runs.append(play(WORLDS[name], spec, order, vocabulary, seed))
            whole = [[sum(part) for part in zip(*run.values(), strict=True)] for run in runs]
            speeds[spec] = [statistics.median(run[group][0] / run[group][1] for run in runs) for group in groups]
            speeds[spec].append(statistics.median(tokens / took for tokens, took in whole))
        print(name.ljust(30), *(group[:13].rjust(14) for group in [*groups, "all"]))
        for spec, row in speeds.items():
            print(spec.ljust(30), *(f"{value:14.2f}" for value in row))
        if "auto" in speeds and len(speeds) > 1:
            rivals = [row for spec, row in speeds.items() if spec not in ("auto", "foresight") and not spec.startswith(_CHAINS)]
            best = [max(column) for column in zip(*rivals, strict=True)]
            print("auto / best other".ljust(30), *(f"{own / other:14.2f}" for own, other in zip(speeds["auto"], best, strict=True)))
        for spec in set(speeds) - {"plain"} if "plain" in speeds else ():
            ratios = [own / other for own, other in zip(speeds[spec][:-1], speeds["plain"][:-1], strict=True)]
            print(f"{spec} / plain".ljust(30), *(f"{ratio:14.2f}" for ratio in [*ratios, statistics.geometric_mean(ratios)]))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--world", default="int4", help=f"some of {', '.join(WORLDS)}")
    parser.add_argument("--methods", default="plain,fixed:n=2,fixed:n=4,suffix,breakeven,auto")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--target")
    parser.add_argument("--draft")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--quantize")
    parser.add_argument("--dtype")
    parser.add_argument("--limit", type=int, default=4, help="problems of each group of Spec-Bench")
    parser.add_argument("--max-tokens", type=int, default=128)
    return parser.parse_args()


if __name__ == "__main__":
    main()
