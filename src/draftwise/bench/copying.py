"""How far a copier is right on texts that the target wrote: what prompt lookup brings as the lowest level of a hierarchy.

Its acceptance is not one chance per place, as that of a model: it finds something or not, and what it finds is often right to the end. So for
each number n of tokens asked for, rounds are walked through the texts, and the law of what one verification brings is counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from draftwise.bench.hierarchy import Text, rows
from draftwise.methods.hsd import Law, gain

if TYPE_CHECKING:
    from draftwise.methods.prompt_lookup import PromptLookup
    from draftwise.protocols import Backend

Choices = dict[str, list[list[int]]]


class Copied(NamedTuple):
    """`laws`: by the model that verifies, the law of the tokens of one verification of n copied ones. `alpha`: the one chance per place that
    brings as many where four are asked for. `seconds`: of a proposal, for each token asked for."""

    laws: Mapping[str, Callable[[int], Law]]
    alpha: Mapping[str, float]
    seconds: float


def choices(backends: Mapping[str, Backend], texts: Sequence[Text], temperature: float, seed: int) -> Choices:
    """What each model would write itself at each place of the texts; the last of `backends` is the target, which wrote them."""
    import torch

    from draftwise import noise, probs
    from draftwise.types import Sampling

    *helpers, target = backends
    sampling = Sampling(temperature)
    found: Choices = {target: [list(text.written) for text in texts]}
    for name in helpers:
        laws = [probs.law(rows(backends[name], text), sampling) for text in texts]
        draws = [torch.from_numpy(noise.uniforms(seed, noise.SAMPLE, 1 + i, 0, len(law))) for i, law in enumerate(laws)]
        found[name] = [probs.sample(law, u).tolist() for law, u in zip(laws, draws, strict=True)]
    return found


def copied(copier: PromptLookup, texts: Sequence[Text], chosen: Choices, t_max: int) -> Copied:
    """Walks for every model and every n up to `t_max`."""
    start = time.perf_counter()
    walks = {(name, n): walk(copier, texts, some, n) for name, some in chosen.items() for n in range(1, t_max + 1)}
    proposals = sum(n * len(some) for (_, n), some in walks.items())
    seconds = (time.perf_counter() - start) / max(1, proposals)

    def law(name: str) -> Callable[[int], Law]:
        return lambda n: counted(walks[name, min(n, t_max)], n)

    few = min(4, t_max)
    means = {name: sum(walks[name, few]) / max(1, len(walks[name, few])) for name in chosen}
    return Copied({name: law(name) for name in chosen}, {name: equal(mean, few) for name, mean in means.items()}, seconds)


def walk(copier: PromptLookup, texts: Sequence[Text], chosen: Sequence[Sequence[int]], n: int) -> list[int]:
    """Tokens that each verification of at most `n` copied ones brings. Where the texts end nothing is known, and a walk ends before. Where the model
    would accept what the target did not write, nothing further is known either, and the round counts as far as that."""
    from draftwise.noise import Noise
    from draftwise.protocols import Ask
    from draftwise.types import Sampling
    from draftwise.types import Text as Sequence_

    brought = []
    for number, (text, own) in enumerate(zip(texts, chosen, strict=True)):
        at, written = 0, text.written
        while at < len(written):
            one = Sequence_(number, 0, [*text.prompt, *written[:at]], Sampling(), Noise(0))
            drafted = copier.propose([Ask(one, n)])[0].tokens.tolist()
            k = 0
            while k < min(len(drafted), len(written) - at) and drafted[k] == own[at + k] == written[at + k]:
                k += 1
            if at + k >= len(written):
                break
            k += k < len(drafted) and drafted[k] == own[at + k]
            brought.append(k + 1)
            at += k + 1
        copier.free(one)
    return brought


def counted(brought: Sequence[int], n: int) -> Law:
    """The law of these numbers of tokens, over 0 to n + 1; one token for sure where nothing was counted."""
    import numpy as np

    law = np.bincount([min(b, n + 1) for b in brought] or [1], minlength=n + 2).astype(float)
    return np.asarray(law / law.sum())


def equal(mean: float, n: int) -> float:
    """The chance per place with which a verification of `n` tokens brings `mean` on the average."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if gain(middle, n) < mean else (low, middle)
    return low
