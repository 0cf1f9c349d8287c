"""The runner of the bench on fake workers: whatever stops a run, the rows in the end are those of an undisturbed one."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import bench_runs
from bench_runs import FAKE, FakePeer, Notes, bench, chosen, keys
from draftwise.bench import plan, store
from draftwise.bench.hosts import Pool, WorkerError
from draftwise.bench.schema import Row, Turn

PROGRAM = str(Path(bench_runs.__file__))


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


def found(out: Path) -> list[tuple[str, str, str]]:
    return [(line["task"], line["id"], line["variant"]) for line in lines(out)]


def launch(out: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, PROGRAM, str(out), *arguments], stderr=subprocess.PIPE, text=True)


def until(out: Path, rows: int) -> None:
    """Waits until so many lines are there, torn or not."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        path = out / "rows.jsonl"
        if path.exists() and path.read_bytes().count(b"\n") >= rows:
            return
        time.sleep(0.01)
    raise AssertionError("the run gave no rows")


def test_every_variant_answers_every_problem(tmp_path):
    watch = Notes()
    outcome = bench(tmp_path, watch=watch, memory=True)
    assert {row.key for row in outcome.rows} == keys() and len(outcome.rows) == 20
    assert watch.totals == [(20, 0)] and watch.ended == 20
    assert set(outcome.memory) == {"plain", "adasd", "fake", "fake-lookup"} and min(outcome.memory.values()) > 1 << 20
    assert outcome.skipped == watch.told == ["fake-draft is skipped: it needs a draft"]
    row = next(row for row in outcome.rows if row.key == ("b", "b/0", "fake-lookup"))
    assert (row.engine, row.precision, row.correct, row.machine["versions"]) == ("fake", "fp32", True, {"fake": "1"})
    assert [len(turn.tokens) for turn in row.turns] == [5, 5]  # the limit of task b
    assert row.turns[1].prompt_tokens == len("b 0 turn 0|" + row.turns[0].text + "|b 0 turn 1|")  # its own first answer is in the prompt


def test_a_done_run_asks_for_nothing_more(tmp_path):
    bench(tmp_path)
    before, watch = (tmp_path / "rows.jsonl").read_bytes(), Notes()
    bench(tmp_path, watch=watch)
    assert (tmp_path / "rows.jsonl").read_bytes() == before and watch.totals == [(20, 20)] and watch.ended == 0


def test_each_variant_is_warmed_up_once_in_each_process(tmp_path):
    log = tmp_path / "asked"
    bench(tmp_path / "out", chosen(peers=[]), own=("--log", str(log)))
    asked = [line.split() for line in log.read_text().splitlines()]
    warm = [(variant, n) for variant, n, *_ in asked if n == "24"]
    assert sorted(warm) == [("adasd", "24"), ("plain", "24")]
    assert {variant: [n for name, n, *_ in asked if name == variant][0] for variant in ("plain", "adasd")} == {"plain": "24", "adasd": "24"}


def test_killed_twice_and_resumed_the_rows_are_those_of_an_undisturbed_run(tmp_path):
    for rows in (4, 11):
        run = launch(tmp_path, "0.05")
        until(tmp_path, rows)
        run.send_signal(signal.SIGKILL)
        run.communicate()
    assert 11 <= len(lines(tmp_path)) < 20
    outcome = bench(tmp_path)
    assert set(found(tmp_path)) == keys() and len(found(tmp_path)) == 20 and not outcome.missing
    bench(tmp_path / "undisturbed")
    undisturbed = bench(tmp_path / "undisturbed")
    assert {row.key: texts(row) for row in outcome.rows} == {row.key: texts(row) for row in undisturbed.rows}


def texts(row: Row) -> list[str]:
    return [turn.text for turn in row.turns]


def test_no_worker_outlives_a_killed_run(tmp_path):
    log = tmp_path / "asked"
    code = f"import bench_runs as b; from pathlib import Path; b.bench(Path({str(tmp_path)!r}) / 'out', own=('--log', {str(log)!r}, '--slow', '0.1'))"
    run = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent)
    until(tmp_path / "out", 3)
    run.kill()
    run.wait()
    workers = {int(line.split()[-1]) for line in log.read_text().splitlines()}
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert workers and not any(alive(pid) for pid in workers)


