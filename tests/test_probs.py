"""The numeric conventions: the warp against transformers' own, sampling, residuals, entropies and distances."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from draftwise import nucleus, probs
from draftwise.probs import BadLogits
from draftwise.types import Sampling, Sparse


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def normal(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference(logits: Tensor, s: Sampling, ids: list[int]) -> Tensor:
    """What transformers' generate samples from."""
    chain = LogitsProcessorList()
    if s.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(s.repetition_penalty))
    if s.temperature != 1:
        chain.append(TemperatureLogitsWarper(s.temperature))
    if s.top_k:
        chain.append(TopKLogitsWarper(s.top_k))
    if s.top_p < 1:
        chain.append(TopPLogitsWarper(s.top_p))
    if s.min_p:
        chain.append(MinPLogitsWarper(s.min_p))
    return chain(torch.tensor([ids] * len(logits)), logits.clone()).softmax(-1)


WARPS = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.6),
    Sampling(temperature=1.0, top_k=1),
    Sampling(temperature=1.0, top_k=7),
    Sampling(temperature=1.0, top_k=100_000),
    Sampling(temperature=1.0, top_p=0.9),
    Sampling(temperature=1.7, top_p=0.99),
    Sampling(temperature=1.0, top_p=0.01),
    Sampling(temperature=1.0, min_p=0.1),
    Sampling(temperature=1.0, min_p=1.0),
    Sampling(temperature=0.8, repetition_penalty=1.3),
    Sampling(temperature=0.7, top_k=40, top_p=0.8, min_p=0.05, repetition_penalty=0.9),
    Sampling(temperature=1.3, top_k=2000, top_p=0.95),
]


@pytest.mark.parametrize("vocab", [1, 2, 50, 1500, 5000])
@pytest.mark.parametrize("scale", [0.05, 2.0, 8.0], ids=["flat", "plain", "sharp"])
@pytest.mark.parametrize("sampling", WARPS, ids=[str(i) for i in range(len(WARPS))])
def test_the_warp_is_that_of_transformers(sampling: Sampling, scale: float, vocab: int) -> None:
    """Flat rows of 1,500 and 5,000 tokens are those where the sorted prefix does not hold enough mass."""
    logits, ids = normal(3, vocab, seed=vocab, scale=scale), [0, vocab - 1, 0]
    found, wanted = probs.warp(logits, sampling, lambda _: ids), reference(logits, sampling, ids)
    assert found.dtype == torch.float32
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-9)
    differing = (found > 0) != (wanted > 0)
    assert int(differing.sum()) <= 3  # a token on the very edge of top-p, by rounding of the sums
    assert bool((torch.where(differing, found + wanted, 0) < 1e-3).all())


@pytest.mark.parametrize("options", [{"top_p": 0.95}, {"min_p": 0.5}, {"top_k": 20}])
def test_a_short_prefix_gives_what_the_full_sort_gives(options: dict[str, float]) -> None:
    sampling = Sampling(temperature=1.0, **options)
    for scale in (0.1, 1.0, 5.0):
        logits = normal(4, 3000, seed=1, scale=scale)
        few = probs.truncated(logits, sampling)
        near, far = (nucleus.searched(logits, sampling, prefix) for prefix in (16, 3000))
        for i in range(len(logits)):
            assert torch.allclose(probs.row(few, i, 3000), probs.row(far, i, 3000), rtol=1e-5, atol=0)
            assert torch.allclose(probs.row(near, i, 3000), probs.row(far, i, 3000), rtol=1e-5, atol=0)


def test_ties_at_the_edge_of_top_k_stay() -> None:
    row = probs.warp(torch.tensor([[1.0, 3.0, 3.0, 3.0, 0.0]]), Sampling(temperature=1.0, top_k=2), lambda _: [])
    assert row[0].tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 0])


