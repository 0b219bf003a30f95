"""A timeline as an SVG document: a row for each hop, its bar split by what it did, readable in light and dark.

Every span says in words what it is, so that no colour is needed to tell them apart. Long gaps are not cut here: who
has a browser can look closer.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from llama_deploy.cli.output import duration
from llama_deploy.cli.timeline import Hop, Timeline
from llama_deploy.cli.timeline_picture import WORDS
from llama_deploy.orchestrators.drawing.texts import text_width
from llama_deploy.orchestrators.drawing.words import clean

ROW, BAR, MARGIN, BARS = 26.0, 14.0, 20.0, 640.0
"""Pixels: of a row, of a bar in it, around everything, of all time."""
NAME_CHARACTERS_MAX = 40
TICKS = 4
SPAN_MIN = 2.0

_COLOURS = {
    "queued": "#b9c0ca", "sent": "#8fa3bf", "running": "#2f8f46", "delayed": "#d9a400", "input": "#c79bd9",
    "failed": "#c03030", "lost": "#e07a30",
}  # fmt: skip
STYLE = """\
svg { color-scheme: light dark }
.page { fill: #ffffff }
text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #1f2430 }
.faint { fill: #59616e; font-size: 11px }
.grid { stroke: #d9dde3 }
.lost, .failed { stroke: #7a1010; stroke-width: 1.5px }
.queued, .delayed, .input { opacity: .75 }
@media (prefers-color-scheme: dark) {
.page { fill: #14171c }
text { fill: #e6e8ec }
.faint { fill: #a9b0bb }
.grid { stroke: #333a44 }
}"""


def timeline_svg(timeline: Timeline) -> str:
    """The document."""
    hops = list(timeline.hops.values())
    names = [_name(hop) for hop in hops]
    left = MARGIN + max((text_width(name, 12.0) for name in names), default=0.0) + 14
    width = left + BARS + 150 + MARGIN
    kinds = [kind for kind in WORDS if any(span.kind == kind for hop in hops for span in hop.spans)]
    height = 2 * MARGIN + 20 + ROW * len(hops) + (28 if kinds else 0)
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    told = "; ".join(f"{name}: {_figures(hop)}" for name, hop in zip(names, hops, strict=True))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="title" aria-describedby="desc">',
        '<title id="title">timeline</title>',
        f'<desc id="desc">{escape(told)}</desc><style>{STYLE}</style>',
        '<rect class="page" width="100%" height="100%"/>',
        *_axis(timeline, left, height - (28 if kinds else 0) - MARGIN),
    ]
    per_s = BARS / max(timeline.seconds, 1e-3)
    for number, (name, hop) in enumerate(zip(names, hops, strict=True)):
        top = MARGIN + 20 + ROW * number
        lines.append(f'<text x="{MARGIN:g}" y="{top + 15:g}">{escape(name)}</text>')
        lines += _bars(hop, timeline.began_at, left, top + (ROW - BAR) / 2 - 2, per_s)
        lines.append(f'<text class="faint" x="{left + BARS + 12:.1f}" y="{top + 15:g}">{escape(_figures(hop))}</text>')
    x = MARGIN
    for kind in kinds:
        y = height - MARGIN - 8
        lines.append(f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="12" height="12" fill="{_COLOURS[kind]}"/>')
        lines.append(f'<text class="faint" x="{x + 17:.1f}" y="{y + 10:.1f}">{WORDS[kind]}</text>')
        x += 17 + text_width(WORDS[kind], 11.0) + 18
    return "\n".join([*lines, "</svg>"]) + "\n"


def _bars(hop: Hop, began_at: float, left: float, y: float, per_s: float) -> Iterator[str]:
    """What one hop did, each span as wide as it was long, and never too thin to be seen."""
    for span in sorted(hop.spans, key=lambda span: span.kind not in ("queued", "delayed")):
        x = left + (span.begin_at - began_at) * per_s
        wide = max(SPAN_MIN, span.seconds * per_s)
        told = f"{WORDS[span.kind]} {duration(span.seconds)}" + (f", attempt {span.attempt}" * (span.attempt > 1))
        place = f'x="{min(x, left + BARS - wide):.1f}" y="{y:.1f}" width="{wide:.1f}" height="{BAR:g}"'
        yield f'<rect class="{span.kind}" {place} fill="{_COLOURS[span.kind]}"><title>{escape(told)}</title></rect>'


def _axis(timeline: Timeline, left: float, bottom: float) -> Iterator[str]:
    for number in range(TICKS + 1):
        x = left + BARS * number / TICKS
        shown = duration(timeline.seconds * number / TICKS) if number else "0"
        yield f'<path class="grid" d="M{x:.1f} {MARGIN + 18:g}V{bottom:.1f}"/>'
        yield f'<text class="faint" text-anchor="middle" x="{x:.1f}" y="{MARGIN + 10:g}">{shown}</text>'


def _name(hop: Hop) -> str:
    name = clean(f"{hop.tag} · {hop.service}" if hop.tag and hop.tag.rpartition("/")[2] != hop.service else hop.service)
    if hop.tag and hop.tag != hop.service and hop.tag.rpartition("/")[2] == hop.service:
        name = clean(hop.tag)
    return name if len(name) <= NAME_CHARACTERS_MAX else name[: NAME_CHARACTERS_MAX - 1] + "…"


def _figures(hop: Hop) -> str:
    """How long it took, how it ended, and in which attempt."""
    took = duration(sum(span.seconds for span in hop.spans))
    ended = {"answered": "", "": "goes on"}.get(hop.ended, hop.ended)
    return " · ".join(filter(None, [took, ended, f"attempt {hop.attempt}" if hop.attempt > 1 else ""]))
