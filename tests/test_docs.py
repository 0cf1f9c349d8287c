"""The docs say what the code does: the generated page is fresh, links lead somewhere, Python blocks run, commands and options exist."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted((ROOT / "docs").glob("*.md"))


def script(name: str) -> ModuleType:
    """A module of scripts/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_methods_md_is_fresh():
    wanted = script("methods_md").render()
    assert (ROOT / "docs" / "methods.md").read_text(encoding="utf-8") == wanted, "run: python scripts/methods_md.py"


def test_the_readmes_table_is_that_of_the_run():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert script("readme_table").render(text) == text, "run: python scripts/readme_table.py"
    assert "| openvino-int4-draft |" in text


def test_methods_md_has_every_shipped_name():
    from draftwise import catalog

    page = script("methods_md").render()
    assert all(f"| `{name}` |" in page for kind in catalog.KINDS for name in catalog.names(kind) if catalog.entry(kind, name).parts)
    assert "| `adasd` | accept below" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_compile(page):
    for block in blocks(page, "python"):
        compile(block, str(page), "exec")


def test_the_first_block_has_fifteen_lines():
    assert len([line for line in blocks(ROOT / "README.md", "python")[0].splitlines() if line.strip()]) <= 15


def test_the_policy_of_the_readme_is_that_of_the_example():
    example = (ROOT / "examples" / "own_policy.py").read_text(encoding="utf-8")
    policies = [re.search(r"^@dataclass.*?(?=\n\n\n)", text, re.DOTALL | re.MULTILINE) for text in (example, blocks(ROOT / "README.md", "python")[2])]
    assert policies[0] and policies[1] and policies[0][0] == policies[1][0]


def test_commands_of_the_readme_exist():
    import typer

    from draftwise.cli import app

    commands = typer.main.get_command(app).commands
    lines = [line.partition("#")[0].split() for block in blocks(ROOT / "README.md", "sh") for line in block.splitlines()]
    used = [words for words in lines if words and words[0] == "draftwise"]
    assert used
    for _, name, *words in used:
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 2])
def test_python_blocks_of_the_readme_run(number):
    done = subprocess.run([sys.executable, "-c", blocks(ROOT / "README.md", "python")[number]], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
