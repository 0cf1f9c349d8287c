"""Every example runs as it stands, on a tiny model quickly and on the embedded one in full."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tiny_folders import save

EXAMPLES = Path(__file__).parents[1] / "examples"
OURS = ["generate.py", "own_policy.py"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> list[str]:
    base = tmp_path_factory.mktemp("pair")
    return [str(save(base / "target")), str(save(base / "draft"))]


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs an example in this process, as if by its name; gives what it printed."""
    torch.set_num_threads(1)

    def go(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return go


@pytest.mark.parametrize("draft", [False, True], ids=["alone", "with-draft"])
def test_generate(run, pair, draft):
    out = run("generate.py", *(pair if draft else pair[:1]))
    assert out.count(" tokens/s, ") == 2
    plain, default = re.findall(r"([\d.]+) tokens per pass, (\d+) drafted", out)
    assert plain == ("1.00", "0")
    assert float(default[0]) >= 1  # whether drafting pays hangs on the machine: here the draft costs as much as its target


def test_own_policy(run, pair):
    out = run("own_policy.py", *pair)
    doubling, fixed = re.findall(r"drafted +([\d.]+) a round, accepted +(\d+)%", out)
    assert doubling[1] == fixed[1] == "100"
    assert float(doubling[0]) > float(fixed[0])  # everything is accepted, so it doubled


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_on_the_embedded_model(name):
    command = [sys.executable, "-W", "error", str(EXAMPLES / name)]
    done = subprocess.run(command, capture_output=True, timeout=900, check=False, encoding="utf-8")
    assert (done.returncode, done.stderr) == (0, "")
    assert "tokens per pass" in done.stdout
