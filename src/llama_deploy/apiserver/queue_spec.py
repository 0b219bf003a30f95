"""What a deployment file says of its message queue, and the settings of the carrier that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from llama_deploy.apiserver.reference import Reference
from llama_deploy.errors import SettingError
from llama_deploy.message_queues.opening import CARRIERS
from llama_deploy.message_queues.settings import CarrierSettings

ALIASES = {"aws": "sqs", "apache_kafka": "kafka"}
"""Words of the published system, and what they are called here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MessageQueueSpec:
    """What a deployment file says of its message queue."""

    type: str | None = None
    """`None`: what the URL says, or the queue within the control plane where there is no URL either."""
    url: str | Reference | None = None
    host: str | None = None
    port: int | None = None
    path: str = ""
    """Database or virtual host, where no URL says it."""
    secure: bool = False
    username: str | Reference | None = None
    password: str | Reference | None = None
    namespace: str | None = None
    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None

    def settings(self, base_folder: Path) -> CarrierSettings | None:
        """The settings of the carrier, with every reference followed; `None` for the queue that is built in.

        Raises `SettingError`.
        """
        if self.type == "simple" or (self.type is None and self.url is None):
            return None
        files = {name: getattr(self, name) for name in ("ca_file", "certificate_file", "key_file")}
        return CarrierSettings(
            url=self._url(base_folder),
            username=_read(self.username, base_folder),
            password=_read(self.password, base_folder),
            namespace=self.namespace,
            **{name: base_folder / file for name, file in files.items() if file is not None},
        )

    def _url(self, base_folder: Path) -> str:
        url = _read(self.url, base_folder)
        if self.type is None:
            return url or ""
        schemes = CARRIERS[ALIASES.get(self.type, self.type)][2]
        scheme = schemes[1] if self.secure and len(schemes) > 1 else schemes[0]
        if url is None:
            address = (self.host or "localhost") + (f":{self.port}" if self.port is not None else "")
            return f"{scheme}://{address}/{quote(self.path, safe='')}"
        given, separator, rest = url.partition("://")
        if not separator:  # the published form of Kafka's
            return f"{scheme}://{url}"
        if given not in schemes:
            raise SettingError(
                f"the message queue has the type {self.type} and a URL that begins with {given}://",
                fix=f"give a URL that begins with {scheme}://, or leave `type` out",
            )
        return f"{scheme}://{rest}" if self.secure else url


def _read(value: str | Reference | None, base_folder: Path) -> str | None:
    return value.read(base_folder) if isinstance(value, Reference) else value
