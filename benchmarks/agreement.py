"""How often a draft agrees with recorded answers of its target, by the bits of its weights and by the tokens its head computes.

    python benchmarks/agreement.py benchmarks/breakeven/pairs.jsonl --draft DIR [--last 128,512]

The answers are those of `benchmarks/default_sim.py`. After each of their tokens stands what the draft finds likeliest; printed is how often that is
what comes next, by group: with weights of 8 and 4 bits and the whole vocabulary; then, with 4 bits, with the first so many tokens of it, with those
and the prompt's, and with those and what the text has so far, as `draftwise.backends.hf_shortlist` has them but for blocks of sixteen; last, with the
whole vocabulary again, where the draft has read so many tokens of the prompt's end alone.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from draftwise.backends.hf_replay import wrap
from draftwise.loading import load_model
from draftwise.protocols import Backend
from draftwise.types import Feed


def rows(draft: Backend, prompt: list[int], answer: list[int]) -> Tensor:
    """Float32 logits [n, V] before each of the answer's tokens."""
    found = draft.forward([Feed(0, torch.tensor([*prompt, *answer[:-1]]), len(answer))])[0].logits.float()
    draft.free(0)
    return found


def cut(law: Tensor, prompt: Tensor, answer: Tensor, first: int, special: Tensor) -> dict[str, int]:
    """Places of the answer [n] where the rows [n, V] over a part of the vocabulary find the right token, by what the part is."""
    hidden = torch.full((law.shape[-1],), -torch.inf)
    hidden[:first], hidden[special] = 0, 0
    found = {f"first {first}": int(((law + hidden).argmax(-1) == answer).sum())}
    hidden[prompt] = 0
    found[f"first {first}, prompt"] = int(((law + hidden).argmax(-1) == answer).sum())
    right = 0
    for row, token in zip(law, answer, strict=True):
        right += int((row + hidden).argmax() == token)
        hidden[token] = 0
    return found | {f"first {first}, text": right}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--draft", required=True)
    parser.add_argument("--first", default="8192,16384,32768,65536")
    parser.add_argument("--last", default="", help="tokens of a prompt, as in 128,512")
    args = parser.parse_args()
    right: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    tokens: dict[str, int] = defaultdict(int)
    texts = [json.loads(line) for line in args.texts.read_text().splitlines()]
    for bits in ("int8", "int4-all"):
        model, tokenizer, _ = load_model(args.draft, "bfloat16", quantize=bits, lean=True)
        draft, special = wrap(model), torch.tensor(sorted({*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}))
        for group, prompt, answer, *_ in texts:
            law = rows(draft, prompt, answer)
            right[bits][group] += int((law.argmax(-1) == torch.tensor(answer)).sum())
            if bits == "int8":
                tokens[group] += len(answer)
                continue
            for first in map(int, args.first.split(",")):
                for name, n in cut(law, torch.tensor(prompt), torch.tensor(answer), first, special).items():
                    right[name][group] += n
            for last in map(int, filter(None, args.last.split(","))):
                right[f"last {last} of the prompt"][group] += int((rows(draft, prompt[-last:], answer).argmax(-1) == torch.tensor(answer)).sum())
    groups = sorted(tokens)
    print("%".ljust(24), *(group[:13].rjust(14) for group in [*groups, "all"]))
    for name, found in right.items():
        shares = [*(found[group] / tokens[group] for group in groups), sum(found.values()) / sum(tokens.values())]
        print(name.ljust(24), *(f"{100 * share:14.1f}" for share in shares))


if __name__ == "__main__":
    main()
