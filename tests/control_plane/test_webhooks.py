"""Webhooks: every end of a task is told once it is recorded, whatever dies between, and to nobody who may not know."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.control_plane.harness import FakeInstance, LinkedRunner, World, outcome, submit, until
from tests.support import DEADLINE_S
from tests.support.passing import time_passes
from tests.support.receiver import Receiver, receiving

from llama_deploy.client.webhooks import verify
from llama_deploy.control_plane import ControlPlane
from llama_deploy.errors import InvalidRequestError, SettingError, WebhookSignatureError
from llama_deploy.services import service
from llama_deploy.services.webhook import HOST_REQUESTS_MAX, RETRY, WebhookService
from llama_deploy.testing import ManualClock
from llama_deploy.types import RetryPolicy, TaskOptions, Webhook, WebhookSettings, WebhookView
from llama_deploy.types.webhooks import as_address

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
OTHER = "whsec_" + base64.b64encode(b"o" * 32).decode()
SETTINGS = WebhookSettings(secrets={"main": SECRET, "both": f"{OTHER} {SECRET}"})
QUICK = RetryPolicy(max_retries=5, initial_s=0.0, jitter=0.0)


@service
async def echo(text: str) -> str:
    return text


@service(retry=RetryPolicy(max_retries=0))
async def broken() -> str:
    raise ValueError("no")


class Hooked(World):
    """A world whose control plane calls webhooks."""

    def __init__(self, *args: Any, retry: RetryPolicy = QUICK, timeout_s: float = DEADLINE_S, **options: Any) -> None:
        settings = options.pop("webhooks", SETTINGS)
        super().__init__(*args, webhooks=settings, **options)
        self._settings, self._retry, self._timeout_s = settings, retry, timeout_s
        self.hooks: LinkedRunner | None = None

    async def call_webhooks(self) -> None:
        """Start the control plane's own service."""
        plane = self.plane
        made = WebhookService(
            plane.engine.webhooks.call,
            self._settings,
            clock=plane.engine.clock,
            retry=self._retry,
            timeout_s=self._timeout_s,
        )
        self.hooks = LinkedRunner([made], instance_id="webhooks")
        await self.hooks.connect(plane)

    async def serve(self, *services: Any) -> None:
        await LinkedRunner(services or [echo, broken]).connect(self.plane)

    async def view(self, task_id: str) -> WebhookView:
        found = (await self.plane.views.task_in_full(await self.plane.engine.cache.get(task_id))).webhook
        assert found is not None
        return found

    async def reached(self, task_id: str, state: str) -> WebhookView:
        """Wait until the news of a task's end stands so."""

        async def there() -> WebhookView | None:
            view = await self.view(task_id)
            return view if view.state == state else None

        found: WebhookView = await until(there)
        return found


@asynccontextmanager
async def hooked(*args: Any, calls: bool = True, **options: Any) -> AsyncIterator[Hooked]:
    made = Hooked(*args, **options)
    await made.start()
    try:
        if calls:
            await made.call_webhooks()
        yield made
    finally:
        if made.hooks is not None:
            await made.hooks.stop()
        await made.stop()


def to(receiver: Receiver, secret: str | None = "main", path: str = "") -> TaskOptions:
    return TaskOptions(webhook=Webhook(url=receiver.url + path, secret=secret))


# --- what is told ---------------------------------------------------------------------------------------------------


async def test_the_end_of_a_task_is_told_signed_and_once() -> None:
    async with receiving() as receiver, hooked() as made:
        await made.serve()
        options = to(receiver, path="?token=abc")
        await submit(made.plane, "echo", "hello", task_id="t", options=options, metadata={"order": "7"})
        view = await made.reached("t", "delivered")
        (request,) = receiver.received
        assert view.url == receiver.url + "?…"
        assert (request.method, request.path) == ("POST", "/hook?token=abc")
        assert request.headers["host"] == f"127.0.0.1:{receiver.port}"
        assert request.headers["content-type"] == "application/json"
        assert request.signed_by(SECRET)
        assert not request.signed_by(OTHER)
        assert request.event["type"] == "task.completed"
        data = request.event["data"]
        assert (data["task_id"], data["state"], data["output"], data["metadata"]) == (
            "t", "completed", "hello", {"order": "7"},
        )  # fmt: skip
        assert data["error"] is None
        assert data["result_path"] == "/v1/tasks/t/result"
        event = verify(request.headers, request.body, SECRET)
        assert event["id"] == request.headers["webhook-id"]
        assert event["data"] == data