def test_each_row_is_penalised_by_its_own_history() -> None:
    logits, sampling = normal(3, 6), Sampling(temperature=1.0, repetition_penalty=1.5)
    histories = [[0, 1], [0, 1, 4], [5, 5, 5]]
    found = probs.warp(logits, sampling, lambda i: histories[i])
    for i, ids in enumerate(histories):
        assert torch.allclose(found[i], reference(logits[i : i + 1], sampling, ids)[0])
    assert torch.allclose(probs.warp(logits, sampling, lambda _: []), logits.softmax(-1))


def test_processors_run_after_the_penalty_and_before_the_temperature() -> None:
    seen = []

    def forbid(ids: object, row: Tensor) -> Tensor:
        seen.append((list(ids), row.tolist()))  # type: ignore[call-overload]
        return row.index_fill(0, torch.tensor([1]), -math.inf)

    sampling = Sampling(temperature=0.5, repetition_penalty=2.0, processors=(forbid,))
    found = probs.warp(torch.tensor([[2.0, 4.0, 1.0]]), sampling, lambda _: [0])
    assert seen == [([0], [1.0, 4.0, 1.0])]
    assert found[0].tolist() == pytest.approx([0.5, 0.0, 0.5])


def test_without_penalty_and_processors_nothing_is_copied() -> None:
    logits = normal(2, 4)
    assert probs.adjust(logits, Sampling(), lambda _: []) is logits


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_k=3, top_p=0.5)])
def test_temperature_0_is_the_argmax_for_certain(sampling: Sampling) -> None:
    logits = normal(4, 9).bfloat16()
    found = probs.warp(logits, sampling, lambda _: [])
    assert torch.equal(found, torch.nn.functional.one_hot(logits.argmax(-1), 9).float())


@pytest.mark.parametrize("temperature", [1e-3, 1e-12, 1e-42, 5e-324])
def test_a_tiny_temperature_is_nearly_greedy(temperature: float) -> None:
    logits = torch.tensor([[10.0, 30.0, -5.0, -math.inf], [-10.0, -30.0, -35.0, -1e4]])
    found = probs.warp(logits, Sampling(temperature=temperature), lambda _: [])
    assert found.tolist() == [[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]


def test_a_huge_temperature_is_nearly_flat() -> None:
    assert probs.warp(normal(1, 4), Sampling(temperature=1e30), lambda _: [])[0].tolist() == pytest.approx([0.25] * 4)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize(
    ("row", "words"), [([0.0, math.nan], "NaN"), ([0.0, math.inf], r"\+inf"), ([-math.inf] * 2, "no finite entry"), ([math.nan] * 2, "NaN")]
)
def test_rows_that_are_no_law_are_refused(row: list[float], words: str, temperature: float) -> None:
    logits = torch.tensor([[1.0, 2.0], row])
    for options in ({}, {"top_p": 0.5}):
        with pytest.raises(BadLogits, match=words):
            probs.warp(logits, Sampling(temperature=temperature, **options), lambda _: [])


def test_forbidden_tokens_are_no_bad_row() -> None:
    row = torch.tensor([[-math.inf, 1.0, -math.inf]])
    for sampling in (Sampling(), Sampling(temperature=0.5), Sampling(temperature=0.5, top_p=0.9), Sampling(temperature=1.0, top_k=2)):
        assert probs.warp(row, sampling, lambda _: [])[0].tolist() == [0.0, 1.0, 0.0]


def judged(sampling: Sampling, tokens: list[int], parents: list[int] | None = None) -> list[bool]:
    logits = torch.tensor([[4.0, 3.0, 1.0, -math.inf], [0.0, 1.0, 2.0, 3.0], [3.0, 2.0, 1.0, 0.0]])
    tree = None if parents is None else torch.tensor(parents)
    target = probs.judged(logits, sampling, lambda _: [], torch.tensor(tokens), tree)
    assert torch.equal(target.p, probs.warp(logits, sampling, lambda _: []))
    assert target.logits is logits
    return [bool(a) for a in target.allowed]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_allowed_is_what_processors_and_truncation_leave(temperature: float) -> None:
    for tokens in ([0, 0], [1, 0], [2, 3]):
        assert judged(Sampling(temperature=temperature), tokens) == [True, True]
    assert judged(Sampling(temperature=temperature), [3, 0]) == [False, True]
    assert judged(Sampling(temperature=temperature, top_k=2), [1, 1]) == [True, False]
    assert judged(Sampling(temperature=temperature, min_p=0.3), [1, 2]) == [True, True]
    assert judged(Sampling(temperature=temperature, min_p=0.3), [2, 1]) == [False, False]
    assert judged(Sampling(temperature=temperature, top_k=1), [0, 0], [-1, -1]) == [True, True]  # siblings: both judged by row 0
    assert judged(Sampling(temperature=temperature, top_k=1), [0, 3], [-1, 0]) == [True, True]


def test_allowed_sees_the_processors() -> None:
    sampling = Sampling(processors=(lambda ids, row: row.index_fill(0, torch.tensor([1]), -math.inf),))
    assert judged_with(sampling, [1, 2]) == [False, True]


def judged_with(sampling: Sampling, tokens: list[int]) -> list[bool]:
    return [bool(a) for a in probs.judged(normal(3, 4), sampling, lambda _: [], torch.tensor(tokens)).allowed]


@settings(max_examples=200, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.0, 1e-38, 1e-20, 1e-3, 0.3, 1.0, 1e6]), min_size=1, max_size=9).filter(any),
    u=st.one_of(st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, 1 - 2.0**-53])),
)
def test_a_token_of_weight_0_is_never_drawn(weights: list[float], u: float) -> None:
    token = int(probs.sample(torch.tensor([weights]), torch.tensor([u], dtype=torch.float64))[0])
    assert weights[token] > 0


