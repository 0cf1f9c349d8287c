"""The drop-in against plain ``model.generate`` of the same model: greedy output token for token, sampling in law and repeatable, and a sentence
for what cannot be honoured."""

from __future__ import annotations

import copy
import runpy
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    MaxTimeCriteria,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.generation.logits_process import LogitNormalization, MinPLogitsWarper, RepetitionPenaltyLogitsProcessor

import tiny
from draftwise import probs
from draftwise.backends.hf import cache_name
from draftwise.plugins import honoured
from draftwise.plugins.transformers import CustomGenerate, custom_generate
from draftwise.types import Sampling

torch.set_num_threads(1)
PAD = 0
PROMPT = torch.tensor([[5, 9, 11, 5, 9, 11, 5, 9]])
NEW = {"max_new_tokens": 24, "eos_token_id": None, "do_sample": False}
PADDED = {
    "input_ids": torch.tensor([[PAD, PAD, PAD, 7, 8], [3, 4, 5, 3, 4], [PAD, 6, 21, 22, 23]]),
    "attention_mask": torch.tensor([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]]),
}


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny.model("llama")


@pytest.fixture(scope="module")
def near(model: Any) -> Any:
    """A draft that agrees with the model often, but not always."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(5)
    for weight in other.parameters():
        weight.data += 0.03 * torch.randn(weight.shape, generator=generator)
    return other


@pytest.fixture(scope="module", params=["near", "none"])
def draft(request: pytest.FixtureRequest, near: Any) -> Any:
    return near if request.param == "near" else None


class Wilful(LogitsProcessor):
    """Bans the last two ids and one that hangs on the whole text, padding too; writes into the scores it is given, as many do."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores.scatter_(1, input_ids.sum(-1, keepdim=True) % scores.shape[-1], -float("inf"))
        scores.scatter_(1, input_ids[:, -2:], -float("inf"))
        return scores


