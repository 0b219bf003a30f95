"""Two services to try the containers with; put your own folder in the place of this one (APP in the env file)."""

from llama_deploy import service


@service
def shout(text: str) -> str:
    """Say it louder."""
    return text.upper()


@service
def count(text: str) -> int:
    """How many words there are."""
    return len(text.split())
