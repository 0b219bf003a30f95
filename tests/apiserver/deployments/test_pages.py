"""Pages of deployments: built with a version, served from their files or by a process, over HTTP and WebSockets."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.apiserver.deployments.api_server import ApiServer, running, write_deployment
from tests.support import PROCESS_S, eventually
from websockets.asyncio.client import connect

from llama_deploy.apiserver.deployment_file import parse_deployment_file
from llama_deploy.errors import DeploymentFileError, SourceError

pytestmark = pytest.mark.slow

PAGE = """\
import asyncio, os
from http import HTTPStatus
from websockets.asyncio.server import serve

async def talk(socket):
    async for text in socket:
        await socket.send(f"{os.environ['TITLE']} heard {text}")

def page(connection, request):
    if "upgrade" not in request.headers.get("connection", "").lower():
        return connection.respond(HTTPStatus.OK, f"{os.environ['TITLE']} at {os.environ['BASE_PATH']}: {request.path}")

async def main():
    async with serve(talk, "127.0.0.1", int(os.environ["PORT"]), process_request=page) as server:
        await server.serve_forever()

asyncio.run(main())
"""


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ApiServer]:
    """A server without deployments."""
    async with running(tmp_path_factory.mktemp("server"), "--restarts", "1") as made:
        yield made


async def test_a_page_of_files_is_built_and_served_and_nothing_beside_it(server: ApiServer, tmp_path: Path) -> None:
    page = tmp_path / "page"
    page.mkdir()
    (page / "build.py").write_text(
        "import os, pathlib\np = pathlib.Path('dist')\np.mkdir()\n"
        "(p / 'index.html').write_text('<h1>' + os.environ['BASE_PATH'] + '</h1>')\n(p / 'a.js').write_text('1')\n"
    )
    text = "ui:\n  source: {type: local, name: page}\n  build: ['python build.py']\n"
    await server.deploy(write_deployment(tmp_path, "shown", more=text))
    index = await server.ask("GET", "/deployments/shown/ui/")
    assert (index.status_code, index.text) == (200, "<h1>/deployments/shown/ui</h1>")
    assert index.headers["content-type"].startswith("text/html")
    assert "'self'" in index.headers["content-security-policy"]
    moved = await server.ask("GET", "/deployments/shown/ui")
    assert (moved.status_code, moved.headers["location"]) == (307, "/deployments/shown/ui/")
    assert (await server.ask("GET", "/deployments/shown/ui/a.js")).text == "1"
    command = (sys.executable, "-m", "llama_deploy.cli", "-s", server.url, "open", "shown")
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert (process.returncode, out.decode()) == (0, f"{server.url}/deployments/shown/ui/\n")
    for outside in ("gone.js", "../build.py", "%2e%2e/build.py", "..%2fbuild.py", "..%2f..%2fversion.json"):
        assert (await server.ask("GET", f"/deployments/shown/ui/{outside}")).status_code == 404, outside
    (page / "build.py").write_text("print('half way'); raise SystemExit(3)")
    with pytest.raises(SourceError) as failed:
        await server.deploy(tmp_path / "deployment.yml")
    assert "half way" in failed.value.why
    assert (await server.ask("GET", "/deployments/shown/ui/a.js")).text == "1"
    async with server.deployments() as api:
        assert len(await api.versions("shown")) == 1
        await api.delete("shown")


async def test_a_page_with_a_process_is_passed_on_to_and_follows_its_version(server: ApiServer, tmp_path: Path) -> None:
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "page.py").write_text(PAGE)

    def text(title: str, base: str) -> str:
        return (
            "ui:\n  name: Page\n  port: 3000\n  source: {type: local, name: page}\n  command: python page.py\n"
            f"  base-path: {base}\n  env: {{TITLE: {title}}}\n"
        )

    await server.deploy(write_deployment(tmp_path, "live", more=text("first", "keep")))
    answer = await server.ask("GET", "/deployments/live/ui/some/where?x=1")
    assert answer.text == "first at /deployments/live/ui: /deployments/live/ui/some/where?x=1"
    url = server.url.replace("http", "ws") + "/deployments/live/ui/ws"
    async with connect(url, open_timeout=PROCESS_S) as socket:
        await socket.send("you")
        assert await socket.recv() == "first heard you"
        async with server.deployments() as api:
            view = await api.get("live")
        pid = next(one["pid"] for one in view["processes"] if one["name"].startswith("ui@"))
        os.kill(pid, signal.SIGKILL)

        async def back() -> bool:
            return (await server.ask("GET", "/deployments/live/ui/")).status_code == 200

        await eventually(back, PROCESS_S)
    await server.deploy(write_deployment(tmp_path, "live", more=text("second", "strip")))
    assert (
        await server.ask("GET", "/deployments/live/ui/some?x=1")
    ).text == "second at /deployments/live/ui: /some?x=1"
    (tmp_path / "page" / "page.py").write_text("raise SystemExit('no page today')")
    with pytest.raises(Exception, match="does not start") as failed:
        await server.deploy(tmp_path / "deployment.yml")
    assert "no page today" in str(failed.value)
    assert (await server.ask("GET", "/deployments/live/ui/")).text == "second at /deployments/live/ui: /"
    async with server.deployments() as api:
        await api.delete("live")
    await eventually(lambda: not server.processes(), PROCESS_S)


NODE = """\
const crypto = require('crypto'), fs = require('fs'), http = require('http');
const server = http.createServer((request, answer) => answer.end(fs.readFileSync('dist/index.html') + request.url));
server.on('upgrade', (request, socket) => {
  const said = request.headers['sec-websocket-key'] + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11';
  const accepted = crypto.createHash('sha1').update(said).digest('base64');
  socket.write('HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n' +
    'Sec-WebSocket-Accept: ' + accepted + '\\r\\n\\r\\n');
  socket.on('data', (frame) => {
    if ((frame[0] & 15) !== 1) return socket.end();
    const text = Buffer.from(frame.subarray(6).map((byte, at) => byte ^ frame[2 + (at % 4)]));
    const answer = Buffer.concat([Buffer.from('heard '), text]);
    socket.write(Buffer.concat([Buffer.from([129, answer.length]), answer]));
  });
});
server.listen(process.env.PORT, process.env.HOST);
"""
BUILD = """\
const fs = require('fs');
fs.mkdirSync('dist');
fs.writeFileSync('dist/index.html', 'built for ' + process.env.BASE_PATH + ', asked for ');
"""


@pytest.mark.skipif(shutil.which("npm") is None, reason="there is no npm on this machine")
async def test_a_page_of_npm_is_built_started_and_followed_with_nothing_said(server: ApiServer, tmp_path: Path) -> None:
    page = tmp_path / "page"
    page.mkdir()
    scripts = {"build": "node build.js", "start": "node server.js"}
    (page / "package.json").write_text(json.dumps({"name": "page", "version": "1.0.0", "scripts": scripts}))
    (page / "build.js").write_text(BUILD)
    (page / "server.js").write_text(NODE)
    text = "ui: {source: {type: local, name: page}}\n"
    await server.deploy(write_deployment(tmp_path, "npm", more=text))
    answer = await server.ask("GET", "/deployments/npm/ui/a?b=c")
    assert answer.text == "built for /deployments/npm/ui, asked for /deployments/npm/ui/a?b=c"
    async with connect(server.url.replace("http", "ws") + "/deployments/npm/ui/ws") as socket:
        await socket.send("you")
        assert await socket.recv() == "heard you"
    (page / "build.js").write_text(BUILD.replace("built", "built again"))
    await server.deploy(tmp_path / "deployment.yml")
    assert (await server.ask("GET", "/deployments/npm/ui/")).text.startswith("built again")
    (page / "build.js").write_text("console.error('not today'); process.exit(3)")
    with pytest.raises(SourceError) as failed:
        await server.deploy(tmp_path / "deployment.yml")
    assert "not today" in failed.value.why
    assert (await server.ask("GET", "/deployments/npm/ui/")).text.startswith("built again")
    async with server.deployments() as api:
        await api.delete("npm")


@pytest.mark.parametrize(
    "page",
    [
        "{}",
        "{source: {type: package, name: x}}",
        "{source: {type: local, name: gone}}",
        "{source: {type: local, name: .}, command: 'a \"b'}",
        "{source: {type: local, name: .}, base-path: cut}",
        "{source: {type: local, name: .}, sauce: x}",
    ],
)
def test_a_page_that_cannot_be_is_refused(tmp_path: Path, page: str) -> None:
    text = f"name: demo\nservices: {{a: {{import-path: 'a:b'}}}}\nui: {page}\n"
    with pytest.raises(DeploymentFileError) as refused:
        parse_deployment_file(text.encode(), tmp_path / "deployment.yml")
    assert refused.value.details["problems"][0]["line"] == 3
