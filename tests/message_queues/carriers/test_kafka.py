"""What is Kafka's own: partitions and their groups, the watermark, one commit for all, marks, and outages.

The broker is librdkafka's mock cluster, which is up at once, and for what it cannot do (be wiped, be behind a proxy) a
server that speaks the protocol and takes five seconds for every group. Kafka itself runs in no test here.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.message_queues.carriers.conftest import carrier_at, new_namespace
from tests.message_queues.carriers.test_outages import TASKS, Echo
from tests.support import DEADLINE_S, PROCESS_S, eventually
from tests.support.brokers import Broker, KafkaBroker, TansuBroker
from tests.support.certificates import Authority
from tests.support.kafka_front import (
    API_VERSIONS,
    AUTHENTICATION_FAILED,
    SASL_AUTHENTICATE,
    SASL_HANDSHAKE,
    Door,
    guarded,
)
from tests.support.ports import free_port

from llama_deploy.errors import CarrierRefusedError, SettingError
from llama_deploy.message_queues import kafka
from llama_deploy.message_queues.kafka import KafkaCarrier, _Taken
from llama_deploy.message_queues.settings import CarrierSettings
from llama_deploy.testing.queue_conformance import Consumer, envelopes, have


@pytest.fixture
def quick_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mock cluster lets every change of a group take nearly as long as a session."""
    monkeypatch.setattr(kafka, "SESSION_MS", 1_200)


@pytest.fixture(scope="module")
async def mock() -> AsyncIterator[Broker]:
    broker = KafkaBroker()
    await broker.start()
    yield broker
    await broker.remove()


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[Broker]:
    broker = TansuBroker()
    await broker.start()
    yield broker
    await broker.remove()


def kafka_at(broker: Broker, namespace: str | None = None, **settings: object) -> KafkaCarrier:
    carrier = carrier_at(broker.url, namespace, **settings)
    assert isinstance(carrier, KafkaCarrier)
    return carrier


# --- the watermark -------------------------------------------------------------------------------------------------


def test_only_what_has_no_gap_before_it_is_committed() -> None:
    taken = _Taken()
    for offset in (10, 11, 14, 15):  # Kafka leaves numbers out
        taken.add(offset)
    assert taken.watermark == 10
    taken.acknowledge(11)
    taken.acknowledge(15)
    assert taken.watermark == 10
    taken.acknowledge(10)
    assert taken.watermark == 14, "11 was acknowledged before, and 12 and 13 never were"
    taken.acknowledge(14)
    assert taken.watermark == 16


async def test_a_batch_is_one_commit_for_all_partitions(mock: Broker) -> None:
    carrier = kafka_at(mock)
    await carrier.start()
    consumer = Consumer(carrier, "echo", credits=1)
    carrier.publish(envelopes("echo", range(1)))
    await consumer.has(1)
    reader = carrier._readers["echo"]
    commits: list[dict[object, int]] = []
    commit = reader.consumer.commit

    async def counted(offsets: dict[object, int]) -> None:
        commits.append(offsets)
        await commit(offsets)

    reader.consumer.commit = counted
    carrier.publish(envelopes("echo", range(1, 201)))
    await eventually(lambda: carrier.depth("echo") == 200)
    consumer.subscription.grant(200)
    await consumer.has(201)
    await eventually(lambda: sum(len(offsets) for offsets in commits) > 0 and not carrier._acknowledgements)
    await carrier.stop()
    assert len(commits) <= 4, "commits, for 200 messages of 4 partitions"


# --- groups --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_groups")
async def test_two_control_planes_share_a_service_and_what_one_took_and_died_with_comes_again(mock: Broker) -> None:
    namespace = new_namespace()
    first, second = kafka_at(mock, namespace, wait_s=0.2), kafka_at(mock, namespace, wait_s=0.2)
    async with asyncio.timeout(DEADLINE_S):
        await first.start()
        await second.start()
        consumers = [Consumer(carrier, "echo", credits=50, automatic=True) for carrier in (first, second)]
        await eventually(lambda: all(_owns(carrier) == 2 for carrier in (first, second)))
        first.publish(envelopes("echo", range(100)))
        await have(consumers, 100)
        steps = sorted(step for consumer in consumers for step in consumer.steps)
        assert steps == sorted(envelope.step_id for envelope in envelopes("echo", range(100)))
        assert all(consumer.given for consumer in consumers), "nobody is left out"

        async def never(_: object) -> None:
            """What it acknowledges does not arrive any more."""

        first._commit = never  # type: ignore[method-assign,assignment]
        held = len(consumers[0].given)
        second.publish(envelopes("echo", range(100, 120)))
        await have(consumers, 120)
        lost = consumers[0].steps[held:]
        assert lost
        await first.stop()  # and what it had not acknowledged goes to the other one
        await eventually(lambda: set(lost) <= set(consumers[1].steps))
        await second.stop()