def alive(pid: int) -> bool:
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_ctrl_c_keeps_the_rows(tmp_path):
    run = launch(tmp_path, "0.1")
    until(tmp_path, 3)
    run.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in run.communicate()[1]
    assert (tmp_path / "rows.jsonl").read_bytes().endswith(b"\n")
    bench(tmp_path)
    assert set(found(tmp_path)) == keys() and len(found(tmp_path)) == 20


def asked(log: Path) -> list[tuple[str, int, int, bool]]:
    """(variant, length of the prompt, seed, afresh) of all measured requests; warm-ups are longer."""
    lines = [line.split() for line in log.read_text().splitlines()]
    return [(variant, int(length), int(seed), afresh == "True") for variant, n, length, seed, afresh, _ in lines if n != "24"]


def test_samples_of_a_problem_come_one_after_the_other_with_seeds_of_their_own(tmp_path):
    log, what = tmp_path / "asked", chosen(peers=[], samples=3)
    outcome = bench(tmp_path / "out", what, own=("--log", str(log)))
    assert len(outcome.rows) == 5 * 2 * 3 == len({row.key for row in outcome.rows})
    assert [(row.sample, row.seed) for row in outcome.rows] == [(0, 0), (1, 1), (2, 2)] * 10
    assert all(len({row.key[:3] for row in outcome.rows[i : i + 3]}) == 1 for i in range(0, 30, 3))
    first = [some for some in asked(log) if some[1] == len("a 0 turn 0|")]
    assert [(seed, afresh) for variant, _, seed, afresh in first if variant == "adasd"] == [(0, True), (1, False), (2, False)] * 5
    turns = [afresh for variant, length, seed, afresh in asked(log) if seed == 0 and length > len("a 0 turn 0|") and variant == "adasd"]
    assert turns.count(True) == 0  # a second turn goes on


def test_a_resumed_sample_finds_what_its_drafter_had_learnt(tmp_path):
    log, what = tmp_path / "asked", chosen(peers=[], methods=["plain"], samples=4)
    bench(tmp_path / "out", what)
    path = tmp_path / "out" / "rows.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    outcome = bench(tmp_path / "out", what, own=("--log", str(log)))
    assert [row.sample for row in outcome.rows] == [0, 1, 2, 3] * 5 and len({row.key for row in outcome.rows}) == 20
    assert [some[2:] for some in asked(log)[:5]] == [(0, True), (1, False), (2, False), (3, False), (0, True)]  # then the next problem


def test_one_answer_a_problem_leaves_rows_as_they_were(tmp_path):
    bench(tmp_path, chosen(peers=[]))
    assert all("sample" not in line for line in lines(tmp_path))
    assert Row(*lines(tmp_path)[0].values()).sample is None


def test_a_torn_last_line_is_dropped_and_done_again(tmp_path):
    bench(tmp_path)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    watch = Notes()
    bench(tmp_path, watch=watch)
    assert watch.totals == [(20, 19)] and set(found(tmp_path)) == keys() and len(found(tmp_path)) == 20


def test_a_full_disk_leaves_whole_rows(tmp_path):
    run = launch(tmp_path, "0", "9000")  # bytes that a file may have
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 1 and "File too large; the" in errors and "lines so far are whole: make room" in errors
    data = (tmp_path / "rows.jsonl").read_bytes()
    assert 4000 < len(data) <= 9000 and data.endswith(b"\n") and len(lines(tmp_path)) >= 3
    bench(tmp_path)
    assert set(found(tmp_path)) == keys() and len(found(tmp_path)) == 20


def test_a_disk_that_fills_in_the_middle_of_a_line(tmp_path, monkeypatch):
    journal = store.Journal(tmp_path / "rows.jsonl")
    journal.append({"a": 1})
    write, calls = os.write, []

    def short(file: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data[:5])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", short)
        with pytest.raises(OSError, match="No space left on device; the 1 lines so far are whole") as caught:
            journal.append({"b": "long enough"})
    assert caught.value.errno == errno.ENOSPC and len(calls) == 2
    assert (tmp_path / "rows.jsonl").read_text() == '{"a": 1}\n'
    journal.append({"c": 3})
    assert journal.lines == [{"a": 1}, {"c": 3}]
    journal.close()


def test_a_second_process_is_refused(tmp_path):
    with store.opened(tmp_path, {"seed": 0}), pytest.raises(ValueError, match="in use by another process"):
        bench(tmp_path)


