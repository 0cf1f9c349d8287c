"""Puts the figures of the run of everything into README.md: `python scripts/readme_table.py`. tests/test_docs.py fails where they are stale."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README, REPORT = ROOT / "README.md", ROOT / "benchmarks" / "qwen2.5-coder" / "report.md"
COLUMNS = ("variant", "precision", "tokens/s", "× own plain", "tau", "relaxed, %", "humaneval")
BLOCK = re.compile(r"<!-- table:measured -->.*?<!-- /table:measured -->", re.DOTALL)


def render(text: str) -> str:
    """The README `text` with the report's rows in it, fastest first, and what the report says of the machine and the winners."""
    lines = REPORT.read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    head, body = rows[0], sorted(rows[2:], key=lambda row: -float(row[rows[0].index("tokens/s")]))
    picked = [COLUMNS, ("---",) * len(COLUMNS), *([row[head.index(name)] for name in COLUMNS] for row in body)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in picked)
    told = "\n\n".join(line for line in lines[: lines.index("")] + [line for line in lines if line.startswith("The fastest ")])
    return BLOCK.sub(lambda _: f"<!-- table:measured -->\n{told}\n\n{table}\n<!-- /table:measured -->", text)


if __name__ == "__main__":
    README.write_text(render(README.read_text(encoding="utf-8")), encoding="utf-8")
