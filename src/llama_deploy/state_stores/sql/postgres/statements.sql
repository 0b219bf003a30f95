-- Every statement of the PostgreSQL store but the one that records, by name. `{schema}` is the schema of the store.

-- --- opening ---------------------------------------------------------------------------------------------------------

-- name: is_ours
SELECT value FROM {schema}.meta WHERE name = 'application';

-- name: load_meta
SELECT name, value FROM {schema}.meta;

-- name: is_encrypted
SELECT EXISTS (SELECT FROM {schema}.documents WHERE kind = 'encryption');

-- --- shards ----------------------------------------------------------------------------------------------------------

-- name: register
-- The backend tells whether its owner lives, where no proxy stands between.
WITH mine AS (
    INSERT INTO {schema}.owners (owner, lease_until, schema_known, backend_pid, backend_started)
    SELECT $1, clock_timestamp() + make_interval(secs => $2), $3, a.pid, a.backend_start
    FROM (SELECT) AS always LEFT JOIN pg_stat_activity AS a ON a.pid = pg_backend_pid() AND $4
    ON CONFLICT (owner) DO UPDATE SET lease_until = excluded.lease_until, schema_known = excluded.schema_known,
        backend_pid = excluded.backend_pid, backend_started = excluded.backend_started
)
INSERT INTO {schema}.writers (owner) VALUES ($1) ON CONFLICT (owner) DO NOTHING;

-- name: shards
SELECT s.shard, s.owner, s.epoch, coalesce(extract(epoch FROM o.lease_until)::double precision, 0)
FROM {schema}.shards AS s LEFT JOIN {schema}.owners AS o ON o.owner = s.owner
ORDER BY s.shard;

-- name: lock_free_shards
-- Those that may be claimed, locked in their order; $3 takes the silence of an owner's connection for its end.
SELECT s.shard FROM {schema}.shards AS s
WHERE s.shard = ANY ($2) AND s.owner <> $1 AND NOT EXISTS (
    SELECT FROM {schema}.owners AS o WHERE o.owner = s.owner AND o.lease_until > clock_timestamp() AND NOT (
        $3 AND o.backend_pid IS NOT NULL AND NOT EXISTS (
            SELECT FROM pg_stat_activity AS a
            WHERE a.pid = o.backend_pid AND coalesce(a.backend_start = o.backend_started, true))))
ORDER BY s.shard FOR NO KEY UPDATE;

-- name: claim_shards
UPDATE {schema}.shards AS s SET owner = $1, epoch = epoch + 1, since = clock_timestamp()
WHERE s.shard = ANY ($2) AND s.owner <> $1 AND NOT EXISTS (
    SELECT FROM {schema}.owners AS o WHERE o.owner = s.owner AND o.lease_until > clock_timestamp() AND NOT (
        $3 AND o.backend_pid IS NOT NULL AND NOT EXISTS (
            SELECT FROM pg_stat_activity AS a
            WHERE a.pid = o.backend_pid AND coalesce(a.backend_start = o.backend_started, true))))
RETURNING s.shard, s.epoch;

-- name: renew_owner
UPDATE {schema}.owners SET lease_until = clock_timestamp() + make_interval(secs => $2) WHERE owner = $1;

-- name: held_shards
SELECT shard, epoch FROM {schema}.shards WHERE owner = $1;

-- name: release_shards
UPDATE {schema}.shards SET owner = '' WHERE owner = $1 AND shard = ANY ($2);

-- name: seat
-- Takes the smallest seat that nobody has who lives, or may come back after a short absence; and this owner's own again
-- where that is still its own.
WITH given_up AS (
    UPDATE {schema}.owners SET seat = NULL
    WHERE seat IS NOT NULL AND owner <> $1 AND lease_until <= clock_timestamp() - make_interval(secs => $4)
), taken AS (
    SELECT seat FROM {schema}.owners WHERE seat IS NOT NULL AND owner <> $1
    AND lease_until > clock_timestamp() - make_interval(secs => $4)
)
UPDATE {schema}.owners SET shared = true, name = $2, url = $3, seat = coalesce(
    (SELECT mine.seat FROM {schema}.owners AS mine WHERE mine.owner = $1 AND mine.seat NOT IN (SELECT seat FROM taken)),
    (SELECT min(free) FROM generate_series(0, (SELECT count(*) FROM taken)) AS seats (free)
     WHERE free NOT IN (SELECT seat FROM taken)))