def test_another_configuration_is_refused_with_the_difference(tmp_path):
    bench(tmp_path, chosen(peers=[]))
    other = chosen(peers=[], seed=1, tasks={"a": {"version": 2}}, draftwise="9", command="y")
    with pytest.raises(ValueError, match="another configuration") as caught:
        bench(tmp_path, other)
    assert "seed: 0 there, 1 here" in str(caught.value) and "tasks.a.version: 1 there, 2 here" in str(caught.value)
    assert "draftwise:" not in str(caught.value) and "command" not in str(caught.value)


def test_a_folder_without_rows_takes_any_configuration(tmp_path):
    with pytest.raises(ValueError, match="the method 'adasd' cannot run: it was told to"):
        bench(tmp_path, own=("--refuse", "adasd"))
    assert (tmp_path / "rows.jsonl").read_bytes() == b""
    assert len(bench(tmp_path, chosen(peers=[], methods=["plain"])).rows) == 5


def test_a_changed_row_file_is_refused(tmp_path):
    bench(tmp_path, chosen(peers=[]))
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"nonsense\n" + path.read_bytes())
    with pytest.raises(ValueError, match=r"rows.jsonl, line 1 is no JSON object"):
        bench(tmp_path, chosen(peers=[]))


def test_a_worker_that_dies_once_costs_nothing(tmp_path):
    watch = Notes()
    outcome = bench(tmp_path / "out", chosen([FakePeer(("--die", f"fake:{tmp_path / 'died'}"))]), watch)
    assert set(found(tmp_path / "out")) == keys() and not outcome.missing and not outcome.failed
    assert len(watch.told) == 2 and "was killed by signal 9 (its last words: the last words); once more in a fresh process" in watch.told[1]


def test_a_worker_that_always_dies_fails_its_variant_alone(tmp_path):
    watch = Notes()
    outcome = bench(tmp_path, chosen([FakePeer(("--die", "fake"))]), watch)
    assert {job.variant for job in outcome.missing} == {"fake"} and len(outcome.missing) == 5 and set(outcome.failed) == {"fake"}
    assert set(found(tmp_path)) == {key for key in keys() if key[2] != "fake"}
    assert sum("fake on" in sentence for sentence in watch.told) == 2
    assert not bench(tmp_path).missing and set(found(tmp_path)) == keys()  # the same command tries again


def test_a_worker_that_says_nothing_is_given_up(tmp_path):
    outcome = bench(tmp_path, chosen([FakePeer(("--hang", "fake-lookup"))]), timeout_s=1)
    assert {job.variant for job in outcome.missing} == {"fake-lookup"} and outcome.failed == {"fake-lookup": "gave no answer within 1 s"}


def test_a_peer_that_is_absent_is_named_with_its_installation(tmp_path):
    outcome = bench(tmp_path, chosen([FakePeer(absent="there is no fake")]))
    assert outcome.skipped == ["fake is skipped: there is no fake; it is installed by: pip install fake"] and not outcome.missing
    assert {row.variant for row in outcome.rows} == {"plain", "adasd"}


def test_a_model_that_does_not_load_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="our own engine could not be started: no such model"):
        bench(tmp_path, own=("--fail-start", "no such\nmodel"))


def test_a_prompt_that_does_not_fit_is_left_out_and_named(tmp_path):
    watch = Notes()
    outcome = bench(tmp_path, chosen(peers=[]), watch, own=("--max-length", "40"))
    assert {row.task for row in outcome.rows} == {"a"} and len(outcome.rows) == 6
    assert [sentence for sentence in watch.told if "b/1 is left out" in sentence and "the target's context holds 40" in sentence]


def test_only_the_measured_worker_runs(tmp_path):
    with Pool(1, tmp_path) as pool:
        argv = [[sys.executable, FAKE, "--engine", name] for name in ("a", "b")]
        first, second = (pool.turn(some, name) for some, name in zip(argv, "ab", strict=True))
        assert (state(first), state(second)) == ("T", "S")
        assert pool.turn(argv[0], "a") is first
        assert (state(first), state(second)) == ("S", "T")
        assert first.ready["threads"] == 1
    assert not alive(first._process.pid) and not alive(second._process.pid)


