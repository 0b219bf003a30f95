"""Who works: services, and the adapters that make services of functions, workflows, tools and people.

The contract is `Service` and `StepContext` in `base`. The workflow engine is imported when `WorkflowService` is first
used, and not before.
"""

from typing import TYPE_CHECKING

from llama_deploy._lazy import lazy_names
from llama_deploy.services.base import Parked, Service, StepContext, current_step

if TYPE_CHECKING:
    from llama_deploy.services.adapters import as_service
    from llama_deploy.services.agents import (
        LangGraphService,
        OpenAIAgentService,
        PydanticAIService,
        ServiceAsTool,
    )
    from llama_deploy.services.arguments import UnresolvedAnnotationError
    from llama_deploy.services.base import StepContext as ServiceContext
    from llama_deploy.services.endpoint import EndpointService
    from llama_deploy.services.failures import error_from_exception
    from llama_deploy.services.function import FunctionService, service
    from llama_deploy.services.human import PlainHumanService as HumanService
    from llama_deploy.services.link import serve_services
    from llama_deploy.services.program import ProgramService
    from llama_deploy.services.results import result_from_value
    from llama_deploy.services.runner import Runner
    from llama_deploy.services.tool import PlainToolService as ToolService
    from llama_deploy.services.workflow import PlainWorkflowService as WorkflowService
else:
    ServiceContext = StepContext
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "EndpointService": "llama_deploy.services.endpoint",
            "FunctionService": "llama_deploy.services.function",
            "HumanService": "llama_deploy.services.human:PlainHumanService",
            "LangGraphService": "llama_deploy.services.agents.langgraph",
            "OpenAIAgentService": "llama_deploy.services.agents.openai_agents",
            "ProgramService": "llama_deploy.services.program",
            "PydanticAIService": "llama_deploy.services.agents.pydantic_ai",
            "ServiceAsTool": "llama_deploy.services.agents.service_tool",
            "ToolService": "llama_deploy.services.tool:PlainToolService",
            "UnresolvedAnnotationError": "llama_deploy.services.arguments",
            "WorkflowService": "llama_deploy.services.workflow:PlainWorkflowService",
            "Runner": "llama_deploy.services.runner",
            "as_service": "llama_deploy.services.adapters",
            "error_from_exception": "llama_deploy.services.failures",
            "result_from_value": "llama_deploy.services.results",
            "serve_services": "llama_deploy.services.link",
            "service": "llama_deploy.services.function",
        },
    )

__all__ = [
    "EndpointService",
    "FunctionService",
    "HumanService",
    "LangGraphService",
    "OpenAIAgentService",
    "Parked",
    "ProgramService",
    "PydanticAIService",
    "Runner",
    "Service",
    "ServiceAsTool",
    "ServiceContext",
    "StepContext",
    "ToolService",
    "UnresolvedAnnotationError",
    "WorkflowService",
    "as_service",
    "current_step",
    "error_from_exception",
    "result_from_value",
    "serve_services",
    "service",
]
