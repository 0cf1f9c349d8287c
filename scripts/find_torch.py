"""Prints the version of the torch that this Python has and the folder that holds it, tab between; exit status 1 where there is none that
imports or `pyproject.toml` does not admit it. Runs on any Python >= 3.10 with nothing installed."""

import re
import sys
from pathlib import Path


def main() -> int:
    bounds = re.search(r'"torch>=(\d+)\.(\d+),<(\d+)"', Path(__file__).parents[1].joinpath("pyproject.toml").read_text(encoding="utf-8"))
    assert bounds, "pyproject.toml asks for torch in another form than this script reads"
    major, minor, end = map(int, bounds.groups())
    try:
        import torch
    except Exception:  # a broken torch raises OSError or worse: it is not one to borrow
        return 1
    have = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if not (major, minor) <= have < (end, 0):
        return 1
    print(torch.__version__, Path(torch.__file__).resolve().parents[1], sep="\t")
    return 0


if __name__ == "__main__":
    sys.exit(main())
