"""Reading deployment files: what is understood, and that everything wrong is said at once, with its place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from llama_deploy.apiserver import json_schema, load_deployment_file
from llama_deploy.apiserver.deployment_file import parse_deployment_file
from llama_deploy.apiserver.specs import ControlPlaneSpec, DeploymentFile, OrchestratorSpec, ServiceSpec
from llama_deploy.errors import DeploymentFileError, SettingError

SMALL = "name: demo\nservices:\n  shout: {import-path: 'services:shout'}\n"


def load(tmp_path: Path, text: str | bytes) -> DeploymentFile:
    path = tmp_path / "deployment.yml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_deployment_file(path)


def problems(tmp_path: Path, text: str | bytes) -> list[str]:
    """What is wrong with a file, as `line:column: what`; every one also stands in the error's text."""
    with pytest.raises(DeploymentFileError) as caught:
        load(tmp_path, text)
    found = [f"{p['line']}:{p['column']}: {p['message']}" for p in caught.value.details["problems"]]
    rendered = caught.value.render()
    assert all(f"{tmp_path / 'deployment.yml'}:{problem}" in rendered for problem in found)
    return found


def test_a_small_file_has_defaults(tmp_path: Path) -> None:
    file = load(tmp_path, SMALL)
    assert file == DeploymentFile(
        path=tmp_path / "deployment.yml",
        name="demo",
        control_plane=ControlPlaneSpec(host="127.0.0.1", port=8000),
        orchestrator=OrchestratorSpec(name="simple"),
        services=(ServiceSpec(name="shout", import_path="services:shout"),),
    )
    assert file.folder == tmp_path
    assert file.service("shout").replicas == 1
    with pytest.raises(KeyError):
        file.service("whisper")


def test_every_key_that_is_used_is_read(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "a.env").write_text("A=1\nB=from file\n")
    text = """\
name: demo
control-plane: {host: 0.0.0.0, port: 9000}
default-service: shout
store: data
orchestrator:
  import-path: "policy:Route"
  parameters: {max-hops: 3, order: [a, {b: 1.5}]}
services:
  shout:
    name: Shouting
    import-path: "services:shout"
    source: {type: local, name: code}
    path: lib
    description: Shouts.
    concurrency: 2
    run-timeout-s: 1.5
    retry: {max-retries: 5, initial-s: 1, cap-s: 9.5}
    limits: {running-max: 3, running-max-per-key: 1, rate: {count: 10, seconds: 60}}
    replicas: 3
    env: {B: 8080, C: yes, D: ""}
    env-files: [a.env]
"""
    file = load(tmp_path, text)
    service = file.service("shout")
    assert file.control_plane == ControlPlaneSpec(host="0.0.0.0", port=9000)
    assert (file.default_service, file.store, file.notices) == ("shout", "data", ())
    assert file.orchestrator.import_path == "policy:Route"
    assert file.orchestrator.name is None
    assert file.orchestrator.parameters == {"max-hops": 3, "order": ["a", {"b": 1.5}]}
    assert service == ServiceSpec(
        name="shout",
        import_path="services:shout",
        source_folder=Path("code"),
        path=Path("lib"),
        title="Shouting",
        description="Shouts.",
        concurrency=2,
        run_timeout_s=1.5,
        retry={"max_retries": 5, "initial_s": 1.0, "cap_s": 9.5},
        limits={"running_max": 3, "running_max_per_key": 1, "rate": {"count": 10, "seconds": 60}},
        replicas=3,
        env={"B": "8080", "C": "yes", "D": ""},
        env_files=(Path("a.env"),),
    )
    assert service.environment(file.folder) == {"A": "1", "B": "8080", "C": "yes", "D": ""}
    assert service.watched_folders(file.folder) == (tmp_path / "code", tmp_path / "code" / "lib")


