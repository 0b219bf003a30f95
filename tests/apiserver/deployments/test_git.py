"""Sources from git: the commit that is meant, fetched once, and a token that is seen by nobody but the git server."""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llama_deploy.apiserver.deployment_file import parse_deployment_file
from llama_deploy.apiserver.deployments.commands import Commands
from llama_deploy.apiserver.deployments.git import GitSources
from llama_deploy.apiserver.specs import SourceSpec
from llama_deploy.errors import DeploymentFileError, SourceError
from llama_deploy.runtime.lifeline import Guard

TOKEN = "a-token-that-nobody-sees"


def git(folder: Path, *words: str) -> str:
    who = {"GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t", "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@t"}
    ran = subprocess.run(
        ["git", "-c", "init.defaultBranch=main", *words],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **who},
    )
    return ran.stdout.strip()


@dataclass
class Repository:
    """A bare repository with three commits: `first` (also the tag `v1`), `second` on `main`, `third` on `feature`."""

    bare: Path
    work: Path
    commits: dict[str, str] = field(default_factory=dict)

    def commit(self, text: str) -> str:
        (self.work / "app.py").write_text(text)
        git(self.work, "add", "-A")
        git(self.work, "commit", "-qm", text)
        return git(self.work, "rev-parse", "HEAD")

    def push(self) -> None:
        git(self.work, "push", "-q", "--all", str(self.bare))
        git(self.work, "push", "-q", "--tags", str(self.bare))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    root = tmp_path_factory.mktemp("git")
    made = Repository(root / "code.git", root / "work")
    git(root, "init", "-q", "--bare", str(made.bare))
    git(root, "init", "-q", str(made.work))
    (made.work / ".gitattributes").write_text("app.py export-ignore\n")  # which is for releases, not for us
    made.commits["first"] = made.commit("first")
    git(made.work, "tag", "-a", "v1", "-m", "one")
    made.commits["second"] = made.commit("second")
    git(made.work, "checkout", "-qb", "feature")
    made.commits["third"] = made.commit("third")
    git(made.work, "checkout", "-q", "main")
    made.push()
    return made


@pytest.fixture
def sources(tmp_path: Path) -> Iterator[GitSources]:
    guard = Guard()
    guard.start()
    yield GitSources(tmp_path / "trees", Commands(guard))
    guard.stop()


def spec(repository: Repository, **which: Any) -> SourceSpec:
    return SourceSpec(type="git", location=f"file://{repository.bare}", **which)


async def test_a_branch_a_tag_and_a_commit_are_what_they_say(repository: Repository, sources: GitSources) -> None:
    commits = repository.commits
    cases: list[tuple[dict[str, str], str]] = [
        ({}, "second"),
        ({"branch": "feature"}, "third"),
        ({"tag": "v1"}, "first"),
        ({"commit": commits["first"]}, "first"),
        ({"commit": commits["third"][:9]}, "third"),
    ]
    for which, text in cases:
        tree, commit = await sources.fetch(spec(repository, **which), None)
        assert (commit, (tree / "app.py").read_text()) == (commits[text], text), which
        assert not (tree / ".git").exists()
    assert len([place for place in sources._root.iterdir() if place.name[0] != "."]) == 3


async def test_a_commit_that_is_there_is_not_fetched_again_and_a_branch_that_moved_is(
    repository: Repository, sources: GitSources, tmp_path: Path
) -> None:
    copy = Repository(tmp_path / "copy.git", repository.work)
    git(tmp_path, "clone", "-q", "--bare", str(repository.bare), str(copy.bare))
    first, commit = await sources.fetch(spec(copy), None)
    moved = git(copy.bare, "rev-parse", "feature")
    git(copy.bare, "update-ref", "refs/heads/main", moved)
    second, later = await sources.fetch(spec(copy), None)
    assert (commit, later) == (repository.commits["second"], repository.commits["third"])
    assert (first / "app.py").read_text() == "second"
    copy.bare.rename(tmp_path / "gone.git")
    assert await sources.fetch(spec(copy, commit=later), None) == (second, later)
    with pytest.raises(SourceError) as gone:
        await sources.fetch(spec(copy), None)
    assert "cannot be fetched" in gone.value.what


