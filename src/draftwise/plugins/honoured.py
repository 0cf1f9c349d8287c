"""What of a ``generate`` call of transformers can be kept: its processors as a `draftwise.types.Sampling`, its criteria as ends, and a
sentence for each thing that cannot."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitNormalization,
    LogitsProcessorList,
    MinPLogitsWarper,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria, StoppingCriteriaList

from draftwise.backends.hf import CACHES
from draftwise.types import Processor

_FIELDS = {TemperatureLogitsWarper: "temperature", TopKLogitsWarper: "top_k", TopPLogitsWarper: "top_p", MinPLogitsWarper: "min_p"}
_ORDER = tuple(_FIELDS.values())  # in which `Sampling` applies them
# names, not classes: not every version of transformers has all of them
_STATEFUL = ("UnbatchedClassifierFreeGuidanceLogitsProcessor", "ClassifierFreeGuidanceLogitsProcessor", "SynthIDTextWatermarkLogitsProcessor")
_BATCHED = ("EncoderRepetitionPenaltyLogitsProcessor", "EncoderNoRepeatNGramLogitsProcessor")
_OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
_HANDLED = ("attention_mask", "position_ids", "cache_position", "use_cache", "logits_to_keep", *CACHES)
_NO_LIMIT = 2**31


class Row(NamedTuple):
    """One row of the batch. `before`: its ids as transformers holds them, padding and all; `tokens`: those that its mask lets through."""

    number: int
    before: list[int]
    tokens: list[int]


class Ends(NamedTuple):
    """When a row ends: after `max_tokens`, with one of `stop_ids`, or when one of `criteria` says so. `pad` fills rows that ended; None =
    there is no such id."""

    max_tokens: int
    stop_ids: tuple[int, ...]
    criteria: StoppingCriteriaList
    pad: int | None


def rows_of(input_ids: Tensor, mask: Tensor | None) -> list[Row]:
    """The rows of `input_ids` [B, L]. transformers counts positions along `mask` [B, L] and attends to nothing else, so a text without its
    masked ids is continued in the same way."""
    kept = torch.ones_like(input_ids, dtype=torch.bool) if mask is None or mask.shape != input_ids.shape else mask.to(input_ids.device) != 0
    return [Row(i, ids.tolist(), ids[keep].tolist()) for i, (ids, keep) in enumerate(zip(input_ids, kept, strict=True))]


def ends_of(criteria: Iterable[Any], prompt: int, config: Any) -> Ends:
    """`criteria` of a call whose `input_ids` are `prompt` wide: length and end-of-text are the engine's own affair, the others are asked."""
    criteria = list(criteria)
    lengths = [c.max_length for c in criteria if type(c) is MaxLengthCriteria]
    stop_ids = tuple(int(i) for c in criteria if type(c) is EosTokenCriteria for i in c.eos_token_id.reshape(-1))
    others = StoppingCriteriaList(c for c in criteria if type(c) not in (MaxLengthCriteria, EosTokenCriteria))
    pad = getattr(config, "_pad_token_tensor", None)
    pad = config.pad_token_id if pad is None else pad
    room = max(1, min(lengths, default=_NO_LIMIT) - prompt)  # a criterion is asked after a token, so there always is one
    return Ends(room, stop_ids, others, None if pad is None else int(pad))


def sampling_of(processors: Iterable[Any], row: Row, sample: bool) -> dict[str, Any]:
    """The fields of a `Sampling` that does to `row` what `processors` do, nothing twice.

    `Sampling` applies the repetition penalty, its own processors, temperature, top-k, top-p, min-p, in this order. So a penalty in front and
    the longest tail in that order become fields, and all that stands between runs as it is."""
    rest = [_for_row(p, row.number) for p in processors]
    fields: dict[str, Any] = {"temperature": 1.0 if sample else 0.0}
    if rest and _penalises(rest[0], row):
        fields["repetition_penalty"] = float(rest.pop(0).penalty)
    limit = len(_ORDER)
    while sample and rest:
        if type(rest[-1]) is not LogitNormalization:  # which changes no law
            place = _place(rest[-1])
            if place is None or place >= limit:
                break
            fields[_ORDER[place]], limit = getattr(rest[-1], _ORDER[place]), place
        rest.pop()
    return fields | ({"processors": (_chained(rest, row),)} if rest else {})


def _chained(processors: Sequence[Any], row: Row) -> Processor:
    chain, real = LogitsProcessorList(processors), len(row.tokens)

    def process(ids: Sequence[int], scores: Tensor) -> Tensor:
        """Shows the processors what ``generate`` would: ids with the padding, and scores that they may write to."""
        shown = torch.tensor([[*row.before, *ids[real:]]], device=scores.device)
        changed: Tensor = chain(shown, scores[None].clone())[0]
        return changed

    return process


def _for_row(processor: Any, index: int) -> Any:
    """The processor that does to a batch of this one row what the given one does to row `index` of the whole batch."""
    if type(processor) is PrefixConstrainedLogitsProcessor:
        allowed = processor._prefix_allowed_tokens_fn
        return PrefixConstrainedLogitsProcessor(lambda _, ids: allowed(index, ids), 1)
    if type(processor) is RepetitionPenaltyLogitsProcessor and isinstance(processor.prompt_ignore_length, Tensor):
        return RepetitionPenaltyLogitsProcessor(processor.penalty, int(processor.prompt_ignore_length[index]))
    return processor


