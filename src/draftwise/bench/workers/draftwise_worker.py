"""Our own engine as a worker: one pair of models, any number of methods. Each method has an engine of its own, so that what its policies
learn and measure does not reach another's; what is timed is what `Engine.stream` takes."""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

import draftwise
from draftwise import catalog, loading, text
from draftwise.bench.schema import ORIGINS
from draftwise.bench.workers import lines
from draftwise.engine import Engine
from draftwise.sequence import Method
from draftwise.types import Sampling

PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


class Worker:
    """The loaded pair. `answer` serves decoding requests and ``{"check": [specs]}``, whose answer names those that cannot run, and why."""

    def __init__(self, target: str, draft: str | None, dtype: str | None, device: str | None) -> None:
        models = [None if name is None else loading.load_model(name, dtype, device) for name in (target, draft)]
        speculator = draftwise.load(*models, method="plain")
        self.context = speculator.context
        self.stop_ids = text.stop_ids(models[0].model, models[0].tokenizer)  # type: ignore[union-attr]  # a target is there
        self._engines: dict[str, tuple[Engine, Method]] = {}

    def ready(self) -> dict[str, Any]:
        """What it says of itself."""
        import transformers

        backend: Any = self.context.target
        dtype = str(backend.dtype).removeprefix("torch.")
        return {
            "engine": "draftwise",
            "precision": PRECISIONS.get(dtype, dtype),
            "versions": {"draftwise": draftwise.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(backend.device) if backend.device.type == "cuda" else str(backend.device),
            "vocab_size": self.context.vocab_size,
            "max_length": backend.max_length,
            "stop_ids": list(self.stop_ids),
        }

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply to a request."""
        return {"refused": self._check(request["check"])} if "check" in request else self._decode(request)

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
            self._engines[spec] = Engine(self.context.target), catalog.method(spec, self.context)
        return self._engines[spec]

    def _decode(self, request: dict[str, Any]) -> dict[str, Any]:
        engine, method = self._engine(request["variant"])
        stops = tuple(request["stop_ids"])
        sampling = Sampling(
            request["temperature"], top_p=request["top_p"], seed=request["seed"], max_tokens=request["max_tokens"], stop_ids=stops
        )
        arrivals = []
        start = time.perf_counter()
        sequence = engine.add(request["ids"], sampling, method)
        try:
            chunks = []
            for chunk in engine.stream():
                chunks.append(chunk)
                arrivals.append((time.perf_counter() - start, len(chunk.tokens)))
            seconds = time.perf_counter() - start
        finally:
            engine.cancel(sequence.text.id)  # after an error: the next request starts with an empty engine
        return {
            "tokens": [token for chunk in chunks for token in chunk.tokens],
            "seconds": seconds,
            "arrivals": arrivals,
            "finish_reason": sequence.finish_reason,
            "origins": "".join(ORIGINS[origin] for chunk in chunks for origin in chunk.origins),
            "rounds": [(r.drafted, r.depth, r.accepted, r.relaxed, r.emitted, r.draft_s, r.verify_s) for r in sequence.rounds],
        }


def start(args: argparse.Namespace) -> tuple[dict[str, Any], lines.Answer]:
    """Loads the models."""
    torch.set_num_threads(args.threads)
    worker = Worker(args.target, args.draft, args.dtype, args.device)
    return worker.ready(), worker.answer


def main() -> None:
    """Serves until the bench ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", required=True)
    parser.add_argument("--draft")
    parser.add_argument("--dtype")
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    lines.run(lambda: start(args))


if __name__ == "__main__":
    main()
