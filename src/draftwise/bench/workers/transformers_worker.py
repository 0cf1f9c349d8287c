"""transformers' own `generate`: plain, assisted by the draft model, and prompt lookup, on models that nothing of ours has touched.

Runs as a script, also under an interpreter without draftwise; only models that transformers cannot load by name alone then need it."""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import lines  # type: ignore[import-not-found]  # beside this script
import torch
import transformers

PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


class Record:
    """A streamer that keeps times instead of showing text. The first `put` is the prompt, each further one what a target pass gave: the
    tokens of the draft that were accepted, and one of the target's own."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.arrivals: list[tuple[float, int]] = []
        self.rounds: list[tuple[int, int, int, int, int, float, float]] = []
        self.draft = (0, 0.0)  # tokens proposed for the pass that runs now, and the seconds that took
        self._prompt = True

    def put(self, value: Any) -> None:
        """Told by `generate`."""
        if self._prompt:
            self._prompt = False
            return
        now, n = time.perf_counter() - self.start, value.numel()
        drafted, draft_s = self.draft
        before = self.arrivals[-1][0] if self.arrivals else 0.0
        self.arrivals.append((now, n))
        self.rounds.append((drafted, drafted, n - 1, 0, n, draft_s, now - before - draft_s))
        self.draft = (0, 0.0)

    def end(self) -> None:
        """Told by `generate`."""


class Worker:
    """A target and perhaps a draft, each in a model of its own."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.target = load(args.target, args.dtype, args.device)
        self.draft = load(args.draft, args.dtype, args.device) if args.draft else None
        self.record = Record()
        self._count_drafts()

    def ready(self) -> dict[str, Any]:
        """What it says of itself."""
        return {
            "engine": "transformers",
            "precision": PRECISIONS[self.args.dtype],
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "threads": torch.get_num_threads(),
            "vocab_size": self.target.config.get_text_config().vocab_size,
            "max_length": self.target.config.get_text_config().max_position_embeddings,
        }

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply to a request."""
        options = self._options(request)
        torch.manual_seed(request["seed"])
        self.record = Record()
        prompt = torch.tensor([request["ids"]], device=self.target.device)
        with torch.inference_mode():
            out = self.target.generate(prompt, attention_mask=torch.ones_like(prompt), streamer=self.record, **options)
            tokens = out[0, len(request["ids"]) :].tolist()
        seconds = time.perf_counter() - self.record.start
        return {
            "tokens": tokens,
            "seconds": seconds,
            "arrivals": self.record.arrivals,
            "finish_reason": "stop" if tokens and tokens[-1] in request["stop_ids"] else "length",
            "origins": "".join("d" * (n - 1) + "t" for _, n in self.record.arrivals),
            "rounds": self.record.rounds,
        }

    def _options(self, request: dict[str, Any]) -> dict[str, Any]:
        """Everything that the model's own generation config could set otherwise is said."""
        stops = request["stop_ids"]
        options: dict[str, Any] = {"max_new_tokens": request["max_tokens"], "repetition_penalty": 1.0}
        options |= {"eos_token_id": stops or None, "pad_token_id": stops[0] if stops else 0}
        if request["temperature"]:
            options |= {"do_sample": True, "temperature": request["temperature"], "top_p": request["top_p"], "top_k": 0}
        else:
            options |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if request["variant"].endswith("-assisted"):
            options["assistant_model"] = self.draft
        if request["variant"].endswith("-lookup"):
            options["prompt_lookup_num_tokens"] = self.args.lookup
        return options

    def _count_drafts(self) -> None:
        """`generate` says nothing of its drafts: their number and time are read off where it asks for them."""
        make = getattr(self.target, "_get_candidate_generator", None)
        if make is None:
            return

        def counted(*args: Any, **kwargs: Any) -> Any:
            generator = make(*args, **kwargs)
            propose = generator.get_candidates

            def get_candidates(input_ids: Any, *more: Any, **others: Any) -> Any:
                start = time.perf_counter()
                found = propose(input_ids, *more, **others)
                self.record.draft = found[0].shape[1] - input_ids.shape[1], time.perf_counter() - start
                return found

            generator.get_candidates = get_candidates
            return generator

        self.target._get_candidate_generator = counted


def load(name: str, dtype: str, device: str) -> Any:
    """The model of a folder or Hub id; GGUF files and 'smollm2' go through draftwise's unpacking."""
    try:
        from draftwise.loading import load_model
    except ImportError:
        return transformers.AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, dtype)).to(device).eval()
    return load_model(name, dtype, device, packed=False).model


def start(args: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    """Loads the models."""
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    worker = Worker(args)
    return worker.ready(), worker.answer


def main() -> None:
    """Serves until the bench ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", required=True)
    parser.add_argument("--draft")
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--lookup", type=int, default=10)
    args = parser.parse_args()
    lines.run(lambda: start(args))


if __name__ == "__main__":
    main()
