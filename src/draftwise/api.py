"""Text in, text out: `load` gives a `Speculator`, whose `generate` and `stream` go through one engine.

`generate` is a stream read to its end. All requests of a speculator, also those of several streams read in turn, are decoded together; what a
policy learned in one request it brings to the next. A speculator belongs to one thread.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from draftwise import catalog, seq2seq, text
from draftwise.context import Context
from draftwise.engine import Engine
from draftwise.fitting import fit, notes, short
from draftwise.loading import Loaded, load_draft, load_model
from draftwise.narrowing import TEXT
from draftwise.picking import quantization
from draftwise.protocols import Accept, Backend, Drafter, Encodes, Length
from draftwise.sequence import Method
from draftwise.spec import parse
from draftwise.streams import Piece as Piece
from draftwise.streams import Request
from draftwise.streams import Result as Result
from draftwise.types import Sampling
from draftwise.unpacking import Progress

Model = str | os.PathLike[str] | Loaded | tuple[Any, Any]
"""A name for `draftwise.loading.load_model`, or a pair (model, tokenizer); the model may be any `Backend`."""


def load(
    target: Model = "smollm2",
    draft: Model | list[Model] | None = None,
    method: str | Method | None = None,
    length: str | Length | None = None,
    accept: str | Accept | None = None,
    drafter: str | Drafter | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    backend: str | None = None,
    quantize: str | None = None,
    draft_vocabulary: int | str | os.PathLike[str] | None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Speculator:
    """A target, possibly a draft (or a list of them, largest first, for hierarchies), and how to decode with them. A draft of another vocabulary
    drafts by 'tli' or 'slem'; `progress` is told, and the speculator's `note` says so. `draft_vocabulary`: by default 'text'. `method` is
    a preset of the catalog (by default 'auto'; 'breakeven' where a part is replaced); `length`, `accept` and `drafter` replace its parts. The
    rest is as in `draftwise.loading.load_model`. Raises ValueError for names and pairs that do not fit.

    An encoder-decoder target (T5, BART, Marian, NLLB; Whisper with features for a prompt) reads the prompt with its encoder:

        model = draftwise.load("google-t5/t5-base", "google-t5/t5-small")
        model.generate("translate English to German: The house is wonderful.").text

    A draft with an encoder reads the same prompt, prompt lookup copies from it too, and a draft without encoder sees the answer alone, unless it is
    named as ``drafter="draft-model:source=true"``."""
    parts: tuple[Any, ...] = (length, accept, drafter)
    for kind, spec in zip(("method", "length", "accept", "drafter"), (method, *parts), strict=True):
        if isinstance(spec, str):
            catalog.entry(kind, parse(spec).name)  # a typing error shows before minutes of loading
    options: dict[str, Any] = {"dtype": dtype, "device": device, "backend": backend, "cache_dir": cache_dir, "progress": progress}
    options["lean"] = True
    wanted = quantization(quantize)
    main = _loaded(target, options | {"quantize": wanted[0]})
    if main.tokenizer is None:
        raise ValueError(f"the target {main.name!r} has no tokenizer: give the pair (model, tokenizer)")
    drafts = draft if isinstance(draft, list) else [] if draft is None else [draft]
    _each_once(drafts)
    options |= {"quantize": wanted[1], "vocabulary": TEXT if draft_vocabulary is None else draft_vocabulary}
    helpers = [_loaded(some, options, main.model) for some in drafts]
    context = _context(main, helpers)
    note = "" if drafter is not None else "\n".join(notes(context.drafts))  # who names a drafter knows
    if progress and note:
        progress(note)
    if isinstance(method, Method):
        parts = tuple(own if own is not None else part for own, part in zip(parts, method, strict=True))
        method = "plain"  # all of whose parts are replaced
    return Speculator(main, context, catalog.method(method, context, *parts), note)


class Speculator:
    """A target with its tokenizer, perhaps a draft, and a default `method`. Made by `load`. `note`: what was chosen for the user, who has to be
    told, as how a draft of another vocabulary drafts; '' if nothing was."""

    def __init__(self, loaded: Loaded, context: Context, method: Method, note: str = "") -> None:
        self.name, self.tokenizer, self.context, self.method = loaded.name, loaded.tokenizer, context, method
        self.note = note
        self.engine = Engine(context.target)
        self._model = loaded.model
        self._live: dict[int, Request] = {}
        self._methods: dict[str, Method] = {}

    @property
    def encodes(self) -> bool:
        """Whether the target has an encoder, which reads prompts; such a model is asked by plain texts rather than in chats."""
        return isinstance(self.context.target, Encodes)

    def generate(
        self,
        prompt: Any,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | None = 0,
        stop: str | Sequence[str] | None = None,
        logprobs: bool = False,
        method: str | Method | None = None,
        decoder_start: Sequence[int | str] | None = None,
    ) -> Any:
        """The `Result` of a text, of chat messages or of ids; for a list of those, the list of their results, decoded together.

        `seed`: None draws one; prompt i of a list uses ``seed + i``, so that equal prompts differ and each can be had again alone. `stop`: strings
        that end the text before them. `method`: a preset or a `Method` for this request only; 'plain' decodes without speculation. `decoder_start`:
        ids or names of tokens that the decoder of an encoder-decoder target starts with, such as a language, in place of those that its
        configuration names (decoder_start_token_id, then forced_bos_token_id; whatever else that forces or suppresses is off)."""
        pieces = self.stream(
            prompt, max_tokens, temperature, top_p, top_k, min_p, repetition_penalty, seed, stop, logprobs, method, decoder_start
        )
        for _ in pieces:
            pass
        return pieces.results if text.is_batch(prompt) else pieces.results[0]

    def stream(
        self,
        prompt: Any,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | None = 0,
        stop: str | Sequence[str] | None = None,
        logprobs: bool = False,
        method: str | Method | None = None,
        decoder_start: Sequence[int | str] | None = None,
    ) -> Stream:
        """The pieces of what `generate` gives, as they come. A stream that is closed or dropped cancels its requests."""
        if isinstance(max_tokens, bool) or not isinstance(max_tokens, int):
            raise ValueError(f"max_tokens must be a whole number of at least 1, got {max_tokens!r}")
        first = secrets.randbits(63) if seed is None else seed
        stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
        ends = text.stop_ids(self._model, self.tokenizer, stops)
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, first, max_tokens, ends, logprobs)
        prompts = list(prompt) if text.is_batch(prompt) else [prompt]
        return Stream(self, self._requests(prompts, sampling, stops, self._method(method), decoder_start))

    def inputs(self, prompt: Any, decoder_start: Sequence[int | str] | None = None) -> seq2seq.Inputs:
        """What the engine is given for one prompt. Raises ValueError for a prompt that cannot be read."""
        return seq2seq.inputs(self._model, self.tokenizer, self.context.target, prompt, decoder_start)

    def _requests(
        self, prompts: list[Any], sampling: Sampling, stops: tuple[str, ...], method: Method, start: Sequence[int | str] | None
    ) -> list[Request]:
        """Queues all prompts, or none if one of them cannot be."""
        requests: list[Request] = []
        try:
            for i, prompt in enumerate(prompts):
                requests.append(self._request(i, self.inputs(prompt, start), sampling, stops, method))
        except BaseException as error:
            for request in requests:
                self._drop(request)
            if isinstance(error, ValueError) and len(prompts) > 1:
                raise ValueError(f"prompt {len(requests)} of the list: {error}") from error
            raise
        return requests

    def _request(self, index: int, given: seq2seq.Inputs, sampling: Sampling, stops: tuple[str, ...], method: Method) -> Request:
        detokenizer = text.Detokenizer(self.tokenizer, given.context)
        strings = text.StopStrings(stops)
        decoding = self.engine.add(given.tokens, replace(sampling, seed=(sampling.seed + index) % 2**64), method, given.source)
        request = Request(index, decoding, detokenizer, strings)
        self._live[decoding.text.id] = request
        return request

    def _method(self, method: str | Method | None) -> Method:
        if not isinstance(method, str):
            return method or self.method
        if method not in self._methods:
            self._methods[method] = catalog.method(method, self.context)
        return self._methods[method]

    def _step(self) -> None:
        """One step of the engine; its chunks go to the requests they belong to, its time to all that took part."""
        running = [request for request in self._live.values() if not request.decoding.finish_reason]
        start = time.perf_counter()
        for chunk in self.engine.step():
            self._live[chunk.id].chunks.append(chunk)
        seconds = time.perf_counter() - start
        for request in running:
            if request.decoding.text.slot >= 0:
                request.seconds += seconds

    def _drop(self, request: Request) -> None:
        self.engine.cancel(request.decoding.text.id)
        self._live.pop(request.decoding.text.id, None)


class Stream(Iterator[Piece]):
    """Pieces in the order they come. `results` can be read at any time; a request that was broken off has no `finish_reason`."""

    def __init__(self, speculator: Speculator, requests: list[Request]) -> None:
        self._speculator, self._requests, self._open = speculator, requests, list(requests)

    @property
    def results(self) -> list[Result]:
        """What each prompt has so far, in the order of the prompts."""
        return [request.result() for request in self._requests]

    def __next__(self) -> Piece:
        try:
            while self._open:
                ready = next((request for request in self._open if request.chunks), None)
                if ready is None:
                    self._speculator._step()
                    continue
                piece = ready.read()
                if piece.result:
                    self._open.remove(ready)
                    self._speculator._drop(ready)
                return piece
        except BaseException:  # Ctrl-C too: nothing of this stream stays in the engine
            self.close()
            raise
        raise StopIteration

    def close(self) -> None:
        """Cancels what is not finished."""
        while self._open:
            self._speculator._drop(self._open.pop())

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def _loaded(model: Model, options: dict[str, Any], target: Any = None) -> Loaded:
    """`target`: the model that this one is to draft for, if it is a draft."""
    if isinstance(model, Loaded):
        return model
    if isinstance(model, tuple):
        if len(model) != 2 or isinstance(model[0], str):
            raise ValueError("a loaded model is given as the pair (model, tokenizer); its name alone will do as well")
        return Loaded(*model, name=getattr(getattr(model[0], "config", None), "name_or_path", "") or type(model[0]).__name__)
    if not isinstance(model, (str, os.PathLike)):
        raise ValueError(f"a model is a name, a path, or the pair (model, tokenizer), got {type(model).__name__}")
    return load_model(model, **options) if target is None else load_draft(model, target, **options)


def _context(main: Loaded, helpers: list[Loaded]) -> Context:
    """What the catalog builds from. Raises ValueError for a draft whose vocabulary has nothing of the target's."""
    backend, drafts = _backend(main), tuple(_backend(helper) for helper in helpers)
    names = tuple(map(short, helpers))
    context = Context(backend, next(iter(drafts), None), backend.vocab_size, drafts, names)
    for helper, own in zip(helpers, drafts, strict=True):
        if problem := seq2seq.difference(backend, own, (main.tokenizer, helper.tokenizer)):
            raise ValueError(f"{helper.name!r} cannot draft for {main.name!r}: {problem}")
    drafts = tuple(fit(main, helper, own, context.vocab_size) for helper, own in zip(helpers, drafts, strict=True))
    return context._replace(draft=next(iter(drafts), None), drafts=drafts)


def _each_once(drafts: list[Model]) -> None:
    """Raises ValueError for a draft that is named twice, before it is loaded twice."""
    for i, some in enumerate(drafts):
        if any(some is other or (isinstance(some, str) and some == other) for other in drafts[:i]):
            raise ValueError(f"draft {i + 1} was named before: each level of a hierarchy needs a model of its own")


def _backend(loaded: Loaded) -> Backend:
    if isinstance(loaded.model, Backend):
        return loaded.model
    from draftwise.backends.hf_replay import wrap  # here, since a table target needs no transformers

    return wrap(loaded.model)
