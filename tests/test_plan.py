"""`draftwise plan`: agreement against exact laws, the search with costs that depend on the width, and the command on tiny models."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cli_models import save
from draftwise import catalog
from draftwise.backends.table import Table
from draftwise.bench import copying, hierarchy, planned
from draftwise.bench.hierarchy import Measured, Text
from draftwise.bench.profile import Job
from draftwise.cli import app
from draftwise.context import Context
from draftwise.methods.fixed import Fixed
from draftwise.methods.hsd import Hierarchy, gain, shortlist
from draftwise.methods.prompt_lookup import PromptLookup

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


def test_a_walk_counts_what_copies_bring() -> None:
    """After 1 2 3 1 the target writes 2 3 1 2 9 1 2 3: lookup copies 2 3 1, then 3 where 9 comes, has nothing after 9, and is right to the end."""
    text = Text((1, 2, 3, 1), (2, 3, 1, 2, 9, 1, 2, 3))
    copier, own = PromptLookup(), [2, 3, 1, 2, 9, 1, 2, 3]
    assert copying.walk(copier, [text], [own], 3) == [4, 1, 1]  # 2 3 1 and 2; 9; 1; then 2 3 to the end, of which the rest is unknown
    assert copying.walk(copier, [text], [own], 1) == [2, 2, 1, 1, 2]
    other = [2, 4, 1, 2, 9, 1, 2, 3]  # a model that would write 4 in the second place
    assert copying.walk(copier, [text], [other], 3)[0] == 2
    assert not copier._indexes
    assert copying.counted([2, 2, 1], 3).tolist() == pytest.approx([0, 1 / 3, 2 / 3, 0, 0])
    assert copying.counted([], 2).tolist() == [0, 1, 0, 0]
    assert copying.equal(gain(0.7, 4), 4) == pytest.approx(0.7)


def test_a_counted_law_stands_in_for_one_chance_per_place() -> None:
    """Where the counted law is that of one chance per place, nothing changes; where it brings more, the latency falls."""
    costs, alpha = [0.01, 4.0, 20.0], [[1.0, 0.6, 0.5], [0.6, 1.0, 0.8], [0.5, 0.8, 1.0]]

    def same(n: int) -> np.ndarray:
        return np.array([0, *(0.6**i * 0.4 for i in range(n)), 0.6**n])

    plain, told, whole = (
        {h.models: h for h in shortlist(costs, alpha, 6, laws)} for laws in (None, {(0, 1): same}, {(0, 1): lambda n: np.eye(n + 2)[n + 1]})
    )
    assert told[0, 1, 2].latency == pytest.approx(plain[0, 1, 2].latency)
    assert whole[0, 1, 2].latency < plain[0, 1, 2].latency
    assert told[0, 2] == plain[0, 2]


def test_a_hierarchy_as_it_is_asked_for() -> None:
    names = ("prompt-lookup", "small", "middle", "target")
    spec = planned.spec(names, Hierarchy((0, 1, 2, 3), (6, 5, 4), 1.0), "prompt-lookup")
    assert spec.drafts == ("middle", "small")
    assert spec.drafter == "cascade:model=1,length=[fixed:n=5],[cascade:model=2,length=[fixed:n=6],[prompt-lookup]]"
    assert spec.method == "fixed:n=4"
    assert planned.spec(names, Hierarchy((1, 3), (3,), 1.0)).drafter == "draft-model:model=1"
    assert planned.spec(names, Hierarchy((0, 3), (3,), 1.0), "prompt-lookup") == ((), "fixed:n=3", "prompt-lookup")
    assert planned.spec(names, Hierarchy((3,), (), 1.0)).method == "plain"
    context = Context(Table(VOCAB), Table(VOCAB), VOCAB, (Table(VOCAB), Table(VOCAB)), spec.drafts)
    built = catalog.method(spec.method, context, drafter=spec.drafter)
    assert (built.length, built.drafter.length, built.drafter.inner.length) == (Fixed(4), Fixed(5), Fixed(6))
    assert [built.drafter.backend, built.drafter.inner.backend] == [*context.drafts]


def test_the_plan_is_run(folders, tmp_path) -> None:
    file = tmp_path / "own.txt"
    file.write_text("abcabcabc\nabab\nxyxyxy\n")
    options = ["--models", f"prompt-lookup,{folders[1]},{folders[0]}", *SMALL[:-4], "--dtype", "float32", "--prompts", str(file), "--check", "2"]
    shown = run(*options)
    assert shown.exit_code == 0, shown.output
    assert "predicted" in shown.stdout and "best hierarchy" in shown.stdout
    record = json.loads(run(*options, "--json").stdout)
    assert [some["name"] for some in record["checked"]] == ["plain", "best single draft", "best hierarchy"]
    assert record["checked"][0]["measured"] == record["checked"][0]["predicted"] == 1.0
    assert record["places"] == 4  # one prompt was planned on
    assert len({some["tokens"] for some in record["checked"]}) == 1  # all write the same greedy texts
    assert {len(some["models"]) for some in record["ranked"]} == {1, 2, 3}


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ("suffix,a", "only prompt-lookup can be planned with"),
        ("a,prompt-lookup", "never as the target"),
        ("prompt-lookup,prompt-lookup:max_ngram=3,a", "once"),
    ],
)
def test_what_cannot_be_planned_with(models: str, message: str) -> None:
    found = run("--models", models)
    assert found.exit_code == 2
    assert message in " ".join(found.output.split())


def test_something_must_be_left_to_plan_on(tmp_path) -> None:
    found = run("--models", "a,b", "--check", "3")
    assert found.exit_code == 2
    assert "keeps 3 prompts out, and there are 3" in " ".join(found.output.split())
