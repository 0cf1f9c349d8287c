"""`draftwise verify`: it passes what is right, names what is wrong, and tells rounding from defects."""

from __future__ import annotations

import json
import math

import pytest
import torch
from typer.testing import CliRunner

import cli_models
from draftwise.backends.table import Table
from draftwise.cli import app
from draftwise.commands.compare import compare, first_difference, likeness, scores
from draftwise.commands.errors import BAD_INPUT, DEFECT
from draftwise.engine import Engine
from draftwise.methods.coupled import Coupled
from draftwise.methods.fixed import Fixed
from draftwise.methods.none import NoDraft
from draftwise.methods.speculative import Speculative
from draftwise.sequence import Method
from draftwise.types import Sampling, Verdict


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> list[str]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("pair")
    target, draft = cli_models.save(folder / "target"), cli_models.save(folder / "draft", seed=1)
    file = folder / "prompts.jsonl"
    file.write_text('"Hello"\n{"prompt": "Second"}\n')
    return ["verify", "--target", str(target), "--draft", str(draft), "--dtype", "float32", "-n", "16", "--prompts", str(file)]


def verify(pair: list[str], *arguments: str):
    return CliRunner().invoke(app, [*pair, *arguments])


def careless(self, target, draft, u, state, relax=None):
    """A rule that takes every drafted token and still says it is lossless."""
    return Verdict(list(range(len(draft.tokens))), target.p[-1]), state


def test_first_difference():
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [1, 5, 3]) == 1
    assert first_difference([1, 2, 3], [1, 2]) == first_difference([1, 2], [1, 2, 3]) == 2
    assert first_difference([], []) is None


def test_likeness():
    assert likeness([1, 2, 3], [1, 2, 3]) == 1
    assert likeness([1, 2, 3, 4], [1, 9, 3, 4]) == 0.75
    assert likeness([1], [2]) == 0


def test_compare_names_tokens_and_gaps():
    target = Table(vocab_size=5, seed=3)
    row = target.row([1, 2, 0])
    best, second, third = row.topk(3).indices.tolist()
    found = compare(target, [1, 2], [0, best], [0, third])
    assert found is not None
    assert (found.position, found.plain, found.found) == (1, best, third)
    assert found.top_gap == pytest.approx(float(row[best] - row[second]))
    assert found.gap == pytest.approx(float(row[best] - row[third]))
    assert target.length(0) == 0, "the slot is left empty"


def test_a_wrong_token_of_plain_decoding_is_no_rounding_either():
    target = Table(vocab_size=5, seed=3)
    best, _, third = target.row([1, 2]).topk(3).indices.tolist()
    found = compare(target, [1, 2], [third], [best])
    assert found is not None and found.gap > found.top_gap > 0


def test_an_end_that_only_one_text_has_is_never_rounding():
    found = compare(Table(vocab_size=5), [1], [2, 3], [2])
    assert found is not None and found.found is None and found.gap == math.inf


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_scores_are_what_plain_decoding_takes_the_largest_of(temperature):
    """So a gap at a temperature above 0 is one of logits plus the noise of that very position."""
    target, prompt = Table(vocab_size=6, seed=1), [1, 2, 3]
    method = Method(Fixed(n=0), Coupled(), NoDraft())
    tokens = Engine(target).generate([prompt], Sampling(temperature=temperature, seed=5, max_tokens=8), method)[0]
    text = [*prompt, *tokens]
    assert tokens == [int(scores(target, text[:i], temperature, seed=5).argmax()) for i in range(len(prompt), len(text))]


@pytest.mark.parametrize("method", ["adasd-stop", "fixed:n=4", "svip", "lookup", "coupled"])
def test_lossless_methods_pass(pair, method):
    found = verify(pair, "--method", method)
    assert found.exit_code == 0, found.output
    assert "no defect: 2 of 2 texts are token for token" in found.stdout


def test_coupled_passes_with_chance_too(pair):
    found = verify(pair, "--method", "coupled", "--temperature", "0.8", "--seed", "3", "--json")
    assert found.exit_code == 0
    record = json.loads(found.stdout)
    assert [text["verdict"] for text in record["texts"]] == ["same", "same"]
    assert (record["lossless"], record["defects"], record["seed"]) == (True, 0, 3)


def test_a_rule_that_lies_is_a_defect(pair, monkeypatch):
    monkeypatch.setattr(Speculative, "judge", careless)
    found = verify(pair, "--method", "fixed:n=2")
    assert found.exit_code == DEFECT
    assert "DEFECT in 2 of 2 texts" in found.stdout
    assert "parts at new token 0: plain " in found.stdout and "the top two logits" in found.stdout


def test_within_the_tolerance_it_is_rounding(pair, monkeypatch):
    monkeypatch.setattr(Speculative, "judge", careless)
    found = verify(pair, "--method", "fixed:n=2", "--tolerance", "1000")
    assert found.exit_code == 0
    assert "2 part where rounding decides" in found.stdout


def test_a_lossy_method_is_measured_and_not_judged(pair):
    found = verify(pair, "--length", "fixed:n=2", "--accept", "typical:eps=0.000001,delta=0.000001")
    assert found.exit_code == 0
    assert "is lossy" in found.stdout and "of the tokens differ" in found.stdout
    record = json.loads(verify(pair, "--length", "fixed:n=2", "--accept", "typical:eps=0.000001,delta=0.000001", "--json").stdout)
    assert record["lossless"] is False and record["defects"] == 0
    assert {text["verdict"] for text in record["texts"]} == {"differs"}
    assert all(0 <= text["alike"] < 1 for text in record["texts"])


def test_what_cannot_be_compared_is_refused(pair):
    found = verify(pair, "--method", "adasd-stop", "--temperature", "0.5")
    assert found.exit_code == BAD_INPUT
    assert "--temperature 0" in found.stderr and "--accept coupled" in found.stderr


def test_limit_and_the_demo_prompts(pair):
    found = verify(pair, "--limit", "1", "--json")
    assert len(json.loads(found.stdout)["texts"]) == 1
    shipped = CliRunner().invoke(app, [*pair[:-2], "--json", "-n", "4"])
    assert [text["prompt"][:6] for text in json.loads(shipped.stdout)["texts"]] == ["Rename", "Summar", "What w"]
