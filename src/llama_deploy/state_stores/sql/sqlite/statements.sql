-- Every statement of the SQLite store, by name. Guarded statements change a row only where the guard holds;
-- the store compares the number of changed rows with the number of transitions.

-- name: insert_task
INSERT OR IGNORE INTO tasks
(task_id, session_id, service, state, version, steps, created_at, updated_at, ended_at, origin, paused, error)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: update_task
UPDATE tasks SET service = ?, state = ?, version = ?, steps = ?, updated_at = ?, ended_at = ?, paused = ?, error = ?
WHERE task_id = ? AND version = ?;

-- name: insert_history
INSERT INTO history (task_id, seq, at, kind, data) VALUES (?, ?, ?, ?, ?);

-- name: insert_delivery
INSERT INTO deliveries (step_id, task_id, service, attempt, visible_at, seq, position, parked, started)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: move_delivery
UPDATE deliveries SET attempt = ?, visible_at = ?, parked = ?, started = ? WHERE step_id = ? AND attempt = ?;

-- name: delete_delivery
DELETE FROM deliveries WHERE step_id = ?;

-- name: insert_chunk
INSERT INTO stream_chunks (task_id, first, count, step_id, attempt, attempt_first, at, data)
VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- name: insert_session
INSERT OR IGNORE INTO sessions (session_id, created_at) VALUES (?, ?);

-- name: insert_shared
INSERT OR IGNORE INTO session_state (value, session_id, key, version) VALUES (?, ?, ?, 1);

-- name: update_shared
UPDATE session_state SET value = ?, version = version + 1 WHERE session_id = ? AND key = ? AND version = ?;

-- name: copy_shared
INSERT INTO session_state (session_id, key, version, value) VALUES (?, ?, ?, ?);

-- name: copy_blob
INSERT INTO blobs (hash, bytes, created_at) VALUES (?, ?, ?);

-- name: copy_blob_use
INSERT INTO blob_uses (hash, task_id) VALUES (?, ?);

-- name: shared_version
SELECT version FROM session_state WHERE session_id = ? AND key = ?;

-- name: insert_idempotency
INSERT OR IGNORE INTO idempotency (key, task_id, digest) VALUES (?, ?, ?);

-- name: load_task
SELECT task_id, session_id, service, state, version, steps, created_at, updated_at, ended_at, origin, paused, error
FROM tasks WHERE task_id = ?;

-- name: load_deliveries
-- Step ids are `<task_id>:<n>`, and ";" follows ":" in ASCII: a range of the primary key, no index of its own.
SELECT step_id, task_id, service, attempt, visible_at, seq, position, parked, started
FROM deliveries WHERE step_id > ?1 || ':' AND step_id < ?1 || ';' AND task_id = ?1 ORDER BY seq, position;

-- name: load_history
SELECT task_id, seq, at, kind, data FROM history WHERE task_id = ? AND seq > ? ORDER BY seq LIMIT ?;

-- name: load_chunks
-- The chunk that holds event `first` starts at or before it; from there on in order.
SELECT task_id, first, count, step_id, attempt, attempt_first, at, data FROM stream_chunks
WHERE task_id = ?1 AND first >= coalesce(
    (SELECT max(first) FROM stream_chunks WHERE task_id = ?1 AND first <= ?2), 0)
ORDER BY first LIMIT ?3;

-- name: load_stream_end
SELECT coalesce(max(first + count), 0) FROM stream_chunks WHERE task_id = ?;

-- name: load_stream_attempts
SELECT step_id, attempt, max(attempt_first + count) FROM stream_chunks
WHERE task_id = ? GROUP BY step_id, attempt ORDER BY attempt;

-- name: count_unfinished
SELECT state, count(*) FROM tasks WHERE ended_at IS NULL GROUP BY state;

-- name: count_unhappy
SELECT state, count(*) FROM tasks WHERE state IN ('failed', 'canceled', 'rejected') GROUP BY state;

-- name: count_all
-- The highest number less the numbers that are no task's: the count without reading the table.
SELECT (SELECT coalesce(max(number), 0) FROM tasks) - (SELECT value FROM counters WHERE name = 'tasks_gap');

-- name: count_ended
SELECT (SELECT coalesce(max(number), 0) FROM tasks) - (SELECT value FROM counters WHERE name = 'tasks_gap')
     - (SELECT count(*) FROM tasks WHERE ended_at IS NULL);

-- name: count_session_tasks
SELECT count(*), count(*) FILTER (WHERE ended_at IS NULL) FROM tasks WHERE session_id = ? AND session_id <> task_id;

-- name: due_deliveries
SELECT step_id, task_id, service, attempt, visible_at, seq, position, parked, started
FROM deliveries WHERE parked = 0 AND visible_at <= ? ORDER BY visible_at LIMIT ?;

-- name: next_due
SELECT min(visible_at) FROM deliveries WHERE parked = 0;

-- name: make_due
UPDATE deliveries SET visible_at = ?1 WHERE parked = 0 AND visible_at > ?1;

-- name: count_deliveries
SELECT count(*) FROM deliveries WHERE parked = 0;

-- name: load_session
SELECT session_id, created_at FROM sessions WHERE session_id = ?;

-- name: list_sessions
SELECT number, session_id, created_at FROM sessions WHERE number < ? ORDER BY number DESC LIMIT ?;

-- name: unused_sessions
SELECT session_id FROM sessions WHERE created_at < ? AND NOT EXISTS (
    SELECT 1 FROM tasks WHERE tasks.session_id = sessions.session_id AND tasks.session_id <> tasks.task_id)
ORDER BY number LIMIT ?;

-- name: load_shared
SELECT key, version, value FROM session_state WHERE session_id = ?;

