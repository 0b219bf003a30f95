"""The keys that a store's content is sealed with: AES-256-GCM, bound to the place where the content stands.

A sealed value begins with the mark and the id of its key, so that values under earlier keys stay readable while new
ones are sealed with the newest. Where keys come from is for the caller to say; nothing here logs or keeps more of them
than it needs.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from llama_deploy.errors import MissingExtraError, SettingError, StoreKeyError, StoreUnavailableError

KEY_VARIABLE = "LLAMA_DEPLOY_ENCRYPTION_KEY"
KEY_FILE_VARIABLE = "LLAMA_DEPLOY_ENCRYPTION_KEY_FILE"

KEY_BYTES = 32
MARK = b"\xe5\x01"
"""The first bytes of everything that is sealed; no JSON text begins with them."""
_ID_BYTES, _NONCE_BYTES, _TAG_BYTES = 8, 12, 16
OVERHEAD = len(MARK) + _ID_BYTES + _NONCE_BYTES + _TAG_BYTES
"""How much longer a value is when it is sealed."""


class Keys:
    """Keys by their ids; the first one seals, all of them open."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        try:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError as error:
            raise MissingExtraError(
                "encrypting a store takes a package that is not installed (cryptography)",
                fix="pip install 'llama-deploy-engine[encryption]'",
            ) from error
        if not keys:
            raise SettingError("no encryption key was given")
        self._invalid = InvalidTag
        self._ciphers: dict[bytes, Any] = {}
        for key in keys:
            if len(key) != KEY_BYTES:
                raise SettingError(f"an encryption key has {KEY_BYTES} bytes, not {len(key)}", fix=_HOW_TO_MAKE_ONE)
            self._ciphers.setdefault(_id_of(key), AESGCM(key))
        self._first = next(iter(self._ciphers))
        self._head = MARK + self._first

    @property
    def ids(self) -> list[str]:
        """The ids of the keys in hex, the one that seals first. An id tells nothing about its key."""
        return [key_id.hex() for key_id in self._ciphers]

    def seal(self, data: bytes, *place: str | int) -> bytes:
        """The data, readable only with the key and only for who names the same place."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed: bytes = self._ciphers[self._first].encrypt(nonce, data, _place(place))
        return self._head + nonce + sealed

    def open(self, sealed: bytes, *place: str | int) -> bytes:
        """What was sealed for this place.

        Raises `StoreKeyError` when its key is not among these, `StoreUnavailableError` when it was changed, or sealed
        for another place.
        """
        if not is_sealed(sealed):
            raise StoreUnavailableError(f"what is stored at {_shown(place)} is not encrypted, and has to be")
        first = len(MARK) + _ID_BYTES
        cipher = self._ciphers.get(sealed[len(MARK) : first])
        if cipher is None:
            raise StoreKeyError(
                f"the key {sealed[len(MARK) : first].hex()} is missing, which {_shown(place)} is encrypted with",
                fix="give the earlier keys too, after the newest",
            )
        try:
            data: bytes = cipher.decrypt(
                sealed[first : first + _NONCE_BYTES], sealed[first + _NONCE_BYTES :], _place(place)
            )
        except self._invalid as error:
            raise StoreUnavailableError(
                f"what is stored at {_shown(place)} cannot be decrypted",
                why="it was changed, or comes from another place",
                fix="restore a backup: llamactl restore",
            ) from error
        return data


_HOW_TO_MAKE_ONE = "make one with: openssl rand -base64 32"


def is_sealed(data: bytes) -> bool:
    """Whether this is something that `Keys.seal` made."""
    return data.startswith(MARK) and len(data) >= OVERHEAD


def read_keys(text: str, *, source: str) -> list[bytes]:
    """Keys in base64 or hex, one a line or between commas, the newest first; `#` begins a comment.

    Raises `SettingError`, which never shows what was given.
    """
    words = [word for line in text.splitlines() for word in line.partition("#")[0].replace(",", " ").split()]
    if not words:
        raise SettingError(f"{source} has no encryption key", fix=_HOW_TO_MAKE_ONE)
    return [_decoded(word, source) for word in words]


def _decoded(word: str, source: str) -> bytes:
    try:
        key = bytes.fromhex(word) if len(word) == 2 * KEY_BYTES else base64.b64decode(word, validate=True)
    except (ValueError, binascii.Error) as error:
        raise SettingError(f"{source} has an encryption key that is neither base64 nor hex") from error
    if len(key) != KEY_BYTES:
        raise SettingError(f"{source} has an encryption key of {len(key)} bytes, not {KEY_BYTES}", fix=_HOW_TO_MAKE_ONE)
    return key


def keys_from(
    file: str | os.PathLike[str] | None = None, environment: Mapping[str, str] | None = None
) -> list[bytes] | None:
    """The keys of a file, else of the environment, `None` where neither says any. Raises `SettingError`."""
    environment = os.environ if environment is None else environment
    if file is None and (text := environment.get(KEY_VARIABLE)):
        return read_keys(text, source=f"${KEY_VARIABLE}")
    file = file or environment.get(KEY_FILE_VARIABLE)
    if not file:
        return None
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"the file of encryption keys {file} cannot be read", why=str(error)) from error
    return read_keys(text, source=str(file))


def _id_of(key: bytes) -> bytes:
    return sha256(b"llama_deploy store key\0" + key).digest()[:_ID_BYTES]


def _place(place: Sequence[str | int]) -> bytes:
    """The place in bytes: each part with its length, so that no two places look the same."""
    parts = [str(part).encode("utf-8", "surrogatepass") for part in place]
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def _shown(place: Sequence[str | int]) -> str:
    return " ".join(str(part) for part in place)