WHERE owner = $1 RETURNING seat;

-- name: resign
UPDATE {schema}.owners SET shared = false, seat = NULL WHERE owner = $1;

-- name: members
-- Prolongs the lease of $1 by $2 seconds, and tells who there is: each owner with what it leads, and '' with what is
-- led by nobody who is known.
WITH mine AS (
    UPDATE {schema}.owners SET lease_until = clock_timestamp() + make_interval(secs => $2) WHERE owner = $1
)
SELECT coalesce(o.owner, ''), coalesce(o.shared, false), coalesce(o.name, ''), coalesce(o.url, ''), o.seat,
    coalesce(extract(epoch FROM o.lease_until - clock_timestamp())::double precision, 0),
    array_agg(s.shard ORDER BY s.shard) FILTER (WHERE s.shard IS NOT NULL),
    array_agg(s.epoch ORDER BY s.shard) FILTER (WHERE s.shard IS NOT NULL),
    array_agg(coalesce(extract(epoch FROM s.since)::double precision, 0) ORDER BY s.shard)
        FILTER (WHERE s.shard IS NOT NULL)
FROM {schema}.owners AS o FULL JOIN {schema}.shards AS s ON s.owner = o.owner
GROUP BY o.owner ORDER BY 1;

-- name: leave
-- What an owner has counted is added to the row of those that are gone.
WITH left_by AS (DELETE FROM {schema}.writers WHERE owner = $1 RETURNING tasks),
     gone AS (DELETE FROM {schema}.owners WHERE owner = $1)
UPDATE {schema}.writers SET tasks = writers.tasks + left_by.tasks FROM left_by WHERE writers.owner = '';

-- name: long_gone
SELECT w.owner FROM {schema}.writers AS w LEFT JOIN {schema}.owners AS o ON o.owner = w.owner
WHERE w.owner <> '' AND coalesce(o.lease_until < clock_timestamp() - interval '1 day', true)
AND NOT EXISTS (SELECT FROM {schema}.shards AS s WHERE s.owner = w.owner)
LIMIT 100;

-- name: live_owners
SELECT owner, extract(epoch FROM lease_until - clock_timestamp())::double precision, backend_pid IS NOT NULL AND EXISTS (
    SELECT FROM pg_stat_activity AS a
    WHERE a.pid = backend_pid AND coalesce(a.backend_start = backend_started, true)), schema_known, backend_pid IS NULL
FROM {schema}.owners WHERE lease_until > clock_timestamp();

-- --- tasks -----------------------------------------------------------------------------------------------------------

-- name: load_task
SELECT task_id, session_id, service, state, version, steps, created_at, updated_at, ended_at, origin, paused, error
FROM {schema}.tasks WHERE task_id = $1;

-- name: load_deliveries
-- Step ids are `<task_id>:<n>`, and ";" follows ":" in ASCII: a range of the primary key, no index of its own.
SELECT step_id, task_id, service, attempt, visible_at, seq, position, parked, started
FROM {schema}.deliveries
WHERE step_id > $1 || ':' AND step_id < $1 || ';' AND task_id = $1 ORDER BY seq, position;

-- name: load_history
SELECT $1::text, seq, at, kind, data FROM {schema}.history
WHERE number = coalesce((SELECT number FROM {schema}.tasks WHERE task_id = $1), {schema}.stray($1)) AND seq > $2
ORDER BY seq LIMIT $3;

-- name: load_chunks
-- The chunk that holds event `first` starts at or before it; from there on in order.
SELECT $1::text, first, count, step_id, attempt, attempt_first, at, data FROM {schema}.stream_chunks
WHERE number = coalesce((SELECT number FROM {schema}.tasks WHERE task_id = $1), {schema}.stray($1))
AND first >= coalesce((
    SELECT max(first) FROM {schema}.stream_chunks
    WHERE number = coalesce((SELECT number FROM {schema}.tasks WHERE task_id = $1), {schema}.stray($1))
    AND first <= $2), 0)
ORDER BY first LIMIT $3;

-- name: load_stream_attempts
SELECT step_id, attempt, max(attempt_first + count), max(first + count) FROM {schema}.stream_chunks
WHERE number = coalesce((SELECT number FROM {schema}.tasks WHERE task_id = $1), {schema}.stray($1))
GROUP BY step_id, attempt ORDER BY attempt;

