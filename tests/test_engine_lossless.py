"""Chi-square of the whole engine: the law of the first tokens against exact enumeration of the table model.

Seeds are fixed, so the tests are deterministic; the threshold is the 1 - 1e-6 quantile, a false alarm in a million for a fresh set of seeds.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.stats import chi2

from draftwise import catalog
from draftwise.context import Context
from draftwise.engine import Engine
from draftwise.sequence import Method
from draftwise.types import Sampling
from tables import pair

RUNS, DEPTH, PROMPT = 4000, 3, [0, 1]
CASES = [
    ("plain", {}),
    ("fixed:n=1", {}),
    ("fixed:n=2", {}),
    ("adasd-stop", {}),
    ("svip", {}),
    ("gammatune-plus", {}),
    ("coupled", {}),
    ("lookup", {}),
    ("adasd:version=1,tv=false", {}),
    ("fixed:n=2", {"top_p": 0.9, "temperature": 1.3}),
    ("adasd-stop", {"repetition_penalty": 1.4}),
]


def law(context: Context, sampling: Sampling) -> dict[tuple[int, ...], float]:
    """Exact probabilities of the first DEPTH tokens."""
    from draftwise import probs

    found = {}
    for tokens in itertools.product(range(context.vocab_size), repeat=DEPTH):
        p = 1.0
        for i, token in enumerate(tokens):
            text = [*PROMPT, *tokens[:i]]
            p *= float(probs.warp(context.target.row(text)[None], sampling, lambda _, text=text: text)[0, token])
        found[tokens] = p
    return found


def statistic(context: Context, spec: str, options: dict[str, float], runs: int = RUNS) -> tuple[float, float]:
    """The `chi` of a method by its name."""
    return chi(context, catalog.method(spec, context), options, runs)


def chi(context: Context, method: Method, options: dict[str, float], runs: int = RUNS) -> tuple[float, float]:
    """Chi-square of `runs` seeds and its threshold. Cells with fewer than five expected are merged into one."""
    counts: dict[tuple[int, ...], int] = {}
    temperature = {"temperature": 1.0} | options
    for first in range(0, runs, 16):
        engine = Engine(context.target, slots=16)
        sequences = [engine.add(PROMPT, Sampling(seed=seed, max_tokens=DEPTH, **temperature), method) for seed in range(first, min(first + 16, runs))]
        for _ in engine.stream():
            pass
        for sequence in sequences:
            key = tuple(sequence.tokens[len(PROMPT) :])
            counts[key] = counts.get(key, 0) + 1
    expected = {key: p * runs for key, p in law(context, Sampling(**temperature)).items()}
    assert all(expected[key] > 0 for key in counts), "a token of probability 0 was written"
    large = [key for key, e in expected.items() if e >= 5]
    cells = [(counts.get(key, 0), expected[key]) for key in large]
    cells.append((runs - sum(c for c, _ in cells), max(runs - sum(e for _, e in cells), 1e-9)))
    if cells[-1][1] < 5:
        merged = cells.pop()
        cells[-1] = (cells[-1][0] + merged[0], cells[-1][1] + merged[1])
    return sum((c - e) ** 2 / e for c, e in cells), float(chi2.ppf(1 - 1e-6, len(cells) - 1))


@pytest.mark.parametrize(("spec", "options"), CASES, ids=[f"{spec}-{'-'.join(options) or 'T1'}" for spec, options in CASES])
def test_the_engine_writes_the_targets_law(spec: str, options: dict[str, float]) -> None:
    torch.set_num_threads(1)
    context = pair(vocab=4, twist=0.8, order=1, sharpness=1.0)
    value, limit = statistic(context, spec, options)
    assert value < limit


@pytest.mark.parametrize("spec", ["adasd", "typical", "ears", "fly", "consultant"])
def test_a_lossy_rule_does_not(spec: str) -> None:
    """The flag cannot lie: what calls itself lossy is seen to differ, by the same statistic."""
    context = pair(vocab=4, twist=0.8, order=1, sharpness=1.0)
    assert catalog.entry("method", spec).lossless is False
    method = catalog.method(spec, context)
    differs = 0.0
    for seed in range(40):
        engine = Engine(context.target)
        sequence = engine.add(PROMPT, Sampling(seed=seed, temperature=1.0, max_tokens=60), method)
        list(engine.stream())
        differs += sum(r.relaxed for r in sequence.rounds)
    assert differs > 0
