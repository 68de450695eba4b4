"""The plots of a report, each as one SVG text."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmfuse_ros.analysis.arrays import unit
from mmfuse_ros.analysis.maps import project
from mmfuse_ros.analysis.recording import Timeline

FloatArray = npt.NDArray[np.floating[Any]]

# Okabe and Ito's colours: told apart with any colour vision. One for each stream, always.
COLOURS = {
    "vision": "#56b4e9",
    "camera_1": "#0072b2",
    "camera_2": "#56b4e9",
    "audio": "#e69f00",
    "pressure": "#009e73",
    "emg": "#cc79a7",
}
_OTHER, _INK, _QUIET, _ALARM = "#7f7f7f", "#1f2933", "#9aa5b1", "#d55e00"
_STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.edgecolor": _QUIET,
    "axes.labelcolor": _INK,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e7eb",
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "mmfuse",
    "path.simplify_threshold": 0.2,
}
_WIDTH = 9.6  # inches
# More points than this are drawn as pixels: the page stays small.
_VECTOR_POINTS = 2000
_MAP_POINTS = 4000
_HEAT_POINTS = 240
# A pause longer than this many usual steps is a gap, and a line does not cross it.
_GAP = 5.0


def over_time(line: Timeline) -> str:
    """Return similarity, anomaly score where there is one, and presence of the streams."""
    x, label = _axis(line)
    directions = unit(line.embeddings)
    mean = directions.mean(axis=0)
    centre = directions @ (mean / (np.linalg.norm(mean) or 1.0))
    previous = np.append(np.nan, (directions[1:] * directions[:-1]).sum(axis=1))
    scored = line.score is not None and bool(np.isfinite(line.score).any())
    heights = [2.0] + [1.5] * scored + [0.19 * len(line.present) + 0.2] * bool(line.present)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, sum(heights) + 0.9), layout="constrained")
        grid = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)
        rows: list[Axes] = list(grid[:, 0])
        top = rows[0]
        _line(top, x, previous, _QUIET, "to the window before")
        _line(top, x, centre, COLOURS["camera_1"], "to the mean of all windows")
        top.set_title("Similarity of the fused vector over time")
        top.set_ylabel("cosine")
        top.legend(loc="lower right", ncols=2, bbox_to_anchor=(1.0, 1.0), borderaxespad=0.1)
        _shade(rows[: 1 + scored], x, line.flag)
        if scored:
            assert line.score is not None
            _line(rows[1], x, line.score, _INK, "score")
            if line.threshold is not None and np.isfinite(line.threshold).any():
                _line(rows[1], x, line.threshold, _ALARM, "threshold")
            rows[1].set_title("Anomaly score")
            rows[1].set_ylabel("score")
            rows[1].legend(
                loc="lower right", ncols=2, bbox_to_anchor=(1.0, 1.0), borderaxespad=0.1
            )
        if line.present:
            _presence(rows[-1], x, line)
        rows[-1].set_xlabel(label)
        for axes in rows:
            axes.margins(x=0.0)
        return _svg(figure)


def contribution(line: Timeline) -> str:
    """Return the mean share of each modality, and the shares over time where there is any."""
    names = list(line.shares)
    many = len(line.embeddings) > 1
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 0.34 * len(names) + 1.4), layout="constrained")
        ratios = [1.0, 2.2] if many else [1.0]
        axes = figure.subplots(1, len(ratios), width_ratios=ratios, squeeze=False)[0]
        means = [100.0 * float(line.shares[n].mean()) for n in names]
        bars = axes[0].barh(names, means, color=[COLOURS.get(n, _OTHER) for n in names])
        axes[0].bar_label(bars, fmt="%.1f %%", padding=3, fontsize=8)
        axes[0].axvline(0.0, color=_QUIET, linewidth=0.8)
        axes[0].margins(x=0.25)
        axes[0].invert_yaxis()
        axes[0].grid(axis="y", visible=False)
        axes[0].set_xlabel("%")
        axes[0].set_title("Mean share of each modality" if many else "Share of each modality")
        if many:
            x, label = _axis(line)
            for name in names:
                there = line.present.get(name, np.ones(len(x), dtype=bool))
                share = np.where(there, 100.0 * line.shares[name], np.nan)
                _line(axes[1], x, share, COLOURS.get(name, _OTHER), name)
            axes[1].set_title("Share over time")
            axes[1].set_ylabel("%")
            axes[1].set_xlabel(label)
            axes[1].margins(x=0.0)
        return _svg(figure)


def maps(line: Timeline, method: str) -> str:
    """Return the map of the windows, and the similarity of each with each."""
    x, label = _axis(line)
    pick = _spread(len(x), _MAP_POINTS)
    points, names = project(line.embeddings[pick], method)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 4.3), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot(points[:, 0], points[:, 1], color="#e4e7eb", linewidth=0.7, zorder=1)
        dots = left.scatter(
            points[:, 0],
            points[:, 1],
            c=x[pick],
            s=12,
            cmap="viridis",
            zorder=2,
            rasterized=len(pick) > _VECTOR_POINTS // 4,
        )
        if line.flag is not None and line.flag[pick].any():
            flagged = points[line.flag[pick]]
            left.scatter(
                flagged[:, 0],
                flagged[:, 1],
                s=34,
                facecolors="none",
                edgecolors=_ALARM,
                linewidths=0.9,
                zorder=3,
                label="alarm",
                rasterized=len(flagged) > _VECTOR_POINTS // 4,
            )
            left.legend(loc="best")
        left.set(title="Map of the windows", xlabel=names[0], ylabel=names[1])
        figure.colorbar(dots, ax=left, label=label, shrink=0.8)
        _heat(figure, right, line, x, label)
        return _svg(figure)


def values(line: Timeline) -> str:
    """Return the distribution of the fused vector's elements."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 2.1), layout="constrained")
        axes = figure.subplots()
        axes.hist(line.embeddings.ravel(), bins=80, color=COLOURS["camera_1"])
        axes.set(title="Elements of the fused vector", xlabel="value", ylabel="count")
        return _svg(figure)