@pytest.mark.usefixtures("quick_groups")
async def test_who_has_no_room_leaves_its_partitions_to_others(mock: Broker) -> None:
    namespace = new_namespace()
    full, free = kafka_at(mock, namespace, wait_s=0.2), kafka_at(mock, namespace, wait_s=0.2)
    async with asyncio.timeout(DEADLINE_S):
        await full.start()
        await free.start()
        busy, idle = Consumer(full, "echo", credits=1), Consumer(free, "echo", credits=50, automatic=True)
        await eventually(lambda: all(_owns(carrier) == 2 for carrier in (full, free)))
        while not busy.given:
            free.publish(envelopes("echo", [len(idle.given)]))
            await have([busy, idle], len(busy.given) + len(idle.given) + 1)
        free.publish(envelopes("echo", range(1000, 1040)))
        wanted = {envelope.step_id for envelope in envelopes("echo", range(1000, 1040))}
        await eventually(lambda: wanted <= set(idle.steps))
        busy.subscription.grant(10)
        await eventually(lambda: _owns(full) == 2)
        await full.stop()
        await free.stop()


def _owns(carrier: KafkaCarrier) -> int:
    reader = carrier._readers.get("echo")
    return 0 if reader is None else len(reader.consumer.assignment())


# --- outages -------------------------------------------------------------------------------------------------------


async def test_what_cannot_be_read_is_put_aside(mock: Broker) -> None:
    carrier = kafka_at(mock)
    await carrier.start()
    consumer = Consumer(carrier, "echo", credits=5)
    carrier.publish(envelopes("echo", range(1)))
    await consumer.has(1)
    await carrier._producer.send_and_wait(carrier._name("echo"), b"none of ours")
    await eventually(lambda: carrier.health().unreadable == 1)
    dead = carrier._new_consumer("look")
    await dead.start()
    dead.subscribe([f"{carrier._name('echo')}__dead"])
    assert (await asyncio.wait_for(dead.getone(), DEADLINE_S)).value == b"none of ours"
    await dead.stop()
    await carrier.stop()


