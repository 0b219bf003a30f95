"""Where the code of a service comes from: the keys of `source`, and what may be said in them.

What reaches the `git` program is checked here: no option in the place of an address or a name, no way of transport
that runs programs, no password in a URL. Nothing is fetched.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from llama_deploy.apiserver.reference_keys import REFERENCE, reference_of
from llama_deploy.apiserver.shapes import Choice, Key, ListOf, Record, Section, Text
from llama_deploy.apiserver.specs import SourceSpec
from llama_deploy.apiserver.yaml_source import Findings

GIT_SCHEMES = ("https", "http", "ssh", "file")
_SCP_LIKE = re.compile(r"[A-Za-z0-9_][\w.\-]*@[A-Za-z0-9_][\w.\-]*:(?!-)[^\s:]+")
_REF = re.compile(r"(?!.*(\.\.|//|@\{|\.lock$|/$|\.$))[A-Za-z0-9_][\w./+@\-]{0,199}")
REQUIREMENT = re.compile(
    r"[A-Za-z0-9]([\w.\-]*[A-Za-z0-9])?\s*(\[[\w\s,.\-]*\])?\s*([<>=!~(][^;@]*)?(;.*)?"
    r"|[A-Za-z0-9][\w.\-]*\s*(\[[\w\s,.\-]*\])?\s*@\s*https://\S+"
    r"|\./\S+"
)
"""What may stand under `python-dependencies`: a requirement (PEP 508), an archive at an https address, a path."""
IMAGE = re.compile(
    r"(?P<repository>[a-z0-9]+([._\-]+[a-z0-9]+)*(:[0-9]+(?=/))?(/[a-z0-9]+([._\-]+[a-z0-9]+)*)*)"
    r"(:(?P<tag>\w[\w.\-]{0,127}))?(@sha256:(?P<digest>[0-9a-f]{64}))?"
)
"""The name of a container image, as registries have it."""

_HOST_KEY = r"(ssh-|ecdsa-|sk-)[\w@.\-]{1,60} [A-Za-z0-9+/]{16,}={0,2}"

SOURCE_KEYS = Record(
    {
        "type": Key(
            shape=Choice(("local", "git", "package", "docker")),
            doc="Where the code comes from: a folder, a git repository, a Python package, an image for Kubernetes.",
            required=True,
        ),
        "name": Key(
            shape=Text(),
            doc="The folder, the address of the repository, the package with its version, the image with its tag.",
        ),
        "location": Key(shape=Text(), doc="Another word for `name`."),
        "branch": Key(shape=Text(), doc="The branch of the repository; its default branch if nothing else is said."),
        "tag": Key(shape=Text(), doc="The tag, in the place of a branch."),
        "commit": Key(
            shape=Text(r"[0-9a-f]{7,64}", "a commit (7 to 64 digits and letters a to f)"),
            doc="The commit, in the place of a branch.",
        ),
        "token": Key(shape=REFERENCE, doc="What gets into a private repository over https: `env` or `file`."),
        "ssh-key": Key(shape=REFERENCE, doc="The private key that gets into one over ssh: `env` or `file`."),
        "host-key": Key(
            shape=Text(_HOST_KEY, "a public key (`ssh-ed25519 AAAA…`), as `ssh-keyscan` shows it without the name"),
            doc="The key of the ssh server; without it, the server has to be known on this machine already.",
        ),
    },
    "`source`",
)

PYTHON_DEPENDENCIES = ListOf(
    Text(
        r"[^\-\s][\s\S]*",
        "a requirement (`name>=1.2`), or a file of them within the source (`./requirements.txt`)",
    )
)


def source_of(section: Section | None, path: Path, findings: Findings) -> tuple[Path | None, SourceSpec | None]:
    """The folder of a local source, or what is to be fetched."""
    if section is None:
        return None, None
    key = "name" if section["name"] is not None else "location"
    place = section[key]
    kind = section["type"]
    _check_fit(section, kind, findings)
    if place is None:
        if kind in {"git", "package", "docker"}:
            findings.problem(section.node, f"a source of the type `{kind}` needs the key `name`: where it is")
        return None, None
    if kind == "git":
        return None, _git(section, key, findings)
    if kind == "package":
        if not REQUIREMENT.fullmatch(place) or place.startswith("./"):
            findings.problem(section.nodes[key], f"expected a package (`name==1.2`), found `{place}`")
        return None, SourceSpec(type="package", location=place)
    if kind == "docker":
        return None, _image(section, key, findings)
    if kind == "local" and not (path.parent / place).is_dir():
        findings.problem(section.nodes[key], f"there is no folder `{place}` beside the deployment file")
    return Path(place), None


def check_dependencies(section: Section, findings: Findings) -> tuple[str, ...]:
    """The Python packages of a service, each in a form that no program takes for an option."""
    found: tuple[str, ...] = section["python-dependencies"] or ()
    for dependency in found:
        if not REQUIREMENT.fullmatch(dependency) or ".." in Path(dependency).parts or "\n" in dependency:
            findings.problem(
                section.nodes["python-dependencies"],
                f"`{dependency}` is no requirement: write `name>=1.2`, or `./requirements.txt`, a file of the source",
            )
    return found


def _check_fit(section: Section, kind: str | None, findings: Findings) -> None:
    """Keys that say the same, and keys that belong to another type."""
    if section["name"] is not None and section["location"] is not None:
        findings.problem(section.nodes["location"], "`name` and `location` say the same; leave one out")
    for only_git in ("branch", "tag", "commit", "token", "ssh-key", "host-key"):
        if section[only_git] is not None and kind in {"local", "package", "docker"}:
            findings.problem(section.nodes[only_git], f"`{only_git}` belongs to the type `git`")


def _image(section: Section, key: str, findings: Findings) -> SourceSpec:
    place = section[key]
    found = IMAGE.fullmatch(place)
    if found is None:
        findings.problem(section.nodes[key], f"expected an image (`registry.example.com/desk:1.4`), found `{place}`")
    elif found["tag"] is None and found["digest"] is None:
        findings.problem(section.nodes[key], f"say which one of `{place}` is meant: `{place}:TAG` or `@sha256:…`")
    return SourceSpec(type="docker", location=place)


def _git(section: Section, key: str, findings: Findings) -> SourceSpec | None:
    address, branch = _without_branch(section[key])
    problem = address_problem(address)
    if problem:
        findings.problem(section.nodes[key], problem)
        return None
    given = [name for name in ("branch", "tag", "commit") if section[name] is not None]
    if len(given) + (branch is not None) > 1:
        named = " and ".join(f"`{name}`" for name in given)
        findings.problem(section.node, f"a source has one of `branch`, `tag` and `commit`, here are {named or 'two'}")
    for name in ("branch", "tag"):
        if section[name] is not None and not _REF.fullmatch(section[name]):
            findings.problem(section.nodes[name], f"`{section[name]}` is no name of a {name}")
    if branch is not None and not _REF.fullmatch(branch):
        findings.problem(section.nodes[key], f"`{branch}` is no name of a branch")
    token = section["token"]
    if token is not None and urlsplit(address).scheme not in {"https", "http"}:
        findings.problem(section.nodes["token"], "a token is for repositories over https")
    over_ssh = urlsplit(address).scheme == "ssh" or _SCP_LIKE.fullmatch(address) is not None
    for name in ("ssh-key", "host-key"):
        if section[name] is not None and not over_ssh:
            findings.problem(section.nodes[name], f"`{name}` is for repositories over ssh")
    ssh_key = section["ssh-key"]
    return SourceSpec(
        type="git",
        location=address,
        branch=section["branch"] or branch,
        tag=section["tag"],
        commit=section["commit"],
        token=reference_of(token, findings) if token is not None else None,
        ssh_key=reference_of(ssh_key, findings) if ssh_key is not None else None,
        host_key=section["host-key"],
    )


def _without_branch(address: str) -> tuple[str, str | None]:
    """The published form `https://host/path.git@branch`, taken apart."""
    head, slash, last = address.rpartition("/")
    if "://" not in head or "@" not in last:
        return address, None
    name, _, branch = last.partition("@")
    return f"{head}{slash}{name}", branch


def address_problem(address: str) -> str:
    """What is wrong with the address of a repository; empty if nothing. A password in it is not repeated."""
    if _SCP_LIKE.fullmatch(address):
        return ""
    try:
        parts = urlsplit(address)
        password, host = parts.password, parts.hostname or ""
    except ValueError:
        return "this is no address of a repository"
    if password is not None or (parts.username is not None and parts.scheme in {"https", "http"}):
        return "a password does not belong into an address; put it into a variable or a file, and name that in `token`"
    hidden = any(letter.isspace() or not letter.isprintable() for letter in address)
    if parts.scheme not in GIT_SCHEMES or "::" in address or hidden:
        listed = ", ".join(f"{scheme}://" for scheme in GIT_SCHEMES)
        return f"`{address}` is no address of a repository; it begins with {listed}, or is user@host:path"
    user_or_host_is_option = host.startswith("-") or (parts.username or "").startswith("-")
    if user_or_host_is_option or (parts.scheme != "file" and not host) or not parts.path.strip("/"):
        return f"`{address}` is no address of a repository"
    return ""
