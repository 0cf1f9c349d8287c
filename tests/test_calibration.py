"""`draftwise calibrate-tree`: exact samples, ranks that the engine finds as well, and a command that goes on where it was stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cli_models import save
from draftwise import catalog
from draftwise.backends.table import Table
from draftwise.bench import calibration
from draftwise.cli import app
from draftwise.engine import Engine
from draftwise.methods import shapes
from draftwise.methods.stand import Stand
from draftwise.sequence import Method
from draftwise.types import Sampling
from tables import pair

SMALL = ("--limit", "2", "--samples", "2", "-n", "5", "--nodes", "6", "--width", "3", "--temperature", "0", "--dtype", "float32")


def run(*arguments: str):
    return CliRunner().invoke(app, ["calibrate-tree", *arguments])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save(tmp_path_factory.mktemp("model")))


def test_greedy_texts_are_plain_and_ranks_are_those_of_the_greedy_choice() -> None:
    target = Table(8, order=2, sharpness=3.0)
    plain = Engine(target).generate([[1, 2]], Sampling(max_tokens=40), catalog.method("plain", pair()))[0]
    drafter = calibration.star("recycling", 4, 8)
    found = calibration.ranks(target, drafter, [1, 2], Sampling(max_tokens=40))
    latest: dict[int, list[int]] = {}
    text = [1, 2]
    for token, rank in zip(plain, found, strict=True):
        children = latest.get(text[-1], [])
        assert rank == (children.index(token) if token in children else calibration.NONE)
        latest[text[-1]] = target.row(text).topk(4).indices.tolist()
        text.append(token)
    assert max(found) > 0
    assert target.length(0) == 0


def test_sampled_texts_have_the_targets_law() -> None:
    """The first token of 800 samples whose drafter knows the place: chi-square below the 1 - 1e-6 quantile of its 3 degrees of freedom."""
    target = Table(4, order=1, sharpness=1.0)
    p, counts = target.row([1]).softmax(-1), torch.zeros(4)
    drafter = Stand(top=4, tree=shapes.shape([(0,), (1,)]), share="all", vocab_size=4)
    for seed in range(800):
        written: list[int] = []
        drafter.free = lambda text, written=written: written.extend(text.tokens)  # type: ignore[method-assign, misc]
        calibration.ranks(target, drafter, [1], Sampling(1.0, seed=seed, max_tokens=1))
        counts[written[1]] += 1
        drafter._own.clear()
    assert float(((counts - 800 * p) ** 2 / (800 * p)).sum()) < 30.7


def test_the_expectation_is_what_the_engine_gets() -> None:
    """Tokens a pass of the tree it found, on texts of the same target."""
    context = pair(12, order=1, sharpness=4.0)
    drafter = calibration.star("recycling", 6, 12)
    runs = [calibration.ranks(context.target, drafter, [1, 2, 3], Sampling(0.8, seed=seed, max_tokens=200), seed) for seed in range(8)]
    found = shapes.best(runs, 10, 6, 5)
    tau = calibration.expected(runs, [path for path, _ in found], 6, 5)
    drafter.shape = shapes.shape(path for path, _ in found)  # type: ignore[attr-defined]
    parts = catalog.method("recycling", context)
    engine = Engine(context.target)
    sequences = [engine.add([1, 2, 3], Sampling(0.8, seed=100 + seed, max_tokens=200), Method(*parts[:2], drafter)) for seed in range(8)]
    list(engine.stream())
    measured = sum(len(s.tokens) - 3 for s in sequences) / sum(len(s.rounds) for s in sequences)
    assert tau > 1.5
    assert measured == pytest.approx(tau, rel=0.1)


def test_an_accepted_child_comes_from_the_drafter() -> None:
    drafter = calibration.star("stand", 3, 8)
    assert all(rank == calibration.NONE for rank in calibration.ranks(Table(8), drafter, [1], Sampling(1.0, max_tokens=1)))
    with pytest.raises(ValueError, match="no tree drafter 'suffix'"):
        calibration.star("suffix", 3, 8)


def test_nothing_accepted_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="nothing accepted at 2 places"):
        calibration.tree([[-1, -1]], 8, 3, 3, {})


def test_the_command_makes_a_tree_that_the_drafter_reads(model: str, tmp_path: Path) -> None:
    out = tmp_path / "tree.json"
    done = run(str(out), "--target", model, *SMALL)
    assert done.exit_code == 0, done.output
    assert f"--drafter stand:tree={out}" in done.output
    record = json.loads(out.read_text())
    assert record["made"]["places"] == 2 * 2 * 5
    assert len(record["paths"]) == 6
    assert Stand(tree=str(out)).shape.nodes == 6
    assert Stand(tree=str(out), nodes=2).shape.nodes == 2


def test_it_goes_on_where_it_was_stopped(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = tmp_path / "whole.json", tmp_path / "parts.json"
    assert run(str(whole), "--target", model, *SMALL).exit_code == 0
    honest, calls = calibration.ranks, []

    def stopped(*arguments, **options):  # type: ignore[no-untyped-def]
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return honest(*arguments, **options)

    monkeypatch.setattr(calibration, "ranks", stopped)
    first = run(str(parts), "--target", model, *SMALL)
    assert first.exit_code == 130
    assert "1 of 2 prompts are kept" in first.output
    assert not parts.exists()
    assert run(str(parts), "--target", model, *SMALL).exit_code == 0
    assert len(calls) == 4 + 2, "the finished prompt was not sampled again"
    assert [json.loads(file.read_text())["shares"] for file in (whole, parts)] == [json.loads(whole.read_text())["shares"]] * 2


def test_choosing_anew_needs_no_model_and_other_options_another_file(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "tree.json"
    assert run(str(out), "--target", model, *SMALL).exit_code == 0
    monkeypatch.setattr(calibration, "ranks", None)
    assert run(str(out), "--target", model, *SMALL, "--nodes", "3").exit_code == 0
    assert len(json.loads(out.read_text())["paths"]) == 3
    first = json.loads(out.read_text())["made"]
    assert run(str(out), "--target", model, *SMALL, "--limit", "1").exit_code == 0
    assert (first["texts"], json.loads(out.read_text())["made"]["texts"]) == (4, 2)
    refused = run(str(out), "--target", model, *SMALL, "--seed", "5")
    assert refused.exit_code == 2
    assert "seed: 0 there, 5 here" in refused.output
