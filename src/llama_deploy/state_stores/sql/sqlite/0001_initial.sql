-- The first schema. A migration runs in one transaction together with the change of `PRAGMA user_version`.

CREATE TABLE tasks (
    number     INTEGER PRIMARY KEY,
    task_id    TEXT NOT NULL UNIQUE,
    session_id TEXT NOT NULL,
    service    TEXT NOT NULL,
    state      TEXT NOT NULL,
    version    INTEGER NOT NULL,
    steps      INTEGER NOT NULL,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    ended_at   REAL
) STRICT;

-- Unfinished and unhappily finished tasks are few: lists and counts of them read these instead of the whole table.
CREATE INDEX tasks_unfinished ON tasks (state, number) WHERE ended_at IS NULL;
CREATE INDEX tasks_unhappy ON tasks (state, number) WHERE state IN ('failed', 'canceled', 'rejected');
-- A task without a session costs nothing here.
CREATE INDEX tasks_by_session ON tasks (session_id, number) WHERE session_id <> task_id;

CREATE TABLE history (
    task_id TEXT NOT NULL,
    seq     INTEGER NOT NULL,
    at      REAL NOT NULL,
    kind    TEXT NOT NULL,
    data    BLOB NOT NULL,
    PRIMARY KEY (task_id, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE deliveries (
    step_id    TEXT NOT NULL PRIMARY KEY,
    task_id    TEXT NOT NULL,
    service    TEXT NOT NULL,
    attempt    INTEGER NOT NULL,
    visible_at REAL NOT NULL,
    seq        INTEGER NOT NULL,
    position   INTEGER NOT NULL,
    parked     INTEGER NOT NULL DEFAULT 0,
    started    INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

CREATE INDEX deliveries_due ON deliveries (visible_at) WHERE parked = 0;

CREATE TABLE stream_chunks (
    task_id       TEXT NOT NULL,
    first         INTEGER NOT NULL,
    count         INTEGER NOT NULL,
    step_id       TEXT NOT NULL,
    attempt       INTEGER NOT NULL,
    attempt_first INTEGER NOT NULL,
    at            REAL NOT NULL,
    data          BLOB NOT NULL,
    PRIMARY KEY (task_id, first)
) STRICT, WITHOUT ROWID;

CREATE TABLE sessions (
    number     INTEGER PRIMARY KEY,
    session_id TEXT NOT NULL UNIQUE,
    created_at REAL NOT NULL
) STRICT;

-- A removed key keeps its row (value NULL): its version still guards.
CREATE TABLE session_state (
    session_id TEXT NOT NULL,
    key        TEXT NOT NULL,
    version    INTEGER NOT NULL,
    value      BLOB,
    PRIMARY KEY (session_id, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE idempotency (
    key     TEXT NOT NULL PRIMARY KEY,
    task_id TEXT NOT NULL,
    digest  TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE services (
    name       TEXT NOT NULL PRIMARY KEY,
    definition BLOB NOT NULL
) STRICT, WITHOUT ROWID;
