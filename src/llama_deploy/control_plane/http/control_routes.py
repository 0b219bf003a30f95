"""The `/v1` routes that have recorded work done again, and that act on many tasks at once."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from msgspec import UNSET
from pydantic import BaseModel, ConfigDict, Field

from llama_deploy.control_plane.bulk import PAGE_TASKS_MAX
from llama_deploy.control_plane.http import waiting
from llama_deploy.control_plane.http.access.who import SAID_CHARACTERS_MAX, by_of
from llama_deploy.control_plane.http.bodies import JSONRoute
from llama_deploy.control_plane.http.inquiries import inquiry
from llama_deploy.control_plane.http.models import REASON_CHARACTERS_MAX
from llama_deploy.control_plane.http.problems import answers
from llama_deploy.control_plane.http.routes import NUMBER_MAX, WaitS, plane_of
from llama_deploy.control_plane.repeats import Edit
from llama_deploy.control_plane.tasks import TaskEntry
from llama_deploy.errors import InvalidRequestError
from llama_deploy.types import TaskView
from llama_deploy.types.control import BulkAction, BulkAnswer
from llama_deploy.types.filters import FILTER_CHARACTERS_MAX

router = APIRouter(prefix="/v1/tasks", route_class=JSONRoute, tags=["tasks"])

FOUND: dict[int | str, dict[str, Any]] = {200: {"description": "It was made before.", "model": TaskView}}


class _Made(BaseModel):
    """How the new task is named."""

    model_config = ConfigDict(extra="forbid", strict=True)

    task_id: str | None = Field(default=None, description="Of the new task; repeating the request is safe then.")
    idempotency_key: str | None = None


class _Edited(_Made):
    """What the new task is given in the place of what the old one had: one of the two at most."""

    input: Any = Field(default=None, description="Another input: a string as it is, any other JSON as its text.")
    data: dict[str, Any] | None = Field(default=None, description="Other data for the step's whole message.")

    @property
    def edit(self) -> Edit:
        """What was given."""
        given = self.model_fields_set
        return Edit(self.input if "input" in given else UNSET, self.data if self.data is not None else UNSET)


class RetryRequest(_Made):
    """How a task is retried."""

    from_start: bool = Field(default=False, description="Run everything anew, not only what had failed.")


class ReplayRequest(_Edited):
    """Which step a task is replayed from."""

    step_id: str | None = Field(default=None, description="The whole task where none is named.")


class ForkRequest(_Edited):
    """Where a task is forked."""

    seq: int = Field(ge=1, le=NUMBER_MAX, description="The last entry of the history that both tasks share.")
    step_id: str | None = Field(default=None, description="The step that `input` or `data` is for.")


class BulkRequest(BaseModel):
    """What to do to which tasks: those that fit a filter, or those that are named."""

    model_config = ConfigDict(extra="forbid", strict=True)

    action: BulkAction
    filter: str | None = Field(
        default=None, max_length=FILTER_CHARACTERS_MAX, description="`state:failed service:writer age<2d`."
    )
    task_ids: list[str] | None = Field(
        default=None, max_length=PAGE_TASKS_MAX, description="These tasks, in the place of a filter."
    )
    dry_run: bool = Field(default=False, description="Only count them, and show the first few.")
    limit: int = Field(default=100, ge=1, le=PAGE_TASKS_MAX, description="Tasks of this request.")
    cursor: str | None = Field(default=None, description="`next` of the answer before.")
    reason: str = Field(default="", max_length=REASON_CHARACTERS_MAX)
    by: str = Field(default="", max_length=SAID_CHARACTERS_MAX, description="Who; it stands in the tasks' histories.")
    idempotency_key: str | None = Field(default=None, description="Under it, one new task at most is made of each.")

    def check(self) -> None:
        """Raise `InvalidRequestError` where it is not said which tasks are meant, or twice."""
        if (self.filter is None) == (self.task_ids is None):
            raise InvalidRequestError(
                "an action on many tasks needs a filter, or the ids of the tasks",
                why="both are given" if self.filter is not None else "without either all tasks are meant",
                fix='"filter": "id:*" means all',
            )
        if self.task_ids is not None and (self.dry_run or self.cursor is not None):
            raise InvalidRequestError("with task_ids there is nothing to count, and no cursor", fix="leave them out")


@router.post("/bulk", responses=answers(400, 413))
async def act_on_tasks(request: Request, body: BulkRequest) -> BulkAnswer:
    """Do one thing to all tasks that fit a filter, a page at a time (with `dry_run`, count them); or to named ones."""
    plane, asked = plane_of(request), inquiry(request)
    body.check()
    by = by_of(request, body.by)
    if body.task_ids is not None:
        return await plane.bulk.run_on(
            body.action,
            body.task_ids,
            reason=body.reason,
            key=body.idempotency_key,
            by=by,
            here_only=asked.passed_on,
        )
    answer = await plane.bulk.run(
        body.action,
        body.filter or "",
        dry_run=body.dry_run,
        limit=body.limit,
        cursor=body.cursor,
        reason=body.reason,
        key=body.idempotency_key,
        by=by,
    )
    await plane.across.complete(asked, answer.first)
    return answer


@router.post("/{task_id}/retry", status_code=201, responses=answers(400, 404, 409, 413, 429) | FOUND)
async def retry_task(
    request: Request, response: Response, task_id: str, body: RetryRequest | None = None, wait_s: WaitS = 0.0
) -> TaskView:
    """Have a task that did not end well done again, from just before what failed. The answer is the new task."""
    asked = body or RetryRequest()
    made = await plane_of(request).repeats.retry(
        task_id, from_start=asked.from_start, new_task_id=asked.task_id, key=asked.idempotency_key
    )
    return await _made(request, response, made, wait_s)


@router.post("/{task_id}/replay", status_code=201, responses=answers(400, 404, 409, 413, 429) | FOUND)
async def replay_task(
    request: Request, response: Response, task_id: str, body: ReplayRequest | None = None, wait_s: WaitS = 0.0
) -> TaskView:
    """Run a task once more, from a step or from the start, with another input if given. The answer is the new task."""
    asked = body or ReplayRequest()
    made = await plane_of(request).repeats.replay(
        task_id, step_id=asked.step_id, edit=asked.edit, new_task_id=asked.task_id, key=asked.idempotency_key
    )
    return await _made(request, response, made, wait_s)


@router.post("/{task_id}/fork", status_code=201, responses=answers(400, 404, 409, 413, 429) | FOUND)
async def fork_task(
    request: Request, response: Response, task_id: str, body: ForkRequest, wait_s: WaitS = 0.0
) -> TaskView:
    """Make a task that goes on from where this one stood after an entry of its history. The answer is the new task."""
    made = await plane_of(request).repeats.fork(
        task_id,
        body.seq,
        step_id=body.step_id,
        edit=body.edit,
        new_task_id=body.task_id,
        key=body.idempotency_key,
    )
    return await _made(request, response, made, wait_s)


@router.post("/{task_id}/redrive", responses=answers(400, 404, 409, 413, 429))
async def redrive_task(request: Request, task_id: str) -> TaskView:
    """Send all steps of a task again that were given up. The answer is the task in which that happens."""
    plane = plane_of(request)
    return plane.views.task(await plane.engine.cache.get(await plane.dead_letters.redrive_task(task_id)))


async def _made(request: Request, response: Response, made: tuple[TaskEntry, bool], wait_s: float) -> TaskView:
    plane = plane_of(request)
    entry, fresh = made
    if not fresh:
        response.status_code = 200
    entry = await waiting.ended(request, plane, entry, wait_s)
    view = plane.views.task(entry)
    if entry.ended:
        view.result = (await plane.views.result(entry)).result
    return view


@router.delete("/{task_id}", responses=answers(404, 409))
async def delete_task(request: Request, task_id: str) -> TaskView:
    """Remove an ended task for good: its history, its stream, its outcome. The answer is what it was."""
    plane = plane_of(request)
    view = plane.views.task(await plane.engine.cache.get(task_id))
    await plane.bulk.delete(task_id)
    return view
