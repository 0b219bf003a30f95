"""Sources from git: fetched by the `git` program, kept by commit, whole or not at all.

A fetch is one commit deep, into a repository of its own that is thrown away, so nothing half done is ever met again. A
token goes to `git` in its environment and from there to the server that asks for it, a key to `ssh` in a file that is
gone afterwards: neither ever gets into an address, an argument or a log. Addresses were checked when the deployment
file was read (`source_keys.py`).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from llama_deploy.apiserver.deployments.commands import Commands, Ran
from llama_deploy.apiserver.deployments.trees import unpack, write_whole
from llama_deploy.apiserver.specs import SourceSpec
from llama_deploy.errors import MissingExtraError, SourceError

GIT_TIMEOUT_S = 600.0
_TOKEN = "LLAMA_DEPLOY_GIT_TOKEN"  # noqa: S105 - the name of a variable
_ASK = f"""#!/bin/sh
case "$1" in
  Username*) echo x-access-token ;;
  *) printf '%s\\n' "${_TOKEN}" ;;
esac
"""
_FULL = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class GitSources:
    """The trees of commits below one folder."""

    def __init__(self, root: Path, commands: Commands) -> None:
        self._root = root
        self._commands = commands
        self._turns: dict[str, asyncio.Lock] = {}

    def clear(self) -> None:
        """Remove what a crash has left half fetched, and the keys that it was fetched with."""
        for folder in self._root.glob(".[fs]*-*") if self._root.is_dir() else ():
            shutil.rmtree(folder, ignore_errors=True)

    async def fetch(self, spec: SourceSpec, token: str | None, ssh_key: str | None = None) -> tuple[Path, str]:
        """The files of what a source names now, and its commit. One that was fetched before is not fetched again.

        Raises `SourceError`, and `MissingExtraError` where there is no `git`.
        """
        async with self._turns.setdefault(spec.location, asyncio.Lock()):
            await asyncio.to_thread(self._root.mkdir, parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".ssh-", dir=self._root) as keys:  # its owner's alone
                ssh = await asyncio.to_thread(_ssh_command, spec, ssh_key, Path(keys))
                environment = await asyncio.to_thread(_environment, token, Path(keys)) | {"GIT_SSH_COMMAND": ssh}
                return await self._fetched(spec, environment)

    async def _fetched(self, spec: SourceSpec, environment: Mapping[str, str]) -> tuple[Path, str]:
        commit = spec.commit if spec.commit and _FULL.fullmatch(spec.commit) else None
        if commit is None and spec.commit is None:
            commit = await self._look_up(spec, environment)
        tree = self._tree(spec, commit) if commit is not None else None
        if tree is None or not tree.is_dir():
            commit = await self._fetch(spec, environment)
            tree = self._tree(spec, commit)
        assert commit is not None, "what was fetched has a commit"
        return tree, commit

    def _tree(self, spec: SourceSpec, commit: str) -> Path:
        return self._root / f"{hashlib.sha256(spec.location.encode()).hexdigest()[:12]}-{commit}"

    async def _look_up(self, spec: SourceSpec, environment: Mapping[str, str]) -> str:
        """The commit that a branch or a tag is at."""
        ref = _ref(spec)
        names = [ref, f"{ref}^{{}}"] if spec.tag else [ref]
        ran = await self._git(self._root, environment, "ls-remote", "--quiet", "--", spec.location, *names)
        if ran.code:
            raise _failed(spec, ran)
        found: dict[str, str] = {}
        for line in ran.out.splitlines():
            at, _, name = line.partition("\t")
            found[name] = at
        commit = found.get(f"{ref}^{{}}") or found.get(ref)
        if commit is None or not _FULL.fullmatch(commit):
            raise SourceError(f"{spec.location} has no {_named(spec)}", fix="correct the name in `source`")
        return commit

    async def _fetch(self, spec: SourceSpec, environment: Mapping[str, str]) -> str:
        """Fetch one commit, and have its tree in its place."""
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=self._root) as folder:
            repository = Path(folder) / "repository"
            await self._must(spec, Path(folder), environment, "init", "--quiet", "--bare", str(repository))
            (repository / "info").mkdir(exist_ok=True)
            (repository / "info" / "attributes").write_text("* -export-ignore -export-subst\n", encoding="ascii")
            commit = await self._fetch_into(repository, spec, environment)
            packed = Path(folder) / "tree.tar"
            await self._must(spec, repository, environment, "archive", "--format=tar", f"--output={packed}", commit)

            def fill(tree: Path) -> None:
                with packed.open("rb") as stream:
                    unpack(stream, tree, links=True)

            await asyncio.to_thread(write_whole, self._tree(spec, commit), fill)
        return commit

    async def _fetch_into(self, repository: Path, spec: SourceSpec, environment: Mapping[str, str]) -> str:
        fetch = ("fetch", "--quiet", "--no-tags", "--no-recurse-submodules", "--force")
        wanted = "FETCH_HEAD"
        if spec.commit is None:
            await self._must(spec, repository, environment, *fetch, "--depth=1", "--", spec.location, _ref(spec))
        else:
            ran = Ran(1, "", "")
            if _FULL.fullmatch(spec.commit):
                ran = await self._git(repository, environment, *fetch, "--depth=1", "--", spec.location, spec.commit)
            if ran.code:  # it gives out no commit by itself, or the name is short
                refs = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
                await self._must(spec, repository, environment, *fetch, "--", spec.location, *refs)
                wanted = spec.commit
        ran = await self._git(
            repository, environment, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{wanted}^{{commit}}"
        )
        if ran.code:
            raise SourceError(f"{spec.location} has no {_named(spec)}", fix="correct the name in `source`")
        return ran.out

    async def _must(self, spec: SourceSpec, folder: Path, environment: Mapping[str, str], *words: str) -> None:
        ran = await self._git(folder, environment, *words)
        if ran.code:
            raise _failed(spec, ran)

    async def _git(self, folder: Path, environment: Mapping[str, str], *words: str) -> Ran:
        safe = ("-c", "protocol.ext.allow=never", "-c", "transfer.fsckObjects=true", "-c", "gc.auto=0")
        try:
            ran = await self._commands.run(
                ("git", *safe, *words), folder=folder, environment=environment, timeout_s=GIT_TIMEOUT_S
            )
        except OSError as error:
            raise MissingExtraError(
                "sources from git need the program `git`", why=str(error), fix="install git"
            ) from error
        if ran.timed_out:
            raise SourceError(f"git {words[0]} took more than {GIT_TIMEOUT_S:g} s", fix="try again")
        return ran


def _environment(token: str | None, folder: Path) -> dict[str, str]:
    """What `git` gets to know: nothing that would have it ask a person, or run another program.

    What tells it the token is a program in `folder`, of this fetch alone.
    """
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    variables |= {
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": "https:http:ssh:file",
        "GIT_PROTOCOL_FROM_USER": "0",
        "LC_ALL": "C",
    }
    settings = {"credential.helper": ""} if token is not None else {}
    if token is not None:
        ask = folder / "askpass"
        ask.write_text(_ASK, encoding="ascii")
        ask.chmod(0o700)
        settings["http.followRedirects"] = "false"  # the token is for the host that the file names
        variables |= {"GIT_ASKPASS": str(ask), _TOKEN: token}
    else:
        variables["GIT_ASKPASS"] = "true"
    variables["GIT_CONFIG_COUNT"] = str(len(settings))
    for number, (key, value) in enumerate(settings.items()):
        variables |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return variables


def _ssh_command(spec: SourceSpec, key: str | None, folder: Path) -> str:
    """How `git` calls `ssh`: it asks nobody, and shows the key of the source and no other, if there is one.

    The key lies in a file of `folder` for as long as the fetch takes: it stands in no argument.
    """
    words = ["ssh", "-oBatchMode=yes"]
    if key is not None:
        file = folder / "key"
        file.touch(mode=0o600)
        file.write_text(key.strip() + "\n", encoding="utf-8")
        words += ["-oIdentitiesOnly=yes", "-oIdentityAgent=none", "-i", str(file)]
    if spec.host_key is not None:
        known = folder / "known_hosts"
        known.write_text(f"{_known_host(spec.location)} {spec.host_key}\n", encoding="utf-8")
        words += [f'-oUserKnownHostsFile="{known}"', "-oGlobalKnownHostsFile=/dev/null", "-oStrictHostKeyChecking=yes"]
    return shlex.join(words)


def _known_host(address: str) -> str:
    """The server of an address as a file of known hosts has it."""
    if "://" not in address:
        return address.partition("@")[2].partition(":")[0]
    parts = urlsplit(address)
    return f"[{parts.hostname}]:{parts.port}" if parts.port not in (None, 22) else parts.hostname or ""


def _ref(spec: SourceSpec) -> str:
    if spec.tag is not None:
        return f"refs/tags/{spec.tag}"
    return f"refs/heads/{spec.branch}" if spec.branch is not None else "HEAD"


def _named(spec: SourceSpec) -> str:
    for kind in ("branch", "tag", "commit"):
        name = getattr(spec, kind)
        if name is not None:
            return f"{kind} {name}"
    return "default branch"


def _failed(spec: SourceSpec, ran: Ran) -> SourceError:
    fix = "check the address, and whether this machine may read it; a private one needs `token`, or over ssh `ssh-key`"
    if "Host key verification failed" in ran.err:
        fix = "say in `host-key` of the source which key the server has: ssh-keyscan shows it"
    return SourceError(f"{spec.location} cannot be fetched", why=ran.err or f"git ended with {ran.code}", fix=fix)
