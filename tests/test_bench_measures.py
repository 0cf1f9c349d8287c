"""Figures by hand, and what holds for any rows."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import bench_rows
from bench_rows import row, turn
from draftwise.bench import measures
from draftwise.bench.bootstrap import Bootstrap, Estimate, difference, over, plain_json, quotient, wilson
from draftwise.bench.measures import Figure, figures
from draftwise.bench.schema import Pass, Row

TWO = [
    row("plain", "a", turn(10, 2.0)),
    row("plain", "b", turn(20, 8.0)),
    row("adasd", "a", turn(10, 1.0)),
    row("adasd", "b", turn(22, 3.0)),
]


def figure(rows: list[Row], variant: str, **options) -> Figure:
    return next(f for f in figures(rows, **options) if f.variant == variant)


def near(found: Estimate | None, *wanted: float) -> bool:
    return found == pytest.approx(wanted)


def test_speed_is_total_tokens_over_total_time() -> None:
    assert figure(TWO, "plain").tokens_per_second.point == 3.0  # 30 / 10, and not the mean of 5 and 2.5
    assert figure(TWO, "adasd").tokens_per_second.point == 8.0


def test_speed_up_is_paired() -> None:
    # two problems are drawn as (a, a), (a, b) or (b, b): 10/2 against 10/1, 30/10 against 32/4, 20/8 against 22/3
    assert near(figure(TWO, "adasd").over_plain, 8 / 3, 2.0, 22 / 3 * 8 / 20)
    assert near(figure(TWO, "plain", baseline="adasd").over_baseline, 3 / 8, 20 / 8 * 3 / 22, 0.5)


def test_what_slows_a_problem_for_all_is_no_noise() -> None:
    rows = [row(v, str(i), turn(10, s * (1 + i))) for i in range(8) for v, s in (("plain", 2.0), ("adasd", 1.0))]
    assert near(figure(rows, "adasd").over_plain, 2.0, 2.0, 2.0)
    assert figure(rows, "adasd").tokens_per_second.low < figure(rows, "adasd").tokens_per_second.high


def test_peers_are_compared_with_their_own_plain() -> None:
    found = {f.variant: f for f in figures(bench_rows.run())}
    assert list(found) == ["plain", "adasd", "fixed:n=5", "vllm", "vllm-draft"]
    assert (found["adasd"].own_plain, found["vllm-draft"].own_plain, found["vllm"].own_plain) == ("plain", "vllm", "vllm")
    assert near(found["vllm-draft"].over_plain, *[11 / 2 / (12 / 2.5)] * 3)
    assert near(found["vllm-draft"].over_baseline, *[11 / 2 / (12 / 3)] * 3)
    assert found["vllm"].over_plain == (1, 1, 1)


@pytest.mark.parametrize(
    ("variant", "wanted"),
    [
        ("ov-int4-draft", "ov-int4"),
        ("ov-int8-draft", "ov-int8"),
        ("ov-int4", "ov-int4"),
        ("alone-draft", None),
        ("llama-ngram-mod", "llama"),
        ("ov-mine-draft", "ov-mine"),
    ],
)
def test_of_several_plains_that_of_the_same_precision_counts(variant: str, wanted: str | None) -> None:
    names = {"ov-int4": "int4", "ov-int8": "int8", "ov-int4-draft": "int4", "ov-int8-draft": "int8 (g128)", "alone-draft": "bf16"}
    names |= {"ov-mine": "int4", "ov-mine-draft": "int4"}
    table = {name: [row(name, "a", turn(1, 1.0), engine=name.split("-")[0], precision=how)] for name, how in names.items()}
    table |= {name: [row(name, "a", turn(1, 1.0), engine="llama", precision="Q4_K_M")] for name in ("llama", "llama-ngram", "llama-ngram-mod")}
    assert measures.plain_of(variant, table) == wanted


@pytest.mark.parametrize(
    ("variant", "wanted"),
    [("adasd", "plain"), ("int8/auto", "int8/plain"), ("int8/plain", "int8/plain"), ("useless/auto", "plain"), ("bf16/auto", None)],
)
def test_ours_of_another_process_are_compared_with_its_plain(variant: str, wanted: str | None) -> None:
    names = {"plain": "int4", "adasd": "int4", "int8/auto": "int8", "int8/plain": "int8", "useless/auto": "int4", "bf16/auto": "bf16"}
    table = {name: [row(name, "a", turn(1, 1.0), precision=how)] for name, how in names.items()}
    assert measures.plain_of(variant, table) == wanted
    order = list(measures.answered([some for rows in table.values() for some in rows]).table)
    assert order[0] == "plain" and order.index("int8/plain") + 1 == order.index("int8/auto")


def test_variants_come_in_a_sensible_order() -> None:
    names = ["vllm-ngram", "fixed:n=12", "vllm", "plain", "fixed:n=3", "adasd", "ov-int8-x", "ov-int4", "ov-int8"]
    rows = [row(n, "a", turn(1, 1.0), engine=n.split("-")[0] if n[:2] in ("vl", "ov") else "draftwise", precision=n[3:7]) for n in names]
    wanted = ["plain", "adasd", "fixed:n=3", "fixed:n=12", "ov-int4", "ov-int8", "ov-int8-x", "vllm", "vllm-ngram"]
    assert [f.variant for f in figures(rows)] == wanted


def test_figures_of_rounds() -> None:
    rounds = [Pass(0, 0, 0, 0, 0, 0.0, 0.4), Pass(4, 4, 4, 1, 5, 0.2, 0.1), Pass(4, 4, 1, 0, 2, 0.2, 0.1), Pass(0, 0, 0, 0, 1, 0.0, 0.1)]
    f = figure([row("plain", "a", turn(8, 3.0)), row("adasd", "a", turn(8, 2.0, rounds))], "adasd")
    assert (f.tau, f.acceptance_rate, f.drafted_per_round) == pytest.approx((8 / 3, 5 / 8, 8 / 3))
    assert f.by_position == (1.0, 0.5, 0.5, 0.5)
    assert f.relaxed_share == 1 / 8 and f.divergence == (1 / 8, 1 / 8, 1 / 8)
    assert (f.draft_share, f.verify_share, f.other_share) == pytest.approx((0.2, 0.35, 0.45))


def test_engines_that_do_not_tell_have_no_such_figures() -> None:
    f = figure(bench_rows.run(), "vllm-draft")
    assert (f.tau, f.acceptance_rate, f.divergence, f.draft_share, f.first_token_s, f.token_s, f.peak_bytes) == (None,) * 7
    counts = row("plain", "a", turn(3, 1.0, [Pass(3, 3, 2, 0, 3, 0.0, 0.0)]))
    assert (figures([counts])[0].tau, figures([counts])[0].draft_share) == (3.0, None)
    assert figure(bench_rows.run(), "plain").acceptance_rate is None  # nothing was drafted


def test_tokens_that_arrive_together_share_the_wait() -> None:
    turns = [turn(4, 1.0, arrivals=[(0.5, 1), (0.7, 2), (1.0, 1)]), turn(2, 1.0, arrivals=[(0.9, 2)]), turn(9, 1.0)]
    f = figures([row("plain", str(i), some) for i, some in enumerate(turns)])[0]
    assert f.first_token_s == pytest.approx(0.7)
    assert (f.token_s, f.token_s_p90) == pytest.approx((0.1, 0.26))  # of 0.1, 0.1, 0.3


def test_accuracy_and_agreement() -> None:
    rows = [row("plain", "a", turn(4, 1.0), turn(4, 1.0), correct=True), row("plain", "b", turn(5, 1.0), correct=None)]
    other = turn(5, 1.0, tokens=(0, 1, 9, 3, 4))
    rows += [row("adasd", "a", turn(4, 1.0), turn(4, 1.0), correct=False), row("adasd", "b", other)]
    f = figure(rows, "adasd")
    assert (f.same_text, f.common_prefix) == pytest.approx((0.5, (1 + 2 / 5) / 2))
    assert {task: (some.right, some.of) for task, some in f.accuracy.items()} == {"gsm8k": (0, 1)}
    assert figure(rows, "plain").same_text == 1


def test_wilson_is_wilsons() -> None:
    assert wilson(8, 10) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 0) is None
    for right, of in ((0, 6), (6, 6), (3, 7), (164, 200)):
        theirs = stats.binomtest(right, of).proportion_ci(method="wilson")
        assert wilson(right, of)[1:] == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_only_problems_that_all_answered() -> None:
    rows = bench_rows.run(6)
    few = [some for some in rows if not (some.variant == "adasd" and some.id == "p1")]
    found = measures.answered(few)
    assert found.left_out == 1 and {len(some) for some in found.table.values()} == {5}
    assert {f.problems for f in figures(few)} == {5}


def test_a_variant_with_few_answers_does_not_take_the_others_along() -> None:
    rows = [some for some in bench_rows.run(6) if not (some.variant == "vllm-draft" and some.id > "p1")]
    found = measures.answered(rows)
    assert found.absent == {"vllm-draft": 2} and found.left_out == 0
    assert [f.problems for f in figures(rows)] == [6] * 4


def test_groups() -> None:
    found = figure(bench_rows.run(4), "fixed:n=5").groups
    assert {name: group.problems for name, group in found.items()} == {"maths": 2, "code": 2}
    assert found["maths"].tokens_per_second == pytest.approx(24 / (1.5 * 2.2))
    assert near(found["maths"].over_plain, 2, 2, 2)


def test_memory_comes_from_its_own_pass() -> None:
    assert [f.peak_bytes for f in figures(TWO, memory={"adasd": 5})] == [None, 5]


def test_bad_rows() -> None:
    with pytest.raises(ValueError, match="two rows of problem 'a'"):
        figures([*TWO, TWO[0]])
    with pytest.raises(ValueError, match=r"no variant 'fast' to compare with: plain, adasd"):
        figures(TWO, baseline="fast")
    assert figures([]) == []
    assert figures([row("plain", "a", turn(1, 1.0)), row("adasd", "b", turn(1, 1.0))]) == []


def test_without_tokens_or_time_nothing_is_made_up() -> None:
    f = figures([row("plain", "a", turn(0, 0.0))])[0]
    assert (f.tokens_per_second, f.over_plain, f.tau) == (None, None, None)


def test_json() -> None:
    record = plain_json(figures(bench_rows.run()))
    assert record[0]["variant"] == "plain" and record[1]["over_plain"].keys() == {"point", "low", "high"}
    assert plain_json(Estimate(float("nan"), 1.0, float("inf"))) == {"point": None, "low": 1.0, "high": None}


rows_of_runs = st.lists(
    st.tuples(st.integers(1, 50), st.floats(0.1, 60), st.integers(1, 50), st.floats(0.1, 60), st.sampled_from("xy")), min_size=1, max_size=8
).map(lambda some: [r for i, (n, s, m, t, g) in enumerate(some) for r in (_one("plain", i, n, s, g), _one("adasd", i, m, t, g))])


def _one(variant: str, i: int, n: int, s: float, group: str) -> Row:
    return row(variant, str(i), turn(n, s), group=group, correct=n % 2 == 0)


@settings(deadline=None, max_examples=30)
@given(rows_of_runs)
def test_a_variant_is_exactly_as_fast_as_itself(rows: list[Row]) -> None:
    assert figure(rows, "adasd", baseline="adasd").over_baseline == (1, 1, 1)


@settings(deadline=None, max_examples=30)
@given(rows_of_runs)
def test_intervals_contain_their_point(rows: list[Row]) -> None:
    for f in figures(rows):
        shares = [some.share for some in f.accuracy.values()]
        for found in (f.tokens_per_second, f.over_plain, f.over_baseline, *shares, *(g.over_plain for g in f.groups.values())):
            assert found.low <= found.point <= found.high


@settings(deadline=None, max_examples=30)
@given(rows_of_runs, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(rows: list[Row], random) -> None:
    assert figures(random.sample(rows, len(rows))) == figures(rows)


@settings(deadline=None, max_examples=30)
@given(rows_of_runs)
def test_a_slower_machine_changes_no_ratio(rows: list[Row]) -> None:
    slow = [r._replace(turns=tuple(t._replace(seconds=4 * t.seconds) for t in r.turns)) for r in rows]
    assert [f.over_plain for f in figures(slow)] == [f.over_plain for f in figures(rows)]


@pytest.mark.parametrize("n", [10, 40])
def test_intervals_cover_as_often_as_they_say(n: int) -> None:
    """200 runs whose true speed-up is known: 95 % intervals should hold it in about 190. At 95 % fewer than 176 come once in 30,000; intervals of
    few problems may cover a little less, so the bound is wide."""
    random, hits = np.random.default_rng(5), 0
    for _ in range(200):
        hard = random.lognormal(0, 0.5, n)
        plain, fast = hard * random.lognormal(0, 0.2, n), hard / 1.5 * random.lognormal(0, 0.2, n)
        found = Bootstrap(n, 500).estimate(quotient(over(np.ones(n), fast), over(np.ones(n), plain)))
        hits += found.low <= 1.5 <= found.high
    assert 176 <= hits < 200


def test_undefined_statistics_give_none() -> None:
    draws = Bootstrap(3)
    assert draws.estimate(over([1, 2, 3], [0, 0, 0])) is None
    assert draws.estimate(difference(over([1, 1, 1], [1, 1, 1]), over([1, 1, 1], [2, 2, 2]))) == (0.5, 0.5, 0.5)


def test_the_bench_reads_results_without_torch() -> None:
    """`draftwise.types`, which the summary names in an annotation, is taken out of the way; nothing else may want torch."""
    code = (
        "import sys, types; sys.modules['torch'] = None; stub = types.ModuleType('draftwise.types'); stub.Round = None;"
        "sys.modules['draftwise.types'] = stub; import draftwise.bench.compare, draftwise.bench.charts; assert 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_sums_stand_in_for_rounds_that_an_engine_does_not_tell() -> None:
    told = turn(6, 2.0)._replace(accepted=4, drafted=8, passes=2)
    found = figure([row("plain", "a", turn(6, 3.0)), row("peer", "a", told, engine="peer")], "peer")
    assert (found.tau, found.acceptance_rate, found.drafted_per_round) == (3.0, 0.5, 4.0)
    assert found.by_position == ()


def sampled(speeds: dict[str, list[float]]) -> list[Row]:
    """Two problems, answered with these tokens per second one sample after the other; the second problem takes twice as long."""
    rows = []
    for variant, some in speeds.items():
        for i, speed in enumerate(some):
            for hard, id in enumerate("ab", 1):
                rows.append(row(variant, id, turn(12, hard * 12 / speed, bench_rows.rounds(4, 5, i)), sample=i, correct=True))
    return rows


def test_samples_are_told_apart_and_pooled() -> None:
    plain, learns = figures(sampled({"plain": [1.0, 1.0, 1.0], "stand": [1.0, 2.0, 4.0]}))
    assert (plain.problems, plain.tokens, plain.groups["gsm8k"].problems) == (2, 72, 2)
    assert plain.samples is not None and plain.samples.last_over_first == (1.0, 1.0, 1.0)
    assert learns.samples is not None
    assert learns.samples.tokens_per_second == pytest.approx((2 / 3, 4 / 3, 8 / 3))
    assert learns.samples.tau == (1.0, 2.0, 3.0)
    assert learns.samples.last_over_first == pytest.approx((4.0, 4.0, 4.0))
    assert learns.tokens_per_second.point == pytest.approx(72 / (36 * (1 + 0.5 + 0.25)))
    assert figures(bench_rows.run())[0].samples is None


def test_samples_of_one_problem_are_no_further_problems() -> None:
    """Every problem four times over gives the intervals of once: a problem is drawn with all its samples."""
    once = bench_rows.run(problems=6)
    four = [r._replace(sample=i) for r in once for i in range(4)]
    for one, other in zip(figures(once), figures(four), strict=True):
        assert other.over_plain == pytest.approx(one.over_plain)
        assert other.problems == one.problems
        assert other.tokens == 4 * one.tokens


def test_a_sample_that_one_variant_lacks_is_left_out() -> None:
    rows = sampled({"plain": [1.0, 1.0, 1.0], "stand": [1.0, 2.0, 4.0]})
    found = measures.answered([r for r in rows if (r.variant, r.id, r.sample) != ("stand", "b", 2)])
    assert (found.left_out, len(found.table["plain"])) == (1, 5)
    learns = figures(found.table["plain"] + found.table["stand"])[1]
    assert learns.samples is not None and learns.samples.last_over_first == (4.0, 4.0, 4.0)