def test_sampling_inverts_the_cumulative_law() -> None:
    weights = torch.tensor([1.0, 0.0, 2.0, 5.0]) * 3
    grid = (torch.arange(800, dtype=torch.float64) + 0.5) / 800
    found = probs.sample(weights.expand(800, 4), grid)
    assert found.bincount(minlength=4).tolist() == [100, 0, 200, 500]
    assert bool((found.diff() >= 0).all())


def test_sampling_a_wide_flat_law_reaches_its_end() -> None:
    """Cumulative sums in float32 would end before 1 here."""
    flat = torch.full((2, 200_000), 1 / 200_000)
    assert probs.sample(flat, torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)).tolist() == [0, 199_999]


def test_residual() -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.6, 0.2])
    assert probs.residual(p, q).tolist() == pytest.approx([0.3, 0, 0])
    assert torch.equal(probs.residual(p, p), p)
    assert p.tolist() == pytest.approx([0.5, 0.3, 0.2])


def test_sparse_laws() -> None:
    sparse = Sparse(torch.tensor([[4, 1, 0], [2, 3, 0]]), torch.tensor([[0.7, 0.3, 0.0], [0.5, 0.4, 0.1]]))
    dense = torch.stack([probs.row(sparse, i, 5) for i in range(2)])
    assert torch.allclose(dense, torch.tensor([[0.0, 0.3, 0.0, 0.0, 0.7], [0.1, 0.0, 0.5, 0.4, 0.0]]))
    assert torch.equal(probs.row(dense, 1, 5), dense[1])
    for tokens in ([4, 3], [1, 1], [0, 0]):
        ids = torch.tensor(tokens)
        assert torch.equal(probs.picked(sparse, ids), probs.picked(dense, ids))
        assert probs.picked(dense, ids).tolist() == [float(dense[i, t]) for i, t in enumerate(tokens)]


