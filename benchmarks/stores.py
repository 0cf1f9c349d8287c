"""What the drafters without a model cost by themselves: looking up, learning, and bytes held, by tokens of history.

    python benchmarks/stores.py [--sizes 10000 100000 1000000]

The history is made up: runs of a long-tailed vocabulary of 20,000 tokens, half of them copied from earlier on, so that there is something to find.
`read` is what taking in one token costs (for STAND and recycling: one row of the target, of 20,000 logits); `look up` is finding one draft: of 32
tokens at most for suffix, the place to copy from for prompt lookup, and for the others a tree of 8 and of 80 nodes at temperature 0.6. Times are
of the process, medians and 95th percentiles of 500 places of the history.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch

from draftwise.methods.history import History
from draftwise.methods.prompt_lookup import PromptLookup
from draftwise.methods.recycling import Recycling
from draftwise.methods.stand import Stand
from draftwise.methods.suffix import Suffix
from draftwise.noise import Noise
from draftwise.protocols import Ask
from draftwise.types import Draft, Outcome, Rows, Sampling, Text

VOCAB, LOOKUPS, TAIL = 20_000, 500, 64
NOTHING = Draft(torch.zeros(0, dtype=torch.long))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--rows", type=int, default=20_000, help="most rows that STAND and recycling learn (a row takes a pass of a target)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| drafter | tokens of history | read, us a token | look up, us: median | 95 % | MB held |")
    print("| --- | --- | --- | --- | --- | --- |")
    for size in args.sizes:
        history = made(size)
        own(size, history)
        past(size, history)
        lookup(size, history)
    for size in sorted({min(size, args.rows) for size in args.sizes}):
        learners(size, made(size))


def made(size: int) -> list[int]:
    rng = np.random.default_rng(0)
    text: list[int] = []
    while len(text) < size:
        if len(text) > 2000 and rng.random() < 0.5:
            start = int(rng.integers(0, len(text) - 100))
            text += text[start : start + int(rng.integers(5, 100))]
        else:
            text += np.minimum(rng.zipf(1.3, 30), VOCAB - 1).tolist()
    return text[:size]


def own(size: int, history: Sequence[int]) -> None:
    """One text, and what continues it."""
    drafter = Suffix(memory=0)
    read, _ = timed(lambda: drafter.propose([Ask(text(list(history)), 0)]))
    state = drafter._own[0].history
    times = [timed(lambda tail=tail: drafter._best(state, tail, 32))[0] for tail in tails(history)]
    line("suffix, this text", size, read / size, times, drafter.nbytes)


def past(size: int, history: Sequence[int]) -> None:
    """Answers of 500 tokens, and what continues them."""
    drafter = Suffix(memory=size)
    assert drafter.past
    start = time.process_time()
    for i in range(0, size, 500):
        drafter.past.extend(history[i : i + 500])
        drafter.past.end()
    read = time.process_time() - start
    new = History(64)  # nothing to find there
    times = [timed(lambda tail=tail: drafter._best(new, tail, 32))[0] for tail in tails(history)]
    line("suffix, past answers", size, read / size, times, drafter.nbytes)


def lookup(size: int, history: Sequence[int]) -> None:
    drafter = PromptLookup()
    read, _ = timed(lambda: drafter.propose([Ask(text(list(history)), 0)]))
    index = drafter._indexes[0]
    times = []
    for tail in tails(history):
        index.words[-TAIL:] = tail
        times.append(timed(index.find)[0])
    line("prompt lookup", size, read / size, times, weighed(index.after) + weighed(index.undo))


def learners(size: int, history: Sequence[int]) -> None:
    """A row for each token of the history; only what it costs the drafter is timed."""
    rows = torch.randn(64, 1, VOCAB) * 3
    for name, drafters in (("stand", [Stand(share="all", nodes=n) for n in (8, 80)]), ("recycling", [Recycling(nodes=n) for n in (8, 80)])):
        first: Any = drafters[0]
        tokens = list(history[:1])
        spent = 0.0
        for i, token in enumerate(history[1:]):
            tokens.append(token)
            seen = text(tokens[-8:])
            outcome = Outcome([], token, (), 0, Rows(rows[i % 64], {}))
            spent += timed(partial(first.observe, seen, NOTHING, outcome))[0]
        for drafter in drafters:
            if name == "stand":
                drafter._all = first._all  # type: ignore[union-attr]
            else:
                drafter._shared = first._shared  # type: ignore[union-attr]
            asks = [Ask(text(tail, 10 + i, temperature=0.6), 20) for i, tail in enumerate(tails(history))]
            times = [timed(lambda ask=ask, drafter=drafter: drafter.propose([ask]))[0] for ask in asks]
            line(f"{name}, {drafter.shape.nodes} nodes", size, spent / size, times, first.nbytes)


def tails(history: Sequence[int]) -> list[list[int]]:
    rng = np.random.default_rng(1)
    return [list(history[i - TAIL : i]) for i in rng.integers(TAIL, len(history), LOOKUPS).tolist()]


def text(tokens: list[int], id: int = 0, **sampling: Any) -> Text:
    return Text(id, id, tokens, Sampling(**sampling), Noise(id))


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    found = call()
    return time.process_time() - start, found


def weighed(found: Any) -> int:
    """Bytes of nested containers, shared small integers left out."""
    import sys

    inside = [*found, *found.values()] if isinstance(found, dict) else found if isinstance(found, (list, tuple)) else []
    return sys.getsizeof(found) + sum(weighed(some) for some in inside if not isinstance(some, int))


def line(name: str, size: int, read: float, times: Sequence[float], held: int) -> None:
    slow = quantiles(times, n=20)[-1]
    print(f"| {name} | {size:,} | {1e6 * read:.1f} | {1e6 * median(times):.0f} | {1e6 * slow:.0f} | {held / 1e6:.1f} |", flush=True)


if __name__ == "__main__":
    main()
