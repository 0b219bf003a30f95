"""`llamactl releases`, and the release that `llamactl serve` says."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.conftest import Llamactl, running, shout


def test_a_release_is_made_current_listed_and_retired(llamactl: Llamactl) -> None:
    with running(shout) as url:
        assert "No release was named yet." in llamactl("-s", url, "releases", "list").err
        assert llamactl("-s", url, "releases", "use", "1").code == 0
        assert llamactl("-s", url, "releases", "use", "2", "--finish-within", "60").code == 0
        items = llamactl("-s", url, "releases", "list", "-o", "json").json["items"]
        assert [(one["release"], one["state"], one["tasks"]) for one in items] == [
            ("1", "finishing", 0),
            ("2", "current", 0),
        ]
        assert items[0]["finish_by"].endswith("Z")
        shown = llamactl("-s", url, "releases", "list").out
        assert "RELEASE" in shown
        assert "finishing" in shown
        assert llamactl("-s", url, "releases", "retire", "1").code == 0
        assert llamactl("-s", url, "releases", "retire", "1").code == 4
        assert llamactl("-s", url, "releases", "use", "3", "--now").code == 0
        assert llamactl("-s", url, "releases", "list", "-o", "name").out == "3\n"


def test_no_time_and_some_time_do_not_go_together(llamactl: Llamactl) -> None:
    assert llamactl("releases", "use", "1", "--now", "--finish-within", "5").code == 2


def test_render_says_values_and_what_is_to_be_done(llamactl: Llamactl, tmp_path: Path) -> None:
    file = tmp_path / "deployment.yml"
    file.write_text(
        "name: desk\nservices:\n  reader:\n    import-path: reader:reader\n"
        "    source: {type: docker, name: 'desk/reader:1.4'}\n"
    )
    ran = llamactl("deployments", "render", str(file), "--kubernetes", "-o", "json")
    assert ran.json["services"] == [
        {"name": "reader", "replicas": 1, "image": {"repository": "desk/reader", "tag": "1.4"}}
    ]
    text = llamactl("deployments", "render", str(file), "--kubernetes").out
    assert "# It asks for no tokens" in text
    assert "tag: '1.4'" in text
    assert llamactl("deployments", "render", str(file)).code == 2


@pytest.mark.parametrize("command", [["serve"], ["dev"]])
def test_images_are_not_run_here(llamactl: Llamactl, tmp_path: Path, command: list[str]) -> None:
    file = tmp_path / "deployment.yml"
    file.write_text("name: desk\nservices: {a: {import-path: 'a:b', source: {type: docker, name: 'desk:1'}}}\n")
    ran = llamactl(*command, str(file))
    assert ran.code == 2
    assert "llamactl deployments render FILE --kubernetes" in ran.err
