"""Passwords, TLS and certificates of an authority of one's own, on private servers; and nothing tells the password."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.message_queues.carriers.conftest import new_namespace
from tests.support import eventually
from tests.support.brokers import Broker, NatsBroker, RedisBroker
from tests.support.ports import free_port

from llama_deploy.apiserver import Deployment
from llama_deploy.errors import CarrierRefusedError
from llama_deploy.message_queues import MessageQueue
from llama_deploy.message_queues.opening import open_carrier
from llama_deploy.message_queues.settings import CarrierSettings
from llama_deploy.testing.queue_conformance import Consumer, envelopes

PASSWORD = "o'p en:s€same@/"


def shout(text: str) -> str:
    return text.upper()


def certificates(folder: Path) -> None:
    """Write `ca.pem`, and `server.pem` with `server.key` for 127.0.0.1, signed by it."""
    now = dt.datetime.now(dt.UTC)

    def build(name: str, key: ec.EllipticCurvePrivateKey, issuer: str, *, ca: bool) -> x509.CertificateBuilder:
        address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(address, critical=False)
        )

    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = build("test authority", ca_key, "test authority", ca=True).sign(ca_key, hashes.SHA256())
    own = build("server", key, "test authority", ca=False).sign(ca_key, hashes.SHA256())
    (folder / "ca.pem").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    (folder / "server.pem").write_bytes(own.public_bytes(serialization.Encoding.PEM))
    (folder / "server.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def secured(kind: str, folder: Path) -> Broker:
    """A broker that asks for a password over TLS."""
    pem, key, ca = (str(folder / name) for name in ("server.pem", "server.key", "ca.pem"))
    broker: Broker
    if kind == "redis":
        broker = RedisBroker()
        broker.arguments = ("--requirepass", PASSWORD, "--tls-port", str(broker.port), "--port", "0")
        broker.arguments += ("--tls-cert-file", pem, "--tls-key-file", key, "--tls-ca-cert-file", ca)
        broker.arguments += ("--tls-auth-clients", "no")
    else:
        broker = NatsBroker()
        broker.arguments = ("--user", "deploy", "--pass", PASSWORD, "--tls", "--tlscert", pem, "--tlskey", key)
    return broker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("certificates")
    certificates(made)
    return made


@pytest.fixture(scope="module", params=["redis", "nats"])
async def secure(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Broker]:
    broker = secured(request.param, folder)
    await broker.start()
    yield broker
    await broker.remove()


def queue_at(broker: Broker, *, password: str = PASSWORD, **files: Path) -> MessageQueue:
    return open_carrier(settings(broker, password=password, **files))


def settings(broker: Broker, *, password: str = PASSWORD, **files: Path) -> CarrierSettings:
    scheme = {"redis": "rediss", "nats": "tls"}[broker.kind]
    return CarrierSettings(
        url=f"{scheme}://127.0.0.1:{broker.port}",
        username="deploy" if broker.kind == "nats" else None,
        password=password,
        namespace=new_namespace(),
        **files,  # type: ignore[arg-type]
    )


async def test_it_carries_over_tls_with_a_password(secure: Broker, folder: Path) -> None:
    queue = queue_at(secure, ca_file=folder / "ca.pem")
    await queue.start()
    consumer = Consumer(queue, "echo", credits=5)
    assert queue.publish(envelopes("echo", range(3))) == []
    await consumer.has(3)
    assert queue.health().connected
    await queue.stop()


async def test_a_wrong_password_is_refused_and_shown_nowhere(
    secure: Broker, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue = queue_at(secure, password="wr0ng-s3cret", ca_file=folder / "ca.pem")
    with pytest.raises(CarrierRefusedError) as refused:
        await queue.start()
    said = f"{refused.value.render()} {refused.value.to_problem()} {queue.health()} {caplog.text}"
    assert refused.value.code == "LD421"
    assert "wr0ng-s3cret" not in said
    assert f"127.0.0.1:{secure.port}" in said


async def test_an_unknown_authority_is_not_trusted(secure: Broker) -> None:
    queue = queue_at(secure)
    await queue.start()  # it may be set right on the other side, so it is tried again
    await eventually(lambda: "certificate" in queue.health().error.lower())
    assert not queue.health().connected
    await queue.stop()


async def test_no_route_and_no_log_tells_a_password(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="llama_deploy")
    url = f"redis://someone:t0ps3cret@127.0.0.1:{free_port()}/0"
    async with Deployment([shout], store=":memory:", message_queue=url, quiet=True) as deployment:
        status = json.dumps(await deployment.client.status())
        await eventually(lambda: deployment.plane.queue.health().error)
        said = status + caplog.text + repr(deployment.plane.queue.health())
    assert '"kind": "redis"' in status
    assert '"connected": false' in status
    assert "t0ps3cret" not in said
    assert "someone" not in said
