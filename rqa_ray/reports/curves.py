"""Draws a number over the steps of a run."""

from __future__ import annotations

from collections.abc import Sequence

from rqa_ray.reports.svg import Drawing
from rqa_ray.texts import short

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 280, 84, 40, 56, 52
TICKS = 4


def curve(title: str, points: Sequence[tuple[float, float]], chosen: float | None = None) -> bytes:
    """Returns an SVG of (step, value) points; a ring marks the point of the step that was chosen."""
    picture = Drawing(WIDTH, HEIGHT, f"{title} over steps")
    picture.text(24, 34, title, "ink title")
    low, high = min(value for _, value in points), max(value for _, value in points)
    first, last = points[0][0], points[-1][0]

    def place(step: float, value: float) -> tuple[float, float]:
        across = (step - first) / (last - first) if last > first else 0.5
        down = (high - value) / (high - low) if high > low else 0.5
        return LEFT + (WIDTH - LEFT - RIGHT) * across, TOP + (HEIGHT - TOP - BOTTOM) * down

    for tick in range(TICKS if high > low else 1):
        value = low + (high - low) * tick / (TICKS - 1)
        _, y = place(first, value)
        picture.line([(LEFT, y), (WIDTH - RIGHT, y)])
        picture.text(LEFT - 10, y + 4, short(float(f"{value:.3g}")), "soft end")
    picture.line([place(*point) for point in points], "after-line edge")
    for step, value in points if len(points) <= 60 else points[-1:]:
        picture.circle(*place(step, value), 3, "after")
        if step == chosen:
            picture.circle(*place(step, value), 8, "winner-line ring edge")
    for step in dict.fromkeys((first, last)):
        picture.text(place(step, low)[0], HEIGHT - BOTTOM + 24, f"step {step:,.0f}", "soft middle")
    return picture.svg()
