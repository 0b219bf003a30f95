"""A picture as a standalone SVG document: no script, no font, nothing that is fetched.

Readable in light and dark; a state is a colour, a sign and a word, and all of it stands in the description as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from llama_deploy.orchestrators.drawing.layout import Box, Layout, Way, laid_out
from llama_deploy.orchestrators.drawing.texts import LABEL, NOTE
from llama_deploy.orchestrators.drawing.words import clean, is_group, label_of, lines_in_words, status_of
from llama_deploy.orchestrators.picture import Picture

MARGIN = 24.0

STYLE = """\
svg { color-scheme: light dark }
.page { fill: #ffffff }
text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #1f2430 }
.node text, .edge text { text-anchor: middle }
text.note, text.status { font-size: 11px; fill: #59616e }
text.status { font-weight: 600; fill: #1f2430 }
text.title { font-weight: 600 }
.edge text { font-size: 11.5px; fill: #59616e; paint-order: stroke; stroke: #ffffff; stroke-width: 4px }
.shape { fill: #f4f5f7; stroke: #7a8494; stroke-width: 1.2px }
.part > .shape { fill: #7a8494; fill-opacity: .07; stroke: #9aa3b0 }
.group > .shape { fill: none; stroke: #c3c9d2; stroke-dasharray: 2 3 }
.icon { fill: none; stroke: #59616e; stroke-width: 1.4px }
.edge path { fill: none; stroke: #8a93a0; stroke-width: 1.3px }
.edge.dashed path { stroke-dasharray: 5 4 }
.edge.unused path { opacity: .5 }
.edge.taken path { stroke: #2f6f46; stroke-width: 2.4px }
.tip { fill: #8a93a0 } .tip.went { fill: #2f6f46 }
.queued > .shape { fill: #eef1f5; stroke-dasharray: 3 2 }
.running > .shape { fill: #dbe9ff; stroke: #2a6fdb; stroke-width: 2.4px }
.waiting > .shape { fill: #fff2cc; stroke: #9a7400; stroke-width: 2.4px }
.done > .shape { fill: #ddf3e0; stroke: #2f8f46 }
.failed > .shape { fill: #fbdcdc; stroke: #c03030; stroke-width: 2px }
.stopped > .shape { fill: #e9e4f2; stroke: #6f5a96 }
.skipped > .shape { fill: none; stroke: #9aa3b0; stroke-dasharray: 5 4 }
.skipped > text { fill: #6b7380 }
.part.done > .shape, .part.running > .shape, .part.waiting > .shape, .part.failed > .shape { fill-opacity: .25 }
@media (prefers-color-scheme: dark) {
.page { fill: #14171c }
text, text.status { fill: #e6e8ec }
text.note { fill: #a9b0bb }
.edge text { fill: #a9b0bb; stroke: #14171c }
.shape { fill: #262b34; stroke: #77808d }
.icon { stroke: #a9b0bb }
.edge.taken path { stroke: #63c284 } .tip.went { fill: #63c284 }
.queued > .shape { fill: #20252d }
.running > .shape { fill: #17345f; stroke: #6ea8ff }
.waiting > .shape { fill: #4a3c0c; stroke: #e0b93c }
.done > .shape { fill: #1a3d25; stroke: #55b873 }
.failed > .shape { fill: #551f1f; stroke: #f08080 }
.stopped > .shape { fill: #322a45; stroke: #a896d0 }
.skipped > .shape { fill: none; stroke: #77808d }
.skipped > text { fill: #9aa2ae }
}"""

_TIPS = """\
<defs><marker id="tip" viewBox="0 0 8 8" refX="7.4" refY="4" markerWidth="8" markerHeight="8" \
markerUnits="userSpaceOnUse" orient="auto-start-reverse"><path class="tip" d="M0 0 8 4 0 8z"/></marker>\
<marker id="went" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="9" markerHeight="9" \
markerUnits="userSpaceOnUse" orient="auto-start-reverse"><path class="tip went" d="M0 0 8 4 0 8z"/></marker></defs>"""


def svg(picture: Picture) -> str:
    """The document."""
    layout = laid_out(picture)
    head = 26.0 if picture.title else 0.0
    title = clean(picture.title)
    width = max(layout.width, 8.0 * len(title)) + 2 * MARGIN
    height = layout.height + head + 2 * MARGIN
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="title" aria-describedby="desc">',
        f'<title id="title">{escape(title or "graph")}</title>',
        f'<desc id="desc">{escape(lines_in_words(picture))}</desc>',
        f"<style>{STYLE}</style>{_TIPS}",
        '<rect class="page" width="100%" height="100%"/>',
    ]
    if title:
        parts.append(f'<text class="title" x="{MARGIN:g}" y="{MARGIN + 4:g}">{escape(title)}</text>')
    left = (width - layout.width) / 2
    parts += _level(layout, left, MARGIN + head, live=picture.live)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _level(layout: Layout, left: float, top: float, *, live: bool) -> Iterator[str]:
    """Everything of one level, at its place: boxes that others are in, ways, and what stands on them."""
    for box in layout.boxes:
        yield from _box(box, left, top, live=live)
    for way in layout.ways:
        yield _way(way, left, top, live=live)


def _box(box: Box, left: float, top: float, *, live: bool) -> Iterator[str]:
    node = box.node
    x, y = left + box.x, top + box.y
    kind = "group" if is_group(node) else "part" if node.inside is not None else node.kind
    told = ": ".join(filter(None, [label_of(node), status_of(node)])) if kind != "group" else ""
    title = f"<title>{escape(told)}</title>" if told else ""
    yield f'<g class="node {kind}{" " + node.state if node.state else ""}">{title}{_shape(box, x, y)}'
    if box.within is None:
        yield from _texts(box, x, y)
    else:
        for style, text, anchor, at in (
            ("title", box.texts.title, "start", x + 12),
            ("status", box.texts.status, "end", x + box.width - 12),
        ):
            place = f'style="text-anchor:{anchor}" x="{at:.1f}" y="{y + 17:.1f}"'
            yield f'<text class="{style}" {place}>{escape(text)}</text>' if text else ""
    yield "</g>"
    if box.within is not None:
        yield from _level(box.within, x + (box.width - box.within.width) / 2, y + box.top, live=live)


def _shape(box: Box, x: float, y: float) -> str:
    """The outline of a node, and the sign of what it is."""
    width, height, kind = box.width, box.height, box.node.kind
    if kind == "choice":
        tip, middle = 12.0, y + height / 2
        ends = [(x, middle), (x + tip, y), (x + width - tip, y), (x + width, middle)]
        ends += [(x + width - tip, y + height), (x + tip, y + height)]
        return f'<polygon class="shape" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in ends)}"/>'
    radius = 18.0 if kind in ("start", "end") else 14.0 if kind in ("person", "time") else 6.0
    size = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    rect = f'<rect class="shape" {size} rx="{min(radius, height / 2):g}"/>'
    a, b = x + 18, y + height / 2
    if box.within is None and kind == "person":
        head = f'<circle class="icon" cx="{a:.1f}" cy="{b - 4:.1f}" r="3.6"/>'
        return f'{rect}{head}<path class="icon" d="M{a - 6:.1f} {b + 8:.1f}a6 7 0 0 1 12 0z"/>'
    if box.within is None and kind == "time":
        face = f'<circle class="icon" cx="{a:.1f}" cy="{b:.1f}" r="7"/>'
        return f'{rect}{face}<path class="icon" d="M{a:.1f} {b - 4:.1f}v4l3 2"/>'
    return rect


def _texts(box: Box, x: float, y: float) -> Iterator[str]:
    lines = box.texts.lines
    at = y + (box.height - sum(height for _, _, height in lines)) / 2
    middle = x + box.width / 2 + (10 if box.node.kind in ("person", "time") else 0)
    for kind, text, height in lines:
        size = LABEL if kind == "label" else NOTE
        yield f'<text class="{kind}" x="{middle:.1f}" y="{at + (height + size * 0.72) / 2:.1f}">{escape(text)}</text>'
        at += height


def _way(way: Way, left: float, top: float, *, live: bool) -> str:
    points = [(left + x, top + y) for x, y in way.points]
    edge = way.edge
    words = ["edge", "dashed" if edge.dashed or edge.back else ""]
    words.append("taken" if edge.taken else "unused" if live else "")
    tip = "went" if edge.taken else "tip"
    begin = f' marker-start="url(#{tip})"' if way.both else ""
    (x, y), rest = points[0], points[1:]
    path = f"M{x:.1f} {y:.1f}"
    if edge.source == edge.target:
        (far, _), (x2, y2) = rest
        path += f"C{far + 6:.1f} {y - 6:.1f} {far + 6:.1f} {y2 + 6:.1f} {x2:.1f} {y2:.1f}"
    else:
        for x2, y2 in rest:
            if abs(x2 - x) < 0.5:  # noqa: PLR2004 - less than anybody sees
                path += f"L{x2:.1f} {y2:.1f}"
            else:
                half = (y + y2) / 2
                path += f"C{x:.1f} {half:.1f} {x2:.1f} {half:.1f} {x2:.1f} {y2:.1f}"
            x, y = x2, y2
    went = f", taken {edge.taken}x" if edge.taken else ""
    told = f"{clean(edge.source)} to {clean(edge.target)}{': ' + clean(edge.label) if edge.label else ''}{went}"
    label = ""
    if way.label:
        label = f'<text x="{left + way.label_at[0]:.1f}" y="{top + way.label_at[1] + 4:.1f}">{escape(way.label)}</text>'
    style = " ".join(filter(None, words))
    drawn = f'<path d="{path}" marker-end="url(#{tip})"{begin}/>'
    return f'<g class="{style}"><title>{escape(told)}</title>{drawn}{label}</g>'