class After(StoppingCriteria):
    """Ends a row right after `token`."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return input_ids[:, -1] == self.token


class Recorder(transformers.generation.BaseStreamer):
    def __init__(self) -> None:
        self.values: list[list[int]] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        assert value.device.type == "cpu"
        assert not self.ended
        self.values.append(value.tolist())

    def end(self) -> None:
        self.ended += 1


def both(model: Any, draft: Any = None, inputs: Any = PROMPT, **options: Any) -> tuple[Any, Any]:
    """What plain ``generate`` gives, and what the drop-in gives."""
    given = inputs if isinstance(inputs, dict) else {"inputs": inputs}
    return model.generate(**given, **options), model.generate(**given, custom_generate=custom_generate(draft), **options)


GREEDY: dict[str, dict[str, Any]] = {
    "plain": {},
    "max_length": {"max_new_tokens": None, "max_length": 19},
    "repetition": {"repetition_penalty": 1.4},
    "ngrams": {"no_repeat_ngram_size": 2},
    "bias first": {"sequence_bias": {(7,): 2.5, (9, 11): -3.0}, "repetition_penalty": 1.2},
    "forced eos": {"forced_eos_token_id": 4},
    "suppressed": {"suppress_tokens": [5, 9], "begin_suppress_tokens": [11]},
    "custom": {"logits_processor": LogitsProcessorList([Wilful()])},
    "custom and penalty": {"logits_processor": LogitsProcessorList([Wilful()]), "repetition_penalty": 0.8},
    "watermark": {"watermarking_config": transformers.WatermarkingConfig(bias=4.0, seeding_scheme="lefthash")},
    "prefix": {"prefix_allowed_tokens_fn": lambda row, ids: [3 + row, 10 + row, int(ids[-1] + 1) % 40]},
    "one token": {"max_new_tokens": 1},
    "prefill in chunks": {"prefill_chunk_size": 3},
}


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_is_plain_generate(model: Any, draft: Any, name: str) -> None:
    plain, ours = both(model, draft, **{**NEW, "pad_token_id": PAD, **GREEDY[name]})
    assert ours.tolist() == plain.tolist()
    assert ours.dtype == plain.dtype


@pytest.mark.parametrize("name", [*GREEDY, "min length", "min new", "decay"])
def test_greedy_is_plain_generate_for_a_padded_batch(model: Any, draft: Any, name: str) -> None:
    own = {"min length": {"min_length": 14}, "min new": {"min_new_tokens": 9}, "decay": {"exponential_decay_length_penalty": (4, 1.3)}}
    alone = model.generate(PADDED["input_ids"][1:2], **NEW, pad_token_id=PAD)[0, 5:].tolist()
    options = {**NEW, "pad_token_id": PAD, "eos_token_id": [alone[3], 2], **(GREEDY | own)[name]}
    plain, ours = both(model, draft, PADDED, **options)
    assert ours.tolist() == plain.tolist()


def test_drafts_are_used(model: Any, near: Any) -> None:
    decoder = custom_generate(near, method="adasd-stop")
    out = model.generate(PROMPT, custom_generate=decoder, **NEW)
    (summary,) = decoder.stats
    assert summary.tokens == out.shape[1] - PROMPT.shape[1] == 24
    assert summary.accepted > 5 and summary.rounds < 24
    assert summary.seconds > 0


@pytest.mark.parametrize("name", ["gemma2", "qwen2-window", "mamba"])
def test_other_models_and_a_draft_that_knows_nothing(name: str) -> None:
    target = tiny.model(name)
    plain, ours = both(target, tiny.model("llama"), PADDED, **NEW, pad_token_id=PAD)
    assert ours.tolist() == plain.tolist()


def test_presets_and_parts(model: Any, near: Any) -> None:
    plain = model.generate(PROMPT, **NEW).tolist()
    parts = {"length": "gammatune", "accept": "coupled"}, {"drafter": "prompt-lookup", "length": "fixed"}
    for given in ({"method": "fixed:n=3"}, {"method": "plain"}, *parts):
        assert model.generate(PROMPT, custom_generate=custom_generate(near, **given), **NEW).tolist() == plain, given


@pytest.mark.parametrize("many", [False, True])
def test_eos(model: Any, draft: Any, many: bool) -> None:
    text = model.generate(PROMPT, **NEW)[0, PROMPT.shape[1] :].tolist()
    eos = next(token for i, token in enumerate(text) if i >= 4 and token not in text[:i])
    options = {**NEW, "eos_token_id": [eos, 47] if many else eos}
    plain, ours = both(model, draft, **options)
    assert ours.tolist() == plain.tolist()
    assert ours[0, -1] == eos and ours.shape[1] < PROMPT.shape[1] + 24


def test_eos_of_the_model_itself(model: Any, near: Any) -> None:
    plain, ours = both(model, near, PADDED, max_new_tokens=30, do_sample=False)  # and the padding that transformers then takes
    assert ours.tolist() == plain.tolist()


def test_right_padding_continues_the_text(model: Any, near: Any) -> None:
    ids, mask = torch.tensor([[7, 8, PAD, PAD], [3, 4, 5, 3]]), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    ours = model.generate(input_ids=ids, attention_mask=mask, custom_generate=custom_generate(near), **NEW, pad_token_id=PAD)
    assert ours[:, :4].tolist() == ids.tolist()
    assert ours[0, 4:].tolist() == model.generate(torch.tensor([[7, 8]]), **NEW)[0, 2:].tolist()
    assert ours[1, 4:].tolist() == model.generate(ids[1:], **NEW)[0, 4:].tolist()


def test_more_rows_than_the_engine_decodes_at_once(model: Any) -> None:
    ids = torch.arange(3, 43).reshape(20, 2)
    plain, ours = both(model, None, ids, **NEW)
    assert ours.tolist() == plain.tolist()


def test_dictionary(model: Any, near: Any) -> None:
    plain, ours = both(model, near, return_dict_in_generate=True, **NEW)
    assert isinstance(ours, GenerateDecoderOnlyOutput)
    assert ours.sequences.tolist() == plain.sequences.tolist()


def test_streamer_gets_what_plain_generate_gives_it(model: Any, draft: Any) -> None:
    for inputs in (PROMPT, PADDED):
        for eos in (None, [20, 30, 40]) if draft else (30,):
            plain, ours = Recorder(), Recorder()
            given = inputs if isinstance(inputs, dict) else {"inputs": inputs}
            options = {**NEW, "eos_token_id": eos, "pad_token_id": PAD}
            model.generate(**given, **options, streamer=plain)
            model.generate(**given, **options, streamer=ours, custom_generate=custom_generate(draft))
            assert ours.values == plain.values
            assert ours.ended == plain.ended == 1


def test_streamer_gets_tokens_as_they_come(model: Any, near: Any) -> None:
    sent: list[int] = []
    streamer = Recorder()

    class Watch(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            sent.append(len(streamer.values))
            return torch.zeros(1, dtype=torch.bool)

    model.generate(PROMPT, **NEW, streamer=streamer, stopping_criteria=[Watch()], custom_generate=custom_generate(near))
    assert len(set(sent)) > 3 and sent[-1] > 5


def tokenizer() -> PreTrainedTokenizerFast:
    """One character an id."""
    from tokenizers import Tokenizer, decoders, models

    characters = Tokenizer(models.BPE({chr(97 + i): i for i in range(tiny.VOCAB)}, [], unk_token="a"))
    characters.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=characters)


def test_text_streamer_thread(model: Any, near: Any) -> None:
    streamer = transformers.TextIteratorStreamer(tokenizer(), timeout=60)
    options = {**NEW, "streamer": streamer, "custom_generate": custom_generate(near)}
    thread = threading.Thread(target=model.generate, args=(PROMPT,), kwargs=options)
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text == tokenizer().decode(model.generate(PROMPT, **NEW)[0])


def test_stop_strings(model: Any, draft: Any) -> None:
    words = tokenizer()
    text = model.generate(PROMPT, **NEW)[0, PROMPT.shape[1] :].tolist()
    stop = words.decode(text[5:7])
    options = {**NEW, "stopping_criteria": StoppingCriteriaList([StopStringCriteria(words, [stop])])}
    plain, ours = both(model, draft, **options)
    assert ours.tolist() == plain.tolist()
    assert ours.shape[1] <= PROMPT.shape[1] + 7


def test_custom_criteria_cut_in_the_middle_of_a_round(model: Any, draft: Any) -> None:
    text = model.generate(PROMPT, **NEW)[0, PROMPT.shape[1] :].tolist()
    for token in text[3:7]:
        decoder, options = custom_generate(draft), {**NEW, "stopping_criteria": StoppingCriteriaList([After(token)])}
        plain = model.generate(PROMPT, **options)
        assert model.generate(PROMPT, **options, custom_generate=decoder).tolist() == plain.tolist()
        assert decoder.stats[0].tokens == plain.shape[1] - PROMPT.shape[1]


def test_criteria_of_a_batch_and_a_length_of_their_own(model: Any, near: Any) -> None:
    text = model.generate(**PADDED, **NEW, pad_token_id=PAD)[:, 5:].tolist()
    options = {**NEW, "pad_token_id": PAD, "eos_token_id": 2, "stopping_criteria": [After(text[0][6]), MaxLengthCriteria(20)]}
    plain, ours = both(model, near, PADDED, **options)
    assert ours.tolist() == plain.tolist()
    assert ours.shape[1] <= 20


def test_a_length_below_the_prompt_gives_one_token(model: Any, near: Any) -> None:
    plain, ours = both(model, near, **NEW, stopping_criteria=[MaxLengthCriteria(3)])
    assert ours.tolist() == plain.tolist()
    assert ours.shape[1] == PROMPT.shape[1] + 1


def test_text_ends_with_the_context(model: Any, near: Any) -> None:
    context = model.config.max_position_embeddings
    plain, ours = both(model, near, **{**NEW, "max_new_tokens": context})
    assert ours.tolist() == plain[:, :context].tolist()
    refused(f"context holds {context}", model, input_ids=torch.ones(1, context, dtype=torch.long), attention_mask=torch.ones(1, context))


def test_max_time(model: Any, near: Any) -> None:
    plain, ours = both(model, near, **{**NEW, "max_time": 1e-9})
    assert ours.tolist() == plain.tolist() and ours.shape[1] == PROMPT.shape[1] + 1
    late = [MaxTimeCriteria(3600)]
    plain, ours = both(model, near, **NEW, stopping_criteria=late)
    assert ours.tolist() == plain.tolist()


SAMPLED = {"max_new_tokens": 12, "do_sample": True, "eos_token_id": None, "pad_token_id": PAD}


@pytest.mark.parametrize("method", ["gammatune", "fixed:n=3"])
def test_torch_seed_makes_sampling_repeatable(model: Any, draft: Any, method: str | None) -> None:
    kept = custom_generate(draft, method=method)

    def once(seed: int, decoder: CustomGenerate = kept) -> Any:
        torch.manual_seed(seed)
        return model.generate(**PADDED, **SAMPLED, custom_generate=decoder).tolist()

    model.generate(PROMPT, **NEW, custom_generate=kept)  # what happened before must not show
    first = once(0)
    assert once(1) != first
    assert once(0) == once(0, custom_generate(draft, method=method)) == first
    fixed = custom_generate(draft, method=method, seed=7)
    assert once(1, fixed) == once(2, fixed)


def test_greedy_leaves_the_generator_of_torch_alone(model: Any, near: Any) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    model.generate(PROMPT, **NEW, custom_generate=custom_generate(near))
    assert torch.equal(torch.get_rng_state(), before)


def test_num_return_sequences_are_different_samples(model: Any, near: Any) -> None:
    torch.manual_seed(0)
    out = model.generate(**PADDED, **SAMPLED, num_return_sequences=4, custom_generate=custom_generate(near))
    assert out.shape == (12, 17)
    assert out[:, :5].tolist() == PADDED["input_ids"].repeat_interleave(4, 0).tolist()
    assert len({tuple(row) for row in out[4:8].tolist()}) > 1


LAWS = [{"top_p": 0.7, "top_k": 0, "min_p": 0.05}, {"temperature": 0.7, "top_k": 6, "repetition_penalty": 1.5}]


@pytest.mark.parametrize("options", LAWS)
def test_sampling_follows_the_law_of_transformers(model: Any, near: Any, options: dict[str, Any]) -> None:
    """The second of two tokens, 1,000 times, against its exact law; false alarms at 4.9 sigma are below 1 in 10,000 for all 48 ids."""
    first = model.generate(PROMPT, max_new_tokens=1, eos_token_id=None, do_sample=False)
    rows, runs = first.expand(200, -1), 5
    decoder = custom_generate(near, method="fixed:n=2", seed=11)
    found: Counter[int] = Counter()
    for run in range(runs):
        decoder.seed = 1000 * run
        out = model.generate(rows, max_new_tokens=2, do_sample=True, eos_token_id=None, custom_generate=decoder, **options)
        found.update(out[:, -1].tolist())
    law = two_step_law(model, first, options)
    n = 200 * runs
    for token in range(tiny.VOCAB):
        share = law[token].item()
        assert share > 0 or not found[token], (token, "was forbidden")
        assert abs(found[token] - n * share) <= 4.9 * (n * share * (1 - share)) ** 0.5 + 1, token


def two_step_law(model: Any, ids: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """[V]: the law of the second token, from the scores of transformers itself."""

    def scores(prefix: torch.Tensor) -> torch.Tensor:
        kinds = {"max_new_tokens": 1, "do_sample": True, "eos_token_id": None, "return_dict_in_generate": True, "output_scores": True}
        return model.generate(prefix, **kinds, **options).scores[0].softmax(-1)

    start = scores(ids)[0]
    tokens = start.nonzero()[:, 0]
    return start[tokens] @ scores(torch.cat([ids.expand(len(tokens), -1), tokens[:, None]], -1))


PENALTY = RepetitionPenaltyLogitsProcessor(1.3)
WARPERS = {
    "all fields": [PENALTY, TemperatureLogitsWarper(0.7), TopKLogitsWarper(9), TopPLogitsWarper(0.8), MinPLogitsWarper(0.1)],
    "other order": [TopPLogitsWarper(0.5), TemperatureLogitsWarper(0.5), TopKLogitsWarper(5)],
    "twice": [TemperatureLogitsWarper(0.5), TemperatureLogitsWarper(0.5)],
    "custom between": [TopKLogitsWarper(20), Wilful(), TopPLogitsWarper(0.9)],
    "penalty later": [Wilful(), PENALTY, TopKLogitsWarper(5)],
    "at least two": [TopPLogitsWarper(0.01, min_tokens_to_keep=2)],
    "other filler": [TopKLogitsWarper(3, filter_value=-2.0)],
    "top-p 0": [TopPLogitsWarper(0.0)],
    "normalised": [TopKLogitsWarper(5), LogitNormalization()],
    "none": [],
}
FIELDS = {
    "all fields": {"repetition_penalty", "temperature", "top_k", "top_p", "min_p"},
    "other order": {"temperature", "top_k", "processors"},
    "custom between": {"temperature", "top_p", "processors"},
    "normalised": {"temperature", "top_k"},
    "none": {"temperature"},
}


@pytest.mark.parametrize("name", WARPERS)
@pytest.mark.parametrize("left", [0, 3])
def test_processors_become_the_same_law(name: str, left: int) -> None:
    text, new = [5, 9, 11, 5, 9], [30, 31]
    chain = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.3, left) if p is PENALTY else p for p in WARPERS[name]])
    row = honoured.Row(0, [PAD] * left + text, text)
    logits = 3 * torch.randn(4, tiny.VOCAB, generator=torch.Generator().manual_seed(1))
    kept = logits.clone()
    fields = honoured.sampling_of(chain, row, True)
    ours = probs.warp(logits, Sampling(**fields), lambda _: text + new)
    theirs = torch.cat([chain(torch.tensor([row.before + new]), one[None].clone()) for one in logits]).softmax(-1)
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert torch.equal(logits, kept)
    assert set(fields) == FIELDS.get(name, set(fields))


def test_greedy_takes_no_warper_for_a_field() -> None:
    fields = honoured.sampling_of([TemperatureLogitsWarper(0.5), TopKLogitsWarper(5)], honoured.Row(0, [1], [1]), False)
    assert fields["temperature"] == 0 and len(fields["processors"]) == 1 and "top_k" not in fields


def refused(words: str, model: Any, decoder: CustomGenerate | None = None, **options: Any) -> None:
    """The call raises ValueError with `words`, in one sentence."""
    given = {} if "inputs_embeds" in options or "input_ids" in options else {"inputs": PROMPT}
    with pytest.raises(ValueError, match=words) as raised:
        model.generate(**given, **{"max_new_tokens": 4, "pad_token_id": PAD, **options}, custom_generate=decoder or custom_generate())
    assert len(str(raised.value).splitlines()) == 1 and len(str(raised.value)) > 30


def test_refusals_of_modes(model: Any, near: Any) -> None:
    refused("beam search cannot be honoured", model, num_beams=2)
    refused("constrained beam search|Constrained", model, num_beams=2, force_words_ids=[[5]])
    refused("contrastive search cannot be honoured", model, penalty_alpha=0.6, top_k=4)
    refused(r"assisted generation.*custom_generate\(method=", model, prompt_lookup_num_tokens=3)
    refused(r"custom_generate\(draft=", model, assistant_model=near)
    refused("synced_gpus", model, synced_gpus=True)


def test_refusals_of_outputs(model: Any) -> None:
    for name in ("output_scores", "output_logits", "output_attentions", "output_hidden_states"):
        refused(f"{name} cannot be honoured", model, return_dict_in_generate=True, **{name: True})


def test_refusals_of_caches_and_inputs(model: Any) -> None:
    refused("use_cache=True", model, use_cache=False)
    refused("cache_implementation='static'", model, cache_implementation="static")
    name = cache_name(model)
    refused(f"{name} of your own", model, **{name: transformers.DynamicCache()})
    refused("pass input_ids", model, inputs_embeds=torch.zeros(1, 3, 32))
    refused("position_ids", model, position_ids=torch.arange(8)[None] + 3)
    refused("row 1 has no token", model, input_ids=torch.tensor([[5, 6], [PAD, PAD]]), attention_mask=torch.tensor([[1, 1], [0, 0]]))
    refused("pad_token_id", model, input_ids=PROMPT.expand(2, -1), pad_token_id=None, eos_token_id=None, stopping_criteria=[After(3)])


def test_positions_along_the_mask_are_no_reason(model: Any, near: Any) -> None:
    positions = (PADDED["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    plain, ours = both(model, near, {**PADDED, "position_ids": positions}, **NEW, pad_token_id=PAD)
    assert ours.tolist() == plain.tolist()


def test_refusals_of_processors(model: Any) -> None:
    refused("UnbatchedClassifierFreeGuidance.* remembers", model, guidance_scale=1.5)
    marks = transformers.SynthIDTextWatermarkingConfig(ngram_len=3, keys=[1, 2, 3])
    refused("SynthIDTextWatermark.* remembers", model, watermarking_config=marks)
    refused("decode them one by one", model, input_ids=PROMPT.expand(2, -1), encoder_no_repeat_ngram_size=2)
    plain, ours = both(model, None, **NEW, encoder_no_repeat_ngram_size=2)
    assert ours.tolist() == plain.tolist()


def test_refusals_of_drafts_and_names(model: Any, near: Any) -> None:
    config = transformers.LlamaConfig(**{**tiny._SHAPE, "vocab_size": 2048})
    refused("2048 ids and the model one of 48", model, custom_generate(transformers.AutoModelForCausalLM.from_config(config)))
    refused("adasd", model, custom_generate(method="adasdd"))
    refused("draft", model, custom_generate(method="adasd"))
    with pytest.raises(ValueError, match="loaded transformers model, got 'gpt2'"):
        custom_generate("gpt2")
    with pytest.raises(ValueError, match="seed must be"):
        custom_generate(seed=-1)
    t5 = transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=48, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    refused("encoder-decoder", t5, decoder_start_token_id=0)


def test_a_draft_padded_to_another_width(model: Any) -> None:
    for width in (40, 64):
        config = transformers.LlamaConfig(**{**tiny._SHAPE, "vocab_size": width})
        torch.manual_seed(1)
        other = transformers.AutoModelForCausalLM.from_config(config)
        inputs = torch.tensor([[5, 9, 11, 5, 9]])
        plain, ours = both(model, other, inputs, **{**NEW, "suppress_tokens": list(range(40, 48))})
        assert ours.tolist() == plain.tolist()


def test_a_failed_call_leaves_nothing_behind(model: Any, near: Any) -> None:
    decoder = custom_generate(near)

    class Broken(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            if input_ids.shape[1] > 12:
                raise RuntimeError("broken")
            return torch.zeros(1, dtype=torch.bool)

    with pytest.raises(RuntimeError, match="broken"):
        model.generate(PROMPT.expand(3, -1), **NEW, pad_token_id=PAD, stopping_criteria=[Broken()], custom_generate=decoder)
    plain = model.generate(PROMPT, **NEW)
    assert model.generate(PROMPT, **NEW, custom_generate=decoder).tolist() == plain.tolist()
    assert len(decoder.stats) == 1


def test_one_object_serves_several_models_and_keeps_its_engine(model: Any, near: Any) -> None:
    decoder, other = custom_generate(near), tiny.model("qwen2", seed=9)
    for target in (model, other, model):
        for _ in range(2):
            assert target.generate(PROMPT, **NEW, custom_generate=decoder).tolist() == target.generate(PROMPT, **NEW).tolist()
    assert decoder._bound is not None
    engine = decoder._bound.engine
    model.generate(PROMPT, **NEW, custom_generate=decoder)
    assert decoder._bound.engine is engine and not engine.busy


def test_what_a_policy_learns_is_handed_on_only_if_it_persists(model: Any) -> None:
    for persist in (True, False):
        decoder, drafted = custom_generate(tiny.model("qwen2", seed=3), length=f"heuristic:persist={str(persist).lower()}", accept="speculative"), []
        for _ in range(2):
            model.generate(PROMPT, **NEW, custom_generate=decoder)
            drafted.append(decoder.stats[0].drafted)
        assert (drafted[1] < drafted[0]) == persist


def test_training_mode_is_put_back_and_dropout_is_off() -> None:
    config = transformers.LlamaConfig(**tiny._SHAPE, attention_dropout=0.5)
    torch.manual_seed(0)
    target = transformers.AutoModelForCausalLM.from_config(config)
    plain = target.eval().generate(PROMPT, **NEW).tolist()
    target.train()
    target.model.norm.eval()
    decoder = custom_generate()
    for _ in range(2):
        assert target.generate(PROMPT, **NEW, custom_generate=decoder).tolist() == plain
        assert target.training and target.model.layers[0].training and not target.model.norm.training


@pytest.mark.parametrize("options", [["--tiny"], pytest.param([], marks=pytest.mark.slow)])
def test_the_example(options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    script = Path(__file__).parent.parent / "examples" / "hf_drop_in.py"
    monkeypatch.setattr(sys, "argv", [str(script), *options])
    runpy.run_path(str(script), run_name="__main__")
    assert "same ids: True" in capsys.readouterr().out
