"""`ServiceAsTool` with what the published one takes as well. Nothing of llama-index is imported for ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama_deploy.services.agents.service_tool import ServiceAsTool as OurServiceAsTool
from llama_deploy.types import ServiceDefinition


class ServiceAsTool(OurServiceAsTool):
    """A service that agents call as a tool: `llama_deploy.services.ServiceAsTool`.

    Made as published, `ServiceAsTool(tool_metadata, message_queue, service_name, ...)`, it is an `AgentServiceTool`: a
    tool for agents of llama-index, for calls within steps and outside of them.
    """

    if not TYPE_CHECKING:  # a checker is told of our own arguments alone

        def __new__(cls, *args: Any, **settings: Any) -> Any:
            if len(args) > 1 or {"tool_metadata", "message_queue"} & settings.keys():
                from llama_deploy.deploy.parts.tools import AgentServiceTool

                return AgentServiceTool(*args, **settings)
            return super().__new__(cls)

    @classmethod
    def from_service_definition(cls, message_queue: Any, service_definition: ServiceDefinition, **settings: Any) -> Any:
        """A tool of a service as that describes itself: an `AgentServiceTool`."""
        from llama_deploy.deploy.parts.tools import AgentServiceTool

        return AgentServiceTool.from_service_definition(message_queue, service_definition, **settings)
