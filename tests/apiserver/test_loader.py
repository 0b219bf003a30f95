"""From import paths to services and orchestrators: what loads, and what is said when it does not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_deploy.apiserver.loader import load_object, load_orchestrator, load_service
from llama_deploy.apiserver.specs import OrchestratorSpec, ServiceSpec
from llama_deploy.errors import ImportPathError
from llama_deploy.orchestrators import SimpleOrchestrator
from llama_deploy.types import RetryPolicy

SERVICES = '''\
"""Two services."""
import neighbour
from llama_deploy import service

@service
async def shout(text: str) -> str:
    """Shouts."""
    return text.upper()

def plain(text: str) -> str:
    return neighbour.word + text

class Policy:
    pass

number = 3
'''

POLICY = """\
from llama_deploy import BaseOrchestrator

class Route(BaseOrchestrator):
    def __init__(self, order: list[str], max_hops: int = 3) -> None:
        if max_hops < 0:
            raise ValueError("max_hops is negative")
        self.order, self.max_hops = order, max_hops

    async def get_next_messages(self, task_def, state):
        return [], state

    async def add_result_to_state(self, result, state):
        return state

ready = Route(["a"])
other = object()
"""


@pytest.fixture(autouse=True)
def _own_imports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """What a test imports is forgotten after it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with services at its top, in a folder and in a package, and one that is put on the path."""
    for place in (tmp_path, tmp_path / "sub" / "deep", tmp_path / "package"):
        place.mkdir(parents=True, exist_ok=True)
        (place / "services.py").write_text(SERVICES)
        (place / "policy.py").write_text(POLICY)
        (place / "neighbour.py").write_text(f"word = {place.name!r}\n")
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "services.py").write_text(SERVICES.replace("import neighbour", "from . import neighbour"))
    return tmp_path


def refused(import_path: str, folder: Path, **more: Any) -> ImportPathError:
    with pytest.raises(ImportPathError) as caught:
        load_object(import_path, folder, **more)
    return caught.value


@pytest.mark.parametrize(
    ("import_path", "word"),
    [
        ("services:plain", None),
        ("services.py:plain", None),
        ("sub/deep/services:plain", "deep"),
        ("sub/deep/services.py:plain", "deep"),
        ("package.services:plain", "package"),
    ],
)
def test_every_form_of_an_import_path_loads(folder: Path, import_path: str, word: str | None) -> None:
    plain = load_object(import_path, folder)
    assert plain("!") == f"{word or folder.name}!"


def test_a_module_runs_once(folder: Path) -> None:
    assert load_object("services:plain", folder) is load_object("services.py:plain", folder)


def test_modules_of_one_name_do_not_meet(folder: Path) -> None:
    (folder / "json.py").write_text("mine = 'not the standard library'\n")
    (folder / "sub" / "json.py").write_text("mine = 'not the other one either'\n")
    assert load_object("json:mine", folder) == "not the standard library"
    assert load_object("sub/json:mine", folder) == "not the other one either"
    assert load_object("sub/json:mine", folder) == "not the other one either"


def test_a_package_and_a_folder_on_the_path_load(folder: Path) -> None:
    (folder / "package" / "__init__.py").write_text("value = 1\n")
    (folder / "lib").mkdir()
    (folder / "lib" / "inside.py").write_text("value = 2\n")
    assert load_object("package:value", folder) == 1
    assert load_object("inside:value", folder, extra_path=Path("lib")) == 2


def test_a_variable_of_a_variable_loads(folder: Path) -> None:
    assert load_object("services:Policy.__name__", folder) == "Policy"


@pytest.mark.parametrize(
    ("import_path", "expected"),
    [
        ("service:shout", "(did you mean `services`?)"),
        ("sub/deep/servces.py:shout", "(did you mean `services`?)"),
        ("gone/services:shout", "There is no file"),
        ("package.gone:shout", "There is no module `package.gone`"),
        ("nothing_of_the_kind:shout", "There is no module `nothing_of_the_kind`"),
    ],
)
def test_a_file_that_is_not_there_is_named(folder: Path, import_path: str, expected: str) -> None:
    assert expected in refused(import_path, folder).render()


def test_a_variable_that_is_not_there_is_named_with_those_that_are(folder: Path) -> None:
    error = refused("services:shuot", folder)
    assert "there is no `shuot` (did you mean `shout`?)" in error.what
    assert error.details["names"] == ["shout", "plain", "Policy", "number"]
    assert "defines shout, plain, Policy, number." in error.why


def test_what_is_no_import_path_is_refused(folder: Path) -> None:
    assert "write it as `module:variable`" in refused("services", folder).fix
    assert "There is no folder" in refused("services:shout", folder, extra_path=Path("gone")).why


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("x = 1\n1 / 0\n", ["ZeroDivisionError: division by zero", "broken.py:2 in <module>: 1 / 0"]),
        (
            "def f():\n    raise KeyError('x')\nf()\n",
            ["KeyError: 'x'", "broken.py:3", "broken.py:2 in f: raise KeyError"],
        ),
        ("x = (\n", ["broken.py:1:", "'(' was never closed"]),
        ("import nothing_of_the_kind\n", ["install what provides `nothing_of_the_kind`", "broken.py:1"]),
        ("import sys\nsys.exit('no key')\n", ["SystemExit: no key", "broken.py:2"]),
    ],
)
@pytest.mark.parametrize("import_path", ["broken:x", "broken.py:x", "package.broken:x"])
def test_what_a_module_raises_is_told_with_the_users_line(
    folder: Path, import_path: str, code: str, expected: list[str]
) -> None:
    (folder / "broken.py").write_text(code)
    (folder / "package" / "broken.py").write_text(code)
    text = refused(import_path, folder).render()
    assert all(part in text for part in expected), text
    assert "loader.py" not in text
    assert "importlib" not in text


def test_a_module_that_raised_is_run_again(folder: Path) -> None:
    (folder / "broken.py").write_text("1 / 0\n")
    refused("broken:x", folder)
    (folder / "broken.py").write_text("x = 'mended'\n")
    assert load_object("broken:x", folder) == "mended"


def test_a_service_has_its_name_and_settings_from_the_file(folder: Path) -> None:
    definition = load_service(
        ServiceSpec(
            name="loud",
            import_path="deep/services:shout",
            source_folder=Path("sub"),
            description="Louder.",
            concurrency=2,
            run_timeout_s=1.5,
            retry={"max_retries": 9},
        ),
        folder,
    ).definition
    assert definition.service_name == "loud"
    assert definition.description == "Louder."
    assert (definition.concurrency, definition.run_timeout_s) == (2, 1.5)
    assert definition.retry == RetryPolicy(max_retries=9, initial_s=0.5)


def test_one_object_can_be_two_services(folder: Path) -> None:
    first = load_service(ServiceSpec(name="first", import_path="services:shout", concurrency=1), folder)
    second = load_service(ServiceSpec(name="second", import_path="services:shout"), folder)
    assert (first.definition.service_name, first.definition.concurrency) == ("first", 1)
    assert (second.definition.service_name, second.definition.concurrency) == ("second", 8)
    assert second.definition.description == "Shouts."


def test_what_cannot_serve_is_refused(folder: Path) -> None:
    with pytest.raises(ImportPathError, match="`services:number` cannot be used") as caught:
        load_service(ServiceSpec(name="x", import_path="services:number"), folder)
    assert caught.value.why


def test_the_built_in_orchestrator_takes_its_parameters(folder: Path) -> None:
    assert isinstance(load_orchestrator(OrchestratorSpec(), folder), SimpleOrchestrator)
    parameters = {"max-retries": 7, "final_message_type": None}
    made = load_orchestrator(OrchestratorSpec(name="simple", parameters=parameters), folder)
    assert isinstance(made, SimpleOrchestrator)
    assert (made.max_retries, made.final_message_type) == (7, None)


def test_an_orchestrator_of_the_users_is_a_class_or_an_object(folder: Path) -> None:
    spec = OrchestratorSpec(name=None, import_path="policy:Route", parameters={"order": ["b"], "max-hops": 1})
    made: Any = load_orchestrator(spec, folder)
    assert (made.order, made.max_hops) == (["b"], 1)
    ready: Any = load_orchestrator(OrchestratorSpec(name=None, import_path="policy:ready"), folder)
    assert ready.order == ["a"]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (OrchestratorSpec(name="simpel"), "(did you mean `simple`?)"),
        (OrchestratorSpec(parameters={"retries": 3}), "It has no parameter `retries` (did you mean `max_retries`?)"),
        (OrchestratorSpec(name=None, import_path="policy:Route"), "It needs `order`."),
        (
            OrchestratorSpec(name=None, import_path="policy:Route", parameters={"order": [], "max_hops": -1}),
            "ValueError: max_hops is negative",
        ),
        (OrchestratorSpec(name=None, import_path="policy:ready", parameters={"order": []}), "leave out `order`"),
        (OrchestratorSpec(name=None, import_path="policy:other"), "It is a object, which is no BaseOrchestrator"),
        (OrchestratorSpec(name=None, import_path="services:Policy"), "It is a Policy, which is no BaseOrchestrator"),
        (OrchestratorSpec(name=None, import_path="policy:Root"), "there is no `Root`"),
    ],
)
def test_an_orchestrator_that_does_not_fit_is_refused(folder: Path, spec: OrchestratorSpec, expected: str) -> None:
    with pytest.raises(ImportPathError) as caught:
        load_orchestrator(spec, folder)
    assert expected in caught.value.render()
