"""Sources from git over ssh: which program is called with what, and a private key that is seen by nobody but `ssh`."""

from __future__ import annotations

import getpass
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.apiserver.deployments.test_git import Repository, repository, sources
from tests.support import eventually
from tests.support.ports import free_port

from llama_deploy.apiserver.deployment_file import parse_deployment_file
from llama_deploy.apiserver.deployments.git import GitSources
from llama_deploy.apiserver.specs import SourceSpec
from llama_deploy.errors import DeploymentFileError, SourceError

__all__ = ["repository", "sources"]

KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nseen-by-nobody\n-----END OPENSSH PRIVATE KEY-----"
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ7o0Z0000000000000000000000000000000000000000"

SSH = """\
#!{python}
import json, os, pathlib, shlex, sys
words = sys.argv[1:]
def of(option):
    return next((word.split("=", 1)[1].strip('"') for word in words if word.startswith("-o" + option + "=")), None)
key = pathlib.Path(words[words.index("-i") + 1]) if "-i" in words else None
known = of("UserKnownHostsFile")
seen = {{
    "words": words,
    "key": key and key.read_text(),
    "mode": key and oct(key.stat().st_mode & 0o777),
    "folder": key and oct(key.parent.stat().st_mode & 0o777),
    "known": known and pathlib.Path(known).read_text(),
    "environment": "seen-by-nobody" in str(os.environ),
}}
with open({log!r}, "a") as log:
    log.write(json.dumps(seen) + "\\n")
if {refuses!r}:
    sys.exit(sys.stderr.write({refuses!r} + "\\n") and 255)
os.execvp("sh", ["sh", "-c", words[-1]])
"""


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `ssh` was called with: a program in its place notes it, and runs here what it is to run elsewhere."""
    place_ssh(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "called"


def calls_of(called: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in called.read_text().splitlines()]


def place_ssh(folder: Path, refuses: str = "") -> None:
    (folder / "bin").mkdir(exist_ok=True)
    ssh = folder / "bin" / "ssh"
    ssh.write_text(SSH.format(python=sys.executable, log=str(folder / "called"), refuses=refuses))
    ssh.chmod(0o755)


async def test_a_key_gets_in_and_is_seen_by_ssh_alone(
    repository: Repository, sources: GitSources, called: Path
) -> None:
    spec = SourceSpec(
        type="git", location=f"ssh://git@code.example.com:2222{repository.bare}", tag="v1", host_key=HOST_KEY
    )
    tree, commit = await sources.fetch(spec, None, KEY)
    assert (commit, (tree / "app.py").read_text()) == (repository.commits["first"], "first")
    calls: list[Any] = calls_of(called)
    assert calls
    for call in calls:
        assert (call["key"], call["mode"], call["folder"]) == (KEY + "\n", "0o600", "0o700")
        assert call["known"] == f"[code.example.com]:2222 {HOST_KEY}\n"
        assert {"-oBatchMode=yes", "-oIdentitiesOnly=yes", "-oIdentityAgent=none"} <= set(call["words"])
        assert "seen-by-nobody" not in " ".join(call["words"])
        assert not call["environment"]
    left = [path for path in sources._root.rglob("*") if path.is_file() and b"seen-by-nobody" in path.read_bytes()]
    assert left == []


async def test_without_a_key_that_of_this_account_is_used(
    repository: Repository, sources: GitSources, called: Path
) -> None:
    tree, _ = await sources.fetch(SourceSpec(type="git", location=f"git@example.com:{repository.bare}"), None)
    assert (tree / "app.py").read_text() == "second"
    words: Any = calls_of(called)[0]["words"]
    assert words[0] == "-oBatchMode=yes"
    assert not [word for word in words if word == "-i" or word.startswith(("-oUserKnownHostsFile", "-oStrict"))]


async def test_a_server_that_is_not_known_is_told_and_the_key_is_not(
    repository: Repository, sources: GitSources, called: Path
) -> None:
    place_ssh(called.parent, refuses="Host key verification failed.")
    with pytest.raises(SourceError) as refused:
        await sources.fetch(SourceSpec(type="git", location=f"git@example.com:{repository.bare}"), None, KEY)
    assert "host-key" in refused.value.fix
    assert "seen-by-nobody" not in refused.value.render()
    assert not list(sources._root.glob(".ssh-*"))


def test_what_a_crash_has_left_of_a_key_goes_with_the_next_start(sources: GitSources) -> None:
    left = sources._root / ".ssh-left"
    left.mkdir(parents=True)
    (left / "key").write_text(KEY)
    (sources._root / "tree-of-a-commit").mkdir()
    sources.clear()
    assert [path.name for path in sources._root.iterdir()] == ["tree-of-a-commit"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("name: 'https://x.org/a.git', ssh-key: {file: key}", "`ssh-key` is for repositories over ssh"),
        ("name: 'https://x.org/a.git', host-key: 'ssh-ed25519 AAAAAAAAAAAAAAAAAAAA'", "is for repositories over ssh"),
        ("name: 'git@x.org:a.git', ssh-key: 'BEGIN PRIVATE KEY'", "a reference has to be"),
        ("name: 'git@x.org:a.git', host-key: 'x.org ssh-ed25519 AAAA'", "expected a public key"),
        ("name: 'git@x.org:a.git', token: {env: T}", "a token is for repositories over https"),
    ],
)
def test_keys_that_cannot_be_meant_are_refused(tmp_path: Path, source: str, expected: str) -> None:
    text = f"name: demo\nservices:\n  a: {{import-path: 'a:b', source: {{type: git, {source}}}}}\n"
    with pytest.raises(DeploymentFileError) as refused:
        parse_deployment_file(text.encode(), tmp_path / "deployment.yml")
    assert expected in refused.value.why


# --- with a real server ---------------------------------------------------------------------------------------------


@dataclass
class Server:
    """A server of OpenSSH on a port of this machine that lets one key in."""

    process: subprocess.Popen[bytes]
    log: Path
    port: int
    host_key: str
    key: str

    async def listens(self) -> None:
        """Wait until it does."""
        await eventually(lambda: self._answers() or self.process.poll() is not None)
        assert self.process.poll() is None, self.log.read_text()

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Server]:
    """It runs for one test, where it can."""
    program = shutil.which("sshd", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    keygen = shutil.which("ssh-keygen")
    if program is None or keygen is None or shutil.which("ssh") is None:
        pytest.skip("OpenSSH's server, or its programs, are not on this machine")
    if os.geteuid() == 0 and "sshd" not in {user.pw_name for user in pwd.getpwall()}:
        pytest.skip("OpenSSH's server runs for root only where there is a user `sshd`, and there is none here")
    for name in ("host", "user"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True)
    (tmp_path / "authorized").write_text((tmp_path / "user.pub").read_text())
    port = free_port()
    settings = (
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path / 'host'}\nPidFile none\nStrictModes no\n"
        f"AuthorizedKeysFile {tmp_path / 'authorized'}\nPasswordAuthentication no\nUsePAM no\n"
    )
    (tmp_path / "sshd_config").write_text(settings)
    log = tmp_path / "sshd.log"
    with log.open("wb") as stream:
        server = subprocess.Popen([program, "-D", "-e", "-f", str(tmp_path / "sshd_config")], stderr=stream)
    try:
        host_key = " ".join((tmp_path / "host.pub").read_text().split()[:2])
        yield Server(server, log, port, host_key, (tmp_path / "user").read_text())
    finally:
        server.terminate()
        server.wait()


async def test_a_real_server_lets_the_key_in_and_a_wrong_one_not(
    repository: Repository, sources: GitSources, sshd: Server
) -> None:
    await sshd.listens()
    port, host_key, key = sshd.port, sshd.host_key, sshd.key
    location = f"ssh://{getpass.getuser()}@127.0.0.1:{port}{repository.bare}"
    spec = SourceSpec(type="git", location=location, branch="feature", host_key=host_key)
    tree, commit = await sources.fetch(spec, None, key)
    assert (commit, (tree / "app.py").read_text()) == (repository.commits["third"], "third")
    other = SourceSpec(type="git", location=location, tag="v1", host_key=HOST_KEY[:-4] + "9999")
    with pytest.raises(SourceError) as refused:
        await sources.fetch(other, None, key)
    assert key.splitlines()[1] not in refused.value.render()
