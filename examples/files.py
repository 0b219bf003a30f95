"""Files in, files out: a table is uploaded, two services work on it, and the report is downloaded.

Run it: python examples/files.py
"""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import Iterator
from pathlib import Path

from llama_deploy import Artifact, Deployment, ServiceContext, service


@service
async def clean(table: Artifact, context: ServiceContext) -> Artifact:
    """Leave out the lines that say nothing."""
    lines = (await table.read()).splitlines(keepends=True)
    return await context.save((line for line in lines if line.strip()), name="clean.csv")


@service
def total(table: Artifact) -> dict[str, object]:
    """Add up; a plain function reads an artifact like a file, and returns bytes as one."""
    sums: dict[str, int] = {}
    with table.open() as file:
        for name, amount in csv.reader(io.TextIOWrapper(file, "utf-8")):
            sums[name] = sums.get(name, 0) + int(amount)
    return {"rows": len(sums), "report": "\n".join(f"{name}: {sums[name]}" for name in sorted(sums)).encode()}


def table() -> Iterator[bytes]:
    """Many lines, never in memory together."""
    for number in range(30_000):
        yield b"%s,%d\n%s" % (b"ada" if number % 3 else b"grace", number, b"\n" if number % 7 == 0 else b"")


async def main() -> None:
    """Upload, run, pass on, download."""
    async with Deployment(services=[clean, total], name="files") as deployment:
        client = deployment.client
        given = await client.upload(table(), name="table.csv")
        print(f"uploaded {given.name}, {given.size_bytes} bytes of {given.media_type}")
        cleaned = await client.run("clean", table=given)
        print(f"{cleaned.name} has {given.size_bytes - cleaned.size_bytes} bytes less")
        result = await client.run("total", table=cleaned)
        written = await client.download(result["report"], Path("report.txt"))
        print(f"{written.name} about {result['rows']} people:")
        print(await asyncio.to_thread(written.read_text))


asyncio.run(main())
