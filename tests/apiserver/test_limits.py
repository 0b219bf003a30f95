"""The key `limits`: every setting of the control plane can be set, in the file's spelling, and nothing else can."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import pytest

from llama_deploy.apiserver import DeploymentFile, json_schema, load_deployment_file
from llama_deploy.apiserver.limits import MAY_BE_ZERO, MOST
from llama_deploy.apiserver.serving import ServingOptions, _control_plane, control_plane_settings
from llama_deploy.control_plane import EngineSettings
from llama_deploy.errors import DeploymentFileError
from llama_deploy.messages.frames import OPERATION_BYTES_MAX
from llama_deploy.runtime.line_log import LineLog

FILE = "name: demo\nservices:\n  shout: {import-path: 'services:shout'}\n"
NAMES = [field.name for field in fields(EngineSettings)]


def load(folder: Path, limits: str) -> DeploymentFile:
    path = folder / "deployment.yml"
    path.write_text(f"{FILE}limits:{limits}\n")
    return load_deployment_file(path)


def problem(folder: Path, limits: str) -> str:
    with pytest.raises(DeploymentFileError) as caught:
        load(folder, limits)
    (found,) = caught.value.details["problems"]
    return str(found["message"])


@pytest.mark.parametrize("field", fields(EngineSettings), ids=lambda field: field.name)
def test_every_setting_can_be_set_to_its_double(tmp_path: Path, field: Field[float]) -> None:
    name, default = field.name, getattr(EngineSettings(), field.name)
    changed: dict[str, Any] = {name: default * 2}
    limits = load(tmp_path, f" {{{name.replace('_', '-')}: {default * 2}}}").limits
    assert limits == EngineSettings(**changed)
    assert type(getattr(limits, name)) is type(default)


def test_what_is_not_set_is_as_the_code_has_it(tmp_path: Path) -> None:
    assert load(tmp_path, "").limits == EngineSettings()
    assert load(tmp_path, "\n  attempts-max:").limits == EngineSettings()


def test_a_setting_may_be_spelled_as_errors_spell_it_but_given_once(tmp_path: Path) -> None:
    assert load(tmp_path, " {payload_bytes_max: 8_388_608}").limits.payload_bytes_max == 8_388_608
    assert "duplicate key `lease_s`" in problem(tmp_path, " {lease-s: 20, lease_s: 30}")


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (" {attempt-max: 3}", "unknown key `attempt-max` in `limits` (did you mean `attempts-max`?)"),
        (" {attempts-max: 0}", "expected a whole number of at least 1, found the number `0`"),
        (" {attempts-max: 2.5}", "expected a whole number of at least 1, found the number `2.5`"),
        (" {attempts-max: true}", "expected a whole number of at least 1, found the boolean `true`"),
        (" {lease-s: 0}", "expected a number above 0, found the number `0`"),
        (" {lease-s: .inf}", "expected a number above 0, found the number `.inf`"),
        (" {lease-s: 10s}", "expected a number above 0, found text `10s`"),
        (" {recovery-grace-s: -1}", "expected a number of at least 0, found the number `-1`"),
        (" {payload-bytes-max: 33554433}", "a whole number from 1 to 33554432, found the number `33554433`"),
        (" [1]", "`limits` has to be a mapping of keys, found a list"),
        (" {lease-s: 2}", "`lease-s` (2) has to be longer than `heartbeat-s` (2.5)"),
        (" {heartbeat-s: 10}", "`lease-s` (10) has to be longer than `heartbeat-s` (10)"),
    ],
)
def test_a_limit_that_cannot_be_is_refused(tmp_path: Path, limits: str, expected: str) -> None:
    assert expected in problem(tmp_path, limits)


def test_zero_turns_off_what_can_be_turned_off(tmp_path: Path) -> None:
    limits = load(tmp_path, "".join(f"\n  {name.replace('_', '-')}: 0" for name in MAY_BE_ZERO)).limits
    assert {getattr(limits, name) for name in MAY_BE_ZERO} == {0}


def test_exceptions_are_made_for_settings_that_exist() -> None:
    assert set(NAMES) >= MAY_BE_ZERO | MOST.keys()
    assert MOST["payload_bytes_max"] == OPERATION_BYTES_MAX > EngineSettings().payload_bytes_max


def test_the_schema_explains_every_setting() -> None:
    properties = json_schema()["properties"]["limits"]["properties"]
    assert list(properties) == [name.replace("_", "-") for name in NAMES]
    assert properties["lease-s"]["exclusiveMinimum"] == 0
    assert properties["lease-s"]["description"].startswith("An instance that was silent for this long is lost:")
    assert properties["attempts-max"]["type"] == "integer"
    assert "A setting." not in {described["description"] for described in properties.values()}


async def test_the_control_plane_gets_them_and_takes_notice_of_no_change_while_it_runs(tmp_path: Path) -> None:
    options = ServingOptions(store=":memory:", port=0)
    before, after = load(tmp_path, " {attempts-max: 3}"), load(tmp_path, " {attempts-max: 4}")
    async with _control_plane(before, options, print, log=LineLog()) as plane:
        assert plane.control_plane.engine.settings.attempts_max == 3
    assert control_plane_settings(before) != control_plane_settings(after)


def test_reading_a_file_imports_no_control_plane(tmp_path: Path) -> None:
    (tmp_path / "deployment.yml").write_text(FILE)
    code = (
        "import sys; from llama_deploy.apiserver import load_deployment_file; load_deployment_file(sys.argv[1]);"
        "print([name for name in sys.modules if name.startswith('llama_deploy.control_plane')])"
    )
    ran = subprocess.run([sys.executable, "-c", code, tmp_path], check=True, capture_output=True, text=True)
    assert ran.stdout.strip() == "['llama_deploy.control_plane', 'llama_deploy.control_plane.settings']"
