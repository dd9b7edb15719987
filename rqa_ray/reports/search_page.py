"""Makes the page of a search and its pictures. The page contains its pictures, and needs no network."""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rqa_ray.evaluation.metrics import short_name
from rqa_ray.places import write_whole
from rqa_ray.reports.learning_curve import LearningCurve
from rqa_ray.reports.pages import render
from rqa_ray.reports.svg import image
from rqa_ray.reports.trials import FINISHED, Choices, Range, Trial, ranked
from rqa_ray.texts import duration, short

PAGE_FILE, PICTURE_FILE = "tune_report.html", "tune_report.png"
WINNER_COLOR, BASE_COLOR = "#d62728", "#7d838c"
COLORS = 0.25, 0.85  # ends of the part of matplotlib's viridis that shows on white and on black
# The pictures have no background. So that they are readable on light and dark pages, all else has one medium gray.
THEME: Any = {  # by the names of matplotlib, a type of its own
    **dict.fromkeys(["text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"], BASE_COLOR),
    **dict.fromkeys(["figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor"], "none"),
    "grid.color": BASE_COLOR,
    "legend.edgecolor": BASE_COLOR,
}


def write_report(
    folder: Path,
    trials: list[Trial],
    space: Mapping[str, Choices | Range],
    metric: str,
    winner: Trial,
    curve: LearningCurve | None = None,
) -> list[str]:
    """Writes tune_report.html, and with matplotlib its pictures and tune_report.png; returns lines for the user."""
    lines, picture = [], None
    if importlib.util.find_spec("matplotlib"):
        picture = draw_search(trials, space, metric, winner)
        write_whole(folder / PICTURE_FILE, picture)
    else:
        lines.append(
            'note: no pictures without matplotlib: pip install -e ".[charts]", and the same command with --resume'
        )
    text = page(folder.name, trials, list(space), metric, winner, picture, curve)
    write_whole(folder / PAGE_FILE, text.encode())
    return [*lines, *(curve.sentences if curve else []), f"report: {folder / PAGE_FILE}"]


def page(
    title: str,
    trials: list[Trial],
    names: list[str],
    metric: str,
    winner: Trial,
    picture: bytes | None,
    curve: LearningCurve | None = None,
) -> str:
    """Returns the report as one HTML file."""
    order = ranked(trials, metric)
    shown = [*order, *(trial for trial in trials if trial not in order)]
    best = winner.best(metric)
    assert best is not None
    finished = [trial for trial in order if trial.state == FINISHED]
    equals = [str(trial.number) for trial in finished if (trial.best(metric) or best)[1] == best[1]]
    chosen = ", ".join(f"{name} {short(value)}" for name, value in winner.values.items())
    verdict = (
        f"Trial {winner.number} is the best: {metric} {winner.curve[0][1]:.4f} of the pretrained model, {best[1]:.4f} "
        f"after {best[0]:,} pairs, with {chosen}."
    )
    if len(equals) > 1:
        verdict += f" Trials {', '.join(equals)} are equally good; of equals, the first one wins."
    return render(
        "search.html",
        title=title,
        verdict=verdict,
        head=["trial", "state", *names, short_name(metric), "at pair", "pairs", "time", "problem"],
        rows=[_row(trial, names, metric) for trial in shown],
        winner=shown.index(winner),
        picture=image("curves, map and parallel view of the trials", "png", picture) if picture else "",
        curve=curve,
        picture_of_curve=image(f"{curve.label} over training pairs", "svg+xml", curve.svg()) if curve else "",
    )


def _row(trial: Trial, names: list[str], metric: str) -> list[str]:
    """Returns a row of the table of trials."""
    best = trial.best(metric)
    values = [short(trial.values.get(name, "")) for name in names]
    reached = [f"{best[1]:.4f}", f"{best[0]:,}"] if best else ["", ""]
    return [
        str(trial.number),
        trial.state,
        *values,
        *reached,
        f"{trial.pairs:,}",
        duration(trial.seconds),
        trial.problem,
    ]


def draw_search(trials: list[Trial], space: Mapping[str, Choices | Range], metric: str, winner: Trial) -> bytes:
    """Draws a PNG: the metric over training pairs seen, two arguments as a map, all arguments side by side.

    The winner is red.
    """
    from matplotlib import colormaps, rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.figure import Figure

    shown = [trial for trial in trials if trial.best(metric)]
    bests = [trial.best(metric)[1] for trial in shown]  # type: ignore[index]
    shades = ListedColormap(colormaps["viridis"](np.linspace(*COLORS, 256)))
    colors = ScalarMappable(Normalize(min(bests), max(bests)), shades)
    quality = short_name(metric)
    content = io.BytesIO()
    with rc_context(THEME):
        figure = Figure(figsize=(12, 9), layout="constrained", dpi=110)
        FigureCanvasAgg(figure)
        panels = figure.subplot_mosaic([["curves", "map"], ["parallel", "parallel"]])
        _draw_curves(panels["curves"], shown, winner, bests, quality, colors)
        _draw_map(panels["map"], shown, winner, space, bests, colors)
        _draw_parallel(panels["parallel"], shown, winner, space, bests, quality, colors)
        figure.colorbar(colors, ax=list(panels.values()), label=f"best {quality}", shrink=0.6)
        figure.savefig(content, format="png")
    return content.getvalue()