async def test_failures_and_cancellations_are_told_too() -> None:
    async with receiving() as receiver, hooked() as made:
        await made.serve()
        idle = FakeInstance(["slow"], instance_id="idle")
        await idle.connect(made.plane)
        await submit(made.plane, "broken", "{}", task_id="f", options=to(receiver))
        await made.reached("f", "delivered")
        await submit(made.plane, "slow", task_id="c", options=to(receiver, secret=None))
        await idle.delivery()
        assert (await made.view("c")).state == "waiting"
        await made.plane.signals.cancel("c", reason="enough")
        await made.reached("c", "delivered")
        failed, canceled = (request.event for request in receiver.received)
        assert (failed["type"], failed["data"]["error"]["code"]) == ("task.failed", "LD502")
        assert (canceled["type"], canceled["data"]["error"]["code"]) == ("task.canceled", "LD508")
        assert failed["data"]["output"] is None
        assert "webhook-signature" not in receiver.received[1].headers


async def test_the_default_webhook_hears_of_tasks_that_name_none() -> None:
    async with receiving() as receiver, receiving() as own:
        settings = WebhookSettings(default=Webhook(url=receiver.url, secret="main"), secrets=SETTINGS.secrets)
        async with hooked(webhooks=settings) as made:
            await made.serve()
            await submit(made.plane, "echo", "1", task_id="a")
            await made.reached("a", "delivered")
            await submit(made.plane, "echo", "2", task_id="b", options=to(own))
            await made.reached("b", "delivered")
            assert [request.event["data"]["task_id"] for request in receiver.received] == ["a"]
            assert [request.event["data"]["task_id"] for request in own.received] == ["b"]


async def test_a_large_result_is_told_of_and_not_sent() -> None:
    async with receiving() as receiver, hooked() as made:
        await made.serve()
        await submit(made.plane, "echo", "x" * 100_000, task_id="t", options=to(receiver))
        await made.reached("t", "delivered")
        data = receiver.received[0].event["data"]
        assert data["output"] is None
        assert data["result_bytes"] > 100_000
        assert len(receiver.received[0].body) < 2_000


async def test_two_secrets_sign_twice_while_one_takes_the_place_of_the_other() -> None:
    async with receiving() as receiver, hooked() as made:
        await made.serve()
        await submit(made.plane, "echo", task_id="t", options=to(receiver, secret="both"))
        await made.reached("t", "delivered")
        (request,) = receiver.received
        assert request.signed_by(SECRET)
        assert request.signed_by(OTHER)
        assert verify(request.headers, request.body, SECRET)["data"]["task_id"] == "t"


# --- receivers that fail --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", [503, 429, 408, "break"])
async def test_what_fails_for_now_is_tried_again_under_the_same_id(trouble: int | str) -> None:
    async with receiving() as receiver, hooked() as made:
        await made.serve()
        receiver.answers = [trouble, trouble]
        await submit(made.plane, "echo", task_id="t", options=to(receiver))
        await made.reached("t", "delivered")
        assert len(receiver.received) == 3
        assert len({request.headers["webhook-id"] for request in receiver.received}) == 1
        assert len({request.body for request in receiver.received}) == 1
        assert all(request.signed_by(SECRET) for request in receiver.received)


async def test_a_receiver_that_hangs_is_given_up_after_a_while_and_called_again() -> None:
    async with receiving() as receiver, hooked() as made:
        await made.serve()
        receiver.answers = ["hang"]
        await submit(made.plane, "echo", task_id="t", options=to(receiver))
        await until(lambda: receiver.waiting == 1)
        await time_passes(DEADLINE_S)
        await made.reached("t", "delivered")
        assert len(receiver.received) == 2


@pytest.mark.parametrize("answer", [400, 404, 410, (301, {"location": "http://127.0.0.1:1/elsewhere"})])
async def test_what_the_receiver_does_not_want_is_a_dead_letter(answer: Any) -> None:
    async with receiving() as receiver, hooked() as made:
        await made.serve()
        receiver.answers = [answer]
        await submit(made.plane, "echo", task_id="t", options=to(receiver, path="?token=abc"))
        view = await made.reached("t", "failed")
        assert len(receiver.received) == 1
        assert view.attempt == 1
        assert "abc" not in (view.error or "")
        dead = await made.plane.store.load_dead("t:2")
        assert dead is not None
        assert (dead.service, dead.code) == ("__webhook__", "LD520")
        assert (await outcome(made.plane, "t")).result == "hello"


async def test_a_receiver_that_never_answers_well_is_given_up_in_the_end() -> None:
    async with receiving() as receiver, hooked() as made:
        await made.serve()
        receiver.answers = [503] * 20
        await submit(made.plane, "echo", task_id="t", options=to(receiver))
        view = await made.reached("t", "failed")
        assert view.attempt == QUICK.max_retries + 1 == len(receiver.received)
        assert "503" in (view.error or "")


