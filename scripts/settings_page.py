"""Writes docs/settings.md: every lease, deadline and limit with its default, from the code that it holds in.

Values and sentences are those of the modules; only the introductions stand here. `make docs` runs this; a test fails
when the page is not what this would write.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llama_deploy.apiserver.attribute_docs import attribute_docs

PAGE = Path(__file__).resolve().parent.parent / "docs" / "settings.md"

OPENING = """\
# Settings and limits

Everything has a limit, and every limit a number. A name ends in its unit: `_s` is seconds, `_ms` milliseconds,
`_bytes_max` bytes; `_max` alone counts. What exceeds a limit is refused before anything is changed, or fails its task,
with an error that names the limit ([LD208](errors.md#ld208-limit-exceeded),
[LD209](errors.md#ld209-too-much-work-waiting)).

This page is written by `make docs` from the modules that it names.
"""


class Part(NamedTuple):
    """One table: where its rows are declared, and what a reader has to know besides."""

    title: str
    text: str
    sources: tuple[tuple[str, tuple[str, ...]], ...]
    """Module, or `module:Class`, and the names taken from it; no names means all fields of the class."""


PARTS = (
    Part(
        title="Control plane",
        text="""\
The fields of `llama_deploy.control_plane.EngineSettings`, and the keys of `limits` in the
[deployment file](deployment-file.md). A program passes its own:
`Deployment(settings=EngineSettings(attempts_max=5))`.""",
        sources=(("llama_deploy.control_plane.settings:EngineSettings", ()),),
    ),
    Part(
        title="HTTP and connections",
        text="Fixed. A request body may have twice `payload_bytes_max`.",
        sources=(
            ("llama_deploy.control_plane.http.routes", ("PAGE_ITEMS_MAX", "WAIT_S_MAX")),
            ("llama_deploy.control_plane.http.models", ("BATCH_TASKS_MAX",)),
            ("llama_deploy.messages.frames", ("OPERATION_BYTES_MAX",)),
            ("llama_deploy.control_plane.http.sockets", ("UNSENT_BYTES_MAX", "UNREAD_BYTES_MAX", "CLOSING_S")),
            (
                "llama_deploy.control_plane.http.protocol",
                ("HEAD_TIMEOUT_S", "HEAD_BYTES_MAX", "BODY_GRACE_S", "BODY_BYTES_PER_S_MIN"),
            ),
            (
                "llama_deploy.types.access",
                ("TOKEN_CHARACTERS_MIN", "TOKEN_CHARACTERS_MAX", "AUDIT_BYTES_MAX", "AUDIT_FILES"),
            ),
            ("llama_deploy.control_plane.http.access.audit", ("TEXT_CHARACTERS_MAX", "UNKNOWN_PER_SECOND_MAX")),
            ("llama_deploy.connections.http_requests", ("REQUEST_TIMEOUT_S",)),
            ("llama_deploy.cli.status", ("ANSWER_TIMEOUT_S",)),
        ),
    ),
    Part(
        title="Services",
        text="""\
`concurrency`, `run_timeout_s` and the five fields of `RetryPolicy` are arguments of `@service` and of the service
classes, and keys of the [deployment file](deployment-file.md). `HumanService` takes 64 steps at once, 60 s each; the
time that a person takes does not count. A service without a retry policy is retried as the orchestrator decides: see
[retries](guide/orchestrators.md#retries).""",
        sources=(
            ("llama_deploy.types.core:ServiceDefinition", ("concurrency", "run_timeout_s")),
            ("llama_deploy.types.retry:RetryPolicy", ()),
            ("llama_deploy.types.retry", ("RETRY_AFTER_S_MAX",)),
            ("llama_deploy.services.workflow", ("RUN_TIMEOUT_S",)),
            ("llama_deploy.services.workflow_run", ("IDLE_GRACE_S", "CANCEL_TIMEOUT_S")),
            ("llama_deploy.services.failures", ("MESSAGE_CHARS_MAX", "TRACEBACK_CHARS_MAX")),
            ("llama_deploy.services.line", ("RECONNECT_S",)),
            ("llama_deploy.services.webhook", ("TIMEOUT_S", "REQUESTS_MAX", "HOST_REQUESTS_MAX")),
            ("llama_deploy.control_plane.webhooks", ("RESULT_BYTES_MAX",)),
            ("llama_deploy.runtime.files", ("PART_BYTES",)),
            ("llama_deploy.messages.contents", ("WINDOW_PARTS",)),
            ("llama_deploy.services.transfers", ("TRANSFERS_MAX",)),
            ("llama_deploy.control_plane.contents", ("ARTIFACTS_PER_MESSAGE_MAX",)),
            ("llama_deploy.client.webhooks", ("TOLERANCE_S",)),
        ),
    ),
    Part(
        title="Client",
        text="""\
The first two are what `timeout_s` and `reconnect_timeout_s` of `Client` and `SyncClient` are where nothing is said;
`timeout_s` is an argument of each call, too.""",
        sources=(
            ("llama_deploy.client.published", ("WAIT_TIMEOUT_S",)),
            ("llama_deploy.client.async_client", ("RECONNECT_TIMEOUT_S", "PAGE_ITEMS")),
            ("llama_deploy.connections.requests", ("READ_AHEAD_BYTES_MAX",)),
        ),
    ),
    Part(
        title="Store and queue",
        text="""\
`SQLiteStore(path, synchronous="NORMAL")` gives up what a loss of power may take back; the default is `FULL`.""",
        sources=(
            ("llama_deploy.state_stores.sqlite", ("BATCH_TRANSITIONS_MAX", "RETRY_DELAY_S")),
            ("llama_deploy.control_plane.leadership", ("HANDED_OVER_AT_ONCE",)),
            ("llama_deploy.control_plane.plane", ("QUEUE_DEPTH_MAX",)),
        ),
    ),
    Part(
        title="Carriers",
        text="""\
Fields of `CarrierSettings`, which `Deployment(message_queue={...})` takes beside the address and the credentials
([carriers](guide/carriers.md)).""",
        sources=(
            (
                "llama_deploy.message_queues.settings:CarrierSettings",
                (
                    *("connect_timeout_s", "request_timeout_s", "wait_s", "reconnect_s", "reconnect_s_max"),
                    *("outgoing_max", "batch_max", "batch_bytes_max", "statistics_s"),
                ),
            ),
            ("llama_deploy.message_queues.carrier", ("GIVE_BACK_S", "STOP_S", "CLOCKS_APART_S", "TRIES_MAX")),
            ("llama_deploy.message_queues.redis", ("CLAIM_AFTER_S", "DEAD_MAX")),
            ("llama_deploy.message_queues.nats", ("ACK_WAIT_S", "DELIVERIES_MAX")),
            ("llama_deploy.message_queues.sqs", ("VISIBILITY_S",)),
            ("llama_deploy.message_queues.rabbitmq", ("ACKNOWLEDGED_WITHIN_S", "UNANSWERED_MAX", "HEARTBEAT_S")),
        ),
    ),
    Part(
        title="Processes of a deployment",
        text="What `llamactl serve` and `llamactl dev` do with the processes of the services.",
        sources=(
            ("llama_deploy.apiserver.supervisor:RestartPolicy", ("restarts_max", "period_s", "initial_s", "cap_s")),
            ("llama_deploy.apiserver.serving:ServingOptions", ("drain_timeout_s",)),
            ("llama_deploy.apiserver.serving", ("STOP_GRACE_S",)),
            ("llama_deploy.cli.serve", ("DEV_DRAIN_TIMEOUT_S",)),
        ),
    ),
)

CLOSING = """\
## Environment

| variable | what it sets |
|---|---|
| `LLAMA_DEPLOY_CONTROL_PLANE_URL` | the control plane that `llamactl` and `Client` talk to; `-s`, or a URL that is \
given, wins over it |
| `LLAMA_DEPLOY_API_SERVER_URL` | the API server that `llamactl` and `client.apiserver` talk to |
| `LLAMA_DEPLOY_TIMEOUT`, `LLAMA_DEPLOY_DISABLE_SSL` | how many seconds a `Client` waits, and \
whether it believes any certificate; arguments win over them |
| `CONTROL_PLANE_*` | the fields of `ControlPlaneConfig`, for [programs of the published \
system](guide/coming-from-llama-deploy.md) |
| `SIMPLE_ORCHESTRATOR_MAX_RETRIES`, `SIMPLE_ORCHESTRATOR_FINAL_MESSAGE_TYPE` | the fields of \
`SimpleOrchestratorConfig`, for programs that make their orchestrator from it |
"""


def render() -> str:
    """The page as it should be. Raises `ValueError` for a setting that its module does not explain."""
    parts = [OPENING]
    for part in PARTS:
        rows = [row for source, names in part.sources for row in _rows(source, names)]
        head = [f"## {part.title}\n\n{part.text}\n", "| | default | |", "|---|---|---|"]
        parts.append("\n".join([*head, *rows]) + "\n")
    parts.append(CLOSING)
    return "\n".join(parts)


def _rows(source: str, names: tuple[str, ...]) -> list[str]:
    module_name, _, class_name = source.partition(":")
    owner: Any = importlib.import_module(module_name)
    values: Mapping[str, Any] = vars(owner)
    if class_name:
        owner = getattr(owner, class_name)
        values = _defaults(owner)
    sentences = attribute_docs(owner)
    rows = []
    for name in names or values:
        if name not in sentences:
            raise ValueError(f"{source}: {name} has no docstring")
        rows.append(f"| `{name}` | {_shown(values[name])} | {sentences[name]} |")
    return rows


def _defaults(cls: Any) -> Mapping[str, Any]:
    if is_dataclass(cls):
        return {field.name: field.default for field in dataclass_fields(cls)}
    return {name: field.default for name, field in cls.model_fields.items()}


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value))
    if isinstance(value, float):
        return f"{value:,g}" if value < 1_000_000 else f"{value:,.0f}"  # noqa: PLR2004 - beyond, `g` counts in powers
    return f"{value:,}" if isinstance(value, int) else f"`{value}`"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
