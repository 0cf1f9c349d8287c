"""`draftwise plan`: agreement against exact laws, the search with costs that depend on the width, and the command on tiny models."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from cli_models import save
from draftwise.backends.table import Table
from draftwise.bench import hierarchy
from draftwise.bench.hierarchy import Measured, Text
from draftwise.bench.profile import Job
from draftwise.cli import app

VOCAB = 5
SMALL = ("-n", "4", "--seconds", "0", "--context", "8", "--t-max", "3", "--limit", "1", "--dtype", "float32")


def run(*arguments: str):
    return CliRunner().invoke(app, ["plan", *arguments])


def tables() -> dict[str, Table]:
    return {name: Table(VOCAB, seed=0, twist=twist) for name, twist in (("small", 0.9), ("middle", 0.4), ("target", 0.0))}


def test_agreement_is_the_overlap_of_the_laws() -> None:
    models = tables()
    texts = [Text((1, 2, 3), (4, 0, 1)), Text((0, 1), (2,))]
    found = hierarchy.agreement(models, texts, 1.0)
    for one, other in found:
        total = 0.0
        for text in texts:
            for i in range(len(text.written)):
                before = [*text.prompt, *text.written[:i]]
                total += float(torch.minimum(*(models[name].row(before).softmax(-1) for name in (one, other))).sum())
        assert found[one, other] == pytest.approx(total / 4, abs=1e-6)
    assert found["middle", "target"] > found["small", "target"]
    assert set(hierarchy.agreement(models, texts, 0.0).values()) <= {0.0, 0.25, 0.5, 0.75, 1.0}


def test_long_prompts_are_read_in_chunks_and_slots_left_empty() -> None:
    model = Table(VOCAB, max_length=2000)
    prompt = tuple(i % VOCAB for i in range(700))
    found = hierarchy.rows(model, Text(prompt, (1, 2)))
    assert torch.allclose(found[1], model.row([*prompt, 1]))
    assert model.length(0) == 0


def test_models_are_ordered_by_cost_and_the_target_stays_last() -> None:
    samples = {Job(name, 8, width): [s] for name, s in (("big", 3.0), ("tiny", 1.0), ("target", 2.0)) for width in (1, 5)}
    agreed = {("big", "tiny"): 0.5, ("big", "target"): 0.9, ("tiny", "target"): 0.6}
    found = hierarchy.measured(["big", "tiny", "target"], samples, agreed, 10)
    assert found.names == ("tiny", "big", "target")
    assert found.alpha[0] == (1.0, 0.5, 0.6)


def test_a_cost_counts_at_the_width_that_is_verified() -> None:
    flat, steep = {1: 10.0, 9: 10.0}, {1: 10.0, 9: 90.0}
    plans = [hierarchy.plan(Measured(("draft", "target"), ({1: 1.0, 9: 1.0}, some), ((1.0, 0.9), (0.9, 1.0)), 1), 8) for some in (flat, steep)]
    assert plans[0].best.buffers == (8,)
    assert plans[0].single == plans[0].best
    assert plans[1].best.models == (1,)  # each verified token costs a pass: nothing pays
    assert plans[1].best.latency == plans[1].plain == 10.0


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[str, str, str]:
    torch.set_num_threads(1)
    base = tmp_path_factory.mktemp("models")
    return str(save(base / "target")), str(save(base / "draft", seed=1)), str(save(base / "other", shift=3))


def test_the_command(folders) -> None:
    shown = run("--models", f"{folders[1]},{folders[0]}", *SMALL)
    assert shown.exit_code == 0, shown.output
    assert "measured costs" in shown.stdout
    assert "over plain" in shown.stdout
    record = json.loads(run("--models", f"{folders[1]},{folders[0]}", *SMALL, "--json").stdout)
    assert record["places"] == 4
    assert {len(some["models"]) for some in record["ranked"]} == {1, 2}
    assert record["ranked"] == sorted(record["ranked"], key=lambda some: some["latency"])


@pytest.mark.parametrize("models", ["one", "same,same", ","])
def test_two_different_models_are_needed(models: str) -> None:
    found = run("--models", models)
    assert found.exit_code == 2
    assert "two or more different models" in " ".join(found.output.split())


def test_a_model_of_another_vocabulary_is_planned_with(folders) -> None:
    found = run("--models", f"{folders[2]},{folders[0]}", "--dtype", "float32")
    assert found.exit_code == 0
    assert "other has another vocabulary than target" in " ".join(found.output.split())