-- name: count_tasks
-- What is completed follows from the others: nothing reads the whole table.
SELECT state, count(*) FROM {schema}.tasks WHERE ended_at IS NULL GROUP BY state
UNION ALL
SELECT state, count(*) FROM {schema}.tasks WHERE state IN ('failed', 'canceled', 'rejected') GROUP BY state
UNION ALL
SELECT '', sum(tasks)::bigint FROM {schema}.writers;

-- name: count_all
SELECT sum(tasks)::bigint FROM {schema}.writers;

-- name: count_ended
SELECT (SELECT sum(tasks)::bigint FROM {schema}.writers)
     - (SELECT count(*) FROM {schema}.tasks WHERE ended_at IS NULL);

-- name: count_session_tasks
SELECT count(*), count(*) FILTER (WHERE ended_at IS NULL)
FROM {schema}.tasks WHERE session_id = $1 AND session_id <> task_id;

-- name: due_deliveries
SELECT step_id, task_id, service, attempt, visible_at, seq, position, parked, started
FROM {schema}.deliveries WHERE parked = 0 AND visible_at <= $1 AND shard = ANY ($3) ORDER BY visible_at LIMIT $2;

-- name: next_due
SELECT visible_at FROM {schema}.deliveries WHERE parked = 0 AND shard = ANY ($1) ORDER BY visible_at LIMIT 1;

-- name: make_due
UPDATE {schema}.deliveries SET visible_at = $1 WHERE parked = 0 AND visible_at > $1 AND shard = ANY ($2);

-- name: take_up
UPDATE {schema}.deliveries SET visible_at = $1 WHERE parked = 0 AND shard = ANY ($2);

-- name: count_deliveries
SELECT count(*) FROM {schema}.deliveries WHERE parked = 0 AND shard = ANY ($1);

-- --- sessions, keys, services, documents -----------------------------------------------------------------------------

-- name: load_session
SELECT session_id, created_at FROM {schema}.sessions WHERE session_id = $1;

-- name: list_sessions
SELECT number, session_id, created_at FROM {schema}.sessions WHERE number < $1 ORDER BY number DESC LIMIT $2;

-- name: unused_sessions
SELECT session_id FROM {schema}.sessions WHERE created_at < $1 AND NOT EXISTS (
    SELECT FROM {schema}.tasks AS t WHERE t.session_id = sessions.session_id AND t.session_id <> t.task_id)
ORDER BY number LIMIT $2;

-- name: load_shared
SELECT key, version, value FROM {schema}.session_state WHERE session_id = $1;

-- name: delete_session
DELETE FROM {schema}.sessions WHERE session_id = $1;

-- name: delete_shared
DELETE FROM {schema}.session_state WHERE session_id = $1;

-- name: find_idempotent
SELECT task_id, digest FROM {schema}.idempotency WHERE key = $1;

-- name: put_service
INSERT INTO {schema}.services (name, definition) VALUES ($1, $2)
ON CONFLICT (name) DO UPDATE SET definition = excluded.definition;

-- name: delete_service
DELETE FROM {schema}.services WHERE name = $1;

-- name: load_services
SELECT name, definition FROM {schema}.services;

-- name: put_document
INSERT INTO {schema}.documents (kind, name, data) VALUES ($1, $2, $3)
ON CONFLICT (kind, name) DO UPDATE SET data = excluded.data;

-- name: delete_document
DELETE FROM {schema}.documents WHERE kind = $1 AND name = $2;

-- name: load_documents
SELECT name, data FROM {schema}.documents WHERE kind = $1;

-- --- dead letters ----------------------------------------------------------------------------------------------------

-- name: list_dead
SELECT number, step_id, task_id, service, attempt, at, code, message, redriven FROM {schema}.dead_letters
WHERE ($1::text IS NULL OR service = $1) AND ($2::text IS NULL OR task_id = $2) AND ($3::bigint IS NULL OR number < $3)
ORDER BY number DESC LIMIT $4;

-- name: load_dead
SELECT step_id, task_id, service, attempt, at, code, message, redriven FROM {schema}.dead_letters WHERE step_id = $1;

-- name: count_dead
SELECT service, count(*) FROM {schema}.dead_letters WHERE redriven = '' GROUP BY service;

