"""The text that monitoring systems read: names, labels, and what has to be escaped in them."""

from __future__ import annotations

from llama_deploy.control_plane.http.exposition import Measure, exposition


def test_each_measure_has_its_kind_and_its_samples_with_labels_escaped() -> None:
    measures = [
        Measure("a_total", "How many.", [({}, 3)], "counter"),
        Measure("b", "By name.", [({"name": 'x"y\\z\n', "of": "w"}, True), ({"name": "n"}, 0.25)]),
    ]
    assert bytes(exposition(measures).body).decode().splitlines() == [
        "# HELP a_total How many.",
        "# TYPE a_total counter",
        "a_total 3",
        "# HELP b By name.",
        "# TYPE b gauge",
        'b{name="x\\"y\\\\z\\n",of="w"} 1',
        'b{name="n"} 0.25',
    ]
