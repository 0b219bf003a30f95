"""Reading a deployment file: YAML in, a frozen `DeploymentFile` out, or one error that lists all that is wrong.

The keys are declared in `deployment_keys.py`; here is what goes beyond one key (names that have to exist, keys that
exclude each other). Reading imports no code of the user and starts nothing.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from llama_deploy.apiserver.access_keys import ACCESS, access_of
from llama_deploy.apiserver.access_spec import AccessSpec
from llama_deploy.apiserver.deployment_keys import FILE_KEYS, IMPORT_PATH
from llama_deploy.apiserver.limits import engine_settings
from llama_deploy.apiserver.loader import DESCRIBED, orchestrator_names
from llama_deploy.apiserver.queue_keys import message_queue_of
from llama_deploy.apiserver.reference import Reference
from llama_deploy.apiserver.reference_keys import reference_of, text_or_reference
from llama_deploy.apiserver.schedule_keys import schedules_of
from llama_deploy.apiserver.shapes import Section
from llama_deploy.apiserver.source_keys import check_dependencies, source_of
from llama_deploy.apiserver.specs import (
    ControlPlaneSpec,
    DeploymentFile,
    OrchestratorSpec,
    ServiceSpec,
    WebhooksSpec,
)
from llama_deploy.apiserver.ui_keys import page_of
from llama_deploy.apiserver.wording import did_you_mean, listed
from llama_deploy.apiserver.yaml_source import Findings, compose, kind
from llama_deploy.errors import DeploymentFileError, SettingError
from llama_deploy.state_stores.postgres_connection import is_postgres, is_store
from llama_deploy.types.redaction import Redaction

__all__ = [
    "DEFAULT_NAMES",
    "DeploymentFile",
    "ServiceSpec",
    "find_deployment_file",
    "json_schema",
    "load_deployment_file",
]

DEFAULT_NAMES = ("deployment.yml", "deployment.yaml")
"""What a deployment file is called where nobody says otherwise."""


def find_deployment_file(path: str | os.PathLike[str] | None = None) -> Path:
    """The file that a person means: the path itself, or the one with a default name in the folder (or here).

    Raises `DeploymentFileError` when there is none.
    """
    place = Path(path) if path is not None else Path()
    if not place.is_dir():
        return place
    for name in DEFAULT_NAMES:
        if (place / name).is_file():
            return place / name
    raise DeploymentFileError(
        f"there is no deployment file in {place.resolve()}",
        why="It is called " + " or ".join(DEFAULT_NAMES) + ".",
        fix="llamactl init               write a deployment file and two services to start from\n"
        "llamactl dev path/to/FILE   use a file with another name\n"
        "llamactl apiserver          run a server that is sent deployments",
        problems=[],
    )


def load_deployment_file(path: str | os.PathLike[str] | None = None) -> DeploymentFile:
    """Read and check a deployment file; a folder stands for the file with a default name in it.

    Raises `DeploymentFileError`, whose text lists every problem as `file:line:column: what` and whose
    `details["problems"]` holds the same for programs. Relative paths in the file stay as they are written.
    """
    place = find_deployment_file(path)
    try:
        source = place.read_bytes()
    except FileNotFoundError:
        fix = "llamactl init               write a deployment file and two services to start from"
        raise DeploymentFileError(f"there is no deployment file at {place}", fix=fix, problems=[]) from None
    except OSError as error:
        raise DeploymentFileError(f"cannot read {place}", why=str(error.strerror), problems=[]) from error
    return parse_deployment_file(source, place)


def parse_deployment_file(source: bytes, path: Path) -> DeploymentFile:
    """The deployment that `source` describes, as if it stood at `path`; raises like `load_deployment_file`."""
    findings = Findings()
    root = compose(source, findings)
    section = FILE_KEYS.read(root, findings) if root is not None else None
    deployment = _deployment(section, path, findings) if section is not None else None
    if findings.problems or deployment is None:
        raise _refusal(path, findings)
    return deployment


def load_access_file(path: str | os.PathLike[str]) -> AccessSpec:
    """Read and check a file with what stands under `access` in a deployment file. Raises `DeploymentFileError`."""
    place = Path(path)
    try:
        source = place.read_bytes()
    except OSError as error:
        raise DeploymentFileError(f"cannot read {place}", why=str(error.strerror), problems=[]) from error
    findings = Findings()
    root = compose(source, findings)
    section = ACCESS.read(root, findings) if root is not None else None
    spec = access_of(section, findings)
    if findings.problems:
        raise _refusal(place, findings)
    return spec


def json_schema() -> dict[str, Any]:
    """The JSON Schema of deployment files, for editors that complete and check YAML by one."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "llama_deploy deployment file",
        **FILE_KEYS.json_schema(),
    }


