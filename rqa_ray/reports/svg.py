"""Writes small SVG drawings that are readable in a light and in a dark theme.

The colors are classes of a style sheet in the file, which follows the theme of the reader's system. The drawing has
its own background, so it stays readable on a page of the other theme. Lengths are in pixels at full size.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
LEVELS = 5  # levels of the color scale: classes level0 (low) to level4 (high)
FILLS = {  # class: (light, dark)
    "ground": ("#ffffff", "#0d1117"),
    "box": ("#f6f8fa", "#161b22"),
    "ink": ("#1f2328", "#e6edf3"),
    "soft": ("#59636e", "#9198a1"),
    "before": ("#818b98", "#7d8590"),
    "after": ("#0969da", "#4493f8"),
    "winner": ("#bc4c00", "#f0883e"),
    "level0": ("#d6e6f5", "#1c2f45"),
    "level1": ("#a5c8e9", "#24507c"),
    "level2": ("#6ea6da", "#3474b5"),
    "level3": ("#387bbd", "#5b9fe3"),
    "level4": ("#0b4a8f", "#a5cfff"),
}
LINES = {  # the same for strokes
    "edge": ("#d1d9e0", "#3d444d"),
    "grid": ("#e4e8ec", "#262c36"),
    "arrow": ("#59636e", "#9198a1"),
    "before-line": FILLS["before"],
    "after-line": FILLS["after"],
    "winner-line": FILLS["winner"],
}
FIXED = (
    f"text{{font:13px {FONT}}}.title{{font-size:16px;font-weight:600}}.bold{{font-weight:600}}"
    ".code{font:12px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}.end{text-anchor:end}"
    ".middle{text-anchor:middle}.edge,.grid,.arrow,.interval{fill:none}"
    ".interval{stroke-width:5;stroke-opacity:.5}.hollow{stroke-width:2}.ring{stroke-width:3}"
)


class Drawing:
    """Collects the shapes of a drawing, and writes them as SVG."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.shapes: list[str] = []
        self.rectangle(0.5, 0.5, width - 1, height - 1, "ground edge")

    def rectangle(self, x: float, y: float, width: float, height: float, kind: str = "box edge") -> None:
        self.shapes.append(f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" class="{kind}"/>')

    def circle(self, x: float, y: float, radius: float, kind: str) -> None:
        self.shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" class="{kind}"/>')

    def line(self, points: Sequence[tuple[float, float]], kind: str = "grid") -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.shapes.append(f'<polyline points="{path}" class="{kind}"/>')

    def arrow(self, points: Sequence[tuple[float, float]]) -> None:
        """Draws a line with an arrowhead at its last point."""
        self.line(points, "arrow")
        self.shapes[-1] = self.shapes[-1].replace("/>", ' marker-end="url(#head)"/>')

    def text(self, x: float, y: float, text: str, kind: str = "ink") -> None:
        self.shapes.append(f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(text)}</text>')

    def note(self, x: float, y: float, width: float, height: float, title: str, *lines: str) -> None:
        """Draws a box with a title and lines of text; a line that starts with a backtick is the name of a file."""
        self.rectangle(x, y, width, height)
        self.text(x + 12, y + 23, title, "ink bold")
        for number, line in enumerate(lines):
            kind = "soft code" if line.startswith("`") else "soft"
            self.text(x + 12, y + 43 + 18 * number, line.lstrip("`"), kind)

    def svg(self) -> bytes:
        """Returns the content of the SVG file."""
        light, dark = ("".join(_rules(theme)) for theme in (0, 1))
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}" '
            f'viewBox="0 0 {self.width} {self.height}" role="img">\n<title>{escape(self.title)}</title>\n'
            f"<style>{FIXED}{light}@media (prefers-color-scheme:dark){{{dark}}}</style>\n"
            '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
            '<path d="M0 0 8 4 0 8z" class="soft"/></marker>\n'
        )
        return (head + "\n".join(self.shapes) + "\n</svg>\n").encode()


def image(alt: str, kind: str, content: bytes) -> str:
    """Returns the element of HTML that contains a picture; `kind` is `png` or `svg+xml`."""
    return f'<img alt="{escape(alt)}" src="data:image/{kind};base64,{base64.b64encode(content).decode()}">'


def level(value: float, low: float, high: float) -> str:
    """Returns the color class of a value between two ends."""
    share = (value - low) / (high - low) if high > low else 1.0
    return f"level{min(LEVELS - 1, int(share * LEVELS))}"


def _rules(theme: int) -> list[str]:
    fills = [f".{name}{{fill:{colors[theme]}}}" for name, colors in FILLS.items()]
    return fills + [f".{name}{{stroke:{colors[theme]}}}" for name, colors in LINES.items()]
