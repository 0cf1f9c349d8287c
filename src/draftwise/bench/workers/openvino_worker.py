"""Worker of the peer OpenVINO GenAI: one `LLMPipeline` on the CPU, ids in and ids out."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lines  # type: ignore[import-not-found,unused-ignore]

SLACK = 64  # tokens of room beyond the longest job
WARM_TOKENS = 24
SHORT = {"bfloat16": "bf16", "float32": "f32", "float": "f32", "float16": "f16"}


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="folder of the exported target")
    parser.add_argument("--weights", required=True, help="in what the export keeps them; told, not chosen")
    parser.add_argument("--draft", help="folder of the exported draft model")
    parser.add_argument("--lookup", type=int, help="prompt lookup with n-grams up to this length")
    parser.add_argument("--draft-tokens", type=int, default=0)
    parser.add_argument("--hint", choices=["f32", "bf16", "f16"], help="what the engine computes in")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--cache-gib", type=int, default=1)
    return parser.parse_args(argv)


def load(args: argparse.Namespace) -> Any:
    """The pipeline, for one request at a time, prompts read in one piece and nothing kept from prompt to prompt."""
    import openvino_genai as genai  # type: ignore[import-not-found,unused-ignore]

    plan = genai.SchedulerConfig()
    plan.cache_size = args.cache_gib
    plan.max_num_seqs = 1
    plan.max_num_batched_tokens = args.context + SLACK
    plan.enable_prefix_caching = False
    device = properties(args)
    more: dict[str, Any] = {}
    if args.draft:
        more["draft_model"] = genai.draft_model(args.draft, "CPU", **device)
    if args.lookup:
        more["prompt_lookup"] = True
    return genai.LLMPipeline(args.model, "CPU", scheduler_config=plan, **more, **device)


def properties(args: argparse.Namespace) -> dict[str, Any]:
    return {"INFERENCE_NUM_THREADS": args.threads} | ({"INFERENCE_PRECISION_HINT": args.hint} if args.hint else {})


def listener() -> Any:
    """A streamer that notes when tokens come. Its `arrivals` are pairs (time, count)."""
    import openvino_genai as genai  # type: ignore[import-not-found,unused-ignore]

    class Arrivals(genai.StreamerBase):  # type: ignore[misc,name-defined,unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.arrivals: list[tuple[float, int]] = []

        def write(self, token: int | list[int]) -> Any:
            count = len(token) if isinstance(token, list) else 1
            if count:
                self.arrivals.append((time.perf_counter(), count))
            return genai.StreamingStatus.RUNNING

        def end(self) -> None:
            pass

    return Arrivals()


def config(pipe: Any, args: argparse.Namespace, request: dict[str, Any]) -> Any:
    """The pipeline's own settings with those of the request."""
    made = pipe.get_generation_config()
    temperature = request.get("temperature", 0.0)
    made.max_new_tokens = request["max_tokens"]
    made.stop_token_ids = set(request.get("stop_ids", []))
    made.repetition_penalty = 1.0
    made.do_sample = temperature > 0
    if made.do_sample:
        made.temperature, made.top_p, made.rng_seed = temperature, request.get("top_p", 1.0), request.get("seed", 0)
    if args.draft_tokens:
        made.num_assistant_tokens = args.draft_tokens
    if args.lookup:
        made.max_ngram_size = args.lookup
    return made


def answer(pipe: Any, tensor: Callable[[list[int]], Any], args: argparse.Namespace, request: dict[str, Any]) -> dict[str, Any]:
    """One answer in the bench's words."""
    settings, stream, prompt = config(pipe, args, request), listener(), tensor(request["ids"])
    begin = time.perf_counter()
    result = pipe.generate(prompt, settings, stream)
    seconds = time.perf_counter() - begin
    tokens = [int(token) for token in result.tokens[0]]
    stopped = bool(tokens) and (tokens[-1] in settings.stop_token_ids or tokens[-1] == settings.eos_token_id or len(tokens) < request["max_tokens"])
    arrivals = [[moment - begin, count] for moment, count in stream.arrivals]
    if sum(count for _, count in stream.arrivals) != len(tokens):
        arrivals = []
    said = {"tokens": tokens, "seconds": seconds, "arrivals": arrivals, "finish_reason": "stop" if stopped else "length"}
    return said | counts(result, len(arrivals))


def counts(result: Any, arrivals: int) -> dict[str, int]:
    """Totals of speculation as the pipeline gives them: none for prompt lookup, and with a draft model without the last round of the answer."""
    metrics = getattr(result, "extended_perf_metrics", None)
    passes = {"passes": arrivals} if arrivals else {}
    if metrics is None or not hasattr(metrics, "get_num_accepted_tokens"):
        return passes
    return passes | {"accepted": int(metrics.get_num_accepted_tokens()), "drafted": int(metrics.get_num_draft_tokens())}


def tensors() -> Callable[[list[int]], Any]:
    """Makes a prompt of ids."""
    import numpy as np
    from openvino import Tensor  # type: ignore[import-not-found,unused-ignore]

    return lambda ids: Tensor(np.array([ids], dtype=np.int64))


def warm(ask: Callable[[dict[str, Any]], dict[str, Any]], context: int) -> None:
    for length in [some for some in (16, 128, 16) if some + WARM_TOKENS <= context]:
        ask({"ids": [1000 + i % 8 for i in range(length)], "max_tokens": WARM_TOKENS})


def computes_in(hint: str | None) -> str:
    """What the CPU plugin computes in: the hint, or its own choice."""
    from openvino import Core  # type: ignore[import-not-found,unused-ignore]

    if hint:
        return hint
    kind = Core().get_property("CPU", "INFERENCE_PRECISION_HINT")
    name = str(getattr(kind, "to_string", lambda: kind)())
    return SHORT.get(name, name)


def main() -> None:
    args = arguments()

    def start() -> tuple[dict[str, Any], lines.Answer]:
        pipe, tensor = load(args), tensors()

        def ask(request: dict[str, Any]) -> dict[str, Any]:
            return answer(pipe, tensor, args, request)

        warm(ask, args.context)
        model = json.loads((Path(args.model) / "config.json").read_text())
        versions = {name: importlib.metadata.version(name) for name in ("openvino", "openvino-genai")}
        facts = {"precision": f"{args.weights}/{computes_in(args.hint)}", "engine": "openvino", "versions": versions, "threads": args.threads}
        return facts | {"vocab_size": model.get("vocab_size"), "max_length": model.get("max_position_embeddings")}, ask

    lines.run(start)


if __name__ == "__main__":
    main()
