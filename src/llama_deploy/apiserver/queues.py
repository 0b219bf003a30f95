"""Which message queue a setting means: that of a deployment file, of a command line, or of a `Deployment`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llama_deploy.message_queues import MessageQueue
from llama_deploy.message_queues.opening import carrier_settings, open_carrier
from llama_deploy.message_queues.settings import CarrierSettings
from llama_deploy.runtime import Clock


def open_queue(
    given: str | Mapping[str, Any] | MessageQueue | CarrierSettings | None, *, clock: Clock | None = None
) -> MessageQueue | None:
    """The queue that a setting names: a URL, the fields of `CarrierSettings`, a queue itself; `None`: the built-in one.

    Raises `SettingError` for what names none, and `MissingExtraError` where its driver is not installed.
    """
    if given is None or given == "simple" or isinstance(given, MessageQueue):
        return None if isinstance(given, str) else given
    if isinstance(given, str):
        given = CarrierSettings(url=given)
    if not isinstance(given, CarrierSettings):
        given = carrier_settings(given)
    return open_carrier(given, clock=clock)


def relocated(settings: CarrierSettings | None, url: str | None) -> CarrierSettings | None:
    """What a command line says wins over the file's URL."""
    if url is None:
        return settings
    if url == "simple":
        return None
    return CarrierSettings(url=url) if settings is None else replace(settings, url=url)
