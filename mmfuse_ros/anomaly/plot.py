"""A timeline of a fit: what each normal window scored while its recording was left out."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmfuse_ros.anomaly.debounce import Debounce
from mmfuse_ros.anomaly.detector import ALL_PHASES, Detector
from mmfuse_ros.anomaly.recordings import Features
from mmfuse_ros.errors import InputError

FloatArray = npt.NDArray[np.floating]
Lane = tuple[str, FloatArray]

_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 1100.0, 110.0, 90.0, 20.0, 34.0
_STYLE = (
    "body{font:14px system-ui,sans-serif;margin:2em;max-width:1200px}"
    "text{font:12px system-ui,sans-serif;fill:#333}.axis{stroke:#999;fill:none}"
    ".score{fill:#2a6f97}.flag{fill:#d62828}.limit{stroke:#d62828;stroke-dasharray:5 3}"
    ".alarm{fill:#d62828;opacity:.18}.edge{stroke:#ddd}"
)


def plot_fit(
    detector: Detector,
    recordings: Sequence[Features],
    path: str | os.PathLike[str],
    *,
    hop_s: float | None = None,
) -> None:
    """Write the left-out scores of a fit, with threshold and alarms, as .html or .png.

    Args:
        detector: fitted on `recordings`.
        recordings: those very recordings; their lengths place the borders between them.
        path: HTML is self-contained; PNG needs matplotlib.
        hop_s: seconds between windows; windows are numbered where it is None.

    Raises:
        InputError: the path ends in neither .html nor .png.
        OSError: the file cannot be written.
    """
    path = Path(path)
    calibration = detector.calibrations[ALL_PHASES]
    lengths = [max((len(np.asarray(v)) for v in r.values()), default=0) for r in recordings]
    scale = hop_s or 1.0
    x = calibration.row * scale
    borders = np.cumsum(lengths)[:-1] * scale
    whole = -np.log10(calibration.left_out_p())
    lanes: list[Lane] = [("all", whole)]
    for column, name in enumerate(calibration.modalities):
        lanes.append((name, -np.log10(calibration.tails[name].p(calibration.values[:, column]))))
    limit = float(-np.log10(detector.alpha))
    alarms = _alarms(x, whole >= limit, calibration.unit)
    unit = "seconds" if hop_s else "windows"
    if path.suffix == ".html":
        lines = detector.promise.lines()
        path.write_text(_page(x, lanes, limit, alarms, borders, unit, lines), encoding="utf-8")
    elif path.suffix == ".png":
        _png(path, x, lanes, limit, alarms, borders, unit)
    else:
        raise InputError(f"the plot's name must end in .html or .png, got {path.name}")


def _alarms(
    x: FloatArray, flags: npt.NDArray[np.bool_], unit: npt.NDArray[np.intp]
) -> list[tuple[float, float]]:
    """Return begin and end of each alarm after the debounce, every unit for itself."""
    spans = []
    for name in np.unique(unit):
        rows = np.flatnonzero(unit == name)
        debounce = Debounce()
        begin = None
        for row in rows:
            active = debounce.update(bool(flags[row]))
            if active and begin is None:
                begin = float(x[row])
            elif not active and begin is not None:
                spans.append((begin, float(x[row])))
                begin = None
        if begin is not None:
            spans.append((begin, float(x[rows[-1]])))
    return spans


def _page(
    x: FloatArray,
    lanes: Sequence[Lane],
    limit: float,
    alarms: Sequence[tuple[float, float]],
    borders: FloatArray,
    unit: str,
    lines: Sequence[str],
) -> str:
    end = max(float(x.max()), 1e-9) if len(x) else 1.0
    high = max(limit * 1.5, max((float(np.nanmax(v)) for _, v in lanes), default=limit)) * 1.05
    span = _WIDTH - _LEFT - 10.0

    def at(value: float) -> float:
        return _LEFT + span * value / end

    parts = []
    for number, (name, values) in enumerate(lanes):
        top = _TOP + number * (_HEIGHT + _GAP)
        floor = top + _HEIGHT

        def down(value: float, floor: float = floor) -> float:
            return floor - _HEIGHT * min(value, high) / high

        if number == 0:
            for begin, stop in alarms:
                parts.append(
                    f'<rect class="alarm" x="{at(begin):.1f}" y="{top:.1f}" '
                    f'width="{max(at(stop) - at(begin), 2.0):.1f}" height="{_HEIGHT:.0f}"/>'
                )
        parts += [
            f'<line class="edge" x1="{at(b):.1f}" x2="{at(b):.1f}" y1="{top:.1f}" '
            f'y2="{floor:.1f}"/>'
            for b in borders
        ]
        parts.append(
            f'<text x="4" y="{top + 14:.1f}">{html.escape(name)}</text>'
            f'<path class="axis" d="M{_LEFT} {top:.1f}V{floor:.1f}H{_WIDTH - 10:.1f}"/>'
            f'<line class="limit" x1="{_LEFT}" x2="{_WIDTH - 10:.1f}" y1="{down(limit):.1f}" '
            f'y2="{down(limit):.1f}"/>'
            f'<text x="4" y="{down(limit) + 4:.1f}">p = {10**-limit:.3g}</text>'
        )
        parts += [
            f'<circle class="{"flag" if value >= limit else "score"}" cx="{at(px):.1f}" '
            f'cy="{down(value):.1f}" r="1.6"/>'
            for px, value in zip(x.tolist(), values.tolist(), strict=True)
            if value == value
        ]
    height = _TOP + len(lanes) * (_HEIGHT + _GAP) + 20
    promise = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>Fit</title>"
        f"<style>{_STYLE}</style><h1>Normal operation, each recording left out in turn</h1>"
        f"{promise}<p>Minus log10 p by {unit}; dashed: threshold; red: flagged; shaded: alarms "
        f"after the debounce; grey: borders between recordings.</p>"
        f'<svg viewBox="0 0 {_WIDTH:.0f} {height:.0f}" width="100%">{"".join(parts)}'
        f'<text x="{_WIDTH - 160:.0f}" y="{height - 12:.0f}">0 to {end:.0f} {unit}</text>'
        "</svg></html>"
    )


def _png(
    path: Path,
    x: FloatArray,
    lanes: Sequence[Lane],
    limit: float,
    alarms: Sequence[tuple[float, float]],
    borders: FloatArray,
    unit: str,
) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("a .png plot needs matplotlib; install it or ask for .html") from error
    figure = Figure(figsize=(12, 1.6 * len(lanes) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = np.atleast_1d(figure.subplots(len(lanes), 1, sharex=True))
    for axis, (name, values) in zip(axes, lanes, strict=True):
        odd = values >= limit
        axis.plot(x[~odd], values[~odd], ".", ms=3, color="#2a6f97")
        axis.plot(x[odd], values[odd], ".", ms=4, color="#d62828")
        axis.axhline(limit, color="#d62828", ls="--", lw=1)
        for border in borders:
            axis.axvline(border, color="#ddd", lw=0.8)
        axis.set_ylabel(f"{name}\n-log10 p")
    for begin, stop in alarms:
        axes[0].axvspan(begin, stop, color="#d62828", alpha=0.18)
    axes[-1].set_xlabel(unit)
    figure.savefig(path)
