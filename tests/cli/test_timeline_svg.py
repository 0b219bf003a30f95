"""Timelines as SVG: a row for each hop, a bar for each span, all of it in words as well."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

from tests.cli.conftest import Llamactl

from llama_deploy.cli.timeline import Hop, Span, Timeline
from llama_deploy.cli.timeline_svg import timeline_svg

SVG = "{http://www.w3.org/2000/svg}"


def timeline(*hops: Hop) -> Timeline:
    return Timeline({hop.step_id: hop for hop in hops}, began_at=100.0, ended_at=110.0)


def test_a_bar_for_each_span_where_it_was() -> None:
    spans = [Span("queued", 100.0, 105.0), Span("lost", 105.0, 106.0), Span("running", 107.0, 110.0, 2)]
    drawn = ET.fromstring(
        timeline_svg(timeline(Hop("t:1", "write", "draft/write", 110.0, attempt=2, ended="answered", spans=spans)))
    )
    bars = {bar.get("class"): bar for bar in drawn.iter(f"{SVG}rect") if bar.find(f"{SVG}title") is not None}
    assert float(bars["queued"].get("width", 0)) == 320.0
    assert float(bars["running"].get("x", 0)) - float(bars["queued"].get("x", 0)) == 448.0
    assert bars["running"].findtext(f"{SVG}title") == "ran 3.0 s, attempt 2"
    assert bars["lost"].findtext(f"{SVG}title") == "was lost with its process 1.0 s"
    texts = [text.text for text in drawn.iter(f"{SVG}text")]
    assert "draft/write" in texts
    assert "9.0 s · attempt 2" in texts
    assert {"waited", "ran", "was lost with its process"} <= set(texts)
    assert drawn.findtext(f"{SVG}desc") == "draft/write: 9.0 s · attempt 2"


def test_names_are_nobodys_code_and_nothing_is_needed() -> None:
    drawn = ET.fromstring(timeline_svg(timeline(Hop("t:1", "<b>&\x00", "a" * 90 + "]]>", 100.0))))
    assert not list(drawn.iter(f"{SVG}b"))
    ET.fromstring(timeline_svg(Timeline()))


def test_the_command_writes_it(ctl: Llamactl, tmp_path: Path) -> None:
    task_id = ctl("run", "flaky", "-o", "name").out.strip()
    file = tmp_path / "timeline.svg"
    assert ctl("tasks", "timeline", task_id, "--svg", str(file)).err == f"drawn in {file}\n"
    assert "attempt 2" in "".join(ET.fromstring(file.read_text(encoding="utf-8")).itertext())
    assert ctl("tasks", "timeline", task_id, "--svg", "-").out.startswith("<svg ")
