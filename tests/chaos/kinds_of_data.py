"""Kinds of task that are about what is kept: files, work that is done again, news to others, erasing, schedules."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from datetime import datetime
from itertools import pairwise
from typing import Any

from tests.chaos.kind import ASK_AGAIN_S, Kind, Plan, Told, ended, insist, submitted

from llama_deploy.client import Client
from llama_deploy.errors import ScheduleNotFoundError, SessionNotFoundError, TaskNotFoundError
from llama_deploy.types.artifacts import Artifact

AGAIN = "-again"
"""How the id of a task ends that does another one again."""
WEBHOOK_SECRET = "whsec_" + "Y2hhb3Mh" * 5
SECRET_NAME = "main"
ERASED = "the task was canceled: its session is erased"
"""The error of a task that ran when its session was erased."""


class Files(Kind):
    """A file goes in, another one comes out; both are read whole and compared."""

    name, weight = "files", 5

    async def do(self, client: Client, plan: Plan) -> Told:
        document = await insist(lambda: client.upload(self._content(plan), name="in.bin"))
        told = await ended(client, plan, await submitted(client, plan, "turned", {"document": document}))
        if told.state == "completed":
            turned = await insist(lambda: client.read(Artifact.model_validate(told.output)))
            assert turned == self._content(plan)[::-1], f"{plan.task_id}: another content has come out"
        return told

    def expected(self, plan: Plan) -> tuple[str, Any]:
        turned = self._content(plan)[::-1]
        return "completed", {
            "$artifact": hashlib.sha256(turned).hexdigest(),
            "size_bytes": len(turned),
            "media_type": "application/octet-stream",
            "name": "out.bin",
        }

    def _content(self, plan: Plan) -> bytes:
        """Some are the same for several tasks, so that they are stored once; some are several parts long."""
        chance = plan.chance % 40
        return random.Random(chance).randbytes([10, 1_000, 70_000, 600_000][chance % 4])


class Again(Kind):
    """An ended task that is done again: replayed with another input, retried, or forked."""

    name, weight = "again", 6

    async def do(self, client: Client, plan: Plan) -> Told:
        service = ("work", "moody", "fan")[plan.chance % 3]
        task = {"number": plan.chance} | ({"parts": 3} if service == "fan" else {})
        told = await ended(client, plan, await submitted(client, plan, service, task))
        new = plan.task_id + AGAIN
        if service == "work":
            view = await insist(lambda: client.replay(plan.task_id, input={"number": plan.chance + 1}, new_task_id=new))
        elif service == "moody":
            view = await insist(lambda: client.retry(plan.task_id, new_task_id=new))
        else:
            view = await insist(lambda: client.fork(plan.task_id, 1, new_task_id=new))
        assert view.task_id == new
        told.others = [await ended(client, plan, new)]
        return told

    def expected(self, plan: Plan) -> tuple[str, Any]:
        if plan.chance % 3 == 1:
            return "failed", "in a mood"
        return "completed", (plan.chance * 2, None, _sum_of_fan(plan.chance, 3))[plan.chance % 3]

    def others_are_right(self, plan: Plan, outcomes: list[tuple[str, Any]]) -> bool:
        output = ((plan.chance + 1) * 2, plan.chance, _sum_of_fan(plan.chance, 3))[plan.chance % 3]
        return outcomes == [("completed", output)]


def _sum_of_fan(number: int, parts: int) -> int:
    return sum(number + n + 1 for n in range(parts))


class Notified(Kind):
    """A task whose end is told to a webhook."""

    name, weight = "notified", 5

    async def do(self, client: Client, plan: Plan) -> Told:
        options = {"webhook": {"url": plan.webhook, "secret": SECRET_NAME}}
        return await ended(
            client, plan, await submitted(client, plan, "work", {"number": plan.chance}, options=options)
        )

    def expected(self, plan: Plan) -> tuple[str, Any]:
        return "completed", plan.chance * 2


class Erased(Kind):
    """A task whose session is erased once it has ended."""

    name, weight = "erased", 3
    stays = False

    async def do(self, client: Client, plan: Plan) -> Told:
        task = {"text": secret_of(plan)}
        task_id = await submitted(client, plan, "whisper", task, session_id=f"{plan.task_id}-session")
        try:
            told = await ended(client, plan, task_id)
        except TaskNotFoundError:  # what an earlier life of this client has asked for has erased it before it ended
            told = Told(plan.number, task_id, *self.expected(plan))
        if told.state == "canceled" and told.output == ERASED:  # the same
            told.state, told.output = self.expected(plan)
        with contextlib.suppress(SessionNotFoundError):  # it was erased by a request whose answer was lost
            await insist(lambda: client.erase_session(f"{plan.task_id}-session"))
        return told

    def expected(self, plan: Plan) -> tuple[str, Any]:
        return "completed", len(secret_of(plan))


def secret_of(plan: Plan) -> str:
    """A text that is found nowhere once it is erased."""
    return f"secret-{plan.task_id}-{plan.chance:07}"


class Scheduled(Kind):
    """A schedule: every time from the first one until it is paused has its one task, whoever was away when it came."""

    name, weight = "scheduled", 1
    EVERY_S = 1
    TIMES = 3

    async def do(self, client: Client, plan: Plan) -> Told:
        try:
            await insist(lambda: client.get_schedule(plan.task_id))
        except ScheduleNotFoundError:
            schedule = {
                "every_s": self.EVERY_S,
                "catch_up": "all",
                "overlap": "allow",
                "service": "work",
                "input": {"number": plan.chance},
            }
            await insist(lambda: client.put_schedule(plan.task_id, schedule))
        while not (view := await insist(lambda: client.get_schedule(plan.task_id))).paused:
            if view.submitted >= self.TIMES:
                await insist(lambda: client.pause_schedule(plan.task_id))
            await asyncio.sleep(ASK_AGAIN_S)

        async def listed() -> list[str]:
            found = client.list_tasks(filter=f'origin:"schedule:{plan.task_id}"', oldest_first=True)
            return [task.task_id async for task in found]

        task_ids = await insist(listed)
        dues = sorted(datetime.fromisoformat(task_id.partition("@")[2]).timestamp() for task_id in task_ids)
        gaps = {round(later - earlier, 3) for earlier, later in pairwise(dues)}
        assert gaps == {self.EVERY_S}, f"{plan.task_id}: its times are {dues}"
        told, *told.others = [await ended(client, plan, task_id) for task_id in task_ids]
        return told

    def expected(self, plan: Plan) -> tuple[str, Any]:
        return "completed", plan.chance * 2

    def others_are_right(self, plan: Plan, outcomes: list[tuple[str, Any]]) -> bool:
        return len(outcomes) >= self.TIMES - 1 and all(outcome == self.expected(plan) for outcome in outcomes)
