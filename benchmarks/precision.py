"""What rounding weights to few bits does to a model: perplexity, agreement of the likeliest token, and divergence, against bfloat16.

    python benchmarks/precision.py --target DIR --texts FILE.jsonl [FILE.jsonl ...] [--precisions int8,int4] [--limit 10] [--json FILE]

Reads `--limit` lines of each file, the strings of a line one after the other, and scores every token after the first of each; at most `--tokens` of a
line. The reference is the same model in bfloat16. Needs memory for the reference's rows: 300 KB a token at a vocabulary of 150,000.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from draftwise.backends.hf_replay import wrap
from draftwise.loading import load_model
from draftwise.types import Feed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True)
    parser.add_argument("--texts", nargs="+", type=Path, required=True)
    parser.add_argument("--precisions", default="int8,int4")
    parser.add_argument("--limit", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model, tokenizer, _ = load_model(args.target, "bfloat16", lean=True)
    texts = [ids for path in args.texts for ids in encoded(path, tokenizer, args.limit, args.tokens)]
    reference = scored(model, texts)
    del model
    found = {"bfloat16": compared(reference, reference, texts)}
    for name in args.precisions.split(","):
        gc.collect()
        found[name] = compared(scored(load_model(args.target, "bfloat16", quantize=name, lean=True).model, texts), reference, texts)
    scores = sum(len(ids) - 1 for ids in texts)
    print(f"{args.target}: {len(texts)} texts, {scores} scored tokens")
    for name, row in found.items():
        print(f"{name:>9}: perplexity {row['perplexity']:.4f}, same likeliest token {row['agreement']:.2%}, mean KL {row['kl']:.5f} nats")
    if args.json:
        args.json.write_text(json.dumps({"target": Path(args.target).name, "texts": len(texts), "tokens": scores, "found": found}, indent=1) + "\n")


def encoded(path: Path, tokenizer: Any, limit: int, most: int) -> list[Tensor]:
    """The lines of a file as ids."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:limit]]
    joined = ["\n".join(value for value in line.values() if isinstance(value, str)) for line in lines]
    return [torch.tensor(tokenizer.encode(text)[:most]) for text in joined]


def scored(model: Any, texts: list[Tensor]) -> list[Tensor]:
    """Log-probabilities float16 [tokens, V] of each text."""
    backend = wrap(model)
    found = []
    for ids in texts:
        found.append(torch.log_softmax(backend.forward([Feed(0, ids, len(ids))])[0].logits.float(), -1).half())
        backend.free(0)
    return found


def compared(rows: list[Tensor], reference: list[Tensor], texts: list[Tensor]) -> dict[str, float]:
    """Over all tokens but each text's first."""
    lost = same = kl = n = 0.0
    for own, other, ids in zip(rows, reference, texts, strict=True):
        own, other = own[:-1].float(), other[:-1].float()
        lost -= float(own.gather(1, ids[1:, None]).sum())
        same += float((own.argmax(1) == other.argmax(1)).sum())
        kl += float((other.exp() * (other - own)).sum())
        n += len(own)
    return {"perplexity": math.exp(lost / n), "agreement": same / n, "kl": kl / n}


if __name__ == "__main__":
    main()
