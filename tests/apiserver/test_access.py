"""`access` of a deployment file: what is read of it, what is refused, and how it changes while a server runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llama_deploy.apiserver.deployment_file import load_deployment_file
from llama_deploy.apiserver.served_access import OWN_SERVICES, ServedAccess
from llama_deploy.apiserver.specs import DeploymentFile
from llama_deploy.errors import DeploymentFileError, SettingError
from llama_deploy.runtime.credentials import INSTANCE_TOKEN_VARIABLE
from llama_deploy.types.access import AUDIT_BYTES_MAX, AccessSettings, Scope, digest_of
from llama_deploy.types.limits import RateLimit

TEXT, OTHER = "the-token-of-the-file-01", "another-token-of-the-file"


def load(folder: Path, access: str) -> DeploymentFile:
    (folder / "deployment.yml").write_text(f"name: x\nservices: {{s: {{import-path: 'm:s'}}}}\naccess:\n{access}\n")
    return load_deployment_file(folder)


def settings(folder: Path, access: str) -> AccessSettings:
    return load(folder, access).access.settings(folder, "x")


def test_tokens_come_from_variables_files_and_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI_TOKEN", TEXT)
    (tmp_path / "worker").write_text(f"# the new one\n{OTHER}\nsha256:{'1' * 64}   # the old one\n\n")
    found = settings(
        tmp_path,
        "  tokens:\n"
        "    ci: {scopes: [run], env: CI_TOKEN, rate: {count: 5, seconds: 2}}\n"
        "    worker: {scopes: [serve], file: worker, services: [reader]}\n"
        f"    page: {{scopes: [read, deploy], hash: 'sha256:{'a' * 64}'}}\n",
    )
    ci, new, old, page = found.tokens
    assert (ci.name, ci.digest, set(ci.scopes)) == ("ci", digest_of(TEXT), {Scope.RUN, Scope.READ})
    assert ci.rate == RateLimit(count=5, seconds=2)
    assert [(token.name, token.digest) for token in (new, old)] == [
        ("worker", digest_of(OTHER)),
        ("worker", bytes.fromhex("1" * 64)),
    ]
    assert (new.services, page.services) == (frozenset({"reader"}), None)
    assert page.scopes == {Scope.READ, Scope.DEPLOY}
    assert found.audit is not None
    assert found.audit.file == tmp_path / ".llama_deploy" / "x.audit.jsonl"
    assert found.audit.bytes_max == AUDIT_BYTES_MAX
    to_output = settings(tmp_path, "  audit: {file: '-'}")
    assert to_output.audit is not None
    assert to_output.audit.file is None
    assert load(tmp_path, "  tokens: {ci: {scopes: [run], env: CI_TOKEN}}").access.variables == {"CI_TOKEN"}


def test_a_token_in_clear_is_warned_of_and_shown_nowhere(tmp_path: Path) -> None:
    file = load(tmp_path, f"  tokens: {{ci: {{scopes: [run], token: {TEXT}}}}}")
    assert len(file.notices) == 1
    assert "in clear" in file.notices[0]
    assert TEXT not in file.notices[0] + repr(file) + repr(file.access.settings(tmp_path, "x"))


@pytest.mark.parametrize(
    ("access", "told"),
    [
        ("  tokens: {ci: {scopes: [run]}}", "has one of `env`, `file`, `hash` and `token`"),
        ("  tokens: {ci: {scopes: [run], env: A, file: b}}", "has one of"),
        ("  tokens: {ci: {env: A}}", "needs the key `scopes`"),
        ("  tokens: {ci: {scopes: [], env: A}}", "allows nothing"),
        ("  tokens: {ci: {scopes: [read], env: A, services: [x]}}", "belongs to the scope `serve`"),
        ("  tokens: {ci: {scopes: [serve, run], env: A, services: [x]}}", "and not `run`"),
        ("  tokens: {ci: {scopes: [serve], env: A, services: []}}", "may serve nothing"),
        ("  tokens: {ci: {scopes: [runs], env: A}}", "did you mean `run`"),
        ("  tokens: {ci: {scopes: [run], hash: 'sha256:12'}}", "64 hex digits"),
        ("  tokens: {'a b': {scopes: [run], env: A}}", "a token's name has to be"),
        ("  tokens: {'(own services)': {scopes: [run], env: A}}", "a token's name has to be"),
        ("  tokens: {ci: {scopes: [run], env: A, rate: {seconds: 1}}}", "needs the key `count`"),
        ("  cors-origins: ['*']", "expected an origin"),
        ("  cors-origins: ['https://a.example/path']", "expected an origin"),
        ("  tls: {certificate-file: a}", "needs the key `key-file`"),
        ("  audit: {record: some}", "expected `changes` or `all` or `none`"),
        ("  token: {}", "did you mean `tokens`"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(tmp_path: Path, access: str, told: str) -> None:
    with pytest.raises(DeploymentFileError) as caught:
        load(tmp_path, access)
    assert told in caught.value.why


@pytest.mark.parametrize(
    ("access", "told"),
    [
        ("  tokens: {ci: {scopes: [run], env: NOT_THERE}}", "NOT_THERE is not set"),
        ("  tokens: {ci: {scopes: [run], file: missing}}", "cannot read missing"),
        ("  tokens: {ci: {scopes: [run], file: empty}}", "has no token"),
        ("  tokens: {ci: {scopes: [run], file: short}}", "no usable token"),
        (f"  tokens: {{a: {{scopes: [run], token: {TEXT}}}, b: {{scopes: [read], token: {TEXT}}}}}", "are the same"),
    ],
)
def test_a_token_that_is_not_there_stops_the_start_and_is_not_shown(tmp_path: Path, access: str, told: str) -> None:
    (tmp_path / "empty").write_text("\n# nothing\n")
    (tmp_path / "short").write_text("secret\n")
    with pytest.raises(SettingError) as caught:
        settings(tmp_path, access)
    assert told in caught.value.what
    assert "secret" not in caught.value.render()
    assert TEXT not in caught.value.render()


def served(
    file: DeploymentFile, host: str = "127.0.0.1", *, allow_remote: bool = False
) -> tuple[ServedAccess, list[str]]:
    told: list[str] = []
    made = ServedAccess(
        file.access,
        file.folder,
        file.name,
        host=host,
        allow_remote=allow_remote,
        report=told.append,
        read=lambda: load_deployment_file(file.path).access,
    )
    return made, told


def test_reading_again_changes_who_is_let_in(tmp_path: Path) -> None:
    (tmp_path / "ci").write_text(TEXT)
    (tmp_path / "ci").chmod(0o600)
    access, told = served(load(tmp_path, "  tokens: {ci: {scopes: [run], file: ci}}"))
    assert access.asks_for_tokens
    assert access.access.tokens.caller([b"Bearer " + TEXT.encode()]).name == "ci"
    (tmp_path / "ci").write_text(OTHER)
    access.reload()
    assert access.access.tokens.caller([b"Bearer " + OTHER.encode()]).name == "ci"
    own = access.own_environment[INSTANCE_TOKEN_VARIABLE]
    caller = access.access.tokens.caller([b"Bearer " + own.encode()])
    assert caller.name == OWN_SERVICES
    assert caller.token is not None
    assert caller.token.scopes == {Scope.SERVE}
    assert told == ["access: with a token (ci)"]
    access.close()


def test_what_is_wrong_when_it_is_read_again_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "ci").write_text(TEXT)
    access, told = served(load(tmp_path, "  tokens: {ci: {scopes: [run], file: ci}}"), host="0.0.0.0")
    for broken in ("  tokens: {ci: {scopes: [run], file: gone}}", "  tokens: {}", "  tokens: {ci: {}}"):
        (tmp_path / "deployment.yml").write_text(
            f"name: x\nservices: {{s: {{import-path: 'm:s'}}}}\naccess:\n{broken}\n"
        )
        access.reload()
        assert "stays as it was" in told[-1]
        assert access.access.tokens.caller([b"Bearer " + TEXT.encode()]).name == "ci"


def test_a_secret_of_roots_may_be_read_by_the_group_that_it_is_given_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kubernetes mounts secrets so: owned by root, readable for the group of the pod."""
    file = tmp_path / "ci"
    file.write_text(TEXT)
    spec = load(tmp_path, "  tokens: {ci: {scopes: [run], file: ci}}").access
    status = file.stat()
    monkeypatch.setattr(Path, "stat", lambda self, **_: os.stat_result((0o100440, *status[1:4], 0, *status[5:])))
    monkeypatch.setattr("os.geteuid", lambda: 10001)
    assert spec.warnings(tmp_path) == []
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert len(spec.warnings(tmp_path)) == 1, "root needs no group"
    monkeypatch.setattr(Path, "stat", lambda self, **_: os.stat_result((0o100444, *status[1:4], 0, *status[5:])))
    monkeypatch.setattr("os.geteuid", lambda: 10001)
    assert len(spec.warnings(tmp_path)) == 1, "everybody can read it"


def test_who_is_let_in_is_said(tmp_path: Path) -> None:
    (tmp_path / "ci").write_text(TEXT)
    (tmp_path / "ci").chmod(0o644)
    access, told = served(load(tmp_path, "  tokens: {ci: {scopes: [run], file: ci}}"), host="0.0.0.0")
    access.tell()
    assert "can be read by others (mode 644)" in told[0]
    assert "in clear" in told[2]
    open_to_all, told = served(load(tmp_path, "  hosts: [x.example]"))
    open_to_all.tell()
    assert told == ["access: everybody on this machine; no token is asked for"]
    assert not open_to_all.asks_for_tokens