def _refusal(path: Path, findings: Findings) -> DeploymentFileError:
    problems = sorted(set(findings.problems))
    count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
    return DeploymentFileError(
        f"{path} has {count}",
        why="\n".join(problem.render(str(path)) for problem in problems),
        fix="correct the lines above; nothing was started or changed",
        problems=[{"line": p.line, "column": p.column, "message": p.what} for p in problems],
    )


def _control_plane(section: Section | None, store: str | None, findings: Findings) -> ControlPlaneSpec:
    if section is None:
        return ControlPlaneSpec()
    given = section.given()
    shared = given.get("shared") == "true"
    if shared and store is not None and not is_postgres(store):
        findings.problem(
            section.nodes["shared"], "several control planes can share a PostgreSQL store only: `store: postgresql://…`"
        )
    public_url = given.get("public-url")
    if public_url is not None and not public_url.startswith(("http://", "https://")):
        findings.problem(section.nodes["public-url"], "expected a URL like http://host:8000")
    place = {key: given[key] for key in ("host", "port") if key in given}
    return ControlPlaneSpec(**place, shared=shared, public_url=public_url)


def _store(section: Section, control_plane: Section | None, findings: Findings) -> str | None:
    """Where the data lives, by either word for it."""
    given = [(section, "store"), (control_plane, "state-store-uri")]
    said = [(place[key], place.nodes[key]) for place, key in given if place is not None and place[key] is not None]
    for store, node in said:
        if not is_store(store):
            findings.problem(node, f"`{store}` is no store: give a path, `:memory:`, or `postgresql://…`")
    if len(said) > 1:
        findings.problem(said[1][1], "`state-store-uri` is the published word for `store`; say it once")
    return said[0][0] if said else None


def _access(section: Section, control_plane: Section | None, findings: Findings) -> AccessSpec:
    """Who is let in, with the origins that stand at their published place."""
    access = access_of(section["access"], findings)
    origins = (control_plane["cors-origins"] or ()) if control_plane is not None else ()
    return replace(access, cors_origins=(*access.cors_origins, *(origin.lower() for origin in origins)))


def _deployment(section: Section, path: Path, findings: Findings) -> DeploymentFile:
    services: Section | None = section["services"]
    specs = []
    if services is not None:
        for name, service in services.given().items():
            specs.append(_service(name, service, path, findings))
        default = section["default-service"]
        if default is not None and default not in services.values:
            hint = did_you_mean(default, services.values) or f"; the services are {listed(services.values)}"
            findings.problem(section.nodes["default-service"], f"there is no service `{default}`{hint}")
    control_plane: Section | None = section["control-plane"]
    store = _store(section, control_plane, findings)
    return DeploymentFile(
        path=path.absolute(),
        name=section["name"] or "",
        message_queue=message_queue_of(section["message-queue"], findings),
        control_plane=_control_plane(control_plane, store, findings),
        orchestrator=_orchestrator(section["orchestrator"], section.nodes.get("orchestrator"), findings),
        orchestrators=_orchestrators(section["orchestrators"], findings),
        default_service=section["default-service"],
        limits=engine_settings(section["limits"], findings),
        store=store,
        redact=_redact(section, findings),
        encryption_key_file=section["encryption-key-file"],
        services=tuple(specs),
        page=page_of(section["ui"], path, findings),
        schedules=schedules_of(
            section["schedules"],
            services=services.values if services is not None else (),
            default_service=section["default-service"],
            findings=findings,
        ),
        webhooks=_webhooks(section["webhooks"], findings),
        access=_access(section, control_plane, findings),
        notices=tuple(notice.render(str(path)) for notice in sorted(set(findings.notices))),
    )


def _redact(section: Section, findings: Findings) -> tuple[str, ...]:
    patterns: tuple[str, ...] = section["redact"] or ()
    try:
        Redaction(patterns)
    except SettingError as error:
        findings.problem(section.nodes["redact"], f"{error.what} ({error.why})" if error.why else error.what)
        return ()
    return patterns


def _webhooks(section: Section | None, findings: Findings) -> WebhooksSpec:
    if section is None:
        return WebhooksSpec()
    url: str | Section | None = section["url"]
    table: Section | None = section["secrets"]
    given = table.given() if table is not None else {}
    secrets = {name: reference_of(reference, findings) for name, reference in given.items()}
    secret = section["secret"]
    if secret is not None and secret not in secrets:
        hint = did_you_mean(secret, secrets) or "; name it in `secrets`"
        findings.problem(section.nodes["secret"], f"there is no secret `{secret}`{hint}")
    if secret is not None and url is None:
        findings.problem(section.nodes["secret"], "`secret` belongs to `url`, which is not given")
    return WebhooksSpec(
        url=text_or_reference(url, findings),
        secret=secret,
        hosts=section["hosts"] or (),
        secrets=secrets,
    )


