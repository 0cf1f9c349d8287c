"""Text in, text out: an answer as it is written, then two prompts at once, then the figures against plain decoding.

    python examples/generate.py                        the embedded model
    python examples/generate.py TARGET [DRAFT]         Hub ids, folders or .gguf files
"""

from __future__ import annotations

import sys

import draftwise

POEM = "Roses are red, violets are blue. Sugar is sweet, and so are you.\nRoses are red,"


def main(target: str = "smollm2", draft: str | None = None) -> None:
    model = draftwise.load(target, draft)

    print("An answer as it comes:")
    for piece in model.stream("The three primary colours are", max_tokens=40, stop="\n\n"):
        print(piece.text, end="", flush=True)
    print("\n\nTwo prompts decoded together:")
    for result in model.generate([POEM, "1, 2, 4, 8,"], max_tokens=24):
        print(f"  {result.text!r} ({result.finish_reason})")

    print("\nThe same text, plainly and speculatively:")
    for method in ("plain", None):  # None: what `load` chose
        result = model.generate(POEM, max_tokens=48, method=method)
        stats = result.stats
        speed = f"{stats.tokens_per_second:6.1f} tokens/s, {stats.tau:.2f} tokens per pass"
        print(f"  {method or 'default':8} {speed}, {stats.accepted} drafted and accepted")


if __name__ == "__main__":
    main(*sys.argv[1:])
