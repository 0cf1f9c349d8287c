"""Encoder-decoder targets by name: the prompt goes to the encoder, the decoder starts where the configuration says."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationMixin, WhisperForConditionalGeneration
from typer.testing import CliRunner

import draftwise
import tiny
from draftwise import Speculator
from draftwise.backends.hf_seq2seq import HFSeq2Seq
from draftwise.cli import app
from draftwise.commands.compare import compare
from draftwise.commands.errors import BAD_INPUT
from draftwise.seq2seq import inputs, starts
from tiny_folders import save, save_seq2seq

PROMPT, NEW = "summarize: abcabcabc", 14


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    base = tmp_path_factory.mktemp("models")
    torch.set_num_threads(1)
    made = {
        "t5": save_seq2seq(base / "t5", num_decoder_layers=2),  # with 3, transformers itself cannot decode over 2 of the encoder
        "small-t5": save_seq2seq(base / "small-t5", seed=1),
        "bart": save_seq2seq(base / "bart", "bart", decoder_start_token_id=256, forced_bos_token_id=65),
        "chatty": save_seq2seq(base / "chatty", chat=True),
        "whisper": save_seq2seq(base / "whisper", "whisper"),
        "llama": save(base / "llama"),
        "shifted": save_seq2seq(base / "shifted", shift=1),
    }
    return {name: str(folder) for name, folder in made.items()}


def load(folders: dict[str, str], target: str, draft: str | None = None, **parts: Any) -> Speculator:
    return draftwise.load(folders[target], draft and folders[draft], dtype="float32", device="cpu", **parts)


@pytest.fixture(scope="module")
def t5(folders) -> Speculator:
    return load(folders, "t5", "small-t5")


def test_the_prompt_goes_to_the_encoder(t5, folders):
    """Text and tokens are those of transformers, end tokens and all."""
    model = AutoModelForSeq2SeqLM.from_pretrained(folders["t5"], dtype=torch.float32)
    ids = t5.tokenizer(PROMPT, return_tensors="pt")
    expected = model.generate(**ids, max_new_tokens=NEW, do_sample=False)[0, 1:].tolist()
    for speculator in (t5, load(folders, "t5"), load(folders, "t5", "llama"), load(folders, "t5", "llama", drafter="draft-model:source=true")):
        result = speculator.generate(PROMPT, NEW)
        assert list(result.tokens) == expected
        assert result.prompt_tokens == ids["input_ids"].shape[1] == len(PROMPT) + 1
        assert result.text == t5.tokenizer.decode(expected, skip_special_tokens=True)
    assert t5.generate(PROMPT, NEW).stats.drafted > 0
    assert isinstance(t5.context.target, HFSeq2Seq) and t5.encodes
    given = t5.inputs(PROMPT)
    assert (given.tokens, given.source.tolist(), given.context) == ([0], ids["input_ids"][0].tolist(), ())


@pytest.mark.parametrize("method", ["plain", "lookup", "coupled", "adasd-stop", "svip", "cascade"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_methods_and_streams(t5, method, temperature):
    options = {"max_tokens": NEW, "temperature": temperature, "seed": 4, "logprobs": True}
    plain = t5.generate(PROMPT, method="plain", **options)
    if temperature == 0 or method in ("plain", "coupled"):
        assert t5.generate(PROMPT, method=method, **options).tokens == plain.tokens
    pieces = list(t5.stream(PROMPT, method=method, **options))
    last = pieces[-1].result
    assert "".join(piece.text for piece in pieces) == last.text
    assert len(last.logprobs) == len(last.tokens) == len(last.origins)
    assert not t5.engine.busy and not t5._live


def test_prompts_of_different_lengths_together(t5):
    prompts = ["ab", PROMPT, list(range(60, 70)), "x" * 50]
    options = {"max_tokens": NEW, "temperature": 1.0, "method": "coupled"}
    together = t5.generate(prompts, seed=7, **options)
    assert [result.tokens for result in together] == [t5.generate(prompt, seed=7 + i, **options).tokens for i, prompt in enumerate(prompts)]
    assert [result.prompt_tokens for result in together] == [3, len(PROMPT) + 1, 10, 51]


def test_a_stream_broken_off_is_decoded_again(t5, monkeypatch):
    expected = t5.generate(PROMPT, NEW).tokens
    stream = t5.stream(PROMPT, NEW)
    next(stream)
    monkeypatch.setattr(t5.context.target.model.get_decoder(), "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(stream)
    monkeypatch.undo()
    assert t5.context.target.length(0) == t5.context.draft.length(0) == 0
    assert t5.generate(PROMPT, NEW).tokens == expected


def test_a_forced_first_token_is_what_the_decoder_starts_with(folders):
    bart = load(folders, "bart")
    model = AutoModelForSeq2SeqLM.from_pretrained(folders["bart"], dtype=torch.float32)
    whole = model.generate(**bart.tokenizer(PROMPT, return_tensors="pt"), max_new_tokens=NEW + 1, do_sample=False)[0].tolist()
    assert whole[:2] == bart.inputs(PROMPT).tokens == [256, 65]
    assert list(bart.generate(PROMPT, NEW).tokens) == whole[2:]


def test_another_start(t5):
    usual = t5.generate(PROMPT, NEW, temperature=1.0, method="plain")
    other = t5.generate(PROMPT, NEW, temperature=1.0, method="plain", decoder_start=[0, "a"])
    assert t5.inputs(PROMPT, ["!", 0, "<end>"]).tokens == [0, 0, 256]
    assert usual.tokens != other.tokens
    assert t5.generate(PROMPT, NEW, temperature=1.0, method="plain", decoder_start=[0]).tokens == usual.tokens
    for start, says in (([], "at least one"), ("a", "list of token ids"), (["nope"], "'nope', which is no token"), ([999], "id 999")):
        with pytest.raises(ValueError, match=says):
            t5.generate(PROMPT, decoder_start=start)


def test_whisper_reads_features(folders):
    whisper = load(folders, "whisper")
    sound = tiny.source("whisper")
    model = WhisperForConditionalGeneration.from_pretrained(folders["whisper"], dtype=torch.float32)
    whole = GenerationMixin.generate(model, input_features=sound[None], max_new_tokens=NEW, do_sample=False, decoder_input_ids=torch.tensor([[1]]))
    result = whisper.generate(sound, NEW)
    assert list(result.tokens) == whole[0, 1:].tolist()
    assert result.prompt_tokens == 0
    two = whisper.generate([sound.numpy(), tiny.source("whisper", 1)], NEW)
    assert two[0].tokens == result.tokens != two[1].tokens
    for prompt, says in (("text", "reads input_features, not text"), ([1, 2], "not text"), (sound[None], r"shape \[4, 12\], got \[1, 4, 12\]")):
        with pytest.raises(ValueError, match=says):
            whisper.generate(prompt)


def test_chats_need_a_template(t5, folders):
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(ValueError, match=r"encoder-decoder model's tokenizer has no chat template: give a text"):
        t5.generate(messages)
    assert load(folders, "chatty").inputs(messages).source.tolist() == t5.tokenizer.encode("[user]hi[assistant]", add_special_tokens=False)


def test_pairs_that_do_not_fit(folders):
    with pytest.raises(ValueError, match="small-t5' cannot draft for .* it is an encoder-decoder model .* and the target has no encoder"):
        load(folders, "llama", "small-t5")
    with pytest.raises(ValueError, match="reads input_ids, and the target reads input_features"):
        load(folders, "whisper", "t5")
    with pytest.raises(ValueError, match=r"encoder would read the ids of the target's prompt, and their vocabularies differ \(id 0 is"):
        load(folders, "t5", "shifted")
    with pytest.raises(ValueError, match="is for encoder-decoder targets"):
        load(folders, "llama").generate("abc", decoder_start=[1])


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("", "prompt is empty"),
        ([], "prompt is empty"),
        ([257], "id 257, outside the vocabulary of 257"),
        ("a" * 200, "encoder input has 201 tokens and the model's encoder reads 128 at most"),
        (["ab", "a" * 200], "prompt 1 of the list: the encoder input has 201 tokens"),
        (np.array([0.5, 1.0]), "0.5"),
    ],
)
def test_prompts_that_cannot_be_read(folders, prompt, says):
    bart = load(folders, "bart")
    with pytest.raises(ValueError, match=says):
        bart.generate(prompt)
    assert not bart.engine.busy and not bart._live


def test_a_model_that_names_no_start():
    model = tiny.seq2seq("bart", decoder_start_token_id=None, bos_token_id=None)
    assert starts(tiny.seq2seq("bart", decoder_start_token_id=None)) == [1]  # the beginning of text, as in transformers
    with pytest.raises(ValueError, match="names no decoder_start_token_id"):
        starts(model)
    tokenizer = type("Words", (), {"get_vocab": lambda _: {"go": 7}, "encode": lambda _, text: [5, 6]})()
    assert inputs(model, tokenizer, HFSeq2Seq(model), "x", ["go"]).tokens == [7]


def test_compare_reads_the_source(t5):
    given = t5.inputs(PROMPT)
    tokens = t5.generate(PROMPT, 5, method="plain").tokens
    wrong = (*tokens[:3], (tokens[3] + 1) % 257)
    found = compare(t5.context.target, given.tokens, tokens, wrong, source=given.source)
    assert found.position == 3 and found.gap > 0
    with pytest.raises(ValueError, match="needs an encoder input"):
        compare(t5.context.target, given.tokens, tokens, wrong)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, [*arguments, "--dtype", "float32"])


def test_the_commands(t5, folders, tmp_path):
    found = run("generate", PROMPT, "--target", folders["t5"], "--draft", folders["small-t5"], "-n", "8", "--json")
    assert found.exit_code == 0, found.output
    record = json.loads(found.stdout)
    assert record["tokens"] == list(t5.generate(PROMPT, 8).tokens) and record["prompt_tokens"] == len(PROMPT) + 1
    found = run("generate", PROMPT, "--target", folders["t5"], "-n", "8", "--json", "--decoder-start", "!", "--decoder-start", "a")
    assert json.loads(found.stdout)["tokens"] == list(t5.generate(PROMPT, 8, decoder_start=["!", "a"]).tokens)
    file = tmp_path / "prompts.txt"
    file.write_text("one\nanother one\n")
    for more in (["--prompts", str(file)], ["--limit", "1"]):
        found = run("verify", "--target", folders["t5"], "--draft", folders["small-t5"], "-n", "6", *more)
        assert found.exit_code == 0, found.output
        assert "no defect" in found.stdout
    found = run("demo", "--target", folders["t5"], "-n", "4", "--json")
    assert found.exit_code == 0, found.output
    assert {run["same_text"] for run in json.loads(found.stdout)["runs"]} == {True}


def test_commands_that_cannot_say_so(folders):
    cases = {
        "no chat template": ["generate", "hi", "--chat", "--target", folders["t5"]],
        "is for encoder-decoder targets": ["generate", "hi", "--decoder-start", "a", "--target", folders["llama"]],
        "names 'nope', which is no token": ["generate", "hi", "--decoder-start", "nope", "--target", folders["t5"]],
        "not text": ["generate", "hi", "--target", folders["whisper"]],
        "profile is for decoder-only targets": ["profile", "--target", folders["t5"]],
    }
    for says, arguments in cases.items():
        found = run(*arguments)
        assert found.exit_code == BAD_INPUT, found.output
        assert says in found.stderr and found.stderr.count("\n") == 1


def test_a_decoder_only_folder_loads_as_before(folders):
    assert isinstance(draftwise.load_model(folders["llama"], "float32").model, AutoModelForCausalLM.from_pretrained(folders["llama"]).__class__)
