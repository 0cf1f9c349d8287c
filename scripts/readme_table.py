"""Puts the figures of committed runs into README.md: `python scripts/readme_table.py`. tests/test_docs.py fails where they are stale."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TABLES = {  # name of the block in README: the run, and the columns of its report
    "engines": ("qwen2.5-coder-engines", ("variant", "precision", "tokens/s", "× own plain", "× auto", "same text, %", "tau", "relaxed, %")),
    "measured": ("qwen2.5-coder", ("variant", "precision", "tokens/s", "× own plain", "tau", "relaxed, %", "humaneval")),
}


def render(text: str) -> str:
    """The README `text` with the reports' rows in it, fastest first, and what they say of the machine and the winners."""
    for block, (run, columns) in TABLES.items():
        lines = (ROOT / "benchmarks" / run / "report.md").read_text(encoding="utf-8").splitlines()
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
        head, body = rows[0], sorted(rows[2:], key=lambda row: -float(row[rows[0].index("tokens/s")]))
        picked = [columns, ("---",) * len(columns), *([row[head.index(name)] for name in columns] for row in body)]
        table = "\n".join(f"| {' | '.join(row)} |" for row in picked)
        told = "\n\n".join(line for line in lines[: lines.index("")] + [line for line in lines if line.startswith("The fastest ")])
        place = re.compile(rf"<!-- table:{block} -->.*?<!-- /table:{block} -->", re.DOTALL)
        filled = f"<!-- table:{block} -->\n{told}\n\n{table}\n<!-- /table:{block} -->"
        text = place.sub(lambda _, filled=filled: filled, text)
    return text


if __name__ == "__main__":
    README.write_text(render(README.read_text(encoding="utf-8")), encoding="utf-8")
