"""Where one service of a deployment looks for its control plane: what is said wins over the file, the nearer first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.conftest import Llamactl

FILE = "name: demo\ncontrol-plane: {place}\nservices:\n  shout: {{import-path: 'services:shout'}}\n"
FROM_ENVIRONMENT = "http://environment:1"

Serve = Callable[..., str]


@pytest.fixture
def serve(llamactl: Llamactl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Serve:
    """Serve `shout` of a file whose control plane listens at `place`; returns the URL, or what was said instead."""
    urls: list[str] = []

    def serve_service(*_args: object, control_plane_url: str, **_options: object) -> str:
        return control_plane_url

    monkeypatch.setattr("llama_deploy.apiserver.service_process.serve_service", serve_service)
    monkeypatch.setattr("llama_deploy.cli.serve.run_until_done", urls.append)

    def run(*args: str, place: str, before: tuple[str, ...] = ()) -> str:
        file = tmp_path / "deployment.yml"
        file.write_text(FILE.format(place=place))
        ran = llamactl(*before, "serve", str(file), "--only", "shout", *args)
        assert ran.code == (0 if urls else 2)
        return urls.pop() if urls else ran.err

    return run


@pytest.mark.parametrize(
    ("place", "url"),
    [
        ("{}", "http://127.0.0.1:8000"),
        ("{port: 9000}", "http://127.0.0.1:9000"),
        ("{host: plane.internal, port: 9000}", "http://plane.internal:9000"),
        ("{host: 0.0.0.0}", "http://127.0.0.1:8000"),
        ("{host: '::', port: 9000}", "http://[::1]:9000"),
        ("{host: '::1', port: 9000}", "http://[::1]:9000"),
    ],
)
def test_it_is_where_the_file_has_it_listen(serve: Serve, place: str, url: str) -> None:
    assert serve(place=place) == url


def test_what_is_said_wins_over_the_file(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    place = "{port: 9000}"
    monkeypatch.setenv("LLAMA_DEPLOY_CONTROL_PLANE_URL", FROM_ENVIRONMENT)
    assert serve(place=place) == FROM_ENVIRONMENT
    assert serve("-s", "http://option:2", place=place) == "http://option:2"
    assert serve(before=("-s", "http://option:2"), place=place) == "http://option:2"
    assert serve("-s", "http://option:2", "--control-plane", "http://flag:3", place=place) == "http://flag:3"


def test_even_if_it_is_the_default(serve: Serve) -> None:
    assert serve("-s", "http://127.0.0.1:8000", place="{port: 9000}") == "http://127.0.0.1:8000"


def test_any_free_port_is_no_address(serve: Serve) -> None:
    said = serve(place="{port: 0}")
    assert "it is not known where the control plane is" in said
    assert "Fix:  --control-plane URL" in said
    assert serve("--control-plane", "http://flag:3", place="{port: 0}") == "http://flag:3"