def _penalises(processor: Any, row: Row) -> bool:
    """Whether this is a repetition penalty over the ids of the row's own text and no others."""
    if type(processor) is not RepetitionPenaltyLogitsProcessor:
        return False
    return set(row.before[processor.prompt_ignore_length or 0 :]) == set(row.tokens)


def _place(processor: Any) -> int | None:
    """Where in the order of `Sampling` a processor has its place; None = nowhere."""
    name = _FIELDS.get(type(processor))
    plain = getattr(processor, "filter_value", -math.inf) == -math.inf and getattr(processor, "min_tokens_to_keep", 1) == 1
    if name is None or not plain or (name == "top_p" and processor.top_p == 0):
        return None
    return _ORDER.index(name)


def refuse(reasons: Iterable[str]) -> None:
    """Raises ValueError with the first reason, if there is one."""
    for reason in reasons:
        raise ValueError(reason)


def of_model(model: Any, assistant: Any, synced: Any) -> Iterator[str]:
    if model.config.is_encoder_decoder:
        yield f"{type(model).__name__} is an encoder-decoder model: speculation here is for decoder-only models"
    if assistant is not None:
        yield "assistant_model was given beside custom_generate: pass that model as custom_generate(draft=...) and leave assistant_model out"
    if synced:
        yield "synced_gpus cannot be honoured: rounds differ in length from process to process, and the others would wait for ever"


def of_config(config: Any, model: Any) -> Iterator[str]:
    mode = str(getattr(config.get_generation_mode(), "value", config.get_generation_mode()))
    if mode == "assisted_generation":
        yield "assisted generation (prompt_lookup_num_tokens, assistant_early_exit, use_mtp) cannot be mixed in: choose custom_generate(method=...)"
    if mode not in ("greedy_search", "sample"):
        yield f"{mode.replace('_', ' ')} cannot be honoured: possible are greedy decoding and sampling, one beam, no constraints"
    wanted = [name for name in _OUTPUTS if getattr(config, name, None)]
    if config.return_dict_in_generate and wanted:
        yield f"{', '.join(wanted)} cannot be honoured: rows of scores and hidden states are dropped as soon as a round is judged"
    if config.use_cache is False:
        yield "use_cache=False cannot be honoured: speculation rewinds a cache of its own (the text is the same with use_cache=True)"
    if config.cache_implementation not in (None, "dynamic", model.generation_config.cache_implementation):
        yield f"cache_implementation={config.cache_implementation!r} cannot be honoured: a draft needs a cache that can be rewound, leave it out"


def of_inputs(input_ids: Tensor, rows: Sequence[Row], kwargs: Mapping[str, Any]) -> Iterator[str]:
    if kwargs.get("inputs_embeds") is not None:
        yield "inputs_embeds cannot be honoured: drafts are made from token ids, pass input_ids"
    for name in CACHES:
        if _filled(kwargs.get(name)):
            yield f"{name} of your own cannot be honoured: both models keep caches that are rewound every round, pass the whole text as input_ids"
    if others := [name for name, value in kwargs.items() if name not in _HANDLED and value is not None]:
        yield f"{', '.join(others)} cannot be honoured: only input_ids and attention_mask reach both models"
    mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
    if mask is not None and mask.shape != input_ids.shape:
        yield f"an attention_mask of shape {list(mask.shape)} does not fit input_ids of shape {list(input_ids.shape)}"
    elif positions is not None and _moved(positions, torch.ones_like(input_ids) if mask is None else mask):
        yield "position_ids of your own cannot be honoured: positions are counted along the attention mask"
    if empty := [row.number for row in rows if not row.tokens]:
        yield f"row {empty[0]} has no token that its attention mask lets through: at least one is needed (a beginning-of-text token will do)"


def of_processors(processors: Iterable[Any], rows: int) -> Iterator[str]:
    for processor in processors:
        name = getattr(type(processor), "__name__", "")
        if name in _STATEFUL:
            yield f"{name} cannot be honoured: it remembers earlier calls, and a draft is judged at several positions of which some never come to be"
        if name in _BATCHED and rows > 1:
            yield f"{name} cannot be honoured for {rows} rows: it knows rows by their place in the batch, decode them one by one"


def of_padding(rows: Sequence[Row], ends: Ends, context: int) -> Iterator[str]:
    """`context`: tokens the model can hold."""
    ragged = ends.stop_ids or ends.criteria or any(len(row.tokens) + ends.max_tokens > context for row in rows)
    if ends.pad is None and len(rows) > 1 and ragged:
        yield "rows of this batch may end at different lengths and there is no id to fill them up with: pass pad_token_id"


def _filled(cache: Any) -> bool:
    """Whether the caller gave this cache (transformers marks it), or it holds something; a fresh one that ``generate`` made is of no account."""
    try:
        return bool(getattr(cache, "_is_user_defined", False) or cache.get_seq_length())
    except (AttributeError, ValueError):  # there is none, or it has recurrent layers only and counts nothing
        return False


def _moved(positions: Tensor, mask: Tensor) -> bool:
    """Whether positions [1 or B, L] (or [axes, B, L], of which text uses one value) are other than counted along the mask [B, L]."""
    seen = (mask != 0).long().to(positions.device)
    if positions.shape[-1] != seen.shape[-1]:
        return True
    return bool((((positions - (seen.cumsum(-1) - 1)) * seen) != 0).any())
