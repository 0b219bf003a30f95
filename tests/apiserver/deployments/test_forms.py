"""Multipart forms: those of the usual clients are read, whatever is no form is refused."""

from __future__ import annotations

import contextlib

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as some

from llama_deploy.apiserver.deployments.http.forms import read_form
from llama_deploy.client.deployments import _form
from llama_deploy.errors import InvalidRequestError


@given(some.binary(max_size=200), some.text(max_size=20))
def test_what_clients_send_is_what_is_read(data: bytes, name: str) -> None:
    request = httpx2.Request("POST", "http://x", files={"config_file": ("a.yml", data), "archive": ("b", b"\r\n--x")})
    for media, body in (
        (request.headers["content-type"], request.read()),
        _form({"config_file": (name, data), "archive": ("b", b"\r\n--x")}),
    ):
        form = read_form(media, body)
        assert form["config_file"].data == data
        assert form["archive"].data == b"\r\n--x"
    assert read_form(request.headers["content-type"], request.read())["config_file"].file_name == "a.yml"


@pytest.mark.parametrize("media", ["", "text/plain", "multipart/form-data", "multipart/mixed; boundary=x"])
def test_other_media_are_no_forms(media: str) -> None:
    with pytest.raises(InvalidRequestError):
        read_form(media, b"--x\r\n\r\n--x--")


@given(some.binary(max_size=300))
def test_rubbish_is_refused_and_nothing_worse(rubbish: bytes) -> None:
    with contextlib.suppress(InvalidRequestError):
        read_form("multipart/form-data; boundary=x", b"--x\r\n" + rubbish + b"\r\n--x--")
