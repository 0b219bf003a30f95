"""From what a person writes to a carrier: deployment file, URL, fields; and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from llama_deploy.apiserver.deployment_file import load_deployment_file
from llama_deploy.apiserver.queues import open_queue, relocated
from llama_deploy.errors import MissingExtraError, SettingError
from llama_deploy.message_queues import SimpleMessageQueue
from llama_deploy.message_queues.settings import CarrierSettings, place_name


def settings_of(folder: Path, queue: str) -> CarrierSettings | None:
    text = f"name: a\nservices:\n  s:\n    import-path: m:s\nmessage-queue: {queue}\n"
    (folder / "deployment.yml").write_text(text)
    return load_deployment_file(folder).message_queue.settings(folder)


@pytest.mark.parametrize(
    ("queue", "url"),
    [
        ("redis://h:1/2", "redis://h:1/2"),
        ("{type: redis}", "redis://localhost/"),
        ("{type: redis, host: h, port: 7, db: 3}", "redis://h:7/3"),
        ("{type: redis, url: 'redis://h', ssl: true}", "rediss://h"),
        ("{type: rabbitmq, host: h, vhost: /a/b}", "amqp://h/a%2Fb"),
        ("{type: rabbitmq, url: 'amqp://guest:guest@localhost/', exchange_name: x}", "amqp://guest:guest@localhost/"),
        ("{type: aws, aws-region: eu-west-1}", "sqs://eu-west-1/"),
        ("{url: 'nats://h1,h2:5'}", "nats://h1,h2:5"),
        ("{type: kafka}", "kafka://localhost/"),
        ("{type: kafka, url: 'localhost:9092'}", "kafka://localhost:9092"),
        ("{type: apache_kafka, host: h, port: 1}", "kafka://h:1/"),
        ("{type: kafka, url: 'kafka://h1:1,h2:2', use-ssl: true}", "kafka+tls://h1:1,h2:2"),
    ],
)
def test_what_the_file_says_is_a_url(tmp_path: Path, queue: str, url: str) -> None:
    settings = settings_of(tmp_path, queue)
    assert settings is not None
    assert settings.url == url


@pytest.mark.parametrize("queue", ["simple", "{type: simple}", "{type: simple, host: h}", ""])
def test_the_built_in_queue_needs_nothing(tmp_path: Path, queue: str) -> None:
    assert settings_of(tmp_path, queue) is None


def test_references_are_followed_when_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_URL", "redis://h")
    (tmp_path / "secret").write_text("s3cret\n")
    settings = settings_of(tmp_path, "{url: {env: BROKER_URL}, username: u, password: {file: secret}}")
    assert settings is not None
    assert settings.credentials == ("u", "s3cret")
    assert "s3cret" not in f"{settings!r} {settings.location}"
    monkeypatch.delenv("BROKER_URL")
    with pytest.raises(SettingError, match="BROKER_URL is not set"):
        settings_of(tmp_path, "{url: {env: BROKER_URL}}")


def test_a_type_and_a_url_of_another_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="type redis and a URL that begins with amqp://"):
        settings_of(tmp_path, "{type: redis, url: 'amqp://h'}")


def test_the_command_line_wins() -> None:
    given = CarrierSettings(url="redis://h", password="p")
    moved = relocated(given, "redis://other")
    assert moved is not None
    assert (moved.host, moved.password) == ("other", "p")
    assert relocated(given, "simple") is None
    assert relocated(given, None) is given
    assert relocated(None, None) is None


def test_what_names_no_carrier_is_refused(tmp_path: Path) -> None:
    refused: list[tuple[Any, str]] = [
        ("smtp://h", "there is no message queue for smtp://"),
        ("somewhere", "names no host"),
        ("redis://h:port", "the port in the URL"),
        ("redis://h?storage=x", "unknown option 'storage'"),
        ({"host": "h"}, "has no setting 'host'"),
        ({"namespace": "a"}, "has no url"),
        ({"url": "redis://h", "namespace": "a b"}, "cannot be used"),
        ({"url": "redis://h", "ca_file": tmp_path / "none"}, "there is no file"),
    ]
    for given, words in refused:
        with pytest.raises(SettingError, match=words):
            open_queue(given)
    (tmp_path / "bad.pem").write_text("nothing")
    with pytest.raises(SettingError, match="certificates"):
        open_queue({"url": "redis://h", "ca_file": tmp_path / "bad.pem"})


def test_nothing_and_a_queue_itself() -> None:
    queue = SimpleMessageQueue()
    assert open_queue(queue) is queue
    assert open_queue(None) is None
    assert open_queue("simple") is None


@pytest.mark.parametrize(
    ("url", "package", "extra"),
    [("redis://h", "redis", "redis"), ("nats://h", "nats", "nats"), ("amqp://h", "aio_pika", "rabbitmq")]
    + [("postgresql://h", "asyncpg", "postgres"), ("sqs://eu-west-1", "aiobotocore", "sqs")],
)
def test_without_its_driver_a_carrier_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, url: str, package: str, extra: str
) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError) as missing:
        open_queue(url)
    assert f"[{extra}]" in missing.value.fix


def test_names_are_escaped_and_never_meet() -> None:
    hostile = ["a", "a b", "a.b", "a_b", "a_20b", "a>", "a*", "ä", "A", "a__b", "", "a" * 300, "a" * 301, "\n"]
    names = [place_name("space", name, most=200) for name in hostile]
    assert len(set(names)) == len(hostile)
    assert all(name.replace("_", "").replace("-", "").isalnum() and len(name) <= 200 for name in names)
    assert place_name("a", "b__c", most=200) != place_name("a__b", "c", most=200)


def test_a_driver_s_text_is_shown_without_the_password() -> None:
    settings = CarrierSettings(url="amqp://u:p%40ss@h")
    assert settings.hide("cannot reach amqp://u:p%40ss@h with p@ss") == "cannot reach amqp://***@h with ***"