def test_a_published_file_is_read_with_notices(tmp_path: Path) -> None:
    text = """\
name: QuickStart
control-plane:
  port: 8000
  step_interval: 0.5
message-queue:
  type: simple
  host: 127.0.0.1
default-service: echo
services:
  echo:
    name: Echo
    source: {type: local, name: .}
    path: src/workflow:echo
    host: 127.0.0.1
    port: 8002
    python-dependencies: [requests]
    ui: {port: 3000}
"""
    file = load(tmp_path, text)
    assert file.service("echo").import_path == "src/workflow:echo"
    assert file.service("echo").path is None
    places = [notice.removeprefix(f"{tmp_path / 'deployment.yml'}:") for notice in file.notices]
    assert [place.split(" is not used")[0] for place in places] == [
        "4:3: `step_interval`",
        "7:3: `host`",
        "14:5: `host`",
        "15:5: `port`",
        "17:5: `ui`",
    ]


def test_published_keys_of_the_control_plane_mean_what_has_another_place_now(tmp_path: Path) -> None:
    text = """\
name: old
control-plane:
  state-store-uri: data/old.db
  cors-origins: ["https://Desk.example"]
  use-tls: true
access:
  cors-origins: ["https://other.example"]
services:
  echo: {import-path: "a:echo"}
"""
    file = load(tmp_path, text)
    assert file.store == "data/old.db"
    assert file.access.cors_origins == ("https://other.example", "https://desk.example")
    assert ["use-tls" in notice for notice in file.notices] == [True]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("  state-store-uri: redis://localhost", "`redis://localhost` is no store"),
        ("  state-store-uri: a.db\nstore: b.db", "say it once"),
        ("  cors-origins: ['*']", "an origin"),
    ],
)
def test_what_a_published_key_cannot_mean_is_refused_at_its_place(tmp_path: Path, line: str, said: str) -> None:
    text = f"name: old\ncontrol-plane:\n{line}\nservices:\n  echo: {{import-path: 'a:echo'}}\n"
    with pytest.raises(DeploymentFileError) as refused:
        load(tmp_path, text)
    assert said in refused.value.why
    assert ":3:" in refused.value.why


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    text = """\
nme: demo
default-service: shuot
control-plane: {port: 70000, hots: x}
orchestrator: simpel
services:
  shout:
    import_path: services:shout
    retry: {max-retrys: 1, jitter: 2}
    env: {A: , 1x: 1}
  shout: {import-path: "services"}
  a b: {import-path: "x:y", concurrency: 0, run-timeout-s: 0, replicas: 1.5}
  control-plane: {import-path: "x:y"}
"""
    assert problems(tmp_path, text) == [
        "1:1: a deployment file needs the key `name`: The deployment's name.",
        "1:1: unknown key `nme` in a deployment file (did you mean `name`?)",
        "2:18: there is no service `shuot` (did you mean `shout`?)",
        "3:23: expected a whole number from 0 to 65535, found the number `70000`",
        "3:30: unknown key `hots` in `control-plane` (did you mean `host`?)",
        "4:15: there is no orchestrator `simpel` (did you mean `simple`?)",
        "7:5: service `shout` needs the key `import-path`: where its code is",
        "7:5: unknown key `import_path` in a service (did you mean `import-path`?)",
        "8:13: unknown key `max-retrys` in `retry` (did you mean `max-retries`?)",
        "8:36: expected a number from 0 to 1, found the number `2`",
        '9:13: expected a value, found nothing; write "" for an empty one',
        "9:16: a variable has to be a name of letters, digits and `_`, found `1x`",
        "10:3: duplicate service name `shout`, first in line 6",
        "11:3: a service name has to be 1 to 100 letters, digits, `_`, `-` or `.`, found `a b`",
        "11:42: expected a whole number of at least 1, found the number `0`",
        "11:60: expected a number above 0, found the number `0`",
        "11:73: expected a whole number from 1 to 100, found the number `1.5`",
        "12:3: `control-plane` is reserved, choose another service name",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "1:1: the file is empty"),
        ("# nothing\n", "1:1: the file is empty"),
        ("- a\n", "1:1: a deployment file has to be a mapping of keys, found a list"),
        ("name: x\nservices:\n\ta: 1\n", "3:1: not YAML: a tab cannot indent YAML; use spaces"),
        ("name: [x\n", "2:1: not YAML: expected ',' or ']', but got '<stream end>'"),
        ("name: x\n---\nname: y\n", "2:1: not YAML: a second document starts here"),
        ("name: *x\n", "1:7: not YAML: found undefined alias"),
        (b"name: x\nlabel: a\xff\n", "2:9: the byte 0xff is not UTF-8; save the file as UTF-8"),
        ("name: a\x07b\n", "1:8: the character '\\x07' is not allowed in YAML"),
        ("[" * 3000, "1:1: the file is nested too deeply"),
        (b"#" * 1_000_001, "1:1: the file has 1000001 bytes"),
    ],
)
def test_what_is_no_yaml_is_refused_with_its_place(tmp_path: Path, text: str | bytes, expected: str) -> None:
    (found,) = problems(tmp_path, text)
    assert found.startswith(expected)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("message-queue: {type: solace}", "`solace` is not supported yet"),
        ("message-queue: {namespace: a}", "`message-queue` needs a `type` or a `url`"),
        ("message-queue: somewhere", "a URL (`redis://host:port`)"),
        ("message-queue: {type: redis, password: {env: A, file: b}}", "a reference has one of `env` and `file`"),
        ("message-queue: {type: rabbit}", "(did you mean `rabbitmq`?)"),
        ("control-plane: {cors-origins: ['*']}", "an origin (`https://desk.example.com`)"),
        ("control-plane: {state_store_uri: 'x://'}", "`x://` is no store"),
        ("control-plane: {port: '8000'}", "expected a whole number from 0 to 65535, found text `8000`"),
        ("control-plane: {port: true}", "found the boolean `true`"),
        ("orchestrator: {name: simple, import-path: 'a:b'}", "a `name` or an `import-path`, not both"),
        ("orchestrator: {parameters: {}}", "`orchestrator` needs a `name` or an `import-path`"),
        ("orchestrator: {name: simple, parameters: {a: 2020-01-01}}", "the date `2020-01-01` has no JSON form"),
        ("orchestrator: {name: simple, parameters: {a: &a [*a]}}", "this value contains itself"),
        ("orchestrator: 'a:b:'", "expected an import path"),
        ("store: [x]", "expected text, found a list"),
        ("default-service: 1", 'expected text, found the number `1`; quote it: "1"'),
        ("? [a]\n: 1", "a key has to be text, this is a list"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(tmp_path: Path, line: str, expected: str) -> None:
    (found,) = problems(tmp_path, SMALL + line + "\n")
    assert expected in found
    assert found.startswith("4:")


@pytest.mark.parametrize(
    ("service", "expected"),
    [
        ("import-path: 'a:b', source: {type: git, name: 'https://x'}", "is no address of a repository"),
        ("import-path: 'a:b', source: {type: docker, name: x}", "say which one of `x` is meant"),
        ("import-path: 'a:b', source: {type: docker, name: 'x:1 --privileged'}", "expected an image"),
        ("import-path: 'a:b', source: {type: docker}", "needs the key `name`"),
        ("import-path: 'a:b', source: {type: docker, name: 'x:1', branch: y}", "`branch` belongs to the type `git`"),
        ("import-path: 'a:b', source: {type: package}", "needs the key `name`"),
        ("import-path: 'a:b', source: {type: local, name: ., branch: x}", "`branch` belongs to the type `git`"),
        ("import-path: 'a:b', env: {A: {env: B, file: c}}", "a reference has one of `env` and `file`"),
        ("import-path: 'a:b', source: {name: .}", "`source` needs the key `type`"),
        ("import-path: 'a:b', source: {type: local, name: gone}", "there is no folder `gone`"),
        ("import-path: 'a:b', source: {type: local, name: ., location: .}", "say the same"),
        ("import-path: 'a:b', path: 'c:d'", "say it once, in `import-path`"),
        ("import-path: 'a:b', env-files: [gone.env]", "there is no file `gone.env`"),
        ("import-path: 'a:b', env: [A]", "expected a mapping from a variable to its settings, found a list"),
        ("import-path: ", "needs the key `import-path`"),
        ("import-path: a:b:c", "expected an import path"),
    ],
)
def test_a_service_that_cannot_be_used_is_refused(tmp_path: Path, service: str, expected: str) -> None:
    found = problems(tmp_path, f"name: demo\nservices:\n  a: {{{service}}}\n")
    assert expected in found[0]


def test_services_have_to_be_there(tmp_path: Path) -> None:
    assert problems(tmp_path, "name: x\n")[0].startswith("1:1: a deployment file needs the key `services`")
    assert problems(tmp_path, "name: x\nservices:\n")[0].startswith("2:1: `services` needs a value")
    assert problems(tmp_path, "name: x\nservices: {}\n") == ["2:11: at least one service name is needed"]
    assert problems(tmp_path, "name: x\nservices:\n  a:\n") == [
        "3:5: a service has to be a mapping of keys, found nothing"
    ]


def test_keys_can_be_merged_and_shared(tmp_path: Path) -> None:
    text = "name: x\nservices:\n  a: &a {import-path: 'm:a', concurrency: 2}\n  b: {<<: *a, import-path: 'm:b'}\n"
    file = load(tmp_path, text)
    assert [(s.import_path, s.concurrency) for s in file.services] == [("m:a", 2), ("m:b", 2)]


def test_an_alias_bomb_is_refused(tmp_path: Path) -> None:
    levels = [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 9)]
    bomb = "{l0: &l0 [x], " + ", ".join(levels) + "}"
    (found,) = problems(tmp_path, SMALL + f"orchestrator: {{name: simple, parameters: {{bomb: {bomb}}}}}\n")
    assert "more than 10000 parts" in found


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    assert load(tmp_path, b"\xef\xbb\xbf" + SMALL.encode()).name == "demo"


