"""The key `access` of a deployment file: tokens, names, origins, certificates, the audit log; and what they mean."""

from __future__ import annotations

from pathlib import Path

from llama_deploy.apiserver.access_spec import AccessSpec, AuditSpec, TLSSpec, TokenSpec
from llama_deploy.apiserver.rate_keys import RATE_KEYS
from llama_deploy.apiserver.reference import Reference
from llama_deploy.apiserver.shapes import Choice, Key, ListOf, Number, Record, Section, Table, Text
from llama_deploy.apiserver.yaml_source import Findings
from llama_deploy.types.access import Scope
from llama_deploy.types.limits import RateLimit

ORIGIN = Text(r"https?://[^/\s*]+", "an origin (`https://desk.example.com`)")
_SOURCES = ("env", "file", "hash", "token")

TOKEN_KEYS = Record(
    {
        "scopes": Key(
            shape=ListOf(Choice(tuple(scope.value for scope in Scope))),
            doc="What it allows: `read`, `run`, `serve`, `deploy`, `admin`.",
            required=True,
        ),
        "env": Key(shape=Text(), doc="A variable of the environment that has the token, or its hash."),
        "file": Key(shape=Text(), doc="A file that has it, relative to this one; several lines while it changes."),
        "hash": Key(shape=Text(r"sha256:[0-9a-fA-F]{64}", "`sha256:` and 64 hex digits"), doc="Its hash."),
        "token": Key(shape=Text(), doc="The token itself, in clear: for trying things out only."),
        "rate": Key(shape=RATE_KEYS, doc="How many requests and operations it may make."),
        "services": Key(
            shape=ListOf(Text()), doc="What may be served with it, with the scope `serve`; any, if left out."
        ),
    },
    "a token",
)

TLS_KEYS = Record(
    {
        "certificate-file": Key(shape=Text(), doc="PEM: the server's certificate and its chain.", required=True),
        "key-file": Key(shape=Text(), doc="PEM: its key, without a password.", required=True),
        "client-ca-file": Key(
            shape=Text(), doc="PEM: only clients with a certificate signed by one of these are let in."
        ),
    },
    "`tls`",
)

AUDIT_KEYS = Record(
    {
        "record": Key(
            shape=Choice(("changes", "all", "none")),
            doc="`changes` and refusals (the default where tokens are), `all` requests, or `none`.",
        ),
        "file": Key(
            shape=Text(), doc="Where to; `.llama_deploy/<name>.audit.jsonl` by default, `-` for standard output."
        ),
        "bytes-max": Key(
            shape=Number(integer=True, minimum=1000), doc="A larger file is put aside; 10000000 by default."
        ),
        "files": Key(
            shape=Number(integer=True, minimum=0, maximum=1000), doc="So many files are kept beside it; 5 by default."
        ),
    },
    "`audit`",
)

ACCESS = Record(
    {
        "tokens": Key(
            shape=Table(
                TOKEN_KEYS,
                "token's name",
                r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}",
                "1 to 100 letters, digits, `_`, `-` or `.`",
            ),
            doc="Who is let in, by name. Without any, everybody who reaches the port.",
        ),
        "hosts": Key(shape=ListOf(Text()), doc="Further names of the server, where there are no tokens."),
        "cors-origins": Key(shape=ListOf(ORIGIN), doc="Origins whose pages may use the server from a browser."),
        "tls": Key(shape=TLS_KEYS, doc="Speak TLS, with this certificate."),
        "audit": Key(shape=AUDIT_KEYS, doc="Who did what, as lines of JSON in a file."),
    },
    "`access`",
)


def access_of(section: Section | None, findings: Findings) -> AccessSpec:
    """What the file says of who is let in."""
    if section is None:
        return AccessSpec()
    tokens: Section | None = section["tokens"]
    tls: Section | None = section["tls"]
    audit: Section | None = section["audit"]
    given = tokens.given() if tokens is not None else {}
    return AccessSpec(
        tokens=tuple(_token(name, token, findings) for name, token in given.items()),
        hosts=section["hosts"] or (),
        cors_origins=tuple(origin.lower() for origin in section["cors-origins"] or ()),
        tls=_tls(tls) if tls is not None else None,
        audit=_audit(audit) if audit is not None else AuditSpec(),
    )


def _token(name: str, section: Section, findings: Findings) -> TokenSpec:
    given = [source for source in _SOURCES if section[source] is not None]
    if len(given) != 1:
        findings.problem(section.node, f"token `{name}` has one of `env`, `file`, `hash` and `token`")
    if "token" in given:
        findings.notice(
            section.nodes["token"],
            f"token `{name}` stands here in clear: whoever reads this file has it; use `env`, `file` or `hash`",
        )
    if not section["scopes"] and "scopes" in section.nodes:
        findings.problem(section.nodes["scopes"], f"token `{name}` allows nothing: give it a scope")
    _check_services(name, section, findings)
    rate: Section | None = section["rate"]
    where = None
    if section["env"] is not None or section["file"] is not None:
        where = Reference(env=section["env"], file=Path(section["file"]) if section["file"] is not None else None)
    return TokenSpec(
        name=name,
        scopes=tuple(Scope(scope) for scope in section["scopes"] or ()),
        where=where,
        text=section["hash"] or section["token"] or "",
        rate=RateLimit(**rate.given()) if rate is not None and rate["count"] is not None else None,
        services=frozenset(section["services"]) if section["services"] is not None else None,
    )


def _check_services(name: str, section: Section, findings: Findings) -> None:
    """A token that is for some services must not be for everything beside."""
    if section["services"] is None:
        return
    scopes = set(section["scopes"] or ())
    if "serve" not in scopes:
        findings.problem(section.nodes["services"], f"`services` of token `{name}` belongs to the scope `serve`")
    for more in sorted(scopes & {"run", "deploy", "admin"}):
        told = f"`services` limits what is served with token `{name}`, and not `{more}`: make another token for that"
        findings.problem(section.nodes["services"], told)
    if not section["services"]:
        findings.problem(section.nodes["services"], f"token `{name}` may serve nothing: name a service")


def _tls(section: Section) -> TLSSpec | None:
    if section["certificate-file"] is None or section["key-file"] is None:
        return None
    client_ca = section["client-ca-file"]
    return TLSSpec(
        certificate=Path(section["certificate-file"]),
        key=Path(section["key-file"]),
        client_ca=Path(client_ca) if client_ca is not None else None,
    )


def _audit(section: Section) -> AuditSpec:
    usual = AuditSpec()
    file = section["file"]
    files = section["files"]
    return AuditSpec(
        record=section["record"],
        file=Path(file) if file is not None else None,
        bytes_max=section["bytes-max"] or usual.bytes_max,
        files=usual.files if files is None else files,
    )
