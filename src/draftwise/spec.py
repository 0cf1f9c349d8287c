"""The grammar of specs: ``name:key=value,key=[other:key=value],[part]``."""

from __future__ import annotations

from typing import Any, NamedTuple


class Spec(NamedTuple):
    """A parsed spec. Values are bool, int, float, str, None or a nested Spec; `parts` are the positional ones."""

    name: str
    options: dict[str, Any]
    parts: tuple[Spec, ...] = ()

    def __str__(self) -> str:
        shown = [f"[{part}]" for part in self.parts]
        shown += [f"{key}=[{value}]" if isinstance(value, Spec) else f"{key}={_show(value)}" for key, value in self.options.items()]
        return self.name + (":" + ",".join(shown) if shown else "")


def parse(text: str | Spec) -> Spec:
    """Reads a spec. Raises ValueError for unbalanced brackets, an empty name, or a part that is neither ``key=value`` nor ``[spec]``."""
    if isinstance(text, Spec):
        return text
    name, _, rest = text.strip().partition(":")
    if not name or any(c in name for c in "[]=,"):
        raise ValueError(f"{text!r} is no spec: write name, or name:key=value,key=value, with nested specs in [brackets]")
    options: dict[str, Any] = {}
    parts: list[Spec] = []
    for piece in _pieces(rest, text) if rest else []:
        key, equals, value = piece.partition("=") if not piece.startswith("[") else ("", "", piece)
        if equals and key.strip() and value.strip():
            options[key.strip()] = _value(value.strip())
        elif piece.startswith("[") and piece.endswith("]"):
            parts.append(parse(piece[1:-1]))
        else:
            raise ValueError(f"{piece!r} in {text!r} is neither key=value nor a [spec]")
    return Spec(name, options, tuple(parts))


def _pieces(text: str, whole: str) -> list[str]:
    """Splits at the commas outside brackets."""
    pieces, depth = [""], 0
    for c in text:
        depth += (c == "[") - (c == "]")
        if depth < 0:
            break
        if c == "," and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += c
    if depth:
        raise ValueError(f"the brackets in {whole!r} do not match")
    return [piece.strip() for piece in pieces]


def _value(text: str) -> Any:
    if text.startswith("[") and text.endswith("]"):
        return parse(text[1:-1])
    words: dict[str, Any] = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _show(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