def test_a_folder_stands_for_the_file_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeploymentFileError, match="there is no deployment file in"):
        load_deployment_file(tmp_path)
    (tmp_path / "deployment.yaml").write_text(SMALL)
    assert load_deployment_file(tmp_path).path.name == "deployment.yaml"
    monkeypatch.chdir(tmp_path)
    assert load_deployment_file().path == tmp_path / "deployment.yaml"


def test_a_file_that_is_not_there_or_not_readable_says_so(tmp_path: Path) -> None:
    with pytest.raises(DeploymentFileError, match="there is no deployment file at"):
        load_deployment_file(tmp_path / "gone.yml")
    if os.geteuid() != 0:
        secret = tmp_path / "secret.yml"
        secret.touch(mode=0)
        with pytest.raises(DeploymentFileError, match="cannot read"):
            load_deployment_file(secret)


def test_the_schema_names_the_keys_that_can_be_used() -> None:
    schema = json_schema()
    service: dict[str, Any] = schema["properties"]["services"]["additionalProperties"]
    assert schema["required"] == ["name", "services"]
    assert schema["additionalProperties"] is False
    assert service["properties"]["import-path"]["description"]
    assert service["properties"]["port"]["deprecated"] is True
    assert schema["properties"]["control-plane"]["properties"]["use-tls"]["deprecated"] is True
    assert schema["properties"]["message-queue"]["anyOf"][1]["properties"]["type"]["enum"][:2] == ["simple", "redis"]


