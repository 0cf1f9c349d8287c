"""A draft that knows nothing: a model's shape and tokenizer with random weights, to see what a default makes of it.

    python benchmarks/useless.py --like DIR --out FOLDER [--seed 0]

Writes a transformers folder. It costs what the model costs, and its guesses are right once in a vocabulary.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from draftwise.loading import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--like", required=True, help="a folder, a GGUF file or a Hub id")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model, tokenizer, _ = load_model(args.like, "bfloat16", packed=False)
    torch.manual_seed(args.seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.02)
            else:
                weight.fill_(1 if "norm" in name else 0)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)


if __name__ == "__main__":
    main()
