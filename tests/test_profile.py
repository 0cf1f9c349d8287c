"""`draftwise profile`: the arithmetic of what pays, the measuring through the backend seam, and the command."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import cli_models
from draftwise.backends.table import Table
from draftwise.bench import profile as bench
from draftwise.bench.profile import DRAFT, TARGET, Best, Costs, Job
from draftwise.commands import profile as command
from draftwise.commands.errors import BAD_INPUT, INTERRUPTED, Guarded

FLAT = Costs(0.1, ((1, 1.0), (17, 1.0)))  # a target that reads 17 tokens in the time of one, a draft ten times faster


@st.composite
def some_costs(draw) -> Costs:
    ks = [1, *sorted(draw(st.sets(st.integers(2, 32), min_size=1, max_size=6)))]
    seconds = st.floats(1e-4, 10)
    return Costs(draw(st.one_of(st.just(0.0), seconds)), tuple((k, draw(seconds)) for k in ks))


@pytest.mark.parametrize(("a", "n", "tokens"), [(0.5, 1, 1.5), (0.5, 2, 1.75), (0.8, 4, 3.3616), (1.0, 5, 6.0), (0.0, 5, 1.0), (0.7, 0, 1.0)])
def test_expected_tokens(a, n, tokens):
    assert bench.expected(a, n) == pytest.approx(tokens)


@given(st.floats(0, 0.999), st.integers(0, 40))
def test_expected_tokens_are_the_closed_form(a, n):
    assert bench.expected(a, n) == pytest.approx((1 - a ** (n + 1)) / (1 - a))


def test_passes_between_measured_ones_lie_on_the_line():
    costs = Costs(0, ((1, 1.0), (3, 2.0), (4, 2.1)))
    assert [bench.verify_s(costs, k) for k in (1, 2, 3, 4)] == [1.0, 1.5, 2.0, 2.1]
    with pytest.raises(ValueError, match="1 to 4"):
        bench.verify_s(costs, 5)


def test_speed_up_of_literals():
    assert bench.speed_up(FLAT, 2, 0.5) == pytest.approx(1.75 / 1.2)
    assert bench.speed_up(Costs(0.5, ((1, 1.0), (2, 1.5))), 1, 1.0) == pytest.approx(1.0)


def test_needed_of_literals():
    # n = 1: 1 + a = (0.1 + 1) / 1; n = 2: 1 + a + a^2 = 1.2
    assert bench.needed(FLAT, 1) == pytest.approx(0.1)
    assert bench.needed(FLAT, 2) == pytest.approx((math.sqrt(1.8) - 1) / 2)
    assert bench.needed(Costs(0.0, FLAT.verify), 3) == 0.0, "what costs nothing pays whatever is accepted"
    assert bench.needed(Costs(1.1, FLAT.verify), 4) is None, "four tokens of the draft cost more than five of the target"


def test_threshold_takes_the_length_that_needs_least():
    assert bench.threshold(FLAT) == (pytest.approx(0.1), 1)
    stairs = Costs(0.0, ((1, 1.0), (2, 1.9), (4, 1.9)))  # n = 1 needs 0.9; n = 3: 1 + a + a^2 + a^3 = 1.9
    a, n = bench.threshold(stairs)
    assert n == 3 and bench.expected(a, 3) == pytest.approx(1.9)
    assert bench.threshold(Costs(2.0, FLAT.verify)) is None


def test_best_of_literals():
    free = Costs(0.0, ((1, 1.0), (4, 1.0), (5, 9.0)))
    assert bench.best(free, 1.0) == Best(3, pytest.approx(4.0))
    assert bench.best(free, 0.0) == Best(0, 1.0), "of equals the shortest"
    assert bench.best(Costs(2.0, FLAT.verify), 0.9) == Best(0, 1.0)


@given(some_costs(), st.integers(1, 31))
def test_needed_is_where_the_speed_up_reaches_one(costs, n):
    n = min(n, costs.longest)
    a = bench.needed(costs, n)
    if a is None:
        assert bench.speed_up(costs, n, 1.0) < 1
        return
    assert 0 <= a <= 1 and bench.speed_up(costs, n, a) >= 1
    assert a < 1e-6 or bench.speed_up(costs, n, a - 1e-6) < 1


@given(some_costs(), st.floats(0, 1), st.floats(0, 1))
def test_best_is_never_beaten_and_grows_with_the_acceptance(costs, a, b):
    n, gain = bench.best(costs, a)
    assert gain >= max(bench.speed_up(costs, other, a) for other in range(1, costs.longest + 1)) and gain >= 1
    assert (n == 0) == (gain == 1)
    low, high = sorted((a, b))
    assert bench.best(costs, low).speed_up <= bench.best(costs, high).speed_up + 1e-9


@given(some_costs(), st.integers(1, 31), st.floats(0.1, 5))
def test_a_dearer_draft_needs_more_acceptance(costs, n, more):
    n = min(n, costs.longest)
    cheap, dear = bench.needed(costs, n), bench.needed(costs._replace(draft_s=costs.draft_s + more), n)
    assert dear is None or (cheap is not None and cheap <= dear + 1e-9)


def test_the_conclusion_in_words():
    assert bench.conclusion(FLAT, "it") == (
        "it pays off if a drafted token is accepted with a chance of at least 10% (n = 1); at 80% the best length is 6 and gives 2.47x."
    )
    assert bench.conclusion(Costs(2.0, FLAT.verify), "it") == "it does not pay off here at any length up to 16, even if every token is accepted."
    assert bench.conclusion(Costs(0.85, ((1, 1.0), (2, 1.0))), "it").endswith("at least 85% (n = 1); at 80% plain decoding is faster.")


def test_pay_off_leaves_out_what_was_not_measured():
    found = bench.pay_off(Costs(0.1, ((1, 1.0), (4, 1.0))))
    assert [need["n"] for need in found["needed"]] == [1, 2, 3]
    assert [row["acceptance"] for row in found["best"]] == [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
    assert bench.pay_off(Costs(2.0, ((1, 1.0), (4, 1.0))))["threshold"] is None


class Watch:
    """A clock that only moves when somebody works."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Timed(Table):
    """A table whose passes take `a` seconds and `b` for each token; it notes (cached, fed, wanted) of each."""

    def __init__(self, watch: Watch, a: float, b: float, **options: int) -> None:
        super().__init__(8, **options)
        self.watch, self.a, self.b, self.seen = watch, a, b, []

    def forward(self, feeds):
        (feed,) = feeds
        self.seen.append((self.length(feed.slot), len(feed.tokens), feed.want))
        self.watch.seconds += self.a + self.b * len(feed.tokens)
        return super().forward(feeds)


