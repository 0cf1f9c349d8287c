"""Where prompts come from: an argument, a file, stdin, a file of many."""

from __future__ import annotations

import json
import sys
from importlib import resources
from pathlib import Path
from typing import Any

Prompt = str | list[dict[str, str]]
"""A text to go on with, or the messages of a chat."""
_FIELDS = ("prompt", "messages", "question", "text")


def read(argument: str | None, file: Path | None) -> str:
    """The one prompt of a command. Raises ValueError for two prompts, none, an empty one, or bytes that are no UTF-8."""
    if argument is not None and file is not None:
        raise ValueError("two prompts: give one as an argument or one with --file, not both")
    if file is not None:
        text = _decode(file.read_bytes(), str(file))
    elif argument is not None and argument != "-":
        text = argument
        _check(text)
    elif argument is None and sys.stdin.isatty():
        raise ValueError("no prompt: give it as an argument, with --file, or on stdin")
    else:
        text = _decode(sys.stdin.buffer.read(), "stdin")
    if not text:
        raise ValueError("the prompt is empty")
    return text


def chat(prompt: Prompt, system: str | None = None) -> list[dict[str, str]]:
    """The prompt as messages of a chat, after a system message if there is one."""
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return [{"role": "system", "content": system}, *turns] if system else turns


def read_many(file: Path, limit: int | None = None) -> list[Prompt]:
    """Prompts of a file: .jsonl has one JSON value a line (a string, or an object with `prompt`, `messages`, `question` or `text`), any
    other file one prompt a line. Empty lines are passed over. Raises ValueError with the line that cannot be used."""
    lines = _decode(file.read_bytes(), str(file)).splitlines()
    found = [(i, line) for i, line in enumerate(lines, 1) if line.strip()][:limit]
    if not found:
        raise ValueError(f"{file} holds no prompt")
    return [_parse(line, f"{file}, line {i}") if file.suffix == ".jsonl" else line for i, line in found]


def shipped() -> dict[str, str]:
    """The demo's prompts by name."""
    folder = resources.files("draftwise") / "data"
    return {name: (folder / f"{name}.txt").read_text("utf-8").strip() for name in ("edit", "summary", "question")}


def _parse(line: str, where: str) -> Prompt:
    try:
        value: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: no JSON ({error.msg} at column {error.colno})") from None
    if isinstance(value, dict):
        value = next((value[key] for key in _FIELDS if key in value), None)
    messages = isinstance(value, list) and all(isinstance(m, dict) and {"role", "content"} <= set(m) for m in value)
    if not value or not (isinstance(value, str) or messages):
        raise ValueError(f"{where}: no prompt; a line is a string or an object with one of {', '.join(_FIELDS)}")
    return value  # type: ignore[no-any-return]


def _decode(raw: bytes, where: str) -> str:
    """The text without the line end that an editor or echo leaves after it."""
    try:
        return raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        found = f"byte 0x{raw[error.start]:02x} at position {error.start}"
        raise ValueError(f"{where} is not valid UTF-8 ({found}): convert it first, for example with iconv -t utf-8") from None


def _check(text: str) -> None:
    """Bytes of an argument that are no UTF-8 arrive as lone surrogates."""
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("the prompt argument is not valid UTF-8")
