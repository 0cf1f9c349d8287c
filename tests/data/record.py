"""Makes the traces that the tests read: one greedy answer and one at temperature 0.7, with drafts of 8 tokens.

python tests/data/record.py TARGET DRAFT      (made with Qwen2.5-Coder-Instruct 1.5B and 0.5B in bfloat16)
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import draftwise
from draftwise import catalog, text
from draftwise.bench.tape import Tape, record, save
from draftwise.types import Sampling

PROMPT = "Write a Python function that merges two sorted lists into one sorted list. Then explain in one sentence how fast it is."
SPEC, LENGTH = "fixed:n=8", 48


def main() -> None:
    target, draft = sys.argv[1:3]
    speculator = draftwise.load(target, draft, method="plain")
    method = catalog.method(SPEC, speculator.context)
    ids = text.encode(speculator.tokenizer, [{"role": "user", "content": PROMPT}], speculator.context.vocab_size)
    stops = text.stop_ids(speculator._model, speculator.tokenizer)
    for name, temperature in (("greedy", 0.0), ("warm", 0.7)):
        tape = Tape()
        start = time.perf_counter()
        sequence = speculator.engine.add(ids, Sampling(temperature, max_tokens=LENGTH, stop_ids=stops), record(method, tape))
        list(speculator.engine.stream())
        seconds = time.perf_counter() - start
        about = {"target": "Qwen2.5-Coder-1.5B-Instruct", "draft": "Qwen2.5-Coder-0.5B-Instruct", "precision": "bf16", "method": SPEC}
        path = Path(__file__).with_name(f"qwen-{name}.npz")
        save(path, tape, sequence, about | {"seconds": seconds - tape.seconds})
        size, rounds = path.stat().st_size, len(sequence.rounds)
        sys.stdout.write(f"{path.name}: {size} bytes, {rounds} rounds, {seconds:.2f} s, of which {tape.seconds:.2f} s of notes\n")


if __name__ == "__main__":
    main()
