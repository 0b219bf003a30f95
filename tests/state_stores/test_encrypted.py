"""Encrypted stores: the conformance suite, what the files show, and what keys that are wrong or missing change."""

from __future__ import annotations

import base64
import sqlite3
from pathlib import Path

import pytest

from llama_deploy import Deployment
from llama_deploy.apiserver.child import ChildSpec, _environment
from llama_deploy.apiserver.stores import open_store
from llama_deploy.errors import LlamaDeployError, SettingError, StoreKeyError, StoreUnavailableError
from llama_deploy.services import service
from llama_deploy.state_stores import MemoryStore, SQLiteStore, StateStore
from llama_deploy.state_stores.base import BLOB_PART_BYTES, SessionRow, SharedWrite
from llama_deploy.state_stores.encrypted import EncryptedStore
from llama_deploy.state_stores.keys import KEY_FILE_VARIABLE, KEY_VARIABLE, Keys, keys_from, read_keys
from llama_deploy.testing import StoreConformance
from llama_deploy.testing.recording import AT, chunk, completion, dead, entry_row, record, submission

OLD, NEW, OTHER = (bytes([number]) * 32 for number in (1, 2, 3))
SECRET = b"nobody is to read this"


class TestConformance(StoreConformance):
    @pytest.fixture(autouse=True)
    def _one_file(self, tmp_path: Path) -> None:
        self.path = tmp_path / "store.db"

    def make_store(self) -> StateStore:
        return EncryptedStore(SQLiteStore(self.path), [NEW, OLD])

    def open_backup(self, path: Path) -> StateStore:
        return EncryptedStore(SQLiteStore(path), [NEW, OLD])


class TestConformanceInMemory(StoreConformance):
    durable = False

    @pytest.fixture(autouse=True)
    def _one_store(self) -> None:
        self.inner = MemoryStore()

    def make_store(self) -> StateStore:
        return EncryptedStore(self.inner, [NEW])

    def open_backup(self, path: Path) -> StateStore:
        return EncryptedStore(SQLiteStore(path), [NEW])