async def test_retry_after_is_waited_for() -> None:
    clock = ManualClock()
    async with receiving() as receiver, hooked(clock=clock) as made:
        await made.serve()
        receiver.answers = [(503, {"retry-after": "120"})]
        await submit(made.plane, "echo", task_id="t", options=to(receiver))

        async def waits() -> bool:
            view = await made.view("t")
            return view.state == "sending" and view.due_at == clock.now() + 120 and "503" in (view.error or "")

        await until(waits)
        clock.advance(119)
        assert len(receiver.received) == 1
        clock.advance(2)
        await made.reached("t", "delivered")


async def test_the_patience_is_as_documented() -> None:
    waited_s = sum(RETRY.next_delay(failures) for failures in range(1, RETRY.max_retries + 1))
    assert 28 < waited_s / 3600 < 29


async def test_one_host_gets_a_bounded_number_of_requests_at_once() -> None:
    async with receiving() as receiver, hooked() as made:
        await made.serve()
        receiver.answers = ["hang"] * 100
        for number in range(HOST_REQUESTS_MAX * 2):
            await submit(made.plane, "echo", task_id=f"t{number}", options=to(receiver))
        await until(lambda: receiver.waiting == HOST_REQUESTS_MAX)
        async with receiving() as another:
            await submit(made.plane, "echo", task_id="other", options=to(another))
            await made.reached("other", "delivered")
        receiver.release.set()
        for number in range(HOST_REQUESTS_MAX * 2):
            await made.reached(f"t{number}", "delivered")
        assert receiver.most_waiting == HOST_REQUESTS_MAX


# --- crashes --------------------------------------------------------------------------------------------------------


async def test_a_crash_between_the_end_and_the_request_loses_nothing(tmp_path: Path) -> None:
    async with receiving() as receiver, hooked(tmp_path / "s.db", calls=False) as made:
        await made.serve()
        await submit(made.plane, "echo", task_id="t", options=to(receiver))
        await outcome(made.plane, "t")
        assert (await made.view("t")).state == "sending"
        await made.crash()
        await made.start()
        await made.call_webhooks()
        await made.reached("t", "delivered")
        assert len(receiver.received) == 1


async def test_a_crash_in_the_middle_of_a_request_repeats_it_under_the_same_id(tmp_path: Path) -> None:
    async with receiving() as receiver, hooked(tmp_path / "s.db") as made:
        await made.serve()
        receiver.answers = ["hang"]
        await submit(made.plane, "echo", task_id="t", options=to(receiver))
        await until(lambda: receiver.waiting)
        assert made.hooks is not None
        made.hooks.die()
        await made.crash()
        await made.start()
        await made.call_webhooks()
        await made.reached("t", "delivered")
        first, second = receiver.received
        assert first.headers["webhook-id"] == second.headers["webhook-id"]
        assert first.body == second.body


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://169.254.169.254/latest", "link-local or metadata"),
        ("http://[::ffff:169.254.169.254]/", "link-local or metadata"),
        ("http://[fd00:ec2::254]/", "link-local or metadata"),
        ("http://0.0.0.0/", "reserved"),
        ("http://224.0.0.1/", "multicast"),
        ("https://user:pass@example.com/", "carries a login"),
        ("https:///path", "not a URL"),
        ("https://example.com:99999/", "not a URL"),
        ("https://exa mple.com/", "not a URL"),
    ],
)
async def test_a_target_that_may_not_be_called_is_refused_with_the_task(url: str, why: str) -> None:
    async with hooked(calls=False) as made:
        await made.serve()
        with pytest.raises(InvalidRequestError, match=why) as caught:
            await submit(made.plane, "echo", options=TaskOptions(webhook=Webhook(url=url)))
        assert caught.value.details["field"] == "options.webhook.url"
        assert await made.plane.store.count_tasks() == {}


async def test_an_unknown_secret_is_refused_with_the_task() -> None:
    async with hooked(calls=False) as made:
        await made.serve()
        with pytest.raises(InvalidRequestError, match="not known") as caught:
            await submit(made.plane, "echo", options=TaskOptions(webhook=Webhook(url="https://a.b/", secret="x")))
        assert SECRET not in str(caught.value.to_problem())


async def test_a_name_that_stands_for_a_forbidden_address_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    async with hooked() as made:
        await made.serve()
        loop = asyncio.get_running_loop()

        async def resolve(host: str, port: int, **_: Any) -> list[Any]:
            return [(2, 1, 6, "", ("169.254.169.254", port))]

        monkeypatch.setattr(loop, "getaddrinfo", resolve, raising=False)
        await submit(
            made.plane, "echo", task_id="t", options=TaskOptions(webhook=Webhook(url="http://rebind.example/"))
        )
        view = await made.reached("t", "failed")
        assert "link-local" in (view.error or "")


