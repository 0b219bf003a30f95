"""What a service remembers, as one attempt sees it: decoded when it is looked at, given back only where it differs."""

from __future__ import annotations

from typing import Any

import msgspec

from llama_deploy.errors import ResultNotSerialisableError
from llama_deploy.services.encoding import encode

_decode = msgspec.json.Decoder(dict[str, Any]).decode


class StepMemory:
    """The memory of one attempt."""

    __slots__ = ("_given", "_value", "version")

    def __init__(self, given: bytes | None, version: int = 0) -> None:
        self._given = given
        self._value: dict[str, Any] | None = None
        self.version = version

    @property
    def value(self) -> dict[str, Any]:
        """The memory itself, to be changed in place."""
        if self._value is None:
            self._value = _decode(self._given) if self._given is not None else {}
        return self._value

    @property
    def given(self) -> bytes | None:
        """JSON of what the attempt was handed."""
        return self._given

    def replace(self, encoded: bytes) -> None:
        """The code ran in another process, and has left this."""
        self._value = _decode(encoded)

    def changed(self) -> bytes | None:
        """JSON of what is to be remembered, `None` where that is what was handed out.

        Raises `ResultNotSerialisableError` for what has no JSON form.
        """
        if self._value is None:
            return None
        try:
            encoded = encode(self._value)
        except ResultNotSerialisableError as error:
            raise ResultNotSerialisableError(
                "the memory of the service cannot be recorded", why=error.why, fix="keep JSON types in context.memory"
            ) from error
        return None if encoded == (self._given or b"{}") else encoded
