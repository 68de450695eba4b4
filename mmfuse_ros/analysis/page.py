"""The HTML page of a report: one file, no script, nothing loaded from anywhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import datetime, timezone
from html import escape
from typing import Any

from mmfuse_ros.analysis import plots
from mmfuse_ros.analysis.contribution import SHAPLEY
from mmfuse_ros.analysis.recording import Timeline
from mmfuse_ros.samples import NS_PER_S

_CSS = """
:root { color-scheme: light; }
body { margin: 0; background: #f5f7fa; color: #1f2933;
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 2px; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 0 0 6px; }
.quiet { color: #52606d; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin: 20px 0; }
.card { background: #fff; border: 1px solid #e4e7eb; border-radius: 8px; padding: 10px 16px;
        min-width: 108px; flex: 1; }
.card b { display: block; font-size: 20px; white-space: nowrap;
          font-variant-numeric: tabular-nums; }
.card.alarm b { color: #b84a00; }
section { background: #fff; border: 1px solid #e4e7eb; border-radius: 8px; padding: 16px 18px;
          margin: 16px 0; }
section p { margin: 6px 0 0; color: #52606d; font-size: 14px; max-width: 110ch; }
img { display: block; width: 100%; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 5px 10px; border-bottom: 1px solid #e4e7eb; }
th:first-child, td:first-child { text-align: left; }
thead th { color: #52606d; font-weight: 600; }
tbody tr:first-child td { font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 10px 0 0;
     font-size: 14px; }
dt { color: #52606d; } dd { margin: 0; overflow-wrap: anywhere; }
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""
_COLUMNS = ("dimension", "norm", "mean", "std", "min", "max", "sparsity")
_SHAPLEY_TEXT = (
    "Exact Shapley values: what each modality adds on average, over all orders in which they "
    "could arrive, to taking the fused vector from “nothing known” to where it is. "
    "The shares of a window sum to 100 %; a negative one pulls against the others, and an absent "
    "stream counts 0."
)
_NORM_TEXT = (
    "Shares of the squared length of the modalities’ own vectors: the fusion head was not at "
    "hand. They say how large its inputs are, not what it makes of them."
)


def render(
    report: Mapping[str, Any],
    line: Timeline,
    *,
    title: str,
    details: Mapping[str, str],
    method: str,
) -> str:
    """Return the page; every text in it is escaped."""
    windows = len(line.embeddings)
    shapley = report["contribution_method"] == SHAPLEY
    parts = [f"<h1>{escape(title)}</h1>", _lead(report, details), _cards(report, line)]
    if windows > 1:
        parts.append(
            _figure(
                plots.over_time(line),
                "Similarity over time",
                "Cosine of each window’s fused vector to the mean direction of all windows, and "
                "to the window before it. A step down of both marks a sudden change, of the "
                "first alone a slow drift. Alarms of the anomaly monitor are shaded; a mark under "
                "a stream: an alarm names it as what stands out most.",
            )
        )
    parts.append(
        _figure(
            plots.contribution(line),
            "Contribution of each modality",
            _SHAPLEY_TEXT if shapley else _NORM_TEXT,
        )
    )
    if windows > 2:
        text = (
            "Left: the fused vectors on the plane that keeps most of their variance, in the "
            "order of time. "
            if method == "pca"
            else "Left: t-SNE of the fused vectors. Neighbours are alike; distances between "
            "groups mean nothing. "
        )
        parts.append(
            _figure(
                plots.maps(line, method),
                "Map and self-similarity",
                text + "Right: bright squares on the diagonal are phases in which little changes; "
                "bright ones off it are phases that return.",
            )
        )
    parts.append(
        _figure(
            plots.values(line),
            "Values",
            "One narrow peak at zero hints at an encoder that says nothing.",
        )
    )
    parts.append(_table(report))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{_CSS}</style></head>\n"
        f"<body><main>\n{chr(10).join(parts)}\n</main></body></html>\n"
    )


def _lead(report: Mapping[str, Any], details: Mapping[str, str]) -> str:
    rows = dict(details)
    if "recording" in report:
        start = datetime.fromtimestamp(report["recording"]["start_ns"] / NS_PER_S, timezone.utc)
        rows = {"first window": start.strftime("%Y-%m-%d %H:%M:%S UTC"), **rows}
    items = "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in rows.items())
    return f"<dl>{items}</dl>" if items else ""


def _cards(report: Mapping[str, Any], line: Timeline) -> str:
    windows = len(line.embeddings)
    cards = [("window" if windows == 1 else "windows", str(windows), "")]
    cards.append(("dimension", str(report["fused"]["dimension"]), ""))
    cards.append(("modalities", str(len(line.shares)), ""))
    recording = report.get("recording")
    if recording:
        duration_s = recording["duration_s"]
        cards.append(("duration", _duration(duration_s), ""))
        if duration_s > 0.0:
            rate_hz = (windows - 1) / duration_s
            cards.append(("windows a second", f"{rate_hz:.3g}", ""))
        flagged = recording["flagged"]
        cards.append(("windows in alarm", str(flagged), " alarm" if flagged else ""))
    return (
        '<div class="cards">'
        + "".join(
            f'<div class="card{kind}"><b>{escape(value)}</b>'
            f'<span class="quiet">{escape(name)}</span></div>'
            for name, value, kind in cards
        )
        + "</div>"
    )


def _figure(svg: str, name: str, text: str) -> str:
    data = base64.b64encode(svg.encode()).decode("ascii")
    # As an image: the ids of several SVG files in one document would collide.
    return (
        f'<section><img alt="{escape(name)}" src="data:image/svg+xml;base64,{data}">'
        f"<p>{escape(text)}</p></section>"
    )


def _table(report: Mapping[str, Any]) -> str:
    presence = report.get("recording", {}).get("present", {})
    head = "".join(f"<th>{name}</th>" for name in ("", *_COLUMNS))
    head += "<th>present</th>" if presence else ""
    body = ""
    for stats in (report["fused"], *report["modalities"].values()):
        cells = [escape(str(stats["modality"])), str(stats["dimension"])]
        cells += [f"{stats[name]:.4g}" for name in _COLUMNS[1:-1]]
        cells.append(f"{100.0 * stats['sparsity']:.1f} %")
        if presence:
            share = presence.get(stats["modality"])
            cells.append("" if share is None else f"{100.0 * share:.1f} %")
        body += "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    return (
        "<section><h2>Statistics</h2>"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
        "<p>Over all elements of all windows; norm is the mean length of a vector, sparsity the "
        "share of elements closer to zero than 0.01.</p></section>"
    )


def _duration(seconds: float) -> str:
    if seconds < 120.0:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
