"""Which queue a setting means: a URL's scheme, or a `type`, names the carrier. Its driver is imported only then."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from llama_deploy.errors import SettingError
from llama_deploy.message_queues.base import MessageQueue
from llama_deploy.message_queues.settings import CarrierSettings
from llama_deploy.runtime import Clock

CARRIERS: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "redis": ("redis", "RedisCarrier", ("redis", "rediss")),
    "nats": ("nats", "NatsCarrier", ("nats", "tls", "nats+tls")),
    "rabbitmq": ("rabbitmq", "RabbitMQCarrier", ("amqp", "amqps")),
    "postgresql": ("postgresql", "PostgreSQLCarrier", ("postgresql", "postgres")),
    "kafka": ("kafka", "KafkaCarrier", ("kafka", "kafka+tls")),
    "sqs": ("sqs", "SQSCarrier", ("sqs",)),
}
"""By type: module, class, and the schemes of its URLs."""

_TYPE_OF = {scheme: kind for kind, (_, _, schemes) in CARRIERS.items() for scheme in schemes}


def open_carrier(settings: CarrierSettings, *, clock: Clock | None = None) -> MessageQueue:
    """The carrier for a URL, not started. Raises `SettingError`, and `MissingExtraError` without its driver."""
    kind = _TYPE_OF.get(settings.scheme)
    if kind is None:
        raise SettingError(
            f"there is no message queue for {settings.scheme}://",
            fix="give a URL that begins with one of " + ", ".join(f"{scheme}://" for scheme in _TYPE_OF),
        )
    module, name, _ = CARRIERS[kind]
    made: MessageQueue = getattr(import_module(f"llama_deploy.message_queues.{module}"), name)(settings, clock=clock)
    return made


def carrier_settings(given: Mapping[str, Any]) -> CarrierSettings:
    """Settings from names and values. Raises `SettingError` for a name that there is none of."""
    known = CarrierSettings.__dataclass_fields__
    for name in given:
        if name not in known:
            raise SettingError(f"a message queue has no setting {name!r}", why="there are: " + ", ".join(sorted(known)))
    if "url" not in given:
        raise SettingError("the message queue has no url", fix="give url: scheme://host:port")
    return CarrierSettings(**given)
