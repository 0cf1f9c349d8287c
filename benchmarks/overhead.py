"""What the engine costs beside the models: time outside forwards, and memory over weights and caches.

    python benchmarks/overhead.py --target DIR --draft DIR          # a real pair
    python benchmarks/overhead.py --random                          # random weights in the shape of Qwen2.5 0.5B over 0.5B
    python benchmarks/overhead.py --pieces                          # no model: the numeric functions on rows of 151,936 entries

Prints, for each method greedy and at temperature 0.7 with top-p 0.95: the share of wall time outside model forwards, that time per drafted token,
and the peak of resident memory over what was resident after loading, less the caches. ``--json FILE`` keeps the rows.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers

from draftwise import catalog, probs, wide
from draftwise.backends.hf import HF
from draftwise.backends.hf_packed import PackedLinear, pack
from draftwise.context import Context
from draftwise.engine import Engine
from draftwise.types import Feed, Rows, Sampling

CASES = [
    ("fixed:n=5", 0.0),
    ("adasd-stop", 0.0),
    ("adasd", 0.0),
    ("fixed:n=20", 0.0),
    ("fixed:n=5", 0.7),
    ("adasd-stop", 0.7),
    ("adasd", 0.7),
    ("fixed:n=20", 0.7),
]


class Timed:
    """A backend that adds up the seconds of its forwards."""

    def __init__(self, backend: HF) -> None:
        self.backend, self.spent = backend, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def forward(self, feeds: Sequence[Feed]) -> list[Rows]:
        start = time.perf_counter()
        rows = self.backend.forward(feeds)
        if rows[0].logits.is_cuda:
            torch.cuda.synchronize()
        self.spent += time.perf_counter() - start
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target")
    parser.add_argument("--draft")
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pieces", action="store_true")
    args = parser.parse_args()
    if args.pieces:
        return pieces()
    models = [load(name, args) for name in (args.target, args.draft)]
    for model in models:
        pack(model)
    target, draft = (Timed(HF(model)) for model in models)
    context = Context(target, draft, target.vocab_size)
    prompt = ids(args)
    run(context, prompt, "adasd", 0.7, 12)
    rows = []
    for case in CASES:
        found = [run(context, prompt, *case, args.tokens) for _ in range(args.repeat)]
        rows.append({key: median(f[key] for f in found) if isinstance(value, float) else value for key, value in found[0].items()})
        name, share, ms, mb = (rows[-1][key] for key in ("method", "share", "ms", "mb"))
        print(f"{name:12} T={case[1]}  outside forwards {share:6.2%}  {ms:5.2f} ms a drafted token  memory {mb:6.1f} MB", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"vocab": target.vocab_size, "threads": torch.get_num_threads(), "rows": rows}, indent=1) + "\n")


def pieces(vocab: int = 151936) -> None:
    """Median milliseconds of the numeric functions, the plain ones they stand in for beside them. Rows look like a language model's: a normal
    bulk and sixty likely tokens."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, vocab, generator=generator) * 2.2
    for row in x:
        row[torch.randint(0, vocab, (60,), generator=generator)] += torch.linspace(16, 6, 60)
    y = (x + torch.randn(x.shape, generator=generator) / 2).bfloat16()
    x = x.bfloat16()
    one, token, u = x[:1], torch.tensor([3]), torch.tensor([0.3], dtype=torch.float64)
    nucleus = Sampling(0.7, top_p=0.95)
    law = probs.law(one, nucleus)
    table: dict[str, Callable[[], Any]] = {
        "argmax, 1 row": lambda: wide.argmax(one),
        "argmax, 1 row, torch": lambda: one.argmax(-1),
        "top 64, 1 row": lambda: wide.largest(one, 64),
        "top 64, 1 row, torch": lambda: one.topk(64, -1),
        "sample, 1 row": lambda: probs.sample(law, u),
        "sample, 1 row, cumulative sum": lambda: law.double().cumsum(-1),
        "law at T=0, 6 rows": lambda: probs.law(x, Sampling()),
        "law at T=0.7, top-p 0.95, 6 rows": lambda: probs.law(x, nucleus),
        "draft step's figures, 1 row": lambda: probs.confidence(one, token),
        "JS distance, 6 rows": lambda: probs.js_distance(x, y),
    }
    for name, call in table.items():
        print(f"{name:40} {timed(call, 25):8.3f} ms")
    layers()


@torch.inference_mode()
def layers(count: int = 12) -> None:
    """Products of k rows with `count` weights [8960, 1536] in bfloat16, more than the caches hold: as torch has them, and packed."""
    plain = [torch.nn.Linear(1536, 8960, bias=False, dtype=torch.bfloat16) for _ in range(count)]
    packed = [PackedLinear(layer) for layer in plain]
    for k in (1, 2, 4, 8, 16):
        x = torch.randn(1, k, 1536).bfloat16()
        pair = [timed(lambda some=some, x=x: [layer(x) for layer in some], 9) for some in (plain, packed)]
        print(f"{count} linear layers, {k:2} rows: {pair[0]:7.1f} ms, packed {pair[1]:7.1f} ms, ratio {pair[0] / pair[1]:.2f}")


def timed(call: Callable[[], Any], repeat: int) -> float:
    """Median milliseconds, after three calls to warm up."""
    times = []
    for _ in range(repeat + 3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * median(times[3:])


def load(name: str | None, args: argparse.Namespace) -> Any:
    if not args.random:
        return transformers.AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16).to(args.device)
    shape = dict(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**shape)).to(args.device, torch.bfloat16)


def ids(args: argparse.Namespace) -> list[int]:
    """A text with something to go on; for random weights, whose rows are flat whatever they read, any ids."""
    if args.random:
        return list(range(1000, 1064))
    text = "# Sorting algorithms in Python, each with a docstring and an example.\n\ndef merge_sort(items: list[int]) -> list[int]:\n"
    return list(transformers.AutoTokenizer.from_pretrained(args.target)(text)["input_ids"])


def run(context: Context, prompt: list[int], method: str, temperature: float, tokens: int) -> dict[str, Any]:
    for part in (context.target, context.draft):
        part.spent = 0.0
    resident = memory("VmRSS", reset=True)
    engine = Engine(context.target)
    sampling = Sampling(temperature, top_p=0.95 if temperature else 1.0, max_tokens=tokens)
    chosen = catalog.method(method, context)  # once a speculator and method, not once a request
    start = time.perf_counter()
    sequence = engine.add(prompt, sampling, chosen)
    for _ in engine.stream():
        pass
    wall = time.perf_counter() - start
    outside = wall - context.target.spent - context.draft.spent
    drafted = sum(r.drafted for r in sequence.rounds)
    buffers = [keys for part in (context.target, context.draft) for keys, _ in part.backend._cache.buffers.values()]
    caches = sum(2 * keys.numel() * keys.element_size() for keys in buffers)
    extra = (memory("VmHWM") - resident) / 2**20
    return {
        "method": method,
        "temperature": temperature,
        "share": outside / wall,
        "ms": 1e3 * outside / max(drafted, 1),
        "mb": extra,
        "cache_mb": caches / 2**20,
        "drafted": drafted,
        "wall": wall,
    }


def memory(field: str, reset: bool = False) -> float:
    """Bytes of /proc/self/status; `reset` starts a new peak."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return float(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
