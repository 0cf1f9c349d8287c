"""The workers of the bench as processes, and the command over them, on tiny random models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cli_models
from bench_runs import FAKE
from draftwise.bench import peers, rendering, setup
from draftwise.bench.hosts import Host, WorkerError
from draftwise.bench.peers import ourselves
from draftwise.bench.peers.transformers import Transformers
from draftwise.bench.workers import draftwise_worker, lines
from draftwise.cli import app

IDS = list(b"abcabcabcabcabc")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[str, str]:
    return tuple(str(cli_models.save(tmp_path_factory.mktemp(name), seed)) for seed, name in enumerate(("target", "draft")))


@pytest.fixture(scope="module")
def frame(models) -> peers.Setup:
    return peers.Setup(*models, "float32", 1, 512)


@pytest.fixture(scope="module")
def ours(frame, tmp_path_factory):
    yield from started(ourselves.worker(frame), tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="module")
def theirs(frame, tmp_path_factory):
    yield from started(Transformers(lookup=4).command(frame, "transformers"), tmp_path_factory.mktemp("logs"))


def started(argv: list[str], logs: Path):
    host = Host(argv, 1, logs / "log")
    try:
        host.wait(300, lambda: None)
        yield host
    finally:
        host.kill()


def ask(host: Host, variant: str, **changes) -> dict:
    request = {"variant": variant, "ids": IDS, "max_tokens": 12, "temperature": 0.0, "top_p": 1.0, "seed": 0, "stop_ids": [256]}
    return host.ask(request | changes, 120)


def consistent(answer: dict) -> None:
    """Every account of an answer adds up to its tokens."""
    tokens, rounds = answer["tokens"], answer["rounds"]
    assert sum(n for _, n in answer["arrivals"]) == len(answer["origins"]) == len(tokens) == sum(r[4] for r in rounds)
    assert answer["origins"].count("d") == sum(r[2] for r in rounds) and all(r[2] <= r[0] for r in rounds)
    times = [s for s, _ in answer["arrivals"]]
    assert times == sorted(times) and times[-1] <= answer["seconds"]
    assert 0.5 * answer["seconds"] < sum(r[5] + r[6] for r in rounds) <= answer["seconds"] * 1.01


def test_our_worker_says_what_it_is(ours):
    ready = ours.ready
    assert (ready["engine"], ready["precision"], ready["threads"], ready["stop_ids"]) == ("draftwise", "fp32", 1, [256])
    assert ready["max_length"] == cli_models.CONTEXT and {"torch", "draftwise", "transformers"} <= set(ready["versions"])


def test_our_worker_checks_methods(ours):
    refused = ours.ask({"check": ["plain", "adasd", "lookup", "adsd", "fixed:m=3"]}, 60)["refused"]
    assert set(refused) == {"adsd", "fixed:m=3"} and "did you mean 'adasd'" in refused["adsd"]


@pytest.mark.parametrize("variant", ["plain", "fixed:n=3", "lookup", "adasd"])
def test_our_answers_add_up(ours, variant):
    consistent(ask(ours, variant))


def test_our_lossless_methods_write_what_plain_writes(ours):
    plain = ask(ours, "plain")
    assert plain["finish_reason"] == "length" and plain["origins"] == "t" * 12
    assert ask(ours, "fixed:n=3")["tokens"] == ask(ours, "lookup")["tokens"] == plain["tokens"]


def test_what_a_variant_learnt_is_forgotten_where_it_is_to_begin_afresh(models):
    worker = draftwise_worker.Worker(models[0], [models[1]], "float32", "cpu")
    request = {"variant": "first-hit", "ids": [1, 2, 3], "max_tokens": 4, "temperature": 0.6, "top_p": 1.0, "seed": 0, "stop_ids": []}
    parts = []
    for more in ({}, {}, {"afresh": True}, {}):
        worker.answer(request | more)
        parts.append(worker._engines["first-hit"])
    assert parts[0] is parts[1] and parts[2] is parts[3]
    assert parts[1][0] is not parts[2][0] and parts[1][1].drafter is not parts[2][1].drafter
    assert parts[2][0].target is parts[0][0].target  # the model stays


def test_an_error_is_an_answer_and_the_worker_goes_on(ours):
    with pytest.raises(WorkerError, match="the prompt is empty"):
        ask(ours, "plain", ids=[])
    assert len(ask(ours, "plain")["tokens"]) == 12


def test_a_trace_is_left_where_it_is_wanted(ours, tmp_path):
    from draftwise.bench import trace

    plain = ask(ours, "fixed:n=3")
    traced = ask(ours, "fixed:n=3", trace=str(tmp_path / "x.npz"))
    found = trace.load(tmp_path / "x.npz")
    assert traced["tokens"] == plain["tokens"] and found.prompt == len(IDS) and "/" not in json.dumps(found.header["about"])


def test_no_trace_is_left_of_a_method_of_trees_which_is_told_beforehand(ours, tmp_path):
    found = ours.ask({"check": ["plain", "draft-tree", "fixed"]}, 60)
    assert (found["refused"], found["trees"]) == ({}, ["draft-tree"])
    traced = ask(ours, "draft-tree", trace=str(tmp_path / "x.npz"))
    assert traced["tokens"] == ask(ours, "plain")["tokens"] and not list(tmp_path.iterdir())


def test_memory_is_told(ours):
    assert 50 << 20 < ours.peak() < 8 << 30


def test_transformers_says_what_it_is(theirs):
    assert (theirs.ready["engine"], theirs.ready["precision"], theirs.ready["threads"]) == ("transformers", "fp32", 1)


@pytest.mark.parametrize("variant", Transformers.variants)
def test_the_answers_of_transformers_add_up(ours, theirs, variant):
    answer = ask(theirs, variant)
    consistent(answer)
    assert answer["tokens"] == ask(ours, "plain")["tokens"] and answer["finish_reason"] == "length"
    assert (sum(r[0] for r in answer["rounds"]) > 0) == (variant != "transformers")  # drafts are counted


def test_transformers_samples_by_its_seed(theirs):
    one, two, other = (ask(theirs, "transformers", temperature=1.0, seed=seed)["tokens"] for seed in (1, 1, 2))
    assert one == two != other


def test_transformers_stops_where_it_is_told(theirs):
    whole = ask(theirs, "transformers")["tokens"]
    answer = ask(theirs, "transformers", stop_ids=[whole[3]])
    assert answer["tokens"] == whole[: whole.index(whole[3]) + 1] and answer["finish_reason"] == "stop"


def test_transformers_assisted_needs_a_draft(frame):
    with pytest.raises(ValueError, match="needs a draft model"):
        Transformers().command(frame._replace(draft=None), "transformers-assisted")
    assert Transformers().missing(frame) is None
    assert "no interpreter" in str(Transformers(python="/nowhere/python").missing(frame))


def test_peers_are_made_from_specs():
    assert peers.create("transformers:lookup=5") == Transformers(lookup=5)
    with pytest.raises(ValueError, match="did you mean 'transformers'"):
        peers.create("transformer")
    with pytest.raises(ValueError, match="no option 'lokup': did you mean 'lookup'"):
        peers.create("transformers:lokup=5")


def test_what_libraries_print_stays_out_of_the_protocol():
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    requests = '{"check": []}\n{"memory": true}\nnonsense that ends it\n'
    done = subprocess.run([sys.executable, FAKE], input=requests, capture_output=True, text=True, env=environment, check=False)
    ready, checked, memory = map(json.loads, done.stdout.splitlines())
    assert "ready" in ready and checked == {"refused": {}} and memory["peak_bytes"] > 1 << 20
    assert done.stderr.startswith("a library that prints")


def test_lines_are_json_also_for_numbers_that_json_lacks():
    assert lines._finite({"a": [float("nan"), (1.5, float("inf"))]}) == {"a": [None, [1.5, None]]}


def test_prompts_are_rendered_with_the_template(models):
    found = rendering.load(models[0])
    ids = found.ids(["one", "two"], ["first"])
    assert found.text(ids) == "<user>one<assistant>first<user>two<assistant>"
    assert found.text([*found.ids(["one"], []), 256]) == "<user>one<assistant>"
    with pytest.raises(ValueError, match="could not be had"):
        rendering.load(str(Path(models[0]) / "nothing"))


def test_methods_are_checked_before_anything_is_loaded():
    assert setup.our_methods(["adasd", "gammatune:eta=0.5", "adasd"], "draft") == ["plain", "adasd", "gammatune:eta=0.5"]
    assert setup.our_methods([], None)[0] == "plain" and "adasd" not in setup.our_methods([], None) and "lookup" in setup.our_methods([], None)
    assert {"adasd", "typical", "lookup"} <= set(setup.our_methods([], "draft"))
    for wrong, message in (("adsd", "did you mean 'adasd'"), ("adasd", "needs a draft model"), ("fixed:m=1", "no option 'm'")):
        with pytest.raises(ValueError, match=message):
            setup.our_methods([wrong], None)


def run(*arguments: str):
    return CliRunner().invoke(app, ["bench", *arguments])


def test_the_command_from_prompts_to_report(models, tmp_path):
    own = tmp_path / "own.jsonl"
    own.write_text('{"prompt": "abcabc", "id": "x"}\n{"turns": ["one", "two"]}\n')
    options = ["--target", models[0], "--draft", models[1], "--dtype", "float32", "--threads", "1", "--methods", "fixed:n=2", "--tasks", str(own)]
    options += ["-n", "6", "--peers", "transformers", "--no-memory", "--out", str(tmp_path / "out")]
    done = run(*options)
    assert done.exit_code == 0, done.output
    assert "transformers-assisted" in done.stdout and (tmp_path / "out" / "report.html").is_file()
    record = json.loads(run(*options, "--json").stdout)
    variants = ["plain", "fixed:n=2", *Transformers.variants]
    assert record["rows"] == 10 and [figure["variant"] for figure in record["figures"]] == variants and record["skipped"] == []
    assert all(figure["same_text"] == 1 for figure in record["figures"])
    assert "own.jsonl: 6 there, 7 here" in run(*options, "-n", "7").stderr
    assert run("report", str(tmp_path / "out"), "--out", str(tmp_path / "page")).exit_code == 0 and (tmp_path / "page" / "report.html").is_file()
    assert run("compare", str(tmp_path / "out"), str(tmp_path / "out")).exit_code == 0


def test_the_command_with_samples_and_several_drafts(models, tmp_path):
    own = tmp_path / "own.jsonl"
    own.write_text('{"prompt": "abcabc", "id": "x"}\n')
    options = ["--target", models[0], "--draft", models[1], "--draft", models[0], "--dtype", "float32", "--threads", "1", "--tasks", str(own)]
    options += ["--methods", "fixed:n=2", "-n", "6", "--no-memory", "--out", str(tmp_path / "out")]
    record = json.loads(run(*options, "--samples", "3", "--temperature", "0.6", "--json").stdout)
    assert record["rows"] == 6 and [len(figure["samples"]["tokens_per_second"]) for figure in record["figures"]] == [3, 3]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["draft"], config["further"], config["samples"]) == (models[1], [models[0]], 3)


def test_the_command_refuses_what_cannot_be(models, tmp_path):
    own, broken, empty = (tmp_path / f"{name}.jsonl" for name in ("own", "broken", "empty"))
    own.write_text('{"prompt": "abc"}\n')
    broken.write_text('{"prompt": "abc"}\n{"prompt": \n')
    empty.write_text("")
    out = str(tmp_path / "out")
    for arguments, message in (
        (["--tasks", str(own)], "say where the rows go"),
        (["--out", out], "name at least one task"),
        (["--out", out, "--tasks", str(broken)], "line 2"),
        (["--out", out, "--tasks", str(empty)], "empty"),
        (["--out", out, "--tasks", str(own), "--limit", "gsm8k=2"], "--limit names the task 'gsm8k', which is not asked for"),
        (["--out", out, "--tasks", "humanevil"], "did you mean 'humaneval'"),
        (["--out", out, "--tasks", str(own), "--samples", "0"], "--samples takes how often each problem is asked, at least 1, got 0"),
        (["--out", out, "--tasks", str(own), "--samples", "4"], "at temperature 0 all samples of a problem are the same"),
        (["--out", out, "--tasks", str(own), "--methods", "adasd"], "needs a draft model"),
        (["--out", out, "--tasks", str(own), "--peers", "vlm"], "there is no peer 'vlm'"),
        (["--out", out, "--tasks", str(own), "--methods", "plain", "--baseline", "x"], "is none of the variants"),
        (["--out", out, "--tasks", str(own), "--methods", "plain", "--top-p", "2"], "top_p must be"),
        (["--out", out, "--tasks", str(own), "--methods", "plain", "--dtype", "int3"], "unknown dtype"),
    ):
        done = run("--target", models[0], *arguments)
        assert done.exit_code == 2 and message in " ".join(done.stderr.split()), (arguments, done.output)
    assert not (tmp_path / "out").exists()
