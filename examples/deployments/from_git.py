"""A deployment whose code comes from a git repository: a branch that moves, and the way back."""

import asyncio
import subprocess
import tempfile
from pathlib import Path

from serving import api_server

from llama_deploy.client import Client
from llama_deploy.client.deployments import DeploymentsClient, deployment_url

CODE = """\
from llama_deploy import service


@service
async def greet(name: str) -> str:
    return f"{greeting}, {{name}}"
"""


def git(folder: Path, *words: str) -> None:
    """Run git there."""
    who = ("-c", "user.name=Ada", "-c", "user.email=ada@example.com", "-c", "init.defaultBranch=main")
    subprocess.run(("git", *who, *words), cwd=folder, check=True, capture_output=True)  # noqa: S603, S607 - our own words


def commit(repository: Path, greeting: str) -> None:
    """Another greeting on the branch `main`."""
    (repository / "greetings.py").write_text(CODE.format(greeting=greeting))
    git(repository, "add", "-A")
    git(repository, "commit", "-m", greeting)


async def main(folder: Path) -> None:
    """Run it all below a folder."""
    repository = folder / "repository"
    repository.mkdir()
    git(repository, "init")
    commit(repository, "Good morning")
    source = f"{{type: git, name: 'file://{repository}', branch: main}}"
    file = f"name: greeter\nservices:\n  greet: {{import-path: 'greetings:greet', source: {source}}}\n".encode()
    async with api_server(folder) as url, DeploymentsClient(url) as api:
        await api.deploy(file)
        async with Client(deployment_url(url, "greeter")) as client:
            print(await client.run("greet", name="Ada"))
            commit(repository, "Good evening")
            would = await api.deploy(file, dry_run=True)
            print("would change:", *would["changes"]["sources"])
            await api.deploy(file)
            print(await client.run("greet", name="Ada"))
            await api.rollback("greeter")
            print(await client.run("greet", name="Ada"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        asyncio.run(main(Path(made)))
