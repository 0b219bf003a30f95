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
-- Rows are never deleted one by one, so the highest number is the count without reading the table.
SELECT coalesce(max(number), 0) FROM tasks;

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
