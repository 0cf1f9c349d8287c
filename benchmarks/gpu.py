"""The CUDA path: is it right, and what does a round cost there.

    python benchmarks/gpu.py [--json FILE]

Not yet run on a CUDA device: none was at hand when it was written; ``--device cpu`` runs.

1. Tiny random models in float32: every lossless method writes what plain decoding writes, on the device as on the CPU, alone and in a batch, with
   CUDA graphs and without.
2. Random weights in the shapes of Qwen2.5 1.5B (target) and 0.5B (draft), bf16: milliseconds of a pass over k rows and of a draft step, with CUDA
   graphs (`recorded`) and without, and how far their logits differ over the spread of the logits; passes a second of methods here and of plain
   decoding in transformers. Variants take turns. Random weights give costs, not acceptance.

What is recorded takes a GPU: on a CPU those lines are left out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers

from draftwise import catalog
from draftwise.backends.hf import HF
from draftwise.backends.hf_graphs import captured
from draftwise.context import Context
from draftwise.engine import Engine
from draftwise.types import Feed, Sampling

LOSSLESS = ["fixed", "heuristic", "confidence", "svip", "adaedl", "gammatune", "gammatune-plus", "adasd-stop", "coupled", "lookup"]
PROMPT = [3, 5, 7, 5, 3, 5, 7]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tiny-only", action="store_true")
    args = parser.parse_args()
    tiny(args.device)
    if not args.tiny_only:
        found = costs(args.device)
        print(json.dumps(found, indent=1))
        if args.json:
            args.json.write_text(json.dumps(found, indent=1) + "\n")


def model(seed: int, device: str, dtype: torch.dtype, **shape: Any) -> Any:
    torch.manual_seed(seed)
    config = transformers.Qwen2Config(**shape)
    with torch.device(device):
        return transformers.Qwen2ForCausalLM(config).to(dtype).eval()


def tiny(device: str) -> None:
    """Equality of every lossless method with plain decoding; raises AssertionError."""
    shape = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    target, draft = (model(seed, "cpu", torch.float32, **shape) for seed in (0, 1))
    draft.load_state_dict({k: 0.9 * v + 0.1 * draft.state_dict()[k] for k, v in target.state_dict().items()})
    on_cpu = Context(HF(target), HF(draft), 64)
    expected = Engine(on_cpu.target).generate([PROMPT], Sampling(max_tokens=60), catalog.method("plain", on_cpu))[0]
    target, draft = target.to(device), draft.to(device)
    for kind in kinds(device):
        same(Context(kind(target), kind(draft), 64), expected)
    print(f"tiny models on {device}: every lossless method writes plain decoding's tokens, alone and in a batch of five")


def kinds(device: str) -> list[Callable[[Any], HF]]:
    """Ways to run a model: as it is, and on a GPU recorded too."""
    recording = [lambda model: HF(model, record=captured(model.device))] if device.startswith("cuda") else []
    return [HF, *recording]


def same(context: Context, expected: list[int]) -> None:
    for name in ["plain", *LOSSLESS]:
        alone = Engine(context.target, chunk=4).generate([PROMPT], Sampling(max_tokens=60), catalog.method(name, context))
        assert alone == [expected], name
        sequence = Engine(context.target, chunk=4).generate([PROMPT] * 5, Sampling(max_tokens=60), catalog.method(name, context))
        assert sequence == [expected] * 5, name
    for seed in range(3):
        sampling = Sampling(temperature=0.9, top_p=0.9, seed=seed, max_tokens=60)
        plain, coupled = (Engine(context.target).generate([PROMPT], sampling, catalog.method(name, context)) for name in ("plain", "coupled"))
        assert plain == coupled, seed
    for name in ("adasd", "adasd:base=ratio", "typical", "adasd-stop"):
        engine = Engine(context.target)
        sequence = engine.add(PROMPT, Sampling(temperature=0.8, top_p=0.95, max_tokens=60), catalog.method(name, context))
        assert all(len(chunk.tokens) for chunk in engine.stream())
        print(f"{name}: {sum(r.accepted for r in sequence.rounds)} of {sum(r.drafted for r in sequence.rounds)} accepted")


def costs(device: str) -> dict[str, Any]:
    """Medians in milliseconds and tokens/s on random weights."""
    common = dict(vocab_size=151936, max_position_embeddings=4096)
    large = dict(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2)
    small = dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2)
    weights = model(0, device, torch.bfloat16, **common, **large), model(1, device, torch.bfloat16, tie_word_embeddings=True, **common, **small)
    named = dict(zip(("plain", "recorded"), kinds(device), strict=False))
    contexts = {name: Context(kind(weights[0]), kind(weights[1]), 151936) for name, kind in named.items()}
    prompt = torch.randint(1000, 20000, (256,)).tolist()
    found: dict[str, Any] = {"device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu", "torch": torch.__version__}
    found["pass_ms"] = {k: passes({name: context.target for name, context in contexts.items()}, prompt, k, device) for k in (1, 2, 4, 8, 16, 32)}
    found["draft_ms"] = passes({name: context.draft for name, context in contexts.items()}, prompt, 1, device)
    speeds: dict[str, list[float]] = {}
    for _ in range(5):
        for name in ("plain", "fixed:n=5", "adasd-stop", "adasd"):
            for kind, context in contexts.items():
                speeds.setdefault(f"{name} {kind}", []).append(speed(context, weights[0], prompt, name, device))
        speeds.setdefault("transformers", []).append(speed(contexts["plain"], weights[0], prompt, "transformers", device))
    found["rounds_per_second"] = {name: median(values) for name, values in speeds.items()}
    return found


def passes(backends: dict[str, Any], prompt: list[int], k: int, device: str) -> dict[str, float]:
    """Of each backend, in turn; and the largest difference of a logit between two of them, over the spread of the logits."""
    seconds: dict[str, list[float]] = {name: [] for name in backends}
    rows = {}
    for backend in backends.values():
        backend.free(0)
        backend.forward([Feed(0, torch.tensor(prompt), 0)])
    for _ in range(30):
        for name, backend in backends.items():
            wait(device)
            start = time.perf_counter()
            rows[name] = backend.forward([Feed(0, torch.tensor(prompt[:k]), k)])[0].logits
            wait(device)
            seconds[name].append(time.perf_counter() - start)
            backend.keep(0, len(prompt))
    for backend in backends.values():
        backend.free(0)
    found = {name: 1e3 * median(some[5:]) for name, some in seconds.items()}
    if len(rows) > 1:
        one, other = (row.float() for row in rows.values())
        found["difference"] = float((one - other).abs().max() / one.std())
    return found


def speed(context: Context, weights: Any, prompt: list[int], name: str, device: str, tokens: int = 64) -> float:
    """Target passes a second: with random weights next to nothing is accepted, so this is the cost of a round."""
    wait(device)
    start = time.perf_counter()
    if name == "transformers":
        ids = torch.tensor([prompt], device=device)
        weights.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0)
        return tokens / (time.perf_counter() - start)
    engine = Engine(context.target)
    sequence = engine.add(prompt, Sampling(max_tokens=tokens), catalog.method(name, context))
    for _ in engine.stream():
        pass
    wait(device)
    return len(sequence.rounds) / (time.perf_counter() - start)


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