async def test_what_is_not_there_is_told_by_its_name(repository: Repository, sources: GitSources) -> None:
    for which, named in (
        ({"branch": "nobody"}, "branch nobody"),
        ({"tag": "v9"}, "tag v9"),
        ({"commit": "0" * 40}, "commit 0000"),
    ):
        with pytest.raises(SourceError) as missing:
            await sources.fetch(spec(repository, **which), None)
        assert named in missing.value.what
    assert list(sources._root.iterdir()) == []


async def test_a_repository_whose_link_leads_out_of_it_is_refused(sources: GitSources, tmp_path: Path) -> None:
    hostile = Repository(tmp_path / "hostile.git", tmp_path / "work")
    git(tmp_path, "init", "-q", "--bare", str(hostile.bare))
    git(tmp_path, "init", "-q", str(hostile.work))
    (hostile.work / "key").symlink_to("/etc/passwd")
    hostile.commit("x")
    hostile.push()
    with pytest.raises(SourceError) as refused:
        await sources.fetch(spec(hostile), None)
    assert "leads out of its source" in refused.value.what
    assert [place.name for place in sources._root.iterdir()] == []


class _GitServer(BaseHTTPRequestHandler):
    """A git server that lets in whoever has the token, and looks who else may have seen it."""

    root: Path
    seen: list[str]
    paths: list[str]

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_GET  # noqa: N815 - the name that the library calls

    def log_message(self, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        expected = "Basic " + base64.b64encode(f"x-access-token:{TOKEN}".encode()).decode()
        self.paths.append(self.path)
        for place in Path("/proc").glob("[0-9]*"):
            try:
                command = (place / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if TOKEN in command:
                self.seen.append(command)
        if self.headers.get("Authorization") != expected:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        ran = subprocess.run(
            ["git", "http-backend"],
            input=body,
            check=True,
            capture_output=True,
            env={
                **os.environ,
                "GIT_PROJECT_ROOT": str(self.root),
                "GIT_HTTP_EXPORT_ALL": "1",
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "REQUEST_METHOD": self.command,
                "CONTENT_TYPE": self.headers.get("Content-Type") or "",
                "GIT_PROTOCOL": self.headers.get("Git-Protocol") or "",
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding") or "",
            },
        )
        head, _, content = ran.stdout.partition(b"\r\n\r\n")
        self.send_response(200)
        for line in head.decode().splitlines():
            name, _, value = line.partition(": ")
            if name != "Status":
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


async def test_a_token_gets_in_and_is_seen_by_nobody(
    repository: Repository, sources: GitSources, caplog: pytest.LogCaptureFixture
) -> None:
    _GitServer.root, _GitServer.seen, _GitServer.paths = repository.bare.parent, [], []
    with ThreadingHTTPServer(("127.0.0.1", 0), _GitServer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/code.git"
            private = SourceSpec(type="git", location=url, branch="main")
            with pytest.raises(SourceError) as refused:
                await sources.fetch(private, None)
            with pytest.raises(SourceError) as wrong:
                await sources.fetch(private, "another-token")
            tree, commit = await sources.fetch(private, TOKEN)
        finally:
            server.shutdown()
            thread.join()
    assert (commit, (tree / "app.py").read_text()) == (repository.commits["second"], "second")
    assert _GitServer.paths
    assert _GitServer.seen == []
    assert not any(TOKEN in path for path in _GitServer.paths)
    for error in (refused.value, wrong.value):
        assert "token" in error.fix
        assert "another-token" not in error.render()
    everything = b"".join(place.read_bytes() for place in tree.parent.rglob("*") if place.is_file())
    assert TOKEN.encode() not in everything
    assert TOKEN not in caplog.text


async def test_what_git_asks_for_a_token_is_nothing_that_another_fetch_writes_to(
    sources: GitSources, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    both = asyncio.Event()

    async def fetched(spec: SourceSpec, environment: Mapping[str, str]) -> tuple[Path, str]:
        program = Path(environment["GIT_ASKPASS"])
        asked.append(program)
        if len(asked) > 1:
            both.set()
        await both.wait()
        ask = partial(subprocess.check_output, [program, "Password"], env=dict(environment), text=True)
        return program, str(await asyncio.to_thread(ask)).strip()

    monkeypatch.setattr(sources, "_fetched", fetched)
    two = [sources.fetch(SourceSpec(type="git", location=f"https://{name}"), TOKEN) for name in ("one", "two")]
    assert {told for _, told in await asyncio.gather(*two)} == {TOKEN}
    assert len(set(asked)) == 2
    assert list(sources._root.iterdir()) == []


@pytest.mark.parametrize(
    "source",
    [
        "name: 'ext::sh -c touch% /tmp/x'",
        "name: '--upload-pack=touch /tmp/x'",
        "name: '-oProxyCommand=touch /tmp/x'",
        "name: 'ssh://-oProxyCommand=touch/x'",
        "name: 'ssh://-o@host/x'",
        "name: '-x@host:path'",
        "name: 'host:--upload-pack=x'",
        "name: 'git@host:-x'",
        "name: 'fd::17/x'",
        "name: 'git://host/path'",
        "name: '/etc'",
        "name: '../other'",
        "name: 'https://user:secret@host/x'",
        "name: 'https://secret@host/x'",
        'name: "https://host/x\\n--upload-pack=y"',
        "name: 'https://host/x', branch: '--upload-pack=x'",
        "name: 'https://host/x', branch: 'a..b'",
        "name: 'https://host/x', branch: 'a:refs/heads/b'",
        "name: 'https://host/x', branch: '+a'",
        "name: 'https://host/x', tag: '-x'",
        "name: 'https://host/x', commit: 'HEAD'",
        "name: 'https://host/x', commit: '--all'",
        "name: 'https://host/x', branch: a, tag: b",
        "name: 'https://host/x.git@--upload-pack=x'",
        "name: 'https://host/x.git@a', branch: b",
        "name: 'file:///x', token: {env: A}",
        "{}",
    ],
)
def test_what_git_might_take_for_an_option_or_a_program_is_refused(tmp_path: Path, source: str) -> None:
    inside = f"type: git, {source}" if source != "{}" else "type: git"
    text = f"name: demo\nservices:\n  a: {{import-path: 'a:b', source: {{{inside}}}}}\n"
    with pytest.raises(DeploymentFileError) as refused:
        parse_deployment_file(text.encode(), tmp_path / "deployment.yml")
    assert "secret" not in refused.value.render()
    assert refused.value.details["problems"][0]["line"] == 3


@pytest.mark.parametrize(
    ("name", "location", "branch"),
    [
        ("https://github.com/someone/code.git", "https://github.com/someone/code.git", None),
        ("https://github.com/someone/code.git@feature", "https://github.com/someone/code.git", "feature"),
        ("git@github.com:someone/code.git", "git@github.com:someone/code.git", None),
        ("ssh://git@host:2222/code.git", "ssh://git@host:2222/code.git", None),
        ("file:///srv/code.git", "file:///srv/code.git", None),
    ],
)
def test_addresses_as_people_write_them(tmp_path: Path, name: str, location: str, branch: str | None) -> None:
    text = f"name: demo\nservices:\n  a: {{import-path: 'a:b', source: {{type: git, name: '{name}'}}}}\n"
    source = parse_deployment_file(text.encode(), tmp_path / "deployment.yml").services[0].source
    assert source == SourceSpec(type="git", location=location, branch=branch)