class Forgetful(Timed):
    """Keeps half of what it is asked to."""

    def keep(self, slot, length, path=()):
        return super().keep(slot, length // 2, path)


def measured(kind=Timed, seconds=1.0, contexts=(300, 5), rows=(1, 2, 4)):
    watch = Watch()
    backends = {TARGET: kind(watch, 0.01, 0.001), DRAFT: Timed(watch, 0.002, 0.0)}
    work, samples = bench.jobs(contexts, rows, True), {}
    probe = bench.Probe(backends, work, 3, watch)
    fed = list(probe.warm_up())
    for backend in backends.values():
        backend.seen.clear()
    rounds = list(bench.measure(probe, samples, seconds, 3, watch))
    return backends, work, samples, fed, rounds


@pytest.mark.parametrize("kind", [Timed, Forgetful])
def test_a_pass_is_timed_and_what_comes_before_is_not(kind):
    _, work, samples, _, _ = measured(kind)
    assert set(samples) == set(work) == {*(Job(TARGET, c, k) for c in (300, 5) for k in (1, 2, 4)), Job(DRAFT, 300, 1), Job(DRAFT, 5, 1)}
    for job, some in samples.items():
        assert some == pytest.approx([0.002 if job.model == DRAFT else 0.01 + 0.001 * job.rows] * len(some))


def test_every_pass_starts_from_its_context_and_asks_for_all_rows():
    backends, _, samples, _, rounds = measured()
    assert set(backends[TARGET].seen) == {(c, k, k) for c in (300, 5) for k in (1, 2, 4)}
    assert set(backends[DRAFT].seen) == {(300, 1, 1), (5, 1, 1)}
    assert {len(some) for some in samples.values()} == {rounds[-1]}


def test_contexts_are_read_in_chunks_and_once():
    _, _, _, fed, _ = measured()
    passes = 2 * (1 + 2 + 4) + 2
    assert fed[-1] == 2 * 305 + passes and fed[0] == 256, "each model reads each context, and makes every pass once"


def test_rounds_end_with_the_time_and_one_is_always_made():
    # a round takes 6 passes of 0.01, 14 tokens of 0.001 and 2 draft steps of 0.002
    assert measured(seconds=1.0)[4][-1] == pytest.approx(1 / 0.078, abs=1)
    assert measured(seconds=1e-9)[4][-1] == 1


def test_rounds_are_shuffled_and_the_order_is_the_seeds():
    first, second = measured()[0][TARGET].seen, measured()[0][TARGET].seen
    assert first == second
    orders = {tuple(first[i : i + 6]) for i in range(0, 60, 6)}
    assert len(orders) > 5 and all(sorted(order) == sorted(first[:6]) for order in orders)


def test_contexts_are_clipped():
    assert bench.clip([64, 512, 2048], [1, 32], 4096) == [64, 512, 2048]
    assert bench.clip([64, 512, 2048], [1, 32], 512) == [64, 480]
    with pytest.raises(ValueError, match="32 tokens leave no context in a model of 32"):
        bench.clip([1], [32], 32)


def test_costs_need_the_pass_of_one_token_and_the_step():
    samples = {Job(TARGET, 8, 1): [3.0, 1.0, 2.0], Job(TARGET, 8, 4): [4.0], Job(TARGET, 9, 4): [4.0]}
    assert bench.costs_at(samples, 8, draft=False) == Costs(0.0, ((1, 2.0), (4, 4.0)))
    assert bench.costs_at(samples, 8, draft=True) is None and bench.costs_at(samples, 9, draft=False) is None
    assert bench.costs_at(samples | {Job(DRAFT, 8, 1): [0.5]}, 8, draft=True) == Costs(0.5, ((1, 2.0), (4, 4.0)))


def test_figures_are_medians_and_quartiles():
    (found,) = bench.figures({Job(TARGET, 8, 1): [4.0, 0.0, 2.0, 1.0, 3.0]})
    assert found == {"model": TARGET, "context": 8, "rows": 1, "median_s": 2.0, "q1_s": 1.0, "q3_s": 3.0, "passes": 5}


@pytest.mark.parametrize("passes", [1, 2, 4])
def test_a_picture_of_what_there_is(tmp_path, passes):
    """One pass gives no speed-up to draw, two are no draft, and a draft that never pays is a line at 1."""
    pytest.importorskip("matplotlib")
    work = [Job(TARGET, 8, 1), Job(TARGET, 8, 4), Job(DRAFT, 8, 1), Job(TARGET, 64, 1)]
    bench.draw({job: [1.0, 2.0] for job in work[:passes]}, "word " * 60, tmp_path / "some.svg")
    first = (tmp_path / "some.svg").read_bytes()
    bench.draw({job: [1.0, 2.0] for job in work[:passes]}, "word " * 60, tmp_path / "some.svg")
    assert b"</svg>" in first and (tmp_path / "some.svg").read_bytes() == first, "the same file for the same figures"


def test_importing_the_command_is_quick():
    """Every command of the command line does it."""
    code = "import sys; import draftwise.commands.profile; sys.exit(bool({'torch', 'matplotlib', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_numbers():
    assert command.numbers("1,2,4-6", "--rows") == [1, 2, 4, 5, 6]
    for text in ("0", "-1", "a", "", "1,,2", "4-2", "1.5", "²", "99999999"):
        with pytest.raises(ValueError, match="--rows takes whole numbers"):
            command.numbers(text, "--rows")


# The command

app = typer.Typer(cls=Guarded)
app.callback()(lambda: None)
app.command()(command.profile)
SMALL = ("--rows", "1-3", "--contexts", "4,20", "--seconds", "0.05", "--dtype", "float32", "--device", "cpu")


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> list[str]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("pair")
    return ["--target", str(cli_models.save(folder / "target")), "--draft", str(cli_models.save(folder / "draft", seed=1))]


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """Pictures take a second, and one test looks at them."""
    monkeypatch.setattr(bench, "draw", lambda *_: None)


def run(*arguments: str):
    return CliRunner().invoke(app, ["profile", *arguments])


def refused(*arguments: str) -> str:
    found = run(*arguments)
    assert found.exit_code == BAD_INPUT and found.stdout == "" and found.stderr.count("\n") == 1, found.output
    return found.stderr


def test_the_command_measures_saves_and_draws(pair, tmp_path):
    pytest.importorskip("matplotlib")
    found = run(*pair, *SMALL, "--out", str(tmp_path / "new"))
    assert found.exit_code == 0, found.output
    assert found.stderr == "", "quiet where there is no terminal"
    for words in ("target with draft: float32 on cpu", "1 token ", "3 tokens", "draft step", "n = 2 needs", "Context 20: this draft"):
        assert words in found.stdout
    record = json.loads((tmp_path / "new" / "profile.json").read_text())
    assert record["config"]["rows"] == [1, 2, 3] and record["config"]["threads"] == 1 and record["config"]["seed"] == 0
    assert len(record["costs"]) == len(record["samples"]) == 8 and {"median_s", "q1_s", "q3_s", "passes"} <= set(record["costs"][0])
    assert {(pay["drafter"], pay["context"]) for pay in record["pay_off"]} == {(d, c) for d in ("draft", "costless") for c in (4, 20)}
    assert (tmp_path / "new" / "profile.svg").read_text().startswith("<?xml")
    assert {file.name for file in (tmp_path / "new").iterdir()} == {"profile.json", "profile.svg"}


def test_the_heading_names_both_precisions_where_they_differ():
    config = {"target": "a/t.gguf", "draft": "d.gguf", "gpu": None, "device": "cpu", "threads": 2, "cpu": "a processor"}
    assert command.heading(config | {"precision": ["Q4_K", "int4"]}) == "t.gguf with d.gguf: Q4_K with int4 on cpu, threads: 2, a processor"
    assert command.heading(config | {"precision": ["int4", "int4"]}).endswith(": int4 on cpu, threads: 2, a processor")


def test_a_second_run_adds_to_the_first(pair, tmp_path, undrawn):
    counts = []
    for _ in range(2):
        assert run(*pair, *SMALL, "--out", str(tmp_path)).exit_code == 0
        counts.append([len(some) for _, some in json.loads((tmp_path / "profile.json").read_text())["samples"]])
    assert all(second > first for first, second in zip(*counts, strict=True))


def test_another_configuration_is_refused_with_the_difference(pair, tmp_path, undrawn):
    assert run(*pair, *SMALL, "--out", str(tmp_path)).exit_code == 0
    before = (tmp_path / "profile.json").read_text()
    assert "seed was 0 and is 7" in refused(*pair, *SMALL, "--seed", "7", "--out", str(tmp_path))
    assert "rows was [1, 2, 3] and is [1, 5]" in refused(*pair, *SMALL, "--rows", "5", "--out", str(tmp_path))
    assert (tmp_path / "profile.json").read_text() == before
    (tmp_path / "profile.json").write_text('{"config": 3')
    assert "is no profile of draftwise" in refused(*pair, *SMALL, "--out", str(tmp_path))


def test_without_a_draft_there_is_only_the_costless_one(pair):
    found = run(*pair[:2], *SMALL, "--json")
    record = json.loads(found.stdout)
    assert {pay["drafter"] for pay in record["pay_off"]} == {"costless"} and {row["model"] for row in record["costs"]} == {TARGET}


def test_a_context_longer_than_the_model_is_cut_and_said(pair):
    found = run(*pair[:2], *SMALL, "--rows", "2", "--contexts", "4,5000")
    assert found.exit_code == 0 and "context 2046" in found.stdout
    assert found.stderr == f"context 5000 is cut to 2046: the target holds {cli_models.CONTEXT} tokens, and the widest pass needs 2\n"


def test_without_matplotlib_the_figures_are_there(pair, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    found = run(*pair[:2], *SMALL, "--out", str(tmp_path))
    assert found.exit_code == 0 and "n = 2 needs" in found.stdout
    assert found.stderr == "no profile.svg, since matplotlib is not installed: pip install matplotlib\n"
    assert [file.name for file in tmp_path.iterdir()] == ["profile.json"]


@pytest.mark.parametrize("after", [1, 5, 30])
def test_ctrl_c_shows_and_saves_what_there_is(pair, tmp_path, undrawn, monkeypatch, after):
    once, made = bench.Probe.once, []

    def interrupted(self, job):
        made.append(job)
        if len(made) > len(self.work) + after:  # the warm-up makes each pass once
            raise KeyboardInterrupt
        return once(self, job)

    monkeypatch.setattr(bench.Probe, "once", interrupted)
    found = run(*pair, *SMALL, "--seconds", "60", "--out", str(tmp_path))
    assert found.exit_code == INTERRUPTED and "interrupted: what was measured so far is shown" in found.stderr
    assert "target reads" in found.stdout
    assert sum(len(some) for _, some in json.loads((tmp_path / "profile.json").read_text())["samples"]) == after


def test_ctrl_c_before_anything_was_measured(pair, monkeypatch):
    monkeypatch.setattr(bench.Probe, "once", lambda self, job: (_ for _ in ()).throw(KeyboardInterrupt))
    found = run(*pair, *SMALL)
    assert found.exit_code == INTERRUPTED and found.stdout == "" and found.stderr == "error: interrupted\n"


def test_a_round_that_was_saved_stays_when_the_disk_is_full(pair, tmp_path, undrawn, monkeypatch):
    assert run(*pair, *SMALL, "--out", str(tmp_path)).exit_code == 0
    before = (tmp_path / "profile.json").read_text()

    def full(*_):
        raise OSError(28, "No space left on device", "profile.json")

    monkeypatch.setattr(command.os, "replace", full)
    assert "No space left on device" in refused(*pair, *SMALL, "--out", str(tmp_path))
    assert (tmp_path / "profile.json").read_text() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rows", "0"], "--rows takes whole numbers of at least 1"),
        (["--contexts", "64,-1"], "--contexts takes whole numbers of at least 1"),
        (["--seconds", "0"], "--seconds must be"),
        (["--seconds", "nan"], "--seconds must be"),
        (["--target", "no/such/model/here"], "no Hub id"),
        (["--rows", "4000"], "leave no context in a model of 2048"),
        (["--dtype", "int3"], "unknown dtype"),
        (["--device", "warp"], "unknown device"),
    ],
)
def test_bad_input_is_one_sentence(pair, arguments, words):
    assert words in refused(*pair[:2], *SMALL, *arguments)


def test_few_and_noisy_passes_are_named():
    quiet = {Job(TARGET, 8, k): [1.0] * 6 for k in (1, 2)}
    assert len(command.notes(quiet)) == 1 and "medians of 6 passes each" in command.notes(quiet)[0]
    assert "first impression" in command.notes({Job(TARGET, 8, 1): [1.0] * 2})[1]
    assert "scatter by ±50%" in command.notes({Job(TARGET, 8, k): [0.5, 1.0, 1.5] * 4 for k in (1, 2)})[1]