def _service(name: str, section: Section, path: Path, findings: Findings) -> ServiceSpec:
    import_path, folder = section["import-path"], section["path"]
    if folder is not None and ":" in folder:
        if import_path is not None:
            findings.problem(section.nodes["path"], "`path` is an import path here; say it once, in `import-path`")
        import_path, folder = IMPORT_PATH.read(section.nodes["path"], findings), None
    elif "import-path" not in section.nodes or kind(section.nodes["import-path"]) == "null":
        findings.problem(section.node, f"service `{name}` needs the key `import-path`: where its code is")
    for env_file in section["env-files"] or ():
        if not (path.parent / env_file).is_file():
            findings.problem(section.nodes["env-files"], f"there is no file `{env_file}` beside the deployment file")
    env: Section | None = section["env"]
    retry: Section | None = section["retry"]
    limits: Section | None = section["limits"]
    source_folder, source = source_of(section["source"], path, findings)
    return ServiceSpec(
        name=name,
        import_path=import_path or "",
        source_folder=source_folder,
        source=source,
        python_dependencies=check_dependencies(section, findings),
        path=Path(folder) if folder is not None else None,
        title=section["name"],
        description=section["description"],
        concurrency=section["concurrency"],
        run_timeout_s=section["run-timeout-s"],
        retry=_python_names(retry),
        limits=_python_names(limits),
        memory=section["memory"],
        replicas=section["replicas"] or 1,
        process_memory_mb_max=section["process-memory-mb-max"],
        env=_variables(env, findings) if env is not None else {},
        env_files=tuple(Path(env_file) for env_file in section["env-files"] or ()),
    )


def _variables(section: Section, findings: Findings) -> dict[str, str | Reference]:
    found = {name: text_or_reference(value, findings) for name, value in section.given().items()}
    return {name: value for name, value in found.items() if value is not None}


def _python_names(section: Section | None) -> dict[str, Any]:
    """What a section gives, in the spelling of Python."""
    if section is None:
        return {}
    return {
        key.replace("-", "_"): _python_names(value) if isinstance(value, Section) else value
        for key, value in section.given().items()
    }


def _orchestrators(section: Section | None, findings: Findings) -> dict[str, OrchestratorSpec]:
    if section is None:
        return {}
    table = section.node
    return {name: _orchestrator(value, _node_at(table, (name,)), findings) for name, value in section.given().items()}


def _orchestrator(value: str | Section | None, node: yaml.Node | None, findings: Findings) -> OrchestratorSpec:
    if value is None or node is None:
        return OrchestratorSpec()
    parameters_node = node
    if isinstance(value, str):
        name, import_path, parameters = (None, value, {}) if ":" in value else (value, None, {})
        if import_path is not None:
            import_path = IMPORT_PATH.read(node, findings)
    else:
        name, import_path = value["name"], value["import-path"]
        table: Section | None = value["parameters"]
        parameters = dict(table.values) if table is not None else {}
        parameters_node = value.nodes.get("parameters", node)
        node = value.nodes.get("name", node)
        if name is not None and import_path is not None:
            findings.problem(node, "an orchestrator has a `name` or an `import-path`, not both")
        if not {"name", "import-path"} & value.nodes.keys():
            findings.problem(value.node, "`orchestrator` needs a `name` or an `import-path`")
    if name in DESCRIBED:
        _check_description(name, parameters, parameters_node, findings)
    elif name is not None and name not in (known := orchestrator_names()):
        hint = did_you_mean(name, known) or f"; there are: {listed(known)}, or use `module:variable`"
        findings.problem(node, f"there is no orchestrator `{name}`{hint}")
    return OrchestratorSpec(name=name, import_path=import_path, parameters=parameters)


def _check_description(name: str, parameters: dict[str, Any], node: yaml.Node, findings: Findings) -> None:
    """Make the orchestrator that is described, to see whether it can be made; a mistake is told at its place."""
    from llama_deploy.orchestrators.described import build
    from llama_deploy.orchestrators.described_errors import DescriptionError

    try:
        build(name, parameters)
    except DescriptionError as error:
        findings.problem(_node_at(node, error.path), error.what)


def _node_at(node: yaml.Node, path: tuple[str | int, ...]) -> yaml.Node:
    """The node that a path of keys and positions leads to, or the last one on the way that there is."""
    for step in path:
        following: yaml.Node | None = None
        if isinstance(node, yaml.MappingNode):
            following = next((value for key, value in node.value if key.value == str(step)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            following = node.value[step]
        if following is None:
            return node
        node = following
    return node