def _heat(figure: Figure, axes: Axes, line: Timeline, x: FloatArray, label: str) -> None:
    pick = _spread(len(x), _HEAT_POINTS)
    directions = unit(line.embeddings[pick])
    when = x[pick]
    if (np.diff(when) <= 0.0).any():  # the clock jumped back: count windows instead
        when, label = pick.astype(np.float64), "window"
    image = axes.pcolormesh(
        when, when, directions @ directions.T, cmap="magma", shading="nearest", rasterized=True
    )
    axes.set_aspect("equal")
    axes.grid(visible=False)
    axes.set(title="Similarity of each window with each", xlabel=label, ylabel=label)
    figure.colorbar(image, ax=axes, label="cosine", shrink=0.8)


def _presence(axes: Axes, x: FloatArray, line: Timeline) -> None:
    """Draw one bar for each stream, broken where it is absent, marked where an alarm names it."""
    for row, (name, there) in enumerate(line.present.items()):
        axes.broken_barh(_spans(x, there), (row - 0.4, 0.6), color=COLOURS.get(name, _OTHER))
        if name in line.named:
            axes.broken_barh(_spans(x, line.named[name]), (row + 0.2, 0.25), color=_ALARM)
    axes.set_yticks(range(len(line.present)), list(line.present))
    axes.set_ylim(len(line.present) - 0.4, -0.6)
    axes.grid(visible=False)
    axes.set_title("Streams that entered the fused vector")


def _shade(rows: Sequence[Axes], x: FloatArray, flag: npt.NDArray[np.bool_] | None) -> None:
    for start, width in [] if flag is None else _spans(x, flag):
        for axes in rows:
            axes.axvspan(start, start + width, color=_ALARM, alpha=0.15, lw=0)


def _spans(x: FloatArray, there: npt.NDArray[np.bool_]) -> list[tuple[float, float]]:
    """Return (start, width) of each run of True, from half a step before to half a step after."""
    step = _usual_step(x)
    edges = np.flatnonzero(np.diff(np.concatenate(([0], there.astype(np.int8), [0]))))
    runs = zip(edges[::2], edges[1::2] - 1, strict=True)
    return [(float(x[a] - step / 2), float(x[b] - x[a] + step)) for a, b in runs]


def _line(axes: Axes, x: FloatArray, y: FloatArray, colour: str, label: str) -> None:
    gaps = np.flatnonzero(np.abs(np.diff(x)) > _GAP * _usual_step(x)) + 1
    axes.plot(
        np.insert(x, gaps, np.nan),
        np.insert(y, gaps, np.nan),
        color=colour,
        linewidth=1.2,
        label=label,
        rasterized=len(x) > _VECTOR_POINTS,
    )


def _axis(line: Timeline) -> tuple[FloatArray, str]:
    """Return where the windows stand on the axis of time, and its label."""
    if line.seconds is None:
        return np.arange(len(line.embeddings), dtype=np.float64), "window"
    if np.ptp(line.seconds) > 600.0:
        return line.seconds / 60.0, "time in minutes"
    return line.seconds, "time in seconds"


def _usual_step(x: FloatArray) -> float:
    return float(np.median(np.abs(np.diff(x)))) if len(x) > 1 else 1.0


def _spread(count: int, most: int) -> npt.NDArray[np.int64]:
    """Return at most `most` indices, evenly spread over `count`."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", dpi=150, metadata={"Date": None})
    return buffer.getvalue()