@pytest.mark.slow
@pytest.mark.usefixtures("quick_groups")
async def test_a_broker_that_goes_down_and_comes_back(mock: Broker) -> None:
    async with Echo(mock.url).running() as echo:
        working = asyncio.create_task(echo.work(0, TASKS))
        await echo.has_done(TASKS // 3)
        await mock.kill()
        await eventually(lambda: not echo.deployment.plane.queue.health().connected)
        await mock.start()
        await working
        echo.check(TASKS)
        assert echo.deployment.plane.queue.health().losses == 0


@contextlib.contextmanager
def left_to_nobody() -> Iterator[list[dict[str, Any]]]:
    """What the loop is told of meanwhile: errors that nobody has asked for."""
    loop = asyncio.get_running_loop()
    handler, left = loop.get_exception_handler(), list[dict[str, Any]]()
    loop.set_exception_handler(lambda _, context: left.append(context))
    try:
        yield left
        gc.collect()
    finally:
        loop.set_exception_handler(handler)


@pytest.mark.parametrize("partitions", [1, 4])
async def test_what_is_sent_while_the_broker_is_down_leaves_no_error_behind(mock: Broker, partitions: int) -> None:
    """The driver gives a message up a moment after the carrier has, and nobody waits for it then."""
    carrier = kafka_at(mock, request_timeout_s=0.5, reconnect_s_max=0.1)
    with left_to_nobody() as left:
        await carrier.start()
        carrier.publish(envelopes("echo", range(1)))
        await eventually(lambda: not carrier.health().unsent)
        await mock.kill()
        try:
            carrier.publish(envelopes("echo", range(partitions)))
            await eventually(lambda: not carrier.health().connected)
            await eventually(lambda: carrier._producer is None and not carrier._closing)
        finally:
            await mock.start()
        await eventually(lambda: not carrier.health().unsent)
        await carrier.stop()
    assert left == []


async def test_a_commit_ends_with_its_connection(mock: Broker) -> None:
    """The driver would repeat it for ever, and a consumer that is closed finds no server for it any more."""
    carrier = kafka_at(mock, reconnect_s_max=0.1)
    await carrier.start()
    consumer = Consumer(carrier, "echo", credits=5)
    carrier.publish(envelopes("echo", range(1)))
    await consumer.has(1)
    reader = carrier._readers["echo"]
    (taken,) = reader.taken.values()
    await eventually(lambda: taken.committed == 1)
    taken.committed = 0
    with left_to_nobody() as left:
        await mock.kill()
        try:
            committing = asyncio.create_task(carrier._commit(reader))
            carrier._fail(ConnectionResetError("killed"), carrier._generation)
            await eventually(committing.done)
        finally:
            await mock.start()
        await committing
        assert taken.committed == 0
        await eventually(lambda: carrier.health().reconnects and not carrier._closing)
        await carrier.stop()
    assert left == []


@pytest.mark.slow
async def test_a_reader_of_a_server_that_was_wiped_commits_nothing_there(server: Broker) -> None:
    """What it has read is not what is there now: whoever reads next would begin after messages that nobody had."""
    carrier = kafka_at(server, reconnect_s_max=0.1)
    async with asyncio.timeout(PROCESS_S):
        await carrier.start()
        consumer = Consumer(carrier, "echo", credits=100)
        carrier.publish(envelopes("echo", range(100)))
        await consumer.has(100)
        reader = carrier._readers["echo"]
        (taken,) = reader.taken.values()
        await eventually(lambda: taken.committed == 100)
        taken.committed = 0  # as if the server had gone just before: it is said whenever there is an occasion
        await server.kill()
        await server.start()
        await eventually(lambda: reader.consumer._coordinator.generation < 0)  # the server does not know it
        carrier._fail(ConnectionResetError("wiped"), carrier._generation)
        await eventually(lambda: carrier.health().reconnects and not carrier._closing)
        assert carrier.health().losses == 1
        carrier.publish(envelopes("echo", range(100, 108)))
        consumer.subscription.grant(8)
        await consumer.has(108)
        await carrier.stop()


@pytest.mark.slow
async def test_one_partition_keeps_the_order(server: Broker) -> None:
    carrier = kafka_at(server)
    assert carrier.capabilities.ordered
    async with asyncio.timeout(DEADLINE_S):
        await carrier.start()
        sent = envelopes("echo", range(300))
        for start in range(0, 300, 7):
            assert carrier.publish(sent[start : start + 7]) == []
        consumer = Consumer(carrier, "echo", credits=3, automatic=True)
        assert await consumer.has(300) == sent
        assert carrier._known["echo"] == [0]
        await carrier.stop()


@pytest.mark.slow
async def test_a_server_that_is_wiped_empty(server: Broker) -> None:
    async with Echo(server.url).running() as echo:
        working = asyncio.create_task(echo.work(0, TASKS))
        await echo.has_done(TASKS // 3)
        await server.kill()
        await server.start()
        await working
        echo.check(TASKS)
        assert echo.deployment.plane.queue.health().losses >= 1


# --- passwords -----------------------------------------------------------------------------------------------------


async def _refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The server's side of the protocol as far as a wrong password gets."""
    text = b"Authentication failed for wr0ng-s3cret"
    answers = {
        API_VERSIONS: struct.pack(">hi", 0, 3) + b"".join(struct.pack(">hhh", key, 0, 1) for key in (17, 18, 36)),
        SASL_HANDSHAKE: struct.pack(">hih", 0, 1, 5) + b"PLAIN",
        SASL_AUTHENTICATE: struct.pack(">hh", AUTHENTICATION_FAILED, len(text)) + text + struct.pack(">iq", 0, 0),
    }
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            (size,) = struct.unpack(">i", await reader.readexactly(4))
            key, _, number = struct.unpack(">hhi", (await reader.readexactly(size))[:8])
            body = struct.pack(">i", number) + answers[key]
            writer.write(struct.pack(">i", len(body)) + body)
    writer.close()


async def test_a_wrong_password_is_refused_and_shown_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    async with await asyncio.start_server(_refuse, "127.0.0.1", 0) as refusing:
        port = refusing.sockets[0].getsockname()[1]
        carrier = made(f"kafka://127.0.0.1:{port}", username="deploy", password="wr0ng-s3cret")
        with pytest.raises(CarrierRefusedError) as refused:
            await carrier.start()
    ours = " ".join(record.getMessage() for record in caplog.records if record.name.startswith("llama_deploy"))
    said = f"{refused.value.render()} {refused.value.to_problem()} {carrier.health()} {ours}"
    assert "Authentication failed for ***" in refused.value.render()
    assert f"127.0.0.1:{port}" in said
    assert "wr0ng-s3cret" not in said


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
async def test_it_carries_over_tls_for_a_user_with_a_password(mechanism: str, tmp_path: Path) -> None:
    authority, port = Authority(tmp_path), free_port()
    files = authority.sign("broker", "127.0.0.1")
    server = TansuBroker()
    server.advertised = port
    await server.start()
    door = Door(server.port, mechanism=mechanism, user="deploy", password="s3cret")
    url = f"kafka+tls://127.0.0.1:{port}?fetch_wait_ms=20&sasl={mechanism}"
    try:
        async with guarded(door, port, files), asyncio.timeout(4 * DEADLINE_S):
            known = {"username": "deploy", "ca_file": authority.file}
            with pytest.raises(CarrierRefusedError):
                await made(url, password="wrong", **known).start()
            assert (door.let_in, door.refused > 0) == (0, True)
            carrier = made(url, password="s3cret", **known)
            await carrier.start()
            consumer = Consumer(carrier, "echo", credits=20, automatic=True)
            assert carrier.publish(envelopes("echo", range(20))) == []
            assert await consumer.has(20) == envelopes("echo", range(20))
            await carrier.stop()
    finally:
        await server.remove()
    assert door.let_in > 1, "whoever sends, whoever reads"


async def test_who_has_signed_the_certificate_has_to_be_known(tmp_path: Path) -> None:
    door = Door(0, mechanism="PLAIN", user="deploy", password="s3cret")
    port = free_port()
    async with guarded(door, port, Authority(tmp_path).sign("broker", "127.0.0.1")):
        url = f"kafka+tls://127.0.0.1:{port}"
        carrier = made(url, username="deploy", password="s3cret", reconnect_s_max=0.1)
        await carrier.start()
        await eventually(lambda: "certificate verify failed" in carrier.health().error)
        await carrier.stop()
    assert (door.let_in, door.refused) == (0, 0)


async def test_a_server_that_is_not_there_is_tried_again() -> None:
    carrier = made(f"kafka://127.0.0.1:{free_port()}", reconnect_s_max=0.1)
    await carrier.start()
    await eventually(lambda: "refused" in carrier.health().error.lower() or "Connect call" in carrier.health().error)
    assert not carrier.health().connected
    await carrier.stop()


# --- settings ------------------------------------------------------------------------------------------------------


def made(url: str, **settings: object) -> KafkaCarrier:
    return KafkaCarrier(CarrierSettings(url=url, namespace="n", **settings))  # type: ignore[arg-type]


def test_several_servers_and_the_usual_port() -> None:
    common = made("kafka://one:1,two,[::1]:3")._common
    assert common["bootstrap_servers"] == ["one:1", "two:9092", "[::1]:3"]
    assert (common["security_protocol"], common["ssl_context"]) == ("PLAINTEXT", None)


def test_credentials_and_tls() -> None:
    common = made("kafka+tls://me:p%40ss@one/?sasl=SCRAM-SHA-512")._common
    assert common["security_protocol"] == "SASL_SSL"
    assert common["ssl_context"] is not None
    assert (common["sasl_plain_username"], common["sasl_plain_password"]) == ("me", "p@ss")
    assert common["sasl_mechanism"] == "SCRAM-SHA-512"
    assert made("kafka://me:pass@one")._common["security_protocol"] == "SASL_PLAINTEXT"


def test_order_is_promised_for_one_partition() -> None:
    assert made("kafka://one").capabilities.ordered
    assert not made("kafka://one?partitions=8").capabilities.ordered


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("kafka://one?partitions=0", "partitions in the URL of the message queue is no number above 0"),
        ("kafka://one?replicas=two", "replicas in the URL of the message queue is no number above 0"),
        ("kafka://me:p@one?sasl=GSSAPI", "no SASL mechanism 'GSSAPI'"),
        ("kafka://one?acks=1", "unknown option 'acks'"),
    ],
)
def test_options_that_cannot_be_used(url: str, says: str) -> None:
    with pytest.raises(SettingError, match=says):
        made(url)