async def _filled(path: Path, *keys: bytes) -> None:
    store = EncryptedStore(SQLiteStore(path), keys)
    await store.open()
    await record(
        store,
        **submission("t", entry=entry_row("t", data=SECRET), dead=[dead("t", 2, message=SECRET.decode())]),
        chunks=[chunk("t", 0, data=SECRET)],
        session=SessionRow("s", AT),
        shared=[SharedWrite("s", "k", 0, SECRET)],
        blobs={"aa": SECRET * (BLOB_PART_BYTES // 10)},
        blob_uses=["aa"],
    )
    await store.put_document("limit", "echo", SECRET)
    await store.put_blob_part("bb", 0, SECRET, at=AT)
    await store.close()


async def _check(path: Path, *keys: bytes) -> None:
    store = EncryptedStore(SQLiteStore(path), keys)
    await store.open()
    assert await store.load_history("t") == [entry_row("t", data=SECRET)]
    assert (await store.load_shared("s"))[0].value == SECRET
    assert await store.load_documents("limit") == {"echo": SECRET}
    assert await store.load_dead("t:2") == dead("t", 2, message=SECRET.decode())
    assert await store.load_blob("aa", first=BLOB_PART_BYTES, limit=7) == (SECRET * 20_000)[BLOB_PART_BYTES:][:7]
    await store.close()


def _contents(folder: Path) -> dict[str, bytes]:
    return {item.name: item.read_bytes() for item in folder.iterdir() if item.suffix != ".lock"}


async def test_the_files_show_nothing_of_it(tmp_path: Path) -> None:
    await _filled(tmp_path / "s.db", NEW)
    assert not [name for name, content in _contents(tmp_path).items() if SECRET in content]
    await _check(tmp_path / "s.db", NEW)


async def test_without_the_key_or_with_another_nothing_is_opened_and_nothing_changed(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    await _filled(path, NEW)
    before = _contents(tmp_path)
    with pytest.raises(StoreKeyError, match="no key was given"):
        await SQLiteStore(path).open()
    assert _contents(tmp_path) == before
    with pytest.raises(StoreKeyError, match="another key"):
        await EncryptedStore(SQLiteStore(path), [OTHER]).open()
    assert _contents(tmp_path)["s.db"] == before["s.db"]
    await _check(path, NEW)


async def test_a_store_with_content_is_not_encrypted_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    store = SQLiteStore(path)
    await store.open()
    await record(store, **submission("t"))
    await store.close()
    with pytest.raises(StoreKeyError, match="is not encrypted"):
        await EncryptedStore(SQLiteStore(path), [NEW]).open()
    await store.open()
    assert await store.load_history("t") == [entry_row("t")]
    await store.close()


async def test_a_new_key_comes_first_and_the_earlier_ones_stay(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    await _filled(path, OLD)
    await _check(path, NEW, OLD)
    store = EncryptedStore(SQLiteStore(path), [NEW, OLD])
    await store.open()
    await record(store, **submission("new"))
    await store.close()
    with pytest.raises(StoreKeyError):
        await EncryptedStore(SQLiteStore(path), [NEW]).open()
    with pytest.raises(StoreKeyError):
        await EncryptedStore(SQLiteStore(path), [OLD]).open()
    await _check(path, OLD, NEW)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE history SET data = (SELECT data FROM history WHERE task_id = 'u') WHERE task_id = 't'",
        "UPDATE history SET data = CAST('{}' AS BLOB) WHERE task_id = 't'",
        "UPDATE history SET data = CAST(substr(data, 1, length(data) - 1) AS BLOB) || x'00' WHERE task_id = 't'",
        "UPDATE history SET kind = 'other' WHERE task_id = 't'",
    ],
)
async def test_whoever_changes_or_moves_a_row_is_found_out(tmp_path: Path, change: str) -> None:
    path = tmp_path / "s.db"
    await _filled(path, NEW)
    store = EncryptedStore(SQLiteStore(path), [NEW])
    await store.open()
    await record(store, **submission("u"))
    await record(store, **completion("u", entry=entry_row("u", 2)))
    await store.close()
    connection = sqlite3.connect(path)
    connection.execute(change.replace("|| x'00'", ""))
    connection.commit()
    connection.close()
    await store.open()
    with pytest.raises(StoreUnavailableError, match="history t"):
        await store.load_history("t")
    assert [entry.seq for entry in await store.load_history("u")] == [1, 2]
    await store.close()


async def test_an_earlier_version_of_a_shared_value_does_not_come_back(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    store = EncryptedStore(SQLiteStore(path), [NEW])
    await store.open()
    await record(store, shared=[SharedWrite("s", "k", 0, b"1")])
    earlier = (await store._inner.load_shared("s"))[0].value
    await record(store, shared=[SharedWrite("s", "k", 1, b"2")])
    await store.close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE session_state SET value = ?", (earlier,))
    connection.commit()
    connection.close()
    await store.open()
    with pytest.raises(StoreUnavailableError, match="shared s k 2"):
        await store.load_shared("s")
    await store.close()


# --- keys -------------------------------------------------------------------------------------------------------------


def test_keys_are_read_from_text() -> None:
    text = f"# the newest first\n{base64.b64encode(NEW).decode()}\n{OLD.hex()}, {OTHER.hex()}  # old\n\n"
    assert read_keys(text, source="test") == [NEW, OLD, OTHER]


@pytest.mark.parametrize("text", ["", "# nothing", "short", "A" * 44, "zz" * 32, base64.b64encode(b"x" * 31).decode()])
def test_what_is_no_key_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(SettingError) as caught:
        read_keys(text, source="the file")
    assert "the file" in str(caught.value)
    assert len(text) < 10 or text not in caught.value.render()


def test_where_keys_come_from(tmp_path: Path) -> None:
    file, other = tmp_path / "keys", tmp_path / "other"
    file.write_text(NEW.hex())
    other.write_text(OLD.hex())
    assert keys_from(None, {}) is None
    assert keys_from(None, {KEY_VARIABLE: OTHER.hex()}) == [OTHER]
    assert keys_from(None, {KEY_FILE_VARIABLE: str(other)}) == [OLD]
    assert keys_from(file, {KEY_VARIABLE: OTHER.hex(), KEY_FILE_VARIABLE: str(other)}) == [NEW]
    with pytest.raises(SettingError, match="cannot be read"):
        keys_from(tmp_path / "missing", {})


def test_two_values_that_are_the_same_do_not_look_it() -> None:
    keys = Keys([NEW])
    assert keys.seal(b"x", "a") != keys.seal(b"x", "a")
    with pytest.raises(LlamaDeployError):
        keys.open(keys.seal(b"x", "a", "bc"), "ab", "c")


# --- with everything above it -----------------------------------------------------------------------------------------


def test_the_code_of_services_does_not_get_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, NEW.hex())
    monkeypatch.setenv(KEY_FILE_VARIABLE, "store.key")
    environment = _environment(ChildSpec(name="echo", command=("true",), folder=Path()))
    assert not {KEY_VARIABLE, KEY_FILE_VARIABLE} & environment.keys()
    assert "PATH" in environment


async def test_a_deployment_with_keys_and_the_same_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @service
    async def echo(text: str) -> str:
        return text

    monkeypatch.setenv(KEY_VARIABLE, NEW.hex())
    path = tmp_path / "s.db"
    async with Deployment([echo], store=path, quiet=True) as deployment:
        task_id = await deployment.submit("echo", text=SECRET.decode(), session_id="room")
        assert await deployment.client.result(task_id) == SECRET.decode()
    assert not [name for name, content in _contents(tmp_path).items() if SECRET in content]
    async with Deployment([echo], store=path, quiet=True) as deployment:
        assert await deployment.client.result(task_id) == SECRET.decode()
        await deployment.client.backup(tmp_path / "copy")
        assert (await deployment.client.erase_session("room")).scrubbed
    assert SECRET not in (tmp_path / "copy").read_bytes()
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(StoreKeyError):
        async with Deployment([echo], store=path, quiet=True):
            pass


async def test_what_is_large_is_encrypted_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above a size it stands apart from the history, and goes with its task."""

    @service
    async def echo(text: str) -> str:
        return text

    monkeypatch.setenv(KEY_VARIABLE, NEW.hex())
    large = SECRET.decode() * 30_000
    path = tmp_path / "s.db"
    async with Deployment([echo], store=path, quiet=True) as deployment:
        task_id = await deployment.submit("echo", text=large, session_id="room")
        assert await deployment.client.result(task_id) == large
    assert not [name for name, content in _contents(tmp_path).items() if SECRET in content]
    async with Deployment([echo], store=path, quiet=True) as deployment:
        assert await deployment.client.result(task_id) == large
        assert (await deployment.client.erase_session("room")).tasks == 1
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM blobs").fetchone() == (0,)
    connection.close()


def test_what_is_in_memory_and_what_is_without_keys_is_not_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert isinstance(open_store("x.db"), SQLiteStore)
    monkeypatch.setenv(KEY_VARIABLE, NEW.hex())
    assert isinstance(open_store("x.db"), EncryptedStore)
    assert isinstance(open_store(":memory:"), MemoryStore)
