"""Agents and graphs of other libraries as services, and services as tools of any agent.

Each library has one module, which is imported when one of its objects is served, and not before; what they share is in
`hosted` (questions to people, snapshots, usage) and `provider_errors`. `ServiceAsTool` needs none of the libraries.
"""

from typing import TYPE_CHECKING

from llama_deploy._lazy import lazy_names

if TYPE_CHECKING:
    from llama_deploy.services.agents.hosted import HostedAgent
    from llama_deploy.services.agents.langgraph import LangGraphService
    from llama_deploy.services.agents.openai_agents import OpenAIAgentService
    from llama_deploy.services.agents.pydantic_ai import PydanticAIService
    from llama_deploy.services.agents.service_tool import ServiceAsTool
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "HostedAgent": "llama_deploy.services.agents.hosted",
            "LangGraphService": "llama_deploy.services.agents.langgraph",
            "OpenAIAgentService": "llama_deploy.services.agents.openai_agents",
            "PydanticAIService": "llama_deploy.services.agents.pydantic_ai",
            "ServiceAsTool": "llama_deploy.services.agents.service_tool",
        },
    )

__all__ = ["HostedAgent", "LangGraphService", "OpenAIAgentService", "PydanticAIService", "ServiceAsTool"]