ROWS = [  # draft, target, entropy of the draft in nats, distance: AdaSD's worked example
    ([0.7, 0.2, 0.1], [0.6, 0.3, 0.1], 0.801819, 0.100197),
    ([0.5, 0.3, 0.2], [0.2, 0.7, 0.1], 1.029653, 0.345714),
    ([0.4, 0.35, 0.25], [0.3, 0.3, 0.4], 1.080528, 0.138408),
    ([0.5, 0.45, 0.05], [0.45, 0.5, 0.05], 0.855689, 0.043579),
    ([0.4, 0.35, 0.25], [0.1, 0.1, 0.8], 1.080528, 0.481504),
    ([0.9, 0.05, 0.05], [0.5, 0.3, 0.2], 0.394398, 0.384729),
    ([0.2, 0.7, 0.1], [0.2, 0.7, 0.1], 0.801819, 0.0),
    ([0.1, 0.2, 0.7], [0.15, 0.15, 0.7], 0.801819, 0.078843),
]


def test_entropies_and_distances_of_the_worked_example() -> None:
    q, p = (torch.tensor([row[i] for row in ROWS]).log() + 3.0 for i in range(2))  # an offset is no matter
    assert probs.js_distance(p, q).tolist() == pytest.approx([row[3] for row in ROWS], abs=2e-6)
    assert probs.js_distance(q, p).tolist() == pytest.approx([row[3] for row in ROWS], abs=2e-6)
    figures = probs.confidence(q, q.argmax(-1))
    assert figures[:, 3].tolist() == pytest.approx([row[2] for row in ROWS], abs=1e-6)
    assert figures[0].tolist() == pytest.approx([0.7, 0.7, 0.2, 0.801819], abs=1e-6)
    assert probs.confidence(q[:1], torch.tensor([2]))[0].tolist() == pytest.approx([0.1, 0.7, 0.2, 0.801819], abs=1e-6)


def test_distances_at_the_ends() -> None:
    inf = math.inf
    rows = torch.tensor([[0.0, 0.0, -inf, -inf], [-inf, -inf, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert probs.js_distance(rows[:1], rows[1:2]).tolist() == pytest.approx([1.0], abs=1e-5)
    assert probs.js_distance(rows, rows).tolist() == [0.0, 0.0, 0.0]
    leak = torch.tensor([[0.99, 0.01], [1.0, 1e-30]]).log()
    assert probs.js_distance(leak[:1], leak[1:]).tolist() == pytest.approx([0.0708], abs=1e-4)
    assert probs.js_distance(rows[:0], rows[:0]).tolist() == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_distances_against_the_definition_in_double(dtype: torch.dtype) -> None:
    a, b = normal(9, 300, seed=1, scale=4).to(dtype), normal(9, 300, seed=2, scale=4).to(dtype)
    p, q = a.double().softmax(-1), b.double().softmax(-1)
    m = (p + q) / 2
    wanted = ((p * (p / m).log2()).sum(-1) + (q * (q / m).log2()).sum(-1)).div(2).sqrt()
    assert torch.allclose(probs.js_distance(a, b).double(), wanted, atol=1e-5)


def test_equal_wide_rows_are_at_distance_0() -> None:
    a = normal(5, 20_000, scale=6)
    assert probs.js_distance(a, a.clone()).tolist() == [0.0] * 5


def test_entropy_of_rows_with_forbidden_tokens_and_of_one_token() -> None:
    row = torch.tensor([[0.0, 0.0, -math.inf]])
    assert probs.confidence(row, torch.tensor([0]))[0].tolist() == pytest.approx([0.5, 0.5, 0.5, math.log(2)])
    assert probs.confidence(torch.tensor([[3.0]]), torch.tensor([0]))[0].tolist() == [1.0, 1.0, 0.0, 0.0]


def test_penalty_of_an_empty_history_changes_nothing() -> None:
    keep = functools.partial(probs.adjust, sampling=Sampling(repetition_penalty=1.2), history=lambda _: [])
    assert torch.equal(keep(normal(2, 5)), normal(2, 5))