-- name: delete_session
DELETE FROM sessions WHERE session_id = ?;

-- name: delete_shared
DELETE FROM session_state WHERE session_id = ?;

-- name: find_idempotent
SELECT task_id, digest FROM idempotency WHERE key = ?;

-- name: put_service
INSERT INTO services (name, definition) VALUES (?, ?)
ON CONFLICT (name) DO UPDATE SET definition = excluded.definition;

-- name: delete_service
DELETE FROM services WHERE name = ?;

-- name: load_services
SELECT name, definition FROM services;

-- name: insert_dead
INSERT OR REPLACE INTO dead_letters (step_id, task_id, service, attempt, at, code, message, redriven)
VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- name: load_dead
SELECT step_id, task_id, service, attempt, at, code, message, redriven FROM dead_letters WHERE step_id = ?;

-- name: count_dead
SELECT service, count(*) FROM dead_letters WHERE redriven = '' GROUP BY service;

-- name: mark_redriven
UPDATE dead_letters SET redriven = ? WHERE step_id = ? AND redriven = '';

-- name: delete_dead
DELETE FROM dead_letters WHERE step_id = ?;

-- name: dead_before
-- Dead letters are written as they happen, so that the oldest have the lowest numbers; there are few.
SELECT step_id FROM dead_letters WHERE at < ? ORDER BY number LIMIT ?;

-- name: put_document
INSERT INTO documents (kind, name, data) VALUES (?, ?, ?) ON CONFLICT (kind, name) DO UPDATE SET data = excluded.data;

-- name: delete_document
DELETE FROM documents WHERE kind = ? AND name = ?;

-- name: load_documents
SELECT name, data FROM documents WHERE kind = ?;

-- name: begin_blob
-- An upload that goes on is as young as its latest part.
INSERT INTO blobs (hash, bytes, created_at) VALUES (?, NULL, ?)
ON CONFLICT (hash) DO UPDATE SET created_at = max(created_at, excluded.created_at) WHERE bytes IS NULL;

-- name: put_blob_part
INSERT INTO blob_parts (hash, position, data) VALUES (?, ?, ?)
ON CONFLICT (hash, position) DO UPDATE SET data = excluded.data;

-- name: blob_size
SELECT bytes FROM blobs WHERE hash = ?;

-- name: parts_size
SELECT coalesce(sum(length(data)), 0) FROM blob_parts WHERE hash = ?;

-- name: delete_parts_from
DELETE FROM blob_parts WHERE hash = ? AND position >= ?;

-- name: finish_blob
UPDATE blobs SET bytes = ?, created_at = ? WHERE hash = ?;

-- name: load_parts
SELECT data FROM blob_parts WHERE hash = ? AND position BETWEEN ? AND ? ORDER BY position;

-- name: insert_blob_use
-- A use that is there already counts as one row too, so that the guard sees only the missing content.
INSERT INTO blob_uses (hash, task_id) SELECT hash, ?2 FROM blobs WHERE hash = ?1 AND bytes IS NOT NULL
ON CONFLICT (hash, task_id) DO UPDATE SET task_id = excluded.task_id;

-- name: unused_blobs
SELECT hash FROM blobs
WHERE created_at < ? AND NOT EXISTS (SELECT 1 FROM blob_uses WHERE blob_uses.hash = blobs.hash) LIMIT ?;

-- name: discard_blob
-- From now on the content is not there; its parts are removed bit by bit.
UPDATE blobs SET bytes = NULL WHERE hash = ?1 AND created_at < ?2
AND NOT EXISTS (SELECT 1 FROM blob_uses WHERE blob_uses.hash = ?1);

-- name: delete_some_parts
DELETE FROM blob_parts WHERE hash = ?1 AND position IN (
    SELECT position FROM blob_parts WHERE hash = ?1 ORDER BY position DESC LIMIT ?2);

-- name: delete_blob
DELETE FROM blobs WHERE hash = ?;

-- name: ended_tasks
-- In the order of submission; whoever reads stops where submission came after the time in question.
SELECT task_id, created_at, ended_at FROM tasks WHERE ended_at IS NOT NULL
AND NOT EXISTS (SELECT 1 FROM dead_letters WHERE dead_letters.task_id = tasks.task_id AND redriven = '')
AND NOT EXISTS (
    SELECT 1 FROM deliveries WHERE step_id > tasks.task_id || ':' AND step_id < tasks.task_id || ';'
    AND deliveries.task_id = tasks.task_id)
AND NOT (origin LIKE 'child:%' AND EXISTS (
    SELECT 1 FROM tasks AS caller WHERE caller.task_id = substr(tasks.origin, 7) AND caller.ended_at IS NULL))
ORDER BY number;

-- name: is_ended
SELECT ended_at IS NOT NULL FROM tasks WHERE task_id = ?;

-- name: highest_task
SELECT coalesce(max(number), 0) FROM tasks;

-- name: widen_gap
UPDATE counters SET value = value + ? WHERE name = 'tasks_gap';

-- name: delete_task
DELETE FROM tasks WHERE task_id = ?;

-- name: delete_history
DELETE FROM history WHERE task_id = ?;

-- name: delete_stream
DELETE FROM stream_chunks WHERE task_id = ?;

-- name: delete_deliveries
DELETE FROM deliveries WHERE step_id > ?1 || ':' AND step_id < ?1 || ';' AND task_id = ?1;

-- name: delete_idempotency
DELETE FROM idempotency WHERE task_id = ?;

-- name: delete_task_dead
DELETE FROM dead_letters WHERE task_id = ?;

-- name: task_blobs
SELECT hash FROM blob_uses WHERE task_id = ?;

-- name: delete_task_uses
DELETE FROM blob_uses WHERE task_id = ?;