def state(host) -> str:
    """'T' stopped, 'S' waiting; a signal takes a moment."""
    time.sleep(0.1)
    return Path(f"/proc/{host._process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_idle_workers_end_when_memory_gets_short(tmp_path):
    with Pool(1, tmp_path, reserve=1 << 60) as pool:  # always short
        first = pool.turn([sys.executable, FAKE, "--engine", "a"], "a")
        second = pool.turn([sys.executable, FAKE, "--engine", "b"], "b")
        assert not alive(first._process.pid) and alive(second._process.pid)
        again = pool.turn([sys.executable, FAKE, "--engine", "a"], "a")
        assert again is not first and not again.warm


def test_a_program_that_is_not_there(tmp_path):
    with Pool(1, tmp_path) as pool, pytest.raises(WorkerError, match="could not be started: No such file"):
        pool.turn(["/nowhere/python"], "x")


def test_the_plan_interleaves_and_is_a_function_of_its_arguments():
    tasks = [bench_runs.problems("a", 3), bench_runs.problems("b", 2)]
    workers = {"x": "ours", "y": "theirs", "z": "ours"}
    jobs = plan.jobs(tasks, workers, seed=1)
    assert jobs == plan.jobs(tasks, workers, seed=1) != plan.jobs(tasks, workers, seed=2)
    assert [job.problem.id for job in jobs[::3]] == ["a/0", "b/0", "a/1", "b/1", "a/2"]
    assert all({job.variant for job in jobs[i : i + 3]} == {"x", "y", "z"} for i in range(0, 15, 3))
    assert all(jobs[i + 1].variant != "y" for i in range(0, 15, 3))  # two of one process are not parted
    with pytest.raises(ValueError, match="at least 1"):
        plan.jobs(tasks, workers, seed=1, block=0)


def test_a_block_is_one_turn_of_a_worker_whose_variants_take_turns_by_problem():
    tasks, workers = [bench_runs.problems("a", 4)], {"x": "ours", "y": "theirs", "z": "ours"}
    jobs = plan.jobs(tasks, workers, seed=1, block=2)
    assert {job.key for job in jobs} == {job.key for job in plan.jobs(tasks, workers, seed=1)}
    for block in (jobs[:6], jobs[6:]):
        swaps = sum(workers[a.variant] != workers[b.variant] for a, b in itertools.pairwise(block))
        ours = [job.problem.id for job in block if job.variant != "y"]
        assert swaps == 1 and ours[0] == ours[1] != ours[2] == ours[3]


def test_comma_lists_of_specs():
    assert plan.split("plain, adasd,gammatune:eta=0.3,gamma=2,svip") == ["plain", "adasd", "gammatune:eta=0.3,gamma=2", "svip"]
    assert plan.split("budget:tv=0.02,over=[adasd:base=ratio,x=1],first-hit:[suffix],[draft-model]") == [
        "budget:tv=0.02,over=[adasd:base=ratio,x=1]",
        "first-hit:[suffix],[draft-model]",
    ]
    assert plan.split("") == [] and plan.split("a,,a") == ["a"]


def test_numbers_by_task():
    defaults = {"humaneval": 512, "gsm8k": 256}
    assert plan.by_task("", defaults, "-n") == defaults
    assert plan.by_task("humaneval=256,128", defaults, "-n") == {"humaneval": 256, "gsm8k": 128}
    assert plan.by_task("gsm8k=64", defaults, "-n") == {"humaneval": 512, "gsm8k": 64}
    for wrong in ("0", "many", "humaneval=", "x=3"):
        with pytest.raises(ValueError, match="^-n "):
            plan.by_task(wrong, defaults, "-n")


def test_the_fingerprint_sees_every_word():
    one = bench_runs.problems("a", 2)
    assert plan.fingerprint(one) == plan.fingerprint(bench_runs.problems("a", 2))
    assert plan.fingerprint(one) != plan.fingerprint([one[0], one[1]._replace(turns=("other",))])


def test_rows_survive_the_journey(tmp_path):
    row = Row("t", 1, "1", "g", "v", "e", "p", (Turn((1, 2), "ab", 0.5, 3, ((0.1, 2),), "stop", "dt", ()),), None, 0, {"cpu": "x"}, "c")
    with store.opened(tmp_path, {}) as there:
        there.add(row)
    with store.opened(tmp_path, {}) as again:
        assert again.rows == [row] and again.keys == {row.key}