@pytest.mark.parametrize(
    ("hosts", "host", "address", "allowed"),
    [
        ((), "a.example", "93.184.216.34", True),
        ((), "a.example", "127.0.0.1", True),
        ((), "a.example", "169.254.169.254", False),
        ((), "a.example", "64:ff9b::a9fe:a9fe", False),
        (("*.example",), "a.example", "93.184.216.34", True),
        (("*.example",), "A.EXAMPLE.", "93.184.216.34", True),
        (("*.example",), "a.example", "169.254.169.254", False),
        (("*",), "a.example", "169.254.169.254", False),
        (("*.example",), "example.org", "93.184.216.34", False),
        (("10.0.0.0/8",), "a.example", "10.1.2.3", True),
        (("10.0.0.0/8",), "a.example", "93.184.216.34", False),
        (("10.0.0.0/8",), "10.1.2.3", "10.1.2.3", True),
        (("169.254.169.254",), "a.example", "169.254.169.254", True),
    ],
)
def test_hosts_are_allowed_by_name_or_by_address(
    hosts: tuple[str, ...], host: str, address: str, *, allowed: bool
) -> None:
    settings = WebhookSettings(hosts=hosts)
    found = as_address(address)
    assert found is not None
    assert (not settings.refuses_host(host) and not settings.refuses_address(host, found)) is allowed


def test_a_target_that_may_not_be_called_is_no_default() -> None:
    with pytest.raises(SettingError, match="cannot be used"):
        WebhookSettings(default=Webhook(url="http://a.org/"), hosts=("*.example",))


@pytest.mark.parametrize("secret", ["", "short", "whsec_c2hvcnQ=", "whsec_???", SECRET + " x"])
def test_a_secret_that_is_none_is_refused_and_not_shown(secret: str) -> None:
    with pytest.raises(SettingError) as caught:
        ControlPlane(store=World()._memory, webhooks=WebhookSettings(secrets={"main": secret}))
    assert not secret or secret not in caught.value.render()


def test_settings_do_not_show_their_secrets() -> None:
    assert SECRET not in repr(SETTINGS)


async def test_a_task_for_the_service_that_calls_webhooks_is_refused() -> None:
    async with hooked() as made:
        with pytest.raises(InvalidRequestError, match="takes no tasks"):
            await submit(made.plane, "__webhook__")
        assert made.plane.views.services() == []
        assert (await made.plane.status())["instances"] == 0
        remote = FakeInstance(["__webhook__"], instance_id="thief")
        remote.attach(made.plane)
        remote.hello()
        await until(lambda: remote.closed)
        assert await made.plane.store.load_services() == {}


async def test_neither_secret_nor_query_is_in_the_history(tmp_path: Path) -> None:
    async with receiving() as receiver, hooked(tmp_path / "s.db") as made:
        await made.serve()
        entry = await submit(made.plane, "echo", task_id="t", options=to(receiver, path="?token=abc"))
        await made.reached("t", "delivered")
        page = await made.plane.views.history(entry, after=0, limit=100)
        shown = page.model_dump_json()
        assert "token=abc" not in shown
        assert SECRET not in shown
        assert SECRET.encode() not in (tmp_path / "s.db").read_bytes()


# --- receivers ------------------------------------------------------------------------------------------------------


async def test_a_receiver_recognises_what_is_not_genuine() -> None:
    async with receiving() as receiver, hooked() as made:
        await made.serve()
        await submit(made.plane, "echo", task_id="t", options=to(receiver))
        await made.reached("t", "delivered")
    (request,) = receiver.received
    at = int(request.headers["webhook-timestamp"])
    assert verify({k.title(): v for k, v in request.headers.items()}, request.body.decode(), SECRET, now=at)
    changed = {**request.headers, "webhook-timestamp": str(at + 1)}
    without = {k: v for k, v in request.headers.items() if k != "webhook-signature"}
    for headers, body, secret, now in (
        (request.headers, request.body + b" ", SECRET, at),
        (request.headers, request.body, OTHER, at),
        (request.headers, request.body, SECRET, at + 301),
        (request.headers, request.body, SECRET, at - 301),
        (changed, request.body, SECRET, at),
        (without, request.body, SECRET, at),
        ({**request.headers, "webhook-timestamp": "١٢٣"}, request.body, SECRET, at),
        ({**request.headers, "webhook-signature": "v2,é"}, request.body, SECRET, at),
    ):
        with pytest.raises(WebhookSignatureError):
            verify(headers, body, secret, now=now)
    assert json.loads(request.body)["type"] == "task.completed"


async def test_a_webhook_that_was_given_up_is_sent_again_on_request() -> None:
    async with receiving() as receiver, hooked() as made:
        await made.serve()
        receiver.answers = [410]
        await submit(made.plane, "echo", task_id="t", options=to(receiver))
        await made.reached("t", "failed")
        assert await made.plane.dead_letters.redrive("t:2") == "t"
        assert (await made.reached("t", "delivered")).error is None
        first, second = receiver.received
        assert first.headers["webhook-id"] == second.headers["webhook-id"]
