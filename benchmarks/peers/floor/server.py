"""The floor: the least that a durable task system can do on this machine, with no feature at all.

A task is submitted over HTTP, written to SQLite (WAL, `synchronous=FULL`), pushed over a socket to a worker, its
answer written to SQLite, and returned on the waiting request. One thread writes whatever has gathered in one commit.
Nothing is recovered, retried or checked: it only shows what the same flow costs without the rest.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import queue
import sqlite3
import threading
from pathlib import Path

import uvloop
from aiohttp import web

HOPS = {"echo": ["echo"], "two_hop": ["echo", "exclaim"]}


class Writer:
    """One thread, one connection: commits everything that waits at once, then wakes those who asked."""

    def __init__(self, path: Path, loop: asyncio.AbstractEventLoop) -> None:
        self._path = path
        self._loop = loop
        self._waiting: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._write, daemon=True).start()

    def commit(self, statement: str, values: tuple) -> asyncio.Future:
        """A future that is done once the statement is on disk."""
        done = self._loop.create_future()
        self._waiting.put((statement, values, done))
        return done

    def _write(self) -> None:
        connection = sqlite3.connect(self._path, isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE task (id INTEGER PRIMARY KEY, input TEXT, result TEXT)")
        while True:
            batch = [self._waiting.get()]
            while not self._waiting.empty():
                batch.append(self._waiting.get())
            connection.execute("BEGIN IMMEDIATE")
            for statement, values, _ in batch:
                connection.execute(statement, values)
            connection.execute("COMMIT")
            self._loop.call_soon_threadsafe(lambda batch=batch: [done.set_result(None) for _, _, done in batch])


class Server:
    """Submissions come in over HTTP, work goes out over one socket, one line of JSON each."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future] = {}
        self._worker: asyncio.Future = asyncio.get_running_loop().create_future()

    async def submit(self, request: web.Request) -> web.Response:
        body = await request.json()
        task_id, text = next(self._ids), body["text"]
        await self._writer.commit("INSERT INTO task (id, input) VALUES (?, ?)", (task_id, text))
        worker = await asyncio.shield(self._worker)
        for service in HOPS[body["job"]]:
            answer = self._answers[task_id] = asyncio.get_running_loop().create_future()
            worker.write(json.dumps([task_id, service, text]).encode() + b"\n")
            text = await answer
            await self._writer.commit("UPDATE task SET result = ? WHERE id = ?", (text, task_id))
        return web.json_response({"result": text})

    async def serve_worker(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._worker.set_result(writer)
        async for line in reader:
            task_id, text = json.loads(line)
            self._answers.pop(task_id).set_result(text)


async def main() -> None:
    server = Server(Writer(Path(os.environ["BENCH_FOLDER"]) / "floor.sqlite", asyncio.get_running_loop()))
    await asyncio.start_server(server.serve_worker, "127.0.0.1", int(os.environ["BENCH_WORKER_PORT"]))
    application = web.Application()
    application.router.add_post("/tasks", server.submit)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(os.environ["BENCH_PORT"])).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