def _draw_curves(axes: Any, shown: list[Trial], winner: Trial, bests: list[float], quality: str, colors: Any) -> None:
    for trial, best in zip(shown, bests, strict=True):
        places, values = zip(*trial.curve, strict=True)
        style: dict[str, Any] = {"color": colors.to_rgba(best), "linewidth": 1.5, "zorder": 2}
        if trial is winner:
            style = {"color": WINNER_COLOR, "linewidth": 3, "zorder": 3, "label": f"winner, trial {trial.number}"}
        axes.plot(places, values, marker="o", markersize=4, **style)
        ended = "" if trial.state == FINISHED else " ×"
        _write(axes, f"{trial.number}{ended}", (places[-1], values[-1]), (5, 0))
    axes.axhline(winner.curve[0][1], color=BASE_COLOR, linestyle=":", label="pretrained model")
    axes.set(xlabel="training pairs seen", ylabel=quality, title="Each trial (× ended before its budget)")
    axes.margins(x=0.08)
    axes.legend(loc="best", fontsize=9)


def _draw_map(
    axes: Any,
    shown: list[Trial],
    winner: Trial,
    space: Mapping[str, Choices | Range],
    bests: list[float],
    colors: Any,
) -> None:
    across = "learning_rate" if "learning_rate" in space else next(iter(space))
    others = [name for name in space if name != across]
    down = "global_batch_size" if "global_batch_size" in others else next(iter(others), None)
    x = _Scale(space[across])
    y = _Scale(space[down]) if down else None
    for trial, best in zip(shown, bests, strict=True):
        place = x.place(trial.values[across]), y.place(trial.values[down]) if y and down else best
        edge = {"edgecolor": WINNER_COLOR, "linewidth": 3} if trial is winner else {"edgecolor": "none"}
        axes.scatter(*place, s=220, color=[colors.to_rgba(best)], zorder=2, **edge)
        _write(axes, str(trial.number), place, (11, 9))
    x.label(axes.xaxis)
    axes.set(xlabel=across, ylabel=down or "best", title=f"{across} x {down}" if down else across)
    axes.margins(0.15)
    axes.grid(alpha=0.3)
    if y:
        y.label(axes.yaxis)


def _draw_parallel(
    axes: Any,
    shown: list[Trial],
    winner: Trial,
    space: Mapping[str, Choices | Range],
    bests: list[float],
    quality: str,
    colors: Any,
) -> None:
    scales = [_Scale(dimension) for dimension in space.values()]
    low, high = min(bests), max(bests)
    for trial, best in sorted(zip(shown, bests, strict=True), key=lambda pair: (pair[0] is winner, pair[1])):
        heights = [scale.share(trial.values[name]) for name, scale in zip(space, scales, strict=True)]
        heights.append((best - low) / (high - low) if high > low else 0.5)
        color, width = (WINNER_COLOR, 3.0) if trial is winner else (colors.to_rgba(best), 1.5)
        axes.plot(heights, color=color, linewidth=width)
    for column, scale in enumerate(scales):
        axes.axvline(column, color=BASE_COLOR, linewidth=1)
        for value in scale.ticks():
            _write(axes, short(value), (column, scale.share(value)), (-5, 0), "right")
    axes.axvline(len(scales), color=BASE_COLOR, linewidth=1)
    for share in (0.0, 0.5, 1.0):
        _write(axes, f"{low + share * (high - low):.3f}", (len(scales), share), (5, 0))
    axes.set_xticks(range(len(scales) + 1), [*space, f"best {quality}"])
    axes.set_yticks([])
    axes.set(xlim=(-0.35, len(scales) + 0.35), ylim=(-0.08, 1.08), title="All arguments")
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(False)


def _write(axes: Any, text: str, place: tuple[Any, Any], offset: tuple[int, int], side: str = "left") -> None:
    axes.annotate(text, place, offset, textcoords="offset points", ha=side, va="center", fontsize=9)


class _Scale:
    """Places the values of an argument on an axis: choices side by side, numbers by their size or its logarithm."""

    def __init__(self, dimension: Choices | Range) -> None:
        self.choices = sorted(dimension.values, key=_sortable) if isinstance(dimension, Choices) else None
        self.ends: tuple[float, float] = (0, max(1, len(self.choices) - 1)) if self.choices else (0, 1)
        self.function: Any = float
        if isinstance(dimension, Range):
            self.function = math.log10 if dimension.is_log else float
            self.ends = self.function(dimension.low), self.function(dimension.high)
        self.dimension = dimension

    def place(self, value: Any) -> float:
        return self.choices.index(value) if self.choices else self.function(value)

    def share(self, value: Any) -> float:
        low, high = self.ends
        return (self.place(value) - low) / (high - low)

    def ticks(self) -> list[Any]:
        if self.choices:
            return self.choices
        assert isinstance(self.dimension, Range)
        low, high = self.dimension.low, self.dimension.high
        middle = (low * high) ** 0.5 if self.dimension.is_log else (low + high) / 2
        return [low, middle, high]

    def label(self, axis: Any) -> None:
        """Writes the values, not their places, beside an axis."""
        ticks = self.ticks()
        axis.set_ticks([self.place(value) for value in ticks], [short(value) for value in ticks])


def _sortable(value: Any) -> tuple[int, Any]:
    return (0, value) if isinstance(value, (int, float)) else (1, str(value))
