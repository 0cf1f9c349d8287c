"""Bad input: one sentence on stderr, an exit code, no traceback."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

import cli_models
from draftwise.cli import app
from draftwise.commands.errors import BAD_INPUT, BROKEN_PIPE, INTERRUPTED

DRAFTWISE = [sys.executable, "-m", "draftwise.cli"]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models")
    (folder / "empty").mkdir()
    (folder / "cut.gguf").write_bytes(b"GGUF\x03\x00\x00\x00\x10")
    (folder / "text.txt").write_text("no model")
    cli_models.save(folder / "good")
    cli_models.save(folder / "nan", weight=float("nan"))
    cli_models.save(folder / "foreign", shift=1)
    return {name: str(folder / name) for name in ("good", "nan", "foreign", "empty", "cut.gguf", "text.txt", "absent.gguf")}


def refused(*arguments: str, input: str | bytes | None = None) -> str:
    """Runs a command that must end in a sentence; returns it."""
    found = CliRunner().invoke(app, list(arguments), input=input)
    assert found.exit_code == BAD_INPUT, found.output
    assert found.stdout == ""
    assert found.stderr.startswith("error: ") and found.stderr.count("\n") == 1
    assert isinstance(found.exception, SystemExit)
    return found.stderr


def generate(models: dict[str, str], *arguments: str, input: str | bytes | None = None) -> str:
    return refused("generate", "--target", models["good"], "--dtype", "float32", "-n", "8", *arguments, input=input)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["x", "--method", "adads"], "did you mean 'adasd'"),
        (["x", "--method", "adasd:capp=3"], "did you mean 'cap'"),
        (["x", "--method", "adasd:cap=many"], "takes int, got 'many'"),
        (["x", "--length", "gammatune:etta=1"], "did you mean 'eta'"),
        (["x", "--accept", "tipical"], "did you mean 'typical'"),
        (["x", "--drafter", "prompt-lokup"], "did you mean 'prompt-lookup'"),
        (["x", "--method", "adasd:[cap"], "brackets"),
        (["x", "--method", "adasd"], "draft"),
        (["x", "-n", "0"], "max_tokens must be at least 1, got 0"),
        (["x", "-n", "-3"], "got -3"),
        (["x", "--temperature", "-1"], "temperature must be"),
        (["x", "--temperature", "nan"], "temperature must be"),
        (["x", "--temperature", "inf"], "temperature must be"),
        (["x", "--top-p", "0"], "top_p must be"),
        (["x", "--top-p", "1.5"], "top_p must be"),
        (["x", "--top-p", "nan"], "top_p must be"),
        (["x", "--min-p", "2"], "min_p must be"),
        (["x", "--top-k", "-1"], "top_k must be"),
        (["x", "--repetition-penalty", "0"], "repetition_penalty must be"),
        (["x", "--seed", "-1"], "seed must be"),
        (["x", "--stop", ""], "stop string"),
        (["x", "--dtype", "float12"], "float12"),
        (["x", "--device", "toaster"], "toaster"),
        ([""], "the prompt is empty"),
        (["x" * cli_models.CONTEXT], f"{cli_models.CONTEXT} tokens"),
        (["\udcff"], "not valid UTF-8"),
        (["x", "--file", "absent.txt"], "two prompts"),
        (["--file", "absent.txt"], "absent.txt: No such file or directory"),
    ],
)
def test_options_and_prompts(models, arguments, words):
    assert words in generate(models, *arguments)


def test_stdin(models):
    assert "byte 0xff at position 5" in generate(models, input=b"caf\xc3\xa9\xff")
    assert "the prompt is empty" in generate(models, input=b"")
    assert "the prompt is empty" in generate(models, input=b"\n")


@pytest.mark.parametrize(
    ("target", "words"),
    [("empty", "holds no weights"), ("cut.gguf", "truncated"), ("absent.gguf", "there is no file"), ("text.txt", "not a .gguf"), ("nan", "NaN")],
)
def test_models_that_cannot_be_had(models, target, words):
    assert words in refused("generate", "x", "--target", models[target], "--dtype", "float32", "-n", "4")


def test_a_draft_of_another_vocabulary(models):
    drafted = CliRunner().invoke(app, ["generate", "x", "--target", models["good"], "--draft", models["foreign"], "--dtype", "float32", "-n", "8"])
    assert drafted.exit_code == 0
    assert drafted.stderr.startswith("foreign has another vocabulary than good and drafts by the tokens that both have (tli;")
    alike = ["--draft", models["good"], "--drafter", "tli"]
    assert "'tli' needs a draft of another vocabulary" in generate(models, "x", *alike)


def test_other_commands():
    assert "did you mean 'adasd'" in refused("cite", "adasdd")
    assert "no paper behind 'none'" in refused("cite", "none")
    assert "there is no kind 'methods'" in refused("methods", "--kind", "methods")
    assert "there is no method 'adads'" in refused("demo", "--method", "adads")
    assert "max_tokens" in refused("demo", "-n", "0")


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "holds no prompt"), ("{", "line 1: no JSON"), ('{"x": 1}', "line 1: no prompt"), ('"a"\n[1]', "line 2: no prompt")],
)
def test_prompt_files(models, tmp_path, text, words):
    file = tmp_path / "prompts.jsonl"
    file.write_text(text)
    assert words in refused("verify", "--target", models["good"], "--prompts", str(file))


def test_a_misspelt_command_or_option_is_suggested():
    for arguments in (["generat"], ["generate", "--temprature", "1"]):
        found = CliRunner().invoke(app, arguments)
        assert found.exit_code == BAD_INPUT and "generate" in found.stderr and "Traceback" not in found.output


def test_debug_lets_the_traceback_through():
    found = CliRunner().invoke(app, ["--debug", "cite", "adasdd"])
    assert isinstance(found.exception, ValueError)


def start(models: dict[str, str], *arguments: str) -> subprocess.Popen:
    """A long generation in a process of its own."""
    command = [*DRAFTWISE, "generate", "Hello", "--target", models["good"], "--dtype", "float32", "-n", "2000", *arguments]
    return piped(command)


def piped(command: list[str]) -> subprocess.Popen:
    """Unbuffered, so that what is not read stays in the pipe."""
    return subprocess.Popen(command, bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)


def test_ctrl_c_shows_what_there_is(models):
    with start(models) as process:
        first = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=120)
    assert process.returncode == INTERRUPTED
    assert first and rest.endswith(b"\n") and b"Traceback" not in errors
    assert b"interrupted" in errors and b"tokens/s" in errors


def test_ctrl_c_leaves_the_demo_with_what_was_decoded(models):
    command = [*DRAFTWISE, "demo", "--target", models["good"], "--dtype", "float32", "-n", "200"]
    with piped(command) as process:
        shown = b""
        while b"edit: lookup" not in shown:
            shown += process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=120)
    assert process.returncode == INTERRUPTED
    assert b"edit    plain" in rest and errors.count(b"\n") == 1 and b"interrupted" in errors


def test_a_reader_that_leaves_is_no_error(models):
    with start(models) as process:
        process.stdout.read(1)
        process.stdout.close()
        errors = process.stderr.read()
    assert (process.returncode, errors) == (BROKEN_PIPE, b"")


def test_a_reader_that_leaves_a_table_is_no_error():
    with piped([*DRAFTWISE, "methods"]) as process:
        process.stdout.close()
        errors = process.stderr.read()
    assert (process.returncode, errors) == (BROKEN_PIPE, b"")
