"""What a pass costs with and without CUDA graphs, beside transformers' own, for random weights of a real shape: no model has to be there.

    python benchmarks/graphs.py [--shapes 1.5b,0.5b] [--rows 1,2,4,8,16] [--context 512] [--rounds 30] [--device cuda] [--dtype bfloat16]

The shapes are those of Qwen2.5 (`tiny` tries the script). Variants take turns; medians in milliseconds, from the call to the end of its work on the
device. The last column is the largest difference of a logit between recorded passes and others, over the spread of the logits. Without a GPU there is
nothing to record, and two columns are left.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, Qwen2Config

from draftwise.backends.hf import HF, cache_name
from draftwise.backends.hf_graphs import captured
from draftwise.types import Feed

SHAPES = {
    "1.5b": (1536, 8960, 28, 12, 2, 151936),
    "0.5b": (896, 4864, 24, 14, 2, 151936),
    "tiny": (64, 128, 2, 4, 2, 512),
}  # hidden, intermediate, layers, heads, groups, vocabulary


def main() -> None:
    args = arguments()
    device = torch.device(args.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(f"{where}, torch {torch.__version__}, {args.dtype}, {args.context} tokens before the pass, medians of {args.rounds} rounds in ms")
    print(f"{'shape':<6} {'rows':>4} {'transformers':>13} {'ours':>7} {'recorded':>9} {'gain':>6} {'difference':>11}")
    for shape in args.shapes.split(","):
        model = made(shape, device, getattr(torch, args.dtype))
        for rows in map(int, args.rows.split(",")):
            print(line(shape, model, rows, args.context, args.rounds), flush=True)


def made(shape: str, device: torch.device, dtype: torch.dtype) -> Any:
    hidden, inner, layers, heads, groups, vocabulary = SHAPES[shape]
    config = Qwen2Config(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=groups,
        vocab_size=vocabulary, tie_word_embeddings=True, max_position_embeddings=32768,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


@torch.no_grad()
def line(shape: str, model: Any, rows: int, context: int, rounds: int) -> str:
    device = model.device
    tokens = torch.randint(SHAPES[shape][-1], (context + rows,), generator=torch.Generator().manual_seed(rows))
    passes = {"transformers": theirs(model, tokens, context), "ours": ours(HF(model), tokens, context)}
    if device.type == "cuda":
        passes["recorded"] = ours(HF(model, record=captured(device)), tokens, context)
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for turn in range(rounds + 3):
        for name, run in passes.items():
            wait(device)
            start = time.perf_counter()
            run()
            wait(device)
            if turn >= 3:  # recorded and warm by then
                seconds[name].append(time.perf_counter() - start)
    found = {name: 1000 * statistics.median(some) for name, some in seconds.items()}
    shown = f"{shape:<6} {rows:>4} {found['transformers']:>13.2f} {found['ours']:>7.2f}"
    if "recorded" not in found:
        return shown
    plain, recorded = passes["ours"]().float(), passes["recorded"]().float()
    difference = float((plain - recorded).abs().max() / plain.std())
    return f"{shown} {found['recorded']:>9.2f} {found['ours'] / found['recorded']:>6.2f} {difference:>11.2g}"


def ours(backend: HF, tokens: Tensor, context: int) -> Callable[[], Tensor]:
    backend.forward([Feed(0, tokens[:context], 0)])

    def run() -> Tensor:
        backend.keep(0, context)
        return backend.forward([Feed(0, tokens[context:], len(tokens) - context)])[0].logits

    return run


def theirs(model: Any, tokens: Tensor, context: int) -> Callable[[], Tensor]:
    """transformers' model with the cache that its own decoding uses by default."""
    cache, rows = DynamicCache(config=model.config), len(tokens) - context
    name = cache_name(model)
    model(input_ids=tokens[None, :context].to(model.device), **{name: cache}, use_cache=True, logits_to_keep=1)

    def run() -> Tensor:
        out: Tensor = model(input_ids=tokens[None, context:].to(model.device), **{name: cache}, use_cache=True).logits[0]
        cache.crop(-rows)
        return out

    return run


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="1.5b,0.5b")
    parser.add_argument("--rows", default="1,2,4,8,16")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16")
    return parser.parse_args()


if __name__ == "__main__":
    main()
