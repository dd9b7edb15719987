"""Draws a number over the steps of a run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from rqa_ray.reports.svg import Drawing
from rqa_ray.texts import short

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 280, 84, 40, 56, 52
TICKS = 4
MOST_POINTS = 400  # of a curve; more would not be seen, and make the file large


def curve(title: str, points: Sequence[tuple[float, float]], chosen: float | None = None) -> bytes:
    """Returns an SVG of (step, value) points; a ring marks the point of the step that was chosen."""
    points = thinned(points, chosen)
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


def thinned(points: Sequence[tuple[float, float]], chosen: float | None = None) -> Sequence[tuple[float, float]]:
    """Returns at most about `MOST_POINTS` of the points: the ends, the chosen step, the extremes of equal parts."""
    if len(points) <= MOST_POINTS:
        return points
    kept = {0, len(points) - 1, *(place for place, (step, _) in enumerate(points) if step == chosen)}
    cuts = [len(points) * part // (MOST_POINTS // 2) for part in range(MOST_POINTS // 2 + 1)]
    for start, end in pairwise(cuts):
        of_part = range(start, end)
        kept |= {pick(of_part, key=lambda place: points[place][1]) for pick in (min, max)}
    return [points[place] for place in sorted(kept)]
