"""Our own engine as a worker: one pair of models, any number of methods. Each method has an engine of its own, so that what its policies
learn and measure does not reach another's; a request with "afresh" finds an engine and a method that have learnt nothing. What is timed is what
`Engine.stream` takes."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

import draftwise
from draftwise import catalog, loading, picking, text
from draftwise.bench import tape
from draftwise.bench.schema import ORIGINS
from draftwise.bench.workers import lines
from draftwise.engine import Engine
from draftwise.narrowing import TEXT
from draftwise.sequence import Method, Sequence
from draftwise.types import Sampling

PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


class Worker:
    """The loaded pair. `answer` serves decoding requests and ``{"check": [specs]}``, whose answer names those that cannot run, and why. `prefix`:
    what stands before the method in the names of its variants."""

    def __init__(
        self,
        target: str,
        drafts: list[str],
        dtype: str | None,
        device: str | None,
        backend: str | None = None,
        quantize: str | None = None,
        vocabulary: str | None = None,
        prefix: str = "",
    ) -> None:
        ours, theirs = picking.quantization(quantize)
        main = loading.load_model(target, dtype, device, backend, ours, lean=True)
        helpers: list[Any] = [loading.load_model(draft, dtype, device, backend, theirs, vocabulary or TEXT, lean=True) for draft in drafts]
        self.context = draftwise.load(main, helpers, method="plain").context
        self.prefix = prefix
        self.about = {"target": Path(target).name, "draft": ", ".join(Path(draft).name for draft in drafts) or None}
        self.stop_ids = text.stop_ids(main.model, main.tokenizer)
        self._engines: dict[str, tuple[Engine, Method]] = {}

    def ready(self) -> dict[str, Any]:
        """What it says of itself."""
        import transformers

        backend: Any = self.context.target
        precision = str(getattr(backend, "precision", backend.dtype)).removeprefix("torch.")
        return {
            "engine": "draftwise",
            "precision": PRECISIONS.get(precision, precision),
            "versions": {"draftwise": draftwise.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(backend.device) if backend.device.type == "cuda" else str(backend.device),
            "vocab_size": self.context.vocab_size,
            "max_length": backend.max_length,
            "stop_ids": list(self.stop_ids),
        }

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply to a request."""
        if "check" not in request:
            return self._decode(request)
        refused = self._check(request["check"])
        trees = [spec for spec in request["check"] if spec not in refused and tape.proposes_trees(self._engine(spec)[1])]
        return {"refused": refused, "trees": trees}

    def _check(self, specs: list[str]) -> dict[str, str]:
        refused = {}
        for spec in specs:
            try:
                engine, method = self._engine(spec)
                engine.cancel(engine.add([0], Sampling(max_tokens=1), method).text.id)
            except ValueError as error:
                refused[spec] = lines.sentence(error)
        return refused

    def _engine(self, spec: str) -> tuple[Engine, Method]:
        if spec not in self._engines:
            self._engines[spec] = Engine(self.context.target), catalog.method(spec.removeprefix(self.prefix), self.context)
        return self._engines[spec]

    def _decode(self, request: dict[str, Any]) -> dict[str, Any]:
        if request.get("afresh"):
            self._engines.pop(request["variant"], None)
        engine, method = self._engine(request["variant"])
        stops = tuple(request["stop_ids"])
        sampling = Sampling(request["temperature"], top_p=request["top_p"], seed=request["seed"], max_tokens=request["max_tokens"], stop_ids=stops)
        notes = tape.Tape() if "trace" in request and not tape.proposes_trees(method) else None
        reply, sequence = timed(engine, request["ids"], sampling, method if notes is None else tape.record(method, notes))
        if notes is not None:
            reply["seconds"] -= notes.seconds  # the arrivals, which came while notes were taken, stay as they were
            tape.save(request["trace"], notes, sequence, self.about | {"variant": request["variant"], "seconds": reply["seconds"]})
        return reply


def timed(engine: Engine, ids: list[int], sampling: Sampling, method: Method) -> tuple[dict[str, Any], Sequence]:
    """The reply for one request, and the sequence that it was. Seconds run from handing over the ids to the last token."""
    chunks, arrivals = [], []
    start = time.perf_counter()
    sequence = engine.add(ids, sampling, method)
    try:
        for chunk in engine.stream():
            chunks.append(chunk)
            arrivals.append((time.perf_counter() - start, len(chunk.tokens)))
        seconds = time.perf_counter() - start
    finally:
        engine.cancel(sequence.text.id)  # after an error: the next request starts with an empty engine
    reply = {
        "tokens": [token for chunk in chunks for token in chunk.tokens],
        "seconds": seconds,
        "arrivals": arrivals,
        "finish_reason": sequence.finish_reason,
        "origins": "".join(ORIGINS[origin] for chunk in chunks for origin in chunk.origins),
        "rounds": [(r.drafted, r.depth, r.accepted, r.relaxed, r.emitted, r.draft_s, r.verify_s) for r in sequence.rounds],
    }
    return reply, sequence


def start(args: argparse.Namespace) -> tuple[dict[str, Any], lines.Answer]:
    """Loads the models."""
    torch.set_num_threads(args.threads)
    worker = Worker(args.target, args.draft, args.dtype, args.device, args.backend, args.quantize, args.vocabulary, args.prefix)
    return worker.ready(), worker.answer


def main() -> None:
    """Serves until the bench ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", required=True)
    parser.add_argument("--draft", action="append", default=[])
    parser.add_argument("--dtype")
    parser.add_argument("--device")
    parser.add_argument("--backend")
    parser.add_argument("--quantize")
    parser.add_argument("--vocabulary")
    parser.add_argument("--prefix", default="")
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    lines.run(lambda: start(args))


if __name__ == "__main__":
    main()
