"""The compose files, one with each of its env files: commands that the program takes, of services that there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from dotenv import dotenv_values
from tests.containers.commands import ROOT, check_command, parsed, service_names

from llama_deploy.message_queues.opening import CARRIERS

FOLDER = ROOT / "deploy" / "compose"
APP = FOLDER / "app" / "deployment.yml"
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yml").read_text())
TWO: dict[str, Any] = yaml.safe_load((FOLDER / "two-control-planes.yml").read_text())
ENVS = sorted(FOLDER.glob("*.env"))
both = pytest.mark.parametrize("compose", [COMPOSE, TWO], ids=["compose", "two-control-planes"])


def ours(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The containers that run this program."""
    return {name: service for name, service in compose["services"].items() if "llama-deploy" in service["image"]}


def filled(text: str, values: dict[str, str | None]) -> str:
    """A text with its variables, as compose fills them in: `${NAME:-default}` and `${NAME:?error}`."""

    def fill(found: re.Match[str]) -> str:
        value = values.get(found["name"])
        if not value and found["kind"] == "?":
            raise AssertionError(f"{found['name']}: {found['rest']}")
        return value or (found["rest"] if found["kind"] == "-" else "")

    return re.sub(r"\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<rest>[^}]*))?\}", fill, text)


@pytest.mark.parametrize("env", ENVS, ids=lambda path: path.stem)
def test_every_command_is_one_of_the_program(env: Path) -> None:
    values = dotenv_values(env)
    plane = None
    for name, service in ours(COMPOSE).items():
        found = check_command([filled(argument, values) for argument in service["command"]], APP)
        assert found["only"] == name
        plane = found if name == "control-plane" else plane
    assert plane is not None
    assert plane["allow_remote"], "it listens beyond its container"
    profiles = set((values.get("COMPOSE_PROFILES") or "").split(",")) - {""}
    for url in (plane["store"], plane["message_queue"]):
        server = re.match(r"\w+://(?:[^@]*@)?([\w-]+)", url)
        if server is not None:
            assert profiles >= set(COMPOSE["services"][server[1]]["profiles"]), f"nothing starts {server[1]}"
            profiles -= {server[1]}
    assert not profiles, "a server that nobody uses"


def test_every_carrier_and_store_has_an_env_file() -> None:
    stems = {env.stem for env in ENVS}
    servers = set(CARRIERS) - {"postgresql", "sqs"}  # SQS is a service, and PostgreSQL carries beside a store
    assert {"sqlite", "postgresql"} <= stems
    assert {f"{store}-{carrier}" for store in ("sqlite", "postgresql") for carrier in servers} <= stems


def test_two_control_planes_share_the_store_and_everybody_can_reach_both() -> None:
    found = {name: check_command(service["command"], APP) for name, service in ours(TWO).items()}
    planes = {name: one for name, one in found.items() if one["only"] == "control-plane"}
    assert [one["public_url"] for one in planes.values()] == [f"http://{name}:8000" for name in planes]
    assert len(planes) == 2
    (store,) = {one["store"] for one in planes.values()}
    assert store == "postgresql://demo@postgresql/demo", "in the container of that name"
    database = TWO["services"]["postgresql"]["environment"]
    for name, one in found.items():
        if name in planes:
            assert one["shared"]
            assert one["allow_remote"]
            assert TWO["services"][name]["environment"]["PGPASSWORD"] == database["POSTGRES_PASSWORD"]
        else:
            assert one["control_plane_url"].split(",") == [plane["public_url"] for plane in planes.values()]


@both
def test_services_are_those_of_the_deployment_file(compose: dict[str, Any]) -> None:
    served = {parsed(service["command"])["only"] for service in ours(compose).values()}
    assert served == {"control-plane", *service_names(APP)}


@both
def test_what_runs_is_locked_down_and_only_this_machine_reaches_the_api(compose: dict[str, Any]) -> None:
    for service in ours(compose).values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert int(service["stop_grace_period"].removesuffix("s")) > 30, "what runs may finish in 30 s"
    ports = [port for service in compose["services"].values() for port in service.get("ports", ())]
    planes = [one for one in ours(compose).values() if parsed(one["command"])["only"] == "control-plane"]
    assert ports == [f"127.0.0.1:{8000 + number}:8000" for number in range(len(planes))]


@both
def test_what_a_service_waits_for_and_keeps_is_declared(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            assert other in services, f"{name} waits for {other}"
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[other], f"{other} never says that it is healthy"
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert source.startswith("$") or source in compose["volumes"], volume
