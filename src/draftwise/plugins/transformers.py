"""A drop-in for people who already have transformers models: speculation inside their own ``model.generate``.

    model.generate(**inputs, custom_generate=draftwise.custom_generate(draft=small_model), max_new_tokens=200, do_sample=True, top_p=0.9)

transformers prepares everything (masks, processors, criteria, limits) and then calls the object that `custom_generate` returns. It decodes all
rows of the batch together in one `draftwise.engine.Engine` and returns what ``generate`` would: ids [B, L], padded on the right, or a
``GenerateDecoderOnlyOutput`` of them (without cache, scores or hidden states).

Kept are greedy decoding and sampling with every option that works on one row at a time, ``num_return_sequences``, streamers, and stopping
criteria, which are asked after every token as always. Padding may be on either side and is not read: a right-padded row, which plain
``generate`` continues from its padding, is continued from its text. Processors and criteria of the caller must be functions of the ids they
are shown, since a draft is judged, and perhaps refused, before it becomes text. A model in training mode decodes without its dropout, and a
text ends where the model's context does. What cannot be kept is refused in a sentence.

``stop_strings=...`` never gets this far: transformers drops the tokenizer it needs on the way to a callable (seen in 5.23). Pass
``stopping_criteria=[StopStringCriteria(tokenizer, [...])]``.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.generation import GenerateDecoderOnlyOutput, GenerationMixin
from transformers.generation.stopping_criteria import StoppingCriteriaList

from draftwise import catalog, stats
from draftwise.backends.hf_replay import wrap
from draftwise.context import Context
from draftwise.engine import Engine
from draftwise.plugins import honoured
from draftwise.plugins.honoured import Ends, Row
from draftwise.sequence import Method
from draftwise.sequence import Sequence as Live
from draftwise.types import Chunk, Round, Sampling

_WIDTHS = 1024  # models of one family are padded to widths some hundred ids apart; other tokenizers are thousands away


def custom_generate(
    draft: Any = None, method: str | None = None, length: Any = None, accept: Any = None, drafter: Any = None, *, seed: int | None = None
) -> CustomGenerate:
    """What to pass as ``model.generate(custom_generate=...)``. Kept for further calls, it keeps its engine, the engine's measurements, and what
    policies with ``persist=true`` have learnt.

    `draft`: a loaded transformers model of the same tokenizer (its vocabulary may be padded to a width up to 1,024 ids away), or None.
    `method`: a preset of the catalog, by default 'auto'. `length`, `accept`, `drafter`: specs or objects in place of its parts. `seed`: of the
    first row, each next row takes the next number; None draws it from torch's global generator, so that ``torch.manual_seed`` makes sampling
    repeatable (as far as the draft lengths are: a policy that persists or measures time may draft others, and then other numbers are drawn).
    Raises ValueError for a draft that is no model."""
    if draft is not None and not isinstance(draft, torch.nn.Module):
        raise ValueError(f"draft must be a loaded transformers model, got {draft!r}: load it with AutoModelForCausalLM.from_pretrained(...)")
    if seed is not None and not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2**64), got {seed}")
    return CustomGenerate(draft, seed, method, length, accept, drafter)


class CustomGenerate:
    """Decodes for ``generate``. `stats`: the summary of each row of the last call. It remembers the engine of the model it served last, and so
    keeps that model alive as long as it lives itself. Calls from several threads wait for each other."""

    def __init__(self, draft: Any, seed: int | None, *parts: Any) -> None:
        self.draft, self.seed, self.parts = draft, seed, parts
        self.stats: list[stats.Summary] = []
        self._bound: _Bound | None = None
        self._lock = threading.Lock()

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Sequence[Any],
        stopping_criteria: Sequence[Any],
        generation_config: Any,
        synced_gpus: bool = False,
        streamer: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        """Called by ``generate``. Raises ValueError for what cannot be honoured."""
        lost = _undelivered()
        rows = honoured.rows_of(input_ids, model_kwargs.get("attention_mask"))
        honoured.refuse(honoured.of_model(model, lost.get("assistant_model"), synced_gpus or lost.get("synced_gpus")))
        honoured.refuse(honoured.of_config(generation_config, model))
        honoured.refuse(honoured.of_inputs(input_ids, rows, model_kwargs))
        honoured.refuse(honoured.of_processors(logits_processor, len(rows)))
        ends = honoured.ends_of(stopping_criteria, input_ids.shape[1], generation_config)
        with self._lock, _evaluating(model, self.draft):
            self.stats = []
            bound = self._bind(model)
            honoured.refuse(honoured.of_padding(rows, ends, bound.engine.target.max_length))
            requests = self._requests(rows, logits_processor, bool(generation_config.do_sample), ends)
            columns = _Columns(lost.get("streamer") if streamer is None else streamer, ends.pad)
            outputs = _decode(bound.engine, bound.method, requests, ends.criteria, columns, input_ids.device)
            self.stats = [stats.summarize(output.rounds, output.seconds) for output in outputs]
        sequences = torch.cat([input_ids, _stacked([output.new for output in outputs], ends.pad).to(input_ids.device)], -1)
        return GenerateDecoderOnlyOutput(sequences=sequences) if generation_config.return_dict_in_generate else sequences

    def _bind(self, model: Any) -> _Bound:
        """The engine and the method for a model, made anew where a model or its place has changed."""
        places = [(m.device, m.dtype) for m in (model, self.draft) if m is not None]
        if self._bound is None or self._bound.model is not model or self._bound.places != places:
            self._bound = None  # before the next model is wrapped, so that the last one's memory is free for it
            target, draft = wrap(model), None if self.draft is None else wrap(self.draft)
            if draft is not None and abs(draft.vocab_size - target.vocab_size) > _WIDTHS:
                raise ValueError(
                    f"the draft has a vocabulary of {draft.vocab_size} ids and the model one of {target.vocab_size}: a draft must share the model's "
                    f"tokenizer (for padding the two may differ by {_WIDTHS})"
                )
            method, *parts = self.parts
            context = Context(target, draft, target.vocab_size)
            self._bound = _Bound(model, places, Engine(target), catalog.method(method, context, *parts))
        return self._bound

    def _requests(self, rows: Sequence[Row], processors: Sequence[Any], sample: bool, ends: Ends) -> list[tuple[Row, Sampling]]:
        first = self.seed
        if first is None:  # greedy decoding leaves torch's generator where it is, here as there
            first = int(torch.randint(2**63 - 1, ()).item()) if sample else 0
        requests = []
        for row in rows:
            fields = honoured.sampling_of(processors, row, sample)
            seed = (first + row.number) % 2**64
            requests.append((row, Sampling(**fields, seed=seed, max_tokens=ends.max_tokens, stop_ids=ends.stop_ids)))
        return requests


@dataclass
class _Bound:
    """An engine over `model`, which lay at `places` (device and dtype of model and draft), and the method for it."""

    model: Any
    places: list[tuple[Any, Any]]
    engine: Engine
    method: Method


@dataclass
class _Output:
    """What has become of one row. `seconds`: wall time until it ended."""

    row: Row
    live: Live
    new: list[int] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    done: bool = False
    seconds: float = 0.0


@contextmanager
def _evaluating(*models: Any) -> Iterator[None]:
    """Evaluation mode for a while: with dropout a draft token would be judged by another model each time."""
    training = [module for model in models if model is not None and model.training for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _undelivered() -> dict[str, Any]:
    """The arguments of the ``generate`` call under way, {} outside of one.

    transformers 5.23 does not hand `streamer`, `assistant_model` and `synced_gpus` on to a callable. Passing over them in silence would let a
    streamer wait for ever for its end, so they are read where they lie: in the frame of the call."""
    ours, frame = inspect.unwrap(GenerationMixin.generate).__code__, inspect.currentframe()
    while frame is not None and frame.f_code is not ours:
        frame = frame.f_back
    return {} if frame is None else {name: frame.f_locals.get(name) for name in ("streamer", "assistant_model", "synced_gpus")}


def _decode(
    engine: Engine,
    method: Method,
    requests: Sequence[tuple[Row, Sampling]],
    criteria: StoppingCriteriaList,
    columns: _Columns,
    device: torch.device,
) -> list[_Output]:
    """All rows together until each has ended. Leaves the engine empty, whatever happens."""
    outputs: dict[int, _Output] = {}
    start = time.perf_counter()
    try:
        for row, sampling in requests:
            live = engine.add(row.tokens, sampling, method)
            outputs[live.text.id] = _Output(row, live)
        for chunk in engine.stream():
            output = outputs[chunk.id]
            _take(output, chunk, criteria, device)
            if output.done:
                output.seconds = time.perf_counter() - start
                engine.cancel(chunk.id)
            columns.flush(list(outputs.values()))
    finally:
        for id in outputs:
            engine.cancel(id)
    columns.end()
    return list(outputs.values())


def _take(output: _Output, chunk: Chunk, criteria: StoppingCriteriaList, device: torch.device) -> None:
    """Adds a chunk, cut after the first token at which a criterion says stop: what follows it was never asked for."""
    before, old = len(output.row.before), len(output.new)
    output.new.extend(chunk.tokens)
    output.done = chunk.finish_reason is not None
    ids = torch.tensor([output.row.before + output.new], device=device) if criteria else None
    for n in range(old + 1, len(output.new) + 1):
        if ids is not None and bool(criteria(ids[:, : before + n], None).all()):
            output.done = True
            del output.new[n:]
            break
    emitted = len(output.new) - old
    cut = chunk.round._replace(emitted=emitted, accepted=min(chunk.round.accepted, emitted), finished=output.done)
    output.rounds = [*output.live.rounds[:-1], cut]


class _Columns:
    """Hands tokens to a streamer as transformers does: one id of every row at a time, `pad` for rows that have ended."""

    def __init__(self, streamer: Any, pad: int | None) -> None:
        self.streamer, self.pad, self.sent = streamer, pad, 0

    def flush(self, outputs: Sequence[_Output]) -> None:
        """Sends what all rows have."""
        if self.streamer is None:
            return
        longest = max(len(output.new) for output in outputs)
        ready = min((len(output.new) for output in outputs if not output.done), default=longest)
        for i in range(self.sent, ready):
            self.streamer.put(torch.tensor([output.new[i] if i < len(output.new) else self.pad for output in outputs]))
        self.sent = max(self.sent, ready)

    def end(self) -> None:
        """After the last column."""
        if self.streamer is not None:
            self.streamer.end()


def _stacked(rows: Sequence[list[int]], pad: int | None) -> Tensor:
    """int64 [B, longest]."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows], dtype=torch.long)