def test_webhooks_are_read_and_their_references_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "whsec_" + "c2VjcmV0" * 5
    (tmp_path / "main").write_text(secret + "\n", encoding="utf-8")
    monkeypatch.setenv("HOOK_URL", "https://hooks.example.com/x?key=1")
    text = """\
name: demo
services: {shout: {import-path: "services:shout"}}
webhooks:
  url: {env: HOOK_URL}
  secret: main
  hosts: ["*.example.com"]
  secrets: {main: {file: main}}
"""
    file = parse_deployment_file(text.encode(), tmp_path / "deployment.yml")
    settings = file.webhooks.settings(file.folder)
    assert settings.default is not None
    assert (settings.default.url, settings.default.secret) == ("https://hooks.example.com/x?key=1", "main")
    assert settings.hosts == ("*.example.com",)
    assert dict(settings.secrets) == {"main": secret}
    assert secret not in repr(settings)
    monkeypatch.delenv("HOOK_URL")
    with pytest.raises(SettingError, match="HOOK_URL is not set"):
        file.webhooks.settings(file.folder)


@pytest.mark.parametrize(
    ("webhooks", "problem"),
    [
        ("{secrets: {main: whsec_abc}}", "has to be a mapping"),
        ("{secrets: {main: {env: A, file: b}}}", "one of `env` and `file`"),
        ("{secrets: {main: {}}}", "one of `env` and `file`"),
        ("{url: 'https://a.b', secret: mian, secrets: {main: {env: A}}}", "did you mean `main`"),
        ("{secret: main, secrets: {main: {env: A}}}", "belongs to `url`"),
        ("{url: ftp://a.b}", "expected a URL"),
    ],
)
def test_webhooks_that_are_wrong_are_told(webhooks: str, problem: str) -> None:
    text = f"name: demo\nservices: {{shout: {{import-path: 'services:shout'}}}}\nwebhooks: {webhooks}\n"
    with pytest.raises(DeploymentFileError, match=problem):
        parse_deployment_file(text.encode(), Path("deployment.yml"))