-- name: mark_redriven
UPDATE {schema}.dead_letters SET redriven = $1 WHERE step_id = $2 AND redriven = '';

-- name: is_redriven_in
SELECT FROM {schema}.dead_letters WHERE redriven = $1 AND step_id = $2;

-- name: delete_dead
DELETE FROM {schema}.dead_letters WHERE step_id = ANY ($1::text[]);

-- name: dead_before
SELECT step_id FROM {schema}.dead_letters WHERE at < $1 ORDER BY number LIMIT $2;

-- --- large contents --------------------------------------------------------------------------------------------------

-- name: begin_blob
-- An upload that goes on is as young as its latest part.
INSERT INTO {schema}.blobs (hash, bytes, created_at) VALUES ($1, NULL, $2)
ON CONFLICT (hash) DO UPDATE SET created_at = greatest(blobs.created_at, excluded.created_at) WHERE blobs.bytes IS NULL;

-- name: lock_blob
SELECT bytes FROM {schema}.blobs WHERE hash = $1 FOR UPDATE;

-- name: put_blob_part
INSERT INTO {schema}.blob_parts (hash, position, data) VALUES ($1, $2, $3)
ON CONFLICT (hash, position) DO UPDATE SET data = excluded.data;

-- name: blob_size
SELECT bytes FROM {schema}.blobs WHERE hash = $1;

-- name: parts_size
SELECT coalesce(sum(length(data)), 0)::bigint FROM {schema}.blob_parts WHERE hash = $1;

-- name: delete_parts_from
DELETE FROM {schema}.blob_parts WHERE hash = $1 AND position >= $2;

-- name: finish_blob
UPDATE {schema}.blobs SET bytes = $1, created_at = $2 WHERE hash = $3;

-- name: load_parts
-- The size with the parts, of one moment.
SELECT b.bytes, p.data FROM {schema}.blobs AS b
LEFT JOIN {schema}.blob_parts AS p ON p.hash = b.hash AND p.position BETWEEN $2 AND $3
WHERE b.hash = $1 AND b.bytes IS NOT NULL ORDER BY p.position;

-- name: lock_ended_or_not
SELECT FROM {schema}.tasks WHERE task_id = $1 FOR KEY SHARE;

-- name: insert_blob_use
INSERT INTO {schema}.blob_uses (hash, task_id) VALUES ($1, $2) ON CONFLICT (hash, task_id) DO NOTHING;

-- name: unused_blobs
SELECT hash FROM {schema}.blobs
WHERE created_at < $1 AND NOT EXISTS (SELECT FROM {schema}.blob_uses AS u WHERE u.hash = blobs.hash) LIMIT $2;

-- name: discard_blob
-- From now on the content is not there; its parts are removed bit by bit. Whoever runs this has locked the row.
UPDATE {schema}.blobs SET bytes = NULL WHERE hash = $1 AND created_at < $2
AND NOT EXISTS (SELECT FROM {schema}.blob_uses AS u WHERE u.hash = $1);

-- name: delete_some_parts
DELETE FROM {schema}.blob_parts WHERE hash = $1 AND position IN (
    SELECT position FROM {schema}.blob_parts WHERE hash = $1 ORDER BY position DESC LIMIT $2);

-- name: delete_blob
DELETE FROM {schema}.blobs WHERE hash = $1 AND bytes IS NULL;

-- --- keeping and removing --------------------------------------------------------------------------------------------

-- name: ended_before
-- In the order of submission, up to where many have been submitted after the time in question.
SELECT task_id FROM {schema}.tasks AS t
WHERE ended_at < $1
AND number <= coalesce((
    SELECT number FROM {schema}.tasks WHERE created_at >= $1 ORDER BY number OFFSET $3 LIMIT 1), 9223372036854775807)
AND NOT EXISTS (SELECT FROM {schema}.dead_letters AS d WHERE d.task_id = t.task_id AND d.redriven = '')
AND NOT EXISTS (
    SELECT FROM {schema}.deliveries AS d
    WHERE d.step_id > t.task_id || ':' AND d.step_id < t.task_id || ';' AND d.task_id = t.task_id)
AND NOT (origin LIKE 'child:%' AND EXISTS (
    SELECT FROM {schema}.tasks AS caller WHERE caller.task_id = substr(t.origin, 7) AND caller.ended_at IS NULL))
