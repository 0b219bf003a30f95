"""The orchestrators around one node, by their former place: each has a file of its own."""

from llama_deploy.orchestrators.budget import Budget
from llama_deploy.orchestrators.cache import Cache
from llama_deploy.orchestrators.fallback import Fallback
from llama_deploy.orchestrators.retry import Retry
from llama_deploy.orchestrators.saga import Saga
from llama_deploy.orchestrators.timeout import Timeout
from llama_deploy.orchestrators.vote import Vote

__all__ = ["Budget", "Cache", "Fallback", "Retry", "Saga", "Timeout", "Vote"]
