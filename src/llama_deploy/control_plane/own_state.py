"""What stands under `state[task_id]`, decoded key by key when it is looked at.

For policies that ask for it (`BaseOrchestrator.state_on_demand`): a decision about one of a thousand answers then
costs as much as a decision about one of ten. The recorded values are shared, never changed; what is decoded here is
the policy's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import msgspec

_decode = msgspec.json.Decoder().decode
_REMOVED: Any = object()


class OwnState(MutableMapping[str, Any]):
    """JSON values by key over their encoded form; notes what was changed, in place as well."""

    __slots__ = ("_encoded", "_values")

    def __init__(self, encoded: Mapping[str, bytes]) -> None:
        self._encoded = encoded
        self._values: dict[str, Any] = {}
        """What was looked at, set or removed."""

    def __getitem__(self, key: str) -> Any:
        value = self._values.get(key, self)
        if value is self:
            value = self._values[key] = _decode(self._encoded[key])
        if value is _REMOVED:
            raise KeyError(key)
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        self._values[key] = value

    def __delitem__(self, key: str) -> None:
        if key not in self:
            raise KeyError(key)
        self._values[key] = _REMOVED

    def __contains__(self, key: object) -> bool:
        if key in self._values:
            return self._values[key] is not _REMOVED
        return key in self._encoded

    def __iter__(self) -> Iterator[str]:
        for key in [*self._encoded, *(key for key in self._values if key not in self._encoded)]:
            if self._values.get(key) is not _REMOVED:
                yield key

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def changes(self, encode: Callable[[str, Any], bytes]) -> dict[str, bytes | None]:
        """The encoded values of the keys that differ now, `None` for removed ones."""
        found: dict[str, bytes | None] = {}
        for key, value in self._values.items():
            before = self._encoded.get(key)
            after = None if value is _REMOVED else encode(key, value)
            if after != before:
                found[key] = after
        return found