def test_orchestrators_by_name_and_described_by_data(tmp_path: Path) -> None:
    text = """\
orchestrators:
  review: {name: sequence, parameters: {nodes: [shout, {vote: {node: shout, times: 3}}]}}
  review@1: policy:Old
"""
    file = load(tmp_path, SMALL + text)
    assert file.orchestrators == {
        "review": OrchestratorSpec(
            name="sequence", parameters={"nodes": ["shout", {"vote": {"node": "shout", "times": 3}}]}
        ),
        "review@1": OrchestratorSpec(name=None, import_path="policy:Old"),
    }


def test_a_mistake_in_a_description_is_told_at_its_place(tmp_path: Path) -> None:
    text = """\
orchestrator:
  name: graph
  parameters:
    nodes: {a: shout}
    edges:
      - start -> a
      - from: a
        to: end
        at-mots: 3
orchestrators:
  wide: {name: map, parameters: {node: {sequence: {node: shout}}}}
  none: {name: mapp}
  9x: simple
"""
    start = SMALL.count("\n")
    found = problems(tmp_path, SMALL + text)
    assert [problem.partition(":")[2] for problem in found] == [
        "18: an edge has no `at-mots`: did you mean `at-most`?",
        "58: `sequence` has no parameter `node`: did you mean `nodes`?",
        "16: there is no orchestrator `mapp` (did you mean `map`?)",
        "3: an orchestrator has to be a name, or `name@version`, found `9x`",
    ]
    assert [int(problem.partition(":")[0]) - start for problem in found] == [9, 11, 12, 13]


def test_limits_that_cannot_be_are_told_with_their_place(tmp_path: Path) -> None:
    text = (
        "name: x\nservices:\n  a:\n    import-path: m:a\n    limits:\n      running-max: 0\n      per-key: 1\n"
        "      rate: {seconds: 0}\n"
    )
    assert problems(tmp_path, text) == [
        "6:20: expected a whole number from 1 to 1000000, found the number `0`",
        "7:7: unknown key `per-key` in `limits`",
        "8:13: `rate` needs the key `count`: How many may begin.",
        "8:23: expected a number above 0, found the number `0`",
    ]


def test_keys_to_redact_are_patterns(tmp_path: Path) -> None:
    path = tmp_path / "deployment.yml"
    path.write_text("name: demo\nservices:\n  a: {import-path: 'm:a'}\nredact: ['*password*', api_key]\n")
    assert load_deployment_file(path).redact == ("*password*", "api_key")
    path.write_text("name: demo\nservices:\n  a: {import-path: 'm:a'}\nredact: ['*a*b*c*']\n")
    with pytest.raises(DeploymentFileError, match="cannot be a pattern"):
        load_deployment_file(path)


def test_a_control_plane_that_shares_its_store_says_so_and_needs_a_database(tmp_path: Path) -> None:
    services = "services: {echo: {path: a:b}}\n"
    text = "name: a\nstore: postgresql://db/a\ncontrol-plane: {shared: true, public-url: 'http://here:1'}\n" + services
    spec = load(tmp_path, text).control_plane
    assert (spec.shared, spec.public_url) == (True, "http://here:1")
    with pytest.raises(DeploymentFileError, match="a PostgreSQL store only"):
        load(tmp_path, "name: a\nstore: data.db\ncontrol-plane: {shared: true}\n" + services)
    with pytest.raises(DeploymentFileError, match="expected a URL"):
        load(tmp_path, "name: a\ncontrol-plane: {public-url: here}\n" + services)