ORDER BY number LIMIT $2;

-- name: lock_doomed
SELECT task_id, number FROM {schema}.tasks WHERE task_id = ANY ($1::text[]) AND (ended_at IS NOT NULL OR $2)
ORDER BY number FOR UPDATE;

-- name: whole_partitions
-- Those that filled fast, whose rows need not be removed one by one: they are dropped soon.
SELECT low, high FROM {schema}.partitions WHERE filled_s < $1;

-- name: delete_history
DELETE FROM {schema}.history WHERE number = ANY ($1::bigint[]);

-- name: delete_stream
DELETE FROM {schema}.stream_chunks WHERE number = ANY ($1::bigint[]);

-- name: delete_deliveries
DELETE FROM {schema}.deliveries AS d USING unnest($1::text[]) AS gone (task_id)
WHERE d.step_id > gone.task_id || ':' AND d.step_id < gone.task_id || ';' AND d.task_id = gone.task_id;

-- name: delete_idempotency
DELETE FROM {schema}.idempotency WHERE task_id = ANY ($1::text[]);

-- name: delete_task_dead
DELETE FROM {schema}.dead_letters WHERE task_id = ANY ($1::text[]);

-- name: delete_task_uses
DELETE FROM {schema}.blob_uses WHERE task_id = ANY ($1::text[]) RETURNING hash;

-- name: delete_tasks
DELETE FROM {schema}.tasks WHERE number = ANY ($1::bigint[]);

-- name: count_removed
UPDATE {schema}.writers SET tasks = tasks - $1 WHERE owner = '';

-- name: strays_of
SELECT {schema}.stray(task_id) FROM unnest($1::text[]) AS asked (task_id);

-- name: import_task
WITH counted AS (UPDATE {schema}.writers SET tasks = tasks + 1 WHERE owner = '')
INSERT INTO {schema}.tasks
(task_id, session_id, service, state, version, steps, created_at, updated_at, ended_at, origin, paused, error)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) RETURNING number;

-- name: import_history
INSERT INTO {schema}.history (number, seq, at, kind, data)
SELECT $1, * FROM unnest($2::integer[], $3::double precision[], $4::text[], $5::bytea[]);

-- name: import_chunks
INSERT INTO {schema}.stream_chunks (number, first, count, step_id, attempt, attempt_first, at, data)
SELECT $1, * FROM unnest(
    $2::integer[], $3::integer[], $4::text[], $5::integer[], $6::integer[], $7::double precision[], $8::bytea[]);

-- --- partitions ------------------------------------------------------------------------------------------------------

-- name: latest_partition
SELECT max(high) FROM {schema}.partitions;

-- name: highest_number
SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {schema}.task_numbers;

-- name: take_numbers
SELECT setval('{schema}.task_numbers', $1, $2);

-- name: add_partition
INSERT INTO {schema}.partitions (low, high, swept_to) VALUES ($1, $2, $1);

-- name: note_filled
UPDATE {schema}.partitions SET filled_s = extract(epoch FROM now() - made_at) WHERE high <= $1 AND filled_s IS NULL;

-- name: old_partitions
-- Full ones, the oldest first; whether anything in it is left, and how far it was swept.
SELECT p.low, p.high, p.swept_to, EXISTS (SELECT FROM {schema}.tasks AS t WHERE t.number >= p.low AND t.number < p.high)
FROM {schema}.partitions AS p WHERE p.filled_s IS NOT NULL ORDER BY p.low;

-- name: count_between
SELECT count(*) FROM (
    SELECT FROM {schema}.tasks WHERE number >= $1 AND number < $2 LIMIT $3) AS found;

-- name: sweep_history
DELETE FROM {schema}.history AS h WHERE h.number >= $1 AND h.number < $2
AND NOT EXISTS (SELECT FROM {schema}.tasks AS t WHERE t.number = h.number);

-- name: sweep_stream
DELETE FROM {schema}.stream_chunks AS c WHERE c.number >= $1 AND c.number < $2
AND NOT EXISTS (SELECT FROM {schema}.tasks AS t WHERE t.number = c.number);

-- name: note_swept
UPDATE {schema}.partitions SET swept_to = $2 WHERE low = $1;

-- name: forget_partition
DELETE FROM {schema}.partitions WHERE low = $1;
