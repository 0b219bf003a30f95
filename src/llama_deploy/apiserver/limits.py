"""The key `limits` of a deployment file: the settings of the control plane, in the spelling of the file.

Every field of `EngineSettings` is a key, made from the field itself, so that a setting which an error names can be set.
What a value must be beyond its type is said here.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from llama_deploy.apiserver.attribute_docs import attribute_docs
from llama_deploy.apiserver.shapes import Key, Number, Record, Section
from llama_deploy.apiserver.yaml_source import Findings
from llama_deploy.control_plane.settings import EngineSettings
from llama_deploy.messages.frames import OPERATION_BYTES_MAX

MAY_BE_ZERO = frozenset(
    {"reconnect_grace_s", "recovery_grace_s", "service_return_s", "run_timeout_grace_s"}
    | {"decision_retries_max", "decision_retry_s", "ended_tasks_cached_max", "sessions_cached_max"}
    | {"retention_s", "ended_tasks_max", "dead_letter_retention_s", "session_retention_s", "unused_content_s"}
)
"""Settings that 0 turns off; all others are above it."""

MOST = {"payload_bytes_max": OPERATION_BYTES_MAX}
"""The highest value of a setting, where more would promise what no connection carries."""


def _number(name: str, default: Any) -> Number:
    """What a setting takes: whole numbers where its default is one."""
    most = MOST.get(name)
    if isinstance(default, int):
        return Number(integer=True, minimum=0 if name in MAY_BE_ZERO else 1, maximum=most)
    return Number(minimum=0, maximum=most) if name in MAY_BE_ZERO else Number(above=0, maximum=most)


_DOCS = attribute_docs(EngineSettings)

LIMITS = Record(
    {
        field.name.replace("_", "-"): Key(
            shape=_number(field.name, field.default), doc=_DOCS.get(field.name, "A setting.")
        )
        for field in fields(EngineSettings)
    },
    "`limits`",
    underscores=True,
)


def engine_settings(section: Section | None, findings: Findings) -> EngineSettings:
    """The settings that the file asks for; what does not go together is a finding."""
    if section is None:
        return EngineSettings()
    settings = EngineSettings(**{name.replace("-", "_"): value for name, value in section.given().items()})
    if settings.lease_s <= settings.heartbeat_s:
        node = section.nodes.get("lease-s") or section.nodes.get("heartbeat-s") or section.node
        findings.problem(
            node,
            f"`lease-s` ({settings.lease_s:g}) has to be longer than `heartbeat-s` ({settings.heartbeat_s:g}): an "
            "instance that is silent for a lease is lost",
        )
    return settings
