"""What all pictures share: the palette, an empty figure, and its way to SVG that is equal for equal figures."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from draftwise.bench.measures import OURS, PLAIN, Figure

WIDTH = 9.0  # inches; one inch is 72 units of the picture
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


class Ink(NamedTuple):
    """One colour by its role, for light and dark pages. The hues can be told apart without seeing red or green (after Okabe and Ito)."""

    light: str
    dark: str


INKS = {
    "text": Ink("#1f2329", "#e6e9ee"),
    "soft": Ink("#5a626c", "#a3acb8"),
    "rule": Ink("#d5dae1", "#3a414c"),
    "paper": Ink("#fffffe", "#15181d"),
    "ours": Ink("#0a6cb0", "#5db0ee"),
    "peer": Ink("#c65a06", "#f39a4d"),
    "plain": Ink("#7b848f", "#8f99a5"),
    "draft": Ink("#3d8fc9", "#4f9fd8"),
    "verify": Ink("#d97a1e", "#e08c3c"),
    "other": Ink("#aab2bc", "#6c7683"),
}
LIGHT = {name: ink.light for name, ink in INKS.items()}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "draftwise",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,  # a name with dollar signs is a name
    "axes.edgecolor": LIGHT["rule"],
    "axes.labelcolor": LIGHT["text"],
    "axes.titlesize": 10,
    "axes.titlecolor": LIGHT["text"],
    "text.color": LIGHT["text"],
    "xtick.color": LIGHT["rule"],
    "ytick.color": LIGHT["rule"],
    "xtick.labelcolor": LIGHT["soft"],
    "ytick.labelcolor": LIGHT["text"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": LIGHT["rule"],
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.facecolor": LIGHT["paper"],
    "axes.facecolor": "none",
}


@contextmanager
def styled() -> Iterator[None]:
    """Pictures are drawn and saved in it; it leaves the caller's matplotlib as it is. Raises ValueError without matplotlib."""
    try:
        from matplotlib import style
    except ImportError:
        raise ValueError("the report's pictures need matplotlib, which is not installed: pip install draftwise[bench]") from None
    with style.context(["default", _STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the reader's fonts draw it, not ours
        yield


def empty(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """A figure of the page's width and `height` inches, and its axes [rows, columns]. It lays itself out when it is saved."""
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def svg(figure: Any, title: str) -> str:
    """The figure as one <svg> element. Its texts are texts, in the reader's own font; `title` is what a screen reader says."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # two pictures on one page would use the same names
    text = re.sub(r"'[^';]*'(, '[^';]*')*(, [a-z-]+)*, sans-serif", FONT, text)
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)


def for_page(picture: str) -> str:
    """The same picture in the colours of the page it stands in, which change with light and dark."""
    for name, ink in INKS.items():
        picture = picture.replace(ink.light, f"var(--{name})")
    return re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"|(<svg[^>]*?) height="[^"]*"([^>]*?) width="[^"]*"', _unsized, picture, count=1)


def kind(figure: Figure) -> str:
    """The ink of a variant: 'plain' (ours and every peer's), 'ours' or 'peer'."""
    if figure.variant in (PLAIN, figure.own_plain):
        return "plain"
    return "ours" if figure.engine == OURS else "peer"


def label(figure: Figure, width: int = 34) -> str:
    """The name with its precision where it is a peer's, shortened in the middle to `width` letters."""
    name = visible(figure.variant if figure.engine == OURS else f"{figure.variant} ({figure.precision})")
    return name if len(name) <= width else f"{name[: width // 2]}…{name[len(name) - width // 2 + 1 :]}"


def visible(text: str) -> str:
    """Control characters, marks that turn the direction of text, and halves of characters as something that can be seen and written."""
    escaped = _CONTROL.sub(lambda match: repr(match[0])[1:-1] if match[0] != "\r" else "", text)
    return escaped.encode("utf-8", "backslashreplace").decode("utf-8")


def _unsized(match: re.Match[str]) -> str:
    return match[1] or f"{match[2]}{match[3]}"
