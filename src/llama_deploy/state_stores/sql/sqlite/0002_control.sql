-- Control over work in flight: pausing, origins, dead letters, schedules, large payloads by reference, retention.

ALTER TABLE tasks ADD COLUMN origin TEXT NOT NULL DEFAULT '';
ALTER TABLE tasks ADD COLUMN paused INTEGER NOT NULL DEFAULT 0;
-- The code of the error that the task failed with.
ALTER TABLE tasks ADD COLUMN error TEXT NOT NULL DEFAULT '';

-- A task without an origin, which is nearly every task, costs nothing here.
CREATE INDEX tasks_by_origin ON tasks (origin, number) WHERE origin <> '';
CREATE INDEX tasks_paused ON tasks (number) WHERE paused <> 0;

CREATE TABLE dead_letters (
    number   INTEGER PRIMARY KEY,
    step_id  TEXT NOT NULL UNIQUE,
    task_id  TEXT NOT NULL,
    service  TEXT NOT NULL,
    attempt  INTEGER NOT NULL,
    at       REAL NOT NULL,
    code     TEXT NOT NULL,
    message  TEXT NOT NULL,
    redriven TEXT NOT NULL DEFAULT ''
) STRICT;

CREATE INDEX dead_letters_by_service ON dead_letters (service, number);
CREATE INDEX dead_letters_by_task ON dead_letters (task_id);

-- What the control plane keeps under a name: schedules, paused services, limits.
CREATE TABLE documents (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (kind, name)
) STRICT, WITHOUT ROWID;

-- Content by its hash (SHA-256, hex), in parts of bounded size. A content is there once `bytes` is: before that it is
-- an upload that is not finished, or a content that is being removed.
CREATE TABLE blobs (
    hash       TEXT NOT NULL PRIMARY KEY,
    bytes      INTEGER,
    created_at REAL NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE blob_parts (
    hash     TEXT NOT NULL,
    position INTEGER NOT NULL,
    data     BLOB NOT NULL,
    PRIMARY KEY (hash, position)
) STRICT;

-- Which tasks need a content; what no task needs is removed.
CREATE TABLE blob_uses (
    hash    TEXT NOT NULL,
    task_id TEXT NOT NULL,
    PRIMARY KEY (hash, task_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX blob_uses_by_task ON blob_uses (task_id);

CREATE INDEX idempotency_by_task ON idempotency (task_id);

-- What counting needs so that it need not read a table. `tasks_gap`: how many numbers up to the highest are no task's.
CREATE TABLE counters (
    name  TEXT NOT NULL PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO counters (name, value) VALUES ('tasks_gap', 0);
