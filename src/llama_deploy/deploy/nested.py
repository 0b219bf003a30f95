"""`add_workflows` for the workflow engine, which had it once: workflows that steps are given by a parameter's name.

    outer.add_workflows(inner=InnerWorkflow())

Where a service of that name is served, `await inner.run(...)` in a step of a service is a durable call of it; anywhere
else the workflow runs where it is, as before. `install` gives the method to an engine that has none.
"""

from __future__ import annotations

import inspect
from typing import Any

from workflows import Workflow
from workflows.resource import ResourceDefinition

from llama_deploy.errors import SettingError
from llama_deploy.services.nested import CalledWorkflow

_PREFIX = "workflow "


def install() -> None:
    """Let every workflow have `add_workflows`. Where the engine has its own, that one stays."""
    if not hasattr(Workflow, "add_workflows"):
        Workflow.add_workflows = add_workflows  # type: ignore[attr-defined,unused-ignore]


def add_workflows(self: Workflow, **workflows: Workflow) -> None:
    """Give workflows to the steps that have a parameter of their name.

    Raises `SettingError` for what is no workflow, and for a name that no step has.
    """
    for name, workflow in workflows.items():
        if not isinstance(workflow, Workflow):
            raise SettingError(f"{name!r} is a {type(workflow).__qualname__}", fix="give an instance of a workflow")
        steps = [step for step in self._get_steps().values() if name in inspect.signature(step).parameters]
        if not steps:
            raise SettingError(
                f"no step of {type(self).__qualname__} takes a workflow {name!r}",
                fix=f"give a step the parameter: async def a_step(self, ev, {name}: {type(workflow).__name__})",
            )
        for step in steps:
            resources = step._step_config.resources  # noqa: SLF001 - what the engine hands to a step beside its event
            if all(one.name != name for one in resources):
                resources.append(ResourceDefinition(name=name, resource=_Added(name)))
        called = CalledWorkflow(name, workflow, here_when_unserved=True)
        self._resource_manager.resources[_PREFIX + name] = called


class _Added:
    """Fulfils the engine's `ResourceDescriptor`: what was added to the workflow that runs."""

    cache = False

    def __init__(self, name: str) -> None:
        self.name = _PREFIX + name

    async def resolve(self, manager: Any) -> Any:
        """The workflow. Raises `SettingError` where none was added."""
        found = manager.resources.get(self.name)
        if found is None:
            name = self.name.removeprefix(_PREFIX)
            raise SettingError(f"no workflow {name!r} was added", fix=f"call add_workflows({name}=...) on the instance")
        return found

    def set_type_annotation(self, type_annotation: Any) -> None:
        """Not needed."""

    def set_localns(self, localns: dict[str, Any] | None) -> None:
        """Not needed."""

    def get_dependencies(self) -> list[Any]:
        """None."""
        return []
