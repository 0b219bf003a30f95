"""Two deployments on one server, and an update of one of them with a thousand tasks of three steps in flight."""

import asyncio
import os
import shutil
import signal
import tempfile
from collections import Counter
from pathlib import Path

from serving import api_server

from llama_deploy.client import Client
from llama_deploy.client.deployments import DeploymentsClient, deployment_url

HERE = Path(__file__).parent
TASKS = 1000


async def main(folder: Path) -> None:
    """Run it all below a folder."""
    harbour, market = folder / "harbour", folder / "market"
    shutil.copytree(HERE / "harbour", harbour, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(HERE / "market", market, ignore=shutil.ignore_patterns("__pycache__"))
    async with api_server(folder) as url, DeploymentsClient(url) as api:
        for place in (harbour, market):
            await api.deploy((place / "deployment.yml").read_bytes(), base_path=str(place))
        async with Client(deployment_url(url, "harbour")) as ships, Client(deployment_url(url, "market")) as stalls:
            print(await ships.run("unload", ship=0))
            print(await stalls.run("sell", fish="cod"))
            await update_under_load(api, ships, harbour, folder / "gate")
            await kill(api, ships, stalls)


async def update_under_load(api: DeploymentsClient, ships: Client, harbour: Path, gate: Path) -> None:
    """Have version 2 follow version 1 while its tasks wait at a gate, in the first of their steps; then go back."""
    task_ids = await asyncio.gather(*(ships.submit("unload", ship=n, gate=str(gate)) for n in range(TASKS)))
    while (await ships.get_service("unload")).running < TASKS:  # noqa: ASYNC110 - nobody tells when it is so
        await asyncio.sleep(0.05)
    print(f"{TASKS} tasks are in flight")
    code = (harbour / "services.py").read_text()
    (harbour / "services.py").write_text(code.replace("VERSION = 1", "VERSION = 2"))
    view = await api.deploy((harbour / "deployment.yml").read_bytes(), base_path=str(harbour))
    (earlier,) = view["finishing"]
    print(f"version {view['version']} runs; {earlier['tasks']} tasks finish on version {earlier['version']}")
    print(await ships.run("unload", ship=TASKS))
    gate.touch()  # noqa: ASYNC240 - an empty file
    results = await asyncio.gather(*(ships.wait(task_id) for task_id in task_ids))
    versions = Counter(str(result.output).rpartition(", ")[2] for result in results)
    print(f"the gate is open: {dict(versions)}, {TASKS - len(results)} lost")
    async for event in api.events("harbour", follow=True):
        if event["kind"] == "finished":
            print(event["message"])
            break
    await api.rollback("harbour")
    print(await ships.run("unload", ship=TASKS + 1))


async def kill(api: DeploymentsClient, ships: Client, stalls: Client) -> None:
    """End every process of one deployment, as a machine that runs out of memory would."""
    for process in (await api.get("harbour"))["processes"]:
        if process["pid"] is not None:  # one of the version before may have ended just now
            os.kill(process["pid"], signal.SIGKILL)
    print("every process of harbour is killed;", await stalls.run("sell", fish="eel"))
    print(await ships.run("unload", ship=TASKS + 2, wait_for_service=True))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        asyncio.run(main(Path(made)))
