"""The commands as a user meets them, on a tiny random model; real text and times are for eyes, not for tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import cli_models
from draftwise import catalog
from draftwise.cli import app
from draftwise.commands import prompts


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> str:
    torch.set_num_threads(1)
    return str(cli_models.save(tmp_path_factory.mktemp("target")))


def run(*arguments: str, input: str | bytes | None = None):
    return CliRunner().invoke(app, list(arguments), input=input)


def generate(target: str, *arguments: str, input: str | bytes | None = None):
    return run("generate", "--target", target, "--dtype", "float32", "-n", "12", *arguments, input=input)


def answer(target: str, *arguments: str) -> dict:
    found = generate(target, *arguments, "--json")
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


def test_help_names_the_commands_and_the_exit_codes():
    found = run("--help")
    assert found.exit_code == 0
    assert all(name in found.output for name in ("generate", "demo", "methods", "cite", "verify", "Exit codes"))


def test_help_does_not_import_torch():
    code = "import sys, typer.testing as t, draftwise.cli as c; t.CliRunner().invoke(c.app, ['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_version():
    assert run("--version").stdout.startswith("draftwise 0.")


def test_stdout_is_the_text_and_nothing_else(target):
    found = generate(target, "Hello", "--stats")
    assert found.exit_code == 0
    assert found.stdout == answer(target, "Hello")["text"] + "\n"
    assert "tokens/s" in found.stderr and "tau" in found.stderr


def test_the_prompt_comes_from_argument_file_or_stdin(target, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("Grüße\n", "utf-8")
    typed, piped = generate(target, "Grüße"), generate(target, input="Grüße\n")
    assert typed.stdout == generate(target, "--file", str(file)).stdout == piped.stdout == generate(target, "-", input="Grüße").stdout
    assert answer(target, "Grüße")["prompt_tokens"] == len("Grüße".encode())


def test_json_has_all_there_is_to_know(target):
    found = answer(target, "Hello", "--method", "plain", "--logprobs")
    assert len(found["tokens"]) == len(found["origins"]) == len(found["logprobs"]) == 12
    assert set(found["origins"]) == {"target"}
    assert found["finish_reason"] == "length"
    assert found["stats"]["rounds"] == found["stats"]["tokens"] == 12
    assert (found["method"], found["target"], found["dtype"], found["device"]) == ("plain", target, "float32", "cpu")


def test_a_seed_gives_the_same_text_again(target):
    one, two, other = (answer(target, "Hello", "--temperature", "1", "--seed", seed)["text"] for seed in "778")
    assert one == two != other


def test_without_a_seed_the_one_that_was_drawn_is_told(target):
    first = answer(target, "Hello", "--temperature", "1", "--method", "coupled", "--drafter", "none")
    again = answer(target, "Hello", "--temperature", "1", "--method", "coupled", "--drafter", "none", "--seed", str(first["seed"]))
    assert first["tokens"] == again["tokens"]


def test_several_drafts(target, tmp_path):
    other = str(cli_models.save(tmp_path / "small", seed=1))
    spec = "cascade:model=1,[draft-model:model=small]"
    found = answer(target, "Hello", "--draft", target, "--draft", other, "--method", "fixed:n=3", "--drafter", spec)
    assert (found["draft"], found["drafter"]) == ([target, other], "Cascade")
    assert set(found["origins"]) == {"drafted", "target"} and found["text"] == answer(target, "Hello")["text"]


def test_the_target_as_its_own_draft_writes_one_token_a_pass(target):
    found = answer(target, "Hello", "--draft", target, "--method", "fixed:n=3")
    assert found["origins"] == ["drafted", "drafted", "drafted", "target"] * 3
    assert found["tokens"] == answer(target, "Hello", "--method", "plain")["tokens"]
    assert found["drafter"] == "DraftModel" and found["length"] == "Fixed(n=3)"


def test_parts_replace_those_of_the_method(target):
    found = answer(target, "Hello", "--length", "fixed:n=2", "--accept", "coupled", "--drafter", "prompt-lookup:max_ngram=3")
    assert (found["length"], found["accept"], found["drafter"]) == ("Fixed(n=2)", "Coupled()", "PromptLookup")


def test_chat_uses_the_template(target):
    assert answer(target, "Hi", "--chat")["prompt_tokens"] == len("<user>Hi<assistant>")
    assert answer(target, "Hi", "--system", "Be brief")["prompt_tokens"] == len("<system>Be brief<user>Hi<assistant>")


def test_stop_ends_the_text_before_it(target):
    whole = answer(target, "Hello")["text"]
    cut = answer(target, "Hello", "--stop", whole[5])
    assert cut["text"] == whole[: whole.index(whole[5])]
    assert cut["finish_reason"] == "stop"


def test_tokens_are_coloured_on_a_terminal_only(target, monkeypatch):
    plain = generate(target, "Hello", "--draft", target, "--show", "tokens").stdout
    assert "\x1b" not in plain
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    found = generate(target, "Hello", "--draft", target, "--show", "tokens")
    assert "\x1b[32m" in found.stdout
    assert "drafted and accepted" in found.stderr


def test_a_model_cannot_steer_the_terminal(monkeypatch, capsys):
    from draftwise.commands.show import Screen

    monkeypatch.setenv("FORCE_COLOR", "1")
    Screen(colours=False).write("a\x1b[2Jb\n")
    assert capsys.readouterr().out == "a\\x1b[2Jb\n"


def test_methods_lists_the_catalog():
    found = run("methods")
    assert found.exit_code == 0
    assert all(name in found.stdout for kind in ("method", "length", "accept", "drafter") for name in catalog.names(kind))


def test_methods_as_json_says_what_the_catalog_says():
    entries = json.loads(run("methods", "--json", "--kind", "method").stdout)
    assert [entry["name"] for entry in entries] == catalog.names("method")
    lossless = {entry["name"]: entry["lossless"] for entry in entries}
    assert lossless["adasd-stop"] is True and lossless["adasd"] is False
    assert next(entry for entry in entries if entry["name"] == "gammatune")["options"]["eta"] == 0.2


def test_cite_prints_each_paper_once():
    found = run("cite", "adasd", "adasd-stop:cap=5", "speculative")
    assert found.exit_code == 0
    assert found.stdout.count("lu2025adasd") == found.stdout.count("leviathan2023") == 1
    assert found.stdout.count("{") == found.stdout.count("}")


def test_the_demo_ends_with_a_table(target):
    found = run("demo", "--target", target, "--draft", target, "--dtype", "float32", "-n", "6")
    assert found.exit_code == 0, found.output
    table = found.stdout[found.stdout.index("prompt  ") :]
    assert [line.split()[:2] for line in table.splitlines()[1:13]] == [
        [name, method] for name in (*prompts.shipped(), "all") for method in ("plain", "adasd-stop", "adasd")
    ]
    assert "1 threads" in found.stdout and "float32" in found.stdout


def test_the_demo_as_json(target):
    found = json.loads(run("demo", "--target", target, "--dtype", "float32", "-n", "6", "--json").stdout)
    runs = found["runs"]
    assert [(r["prompt"], r["method"]) for r in runs[:4]] == [("edit", "plain"), ("edit", "lookup"), ("summary", "lookup"), ("summary", "plain")]
    assert all(r["same_text"] for r in runs) and len(runs) == 6
    assert all(r["stats"]["tokens"] <= 6 for r in runs)


def test_the_demo_texts_are_shipped():
    assert {name: len(text) > 100 for name, text in prompts.shipped().items()} == {"edit": True, "summary": True, "question": True}


def test_prompt_files(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('"a"\n\n{"question": "b"}\n{"messages": [{"role": "user", "content": "c"}]}\n', "utf-8")
    assert prompts.read_many(file) == ["a", "b", [{"role": "user", "content": "c"}]]
    assert prompts.read_many(file, limit=1) == ["a"]
    lines = Path(tmp_path / "prompts.txt")
    lines.write_text("one\ntwo\n", "utf-8")
    assert prompts.read_many(lines) == ["one", "two"]
