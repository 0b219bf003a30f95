"""The command line of a container, read by the real command and against the real deployment file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from click import Command, Context

from llama_deploy.apiserver.deployment_file import load_deployment_file
from llama_deploy.cli.serve import serve
from llama_deploy.message_queues.opening import open_carrier
from llama_deploy.message_queues.settings import CarrierSettings

ROOT = Path(__file__).resolve().parents[2]


def parsed(arguments: list[str]) -> dict[str, Any]:
    """What `llamactl serve` understands of its arguments; it raises for one that there is not."""
    assert arguments[0] == "serve"
    assert isinstance(serve, Command)
    context: Context = serve.make_context("serve", list(arguments[1:]))
    return context.params


def check_command(arguments: list[str], file: Path) -> dict[str, Any]:
    """The arguments are ones of `serve`, and what they name is in the deployment file and can be opened."""
    found = parsed(arguments)
    names = service_names(file)
    assert found["only"] in (None, "control-plane", *names), f"{found['only']} is in no deployment file"
    if (url := found["message_queue"]) and url != "simple":
        open_carrier(CarrierSettings(url=url, namespace="n"))
    return found


def service_names(file: Path) -> list[str]:
    """The services of a deployment file; it raises for one that is not valid."""
    return [service.name for service in load_deployment_file(file).services]


def documents(text: str) -> list[dict[str, Any]]:
    """The YAML documents of a text."""
    return [document for document in yaml.safe_load_all(text) if document]
