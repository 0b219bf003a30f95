-- The one statement of the hot path: a batch of transitions, each recorded whole or refused alone.
--
-- Rows come as one array per column, with the position of their transition in the batch (`*_item`). All rows of a kind
-- are one statement. When a guard fails, what was written is rolled back to a savepoint. What is sure not to fit is then
-- sifted out, and the rest recorded as one; where that does not do, the batch is halved until the transition is found
-- that does not fit. The first half is recorded first: the order in which transitions were handed over is the order in
-- which they take effect. The caller sees to it that within a batch no delivery is moved or answered twice and no shared
-- key is touched after it was written, and that the versions of a task which is changed more than once follow on one
-- another (`p_chained`).
--
-- A further version of the signature gets a further name, so that both exist during a rolling upgrade.

-- Of a batch of `record_1`, those transitions that are refused whatever the others are: an insert of a task that exists,
-- or that an earlier transition inserts which is not refused for its own reasons; a change of a version that is gone; an
-- answer to a step that is not open, and that no transition of the batch opens.
CREATE FUNCTION {schema}.surely_refused(
    t_item integer[], t_expected integer[], t_id text[], d_item integer[], d_step text[], a_item integer[],
    a_step text[]
) RETURNS integer[]
LANGUAGE sql STABLE
SET search_path = {schema}, pg_temp
AS $surely$
    WITH changes AS (
        SELECT item, expected, id, row_number() OVER (PARTITION BY id ORDER BY item) AS nth
        FROM unnest(t_item, t_expected, t_id) AS t (item, expected, id)
    ), alone AS (
        SELECT c.item FROM changes AS c LEFT JOIN tasks AS t ON t.task_id = c.id
        WHERE (c.expected = 0 AND t.version IS NOT NULL)
           OR (c.expected > 0 AND c.nth = 1 AND t.version IS DISTINCT FROM c.expected)
        UNION
        SELECT a.item FROM unnest(a_item, a_step) AS a (item, step)
        WHERE NOT EXISTS (SELECT FROM deliveries AS d WHERE d.step_id = a.step)
          AND NOT EXISTS (SELECT FROM unnest(d_item, d_step) AS d (item, step) WHERE d.step = a.step)
    ), repeated AS (
        SELECT c.item FROM changes AS c
        WHERE c.expected = 0 AND c.nth > 1 AND EXISTS (
            SELECT FROM changes AS f WHERE f.id = c.id AND f.nth = 1 AND f.expected = 0
            AND f.item NOT IN (SELECT item FROM alone))
    )
    SELECT coalesce(array_agg(item), '{}') FROM (SELECT item FROM alone UNION SELECT item FROM repeated) AS found
$surely$;

CREATE FUNCTION {schema}.record_1(
    p_owner text, p_batch bigint, p_items integer, p_shards integer[], p_epochs bigint[], p_chained boolean,
    t_item integer[], t_expected integer[], t_id text[], t_session text[], t_service text[], t_state text[],
    t_version integer[], t_steps bigint[], t_created double precision[], t_updated double precision[],
    t_ended double precision[], t_origin text[], t_paused smallint[], t_error text[],
    h_item integer[], h_task text[], h_seq integer[], h_at double precision[], h_kind text[], h_data bytea[],
    d_item integer[], d_step text[], d_task text[], d_service text[], d_attempt integer[], d_visible double precision[],
    d_seq integer[], d_position integer[], d_parked integer[], d_started smallint[], d_shard integer[],
    a_item integer[], a_step text[],
    m_item integer[], m_step text[], m_expected integer[], m_attempt integer[], m_visible double precision[],
    m_parked integer[], m_started smallint[],
    c_item integer[], c_task text[], c_first integer[], c_count integer[], c_step text[], c_attempt integer[],
    c_attempt_first integer[], c_at double precision[], c_data bytea[],
    s_item integer[], s_session text[], s_key bytea[], s_expected integer[], s_value bytea[],
    r_item integer[], r_session text[], r_key bytea[], r_version integer[],
    n_item integer[], n_session text[], n_created double precision[],
    i_item integer[], i_key text[], i_task text[], i_digest text[],
    l_item integer[], l_step text[], l_task text[], l_service text[], l_attempt integer[], l_at double precision[],
    l_code text[], l_message bytea[], l_redriven text[],
    b_item integer[], b_hash text[], b_bytes bigint[], b_at double precision[],
    x_item integer[], x_hash text[], x_position integer[], x_data bytea[],
    u_item integer[], u_hash text[], u_task text[],
    OUT refused integer[], OUT lost integer[], OUT highest bigint
)
LANGUAGE plpgsql
SET search_path = {schema}, pg_temp
-- The plans are made once, perhaps while the tables are empty: only plans that stay right when they are not.
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
AS $record$
DECLARE
    done      bigint;
    lows      integer[] := ARRAY[0];
    highs     integer[] := ARRAY[p_items - 1];
    top       integer := 1;
    low       integer;
    high      integer;
    middle    integer;
    changed   bigint;
    wanted    bigint;
    added     bigint := 0;
    new_tasks bigint;
    new_blobs text[];
    sifted    integer[] := '{}';
    looked    boolean := false;
BEGIN
    IF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    PERFORM set_config('idle_in_transaction_session_timeout', '10s', true);
    refused := '{}';
    lost := '{}';

    -- One batch of an owner at a time; one that is recorded already is only told again.
    SELECT last_batch, last_refused INTO done, refused FROM writers WHERE owner = p_owner FOR UPDATE;
    IF NOT FOUND THEN
        refused := '{}';
        lost := p_shards;
        RETURN;
    END IF;
    IF done = p_batch THEN
        RETURN;
    END IF;
    IF done > p_batch THEN
        RAISE EXCEPTION 'batch % of % was followed by batch %', p_batch, p_owner, done USING ERRCODE = 'LD002';
    END IF;
    refused := '{}';

    -- The rows of all shards that are touched, in their order; a takeover changes them, and so waits for this commit.
    SELECT coalesce(array_agg(asked.shard), '{}') INTO lost
    FROM unnest(p_shards, p_epochs) AS asked (shard, epoch)
    LEFT JOIN (
        SELECT s.shard, s.epoch FROM shards AS s WHERE s.shard = ANY (p_shards) ORDER BY s.shard FOR SHARE
    ) AS found ON found.shard = asked.shard
    WHERE found.epoch IS DISTINCT FROM asked.epoch;
    IF cardinality(lost) > 0 THEN
        RETURN;
    END IF;

    WHILE top > 0 LOOP
        low := lows[top];
        high := highs[top];
        top := top - 1;
        new_tasks := 0;
        BEGIN
            IF cardinality(r_item) > 0 AND EXISTS (
                SELECT FROM unnest(r_item, r_session, r_key, r_version) AS r (item, session_id, key, version)
                LEFT JOIN session_state AS s ON s.session_id = r.session_id AND s.key = r.key
                WHERE r.item BETWEEN low AND high AND r.item <> ALL (sifted) AND coalesce(s.version, 0) <> r.version
            ) THEN
                RAISE EXCEPTION 'shared key was changed' USING ERRCODE = 'LD001';
            END IF;

            IF cardinality(t_item) > 0 THEN
                INSERT INTO tasks (
                    task_id, session_id, service, state, version, steps, created_at, updated_at, ended_at, origin,
                    paused, error
                )
                SELECT t.id, t.session, t.service, t.state, t.version, t.steps, t.created, t.updated, t.ended, t.origin,
                       t.paused, t.error
                FROM unnest(t_item, t_expected, t_id, t_session, t_service, t_state, t_version, t_steps, t_created,
                            t_updated, t_ended, t_origin, t_paused, t_error)
                  AS t (item, expected, id, session, service, state, version, steps, created, updated, ended, origin,
                        paused, error)
                WHERE t.item BETWEEN low AND high AND t.item <> ALL (sifted) AND t.expected = 0
                ORDER BY t.item;
                GET DIAGNOSTICS new_tasks = ROW_COUNT;

                IF p_chained THEN
                    UPDATE tasks SET service = u.service, state = u.state, version = u.version, steps = u.steps,
                                     updated_at = u.updated, ended_at = u.ended, paused = u.paused, error = u.error
                    FROM (
                        SELECT DISTINCT ON (t.id) t.*, min(t.expected) OVER (PARTITION BY t.id) AS begun
                        FROM unnest(t_item, t_expected, t_id, t_service, t_state, t_version, t_steps, t_updated,
                                    t_ended, t_paused, t_error)
                          AS t (item, expected, id, service, state, version, steps, updated, ended, paused, error)
                        WHERE t.item BETWEEN low AND high AND t.item <> ALL (sifted) AND t.expected > 0
                        ORDER BY t.id, t.item DESC
                    ) AS u
                    WHERE tasks.task_id = u.id AND tasks.version = u.begun;
                    GET DIAGNOSTICS changed = ROW_COUNT;
                    SELECT count(DISTINCT t.id) INTO wanted
                    FROM unnest(t_item, t_expected, t_id) AS t (item, expected, id)
                    WHERE t.item BETWEEN low AND high AND t.item <> ALL (sifted) AND t.expected > 0;
                ELSE
                    UPDATE tasks SET service = t.service, state = t.state, version = t.version, steps = t.steps,
                                     updated_at = t.updated, ended_at = t.ended, paused = t.paused, error = t.error
                    FROM unnest(t_item, t_expected, t_id, t_service, t_state, t_version, t_steps, t_updated, t_ended,
                                t_paused, t_error)
                      AS t (item, expected, id, service, state, version, steps, updated, ended, paused, error)
                    WHERE t.item BETWEEN low AND high AND t.item <> ALL (sifted) AND t.expected > 0
                      AND tasks.task_id = t.id AND tasks.version = t.expected;
                    GET DIAGNOSTICS changed = ROW_COUNT;
                    SELECT count(*) INTO wanted FROM unnest(t_item, t_expected) AS t (item, expected)
                    WHERE t.item BETWEEN low AND high AND t.item <> ALL (sifted) AND t.expected > 0;
                END IF;
                IF changed <> wanted THEN
                    RAISE EXCEPTION 'task was changed' USING ERRCODE = 'LD001';
                END IF;
            END IF;

            IF cardinality(i_item) > 0 THEN
                INSERT INTO idempotency (key, task_id, digest)
                SELECT i.key, i.task, i.digest FROM unnest(i_item, i_key, i_task, i_digest) AS i (item, key, task, digest)
                WHERE i.item BETWEEN low AND high AND i.item <> ALL (sifted);
            END IF;

            IF cardinality(h_item) > 0 THEN
                INSERT INTO history (number, seq, at, kind, data)
                SELECT coalesce(t.number, stray(h.task)), h.seq, h.at, h.kind, h.data
                FROM unnest(h_item, h_task, h_seq, h_at, h_kind, h_data) AS h (item, task, seq, at, kind, data)
                LEFT JOIN tasks AS t ON t.task_id = h.task
                WHERE h.item BETWEEN low AND high AND h.item <> ALL (sifted);
            END IF;

            IF cardinality(d_item) > 0 THEN
                INSERT INTO deliveries (
                    step_id, task_id, service, attempt, visible_at, seq, position, parked, started, shard
                )
                SELECT d.step, d.task, d.service, d.attempt, d.visible, d.seq, d.position, d.parked, d.started, d.shard
                FROM unnest(d_item, d_step, d_task, d_service, d_attempt, d_visible, d_seq, d_position, d_parked,
                            d_started, d_shard)
                  AS d (item, step, task, service, attempt, visible, seq, position, parked, started, shard)
                WHERE d.item BETWEEN low AND high AND d.item <> ALL (sifted);
            END IF;

            IF cardinality(m_item) > 0 THEN
                UPDATE deliveries SET attempt = m.attempt, visible_at = m.visible, parked = m.parked, started = m.started
                FROM unnest(m_item, m_step, m_expected, m_attempt, m_visible, m_parked, m_started)
                  AS m (item, step, expected, attempt, visible, parked, started)
                WHERE m.item BETWEEN low AND high AND m.item <> ALL (sifted)
                  AND deliveries.step_id = m.step AND deliveries.attempt = m.expected;
                GET DIAGNOSTICS changed = ROW_COUNT;
                SELECT count(*) INTO wanted FROM unnest(m_item) AS m (item) WHERE m.item BETWEEN low AND high AND m.item <> ALL (sifted);
                IF changed <> wanted THEN
                    RAISE EXCEPTION 'step is at another attempt' USING ERRCODE = 'LD001';
                END IF;
            END IF;

            IF cardinality(a_item) > 0 THEN
                DELETE FROM deliveries USING unnest(a_item, a_step) AS a (item, step)
                WHERE a.item BETWEEN low AND high AND a.item <> ALL (sifted) AND deliveries.step_id = a.step;
                GET DIAGNOSTICS changed = ROW_COUNT;
                SELECT count(*) INTO wanted FROM unnest(a_item) AS a (item) WHERE a.item BETWEEN low AND high AND a.item <> ALL (sifted);
                IF changed <> wanted THEN
                    RAISE EXCEPTION 'step was answered' USING ERRCODE = 'LD001';
                END IF;
            END IF;

            IF cardinality(c_item) > 0 THEN
                INSERT INTO stream_chunks (number, first, count, step_id, attempt, attempt_first, at, data)
                SELECT coalesce(t.number, stray(c.task)), c.first, c.count, c.step, c.attempt, c.attempt_first, c.at,
                       c.data
                FROM unnest(c_item, c_task, c_first, c_count, c_step, c_attempt, c_attempt_first, c_at, c_data)
                  AS c (item, task, first, count, step, attempt, attempt_first, at, data)
                LEFT JOIN tasks AS t ON t.task_id = c.task
                WHERE c.item BETWEEN low AND high AND c.item <> ALL (sifted);
            END IF;

            IF cardinality(n_item) > 0 THEN
                INSERT INTO sessions (session_id, created_at)
                SELECT n.session, n.created FROM unnest(n_item, n_session, n_created) AS n (item, session, created)
                WHERE n.item BETWEEN low AND high AND n.item <> ALL (sifted)
                  AND NOT EXISTS (SELECT FROM sessions AS s WHERE s.session_id = n.session)
                ORDER BY n.item
                ON CONFLICT (session_id) DO NOTHING;
            END IF;

            IF cardinality(s_item) > 0 THEN
                INSERT INTO session_state (session_id, key, version, value)
                SELECT s.session, s.key, 1, s.value
                FROM unnest(s_item, s_session, s_key, s_expected, s_value) AS s (item, session, key, expected, value)
                WHERE s.item BETWEEN low AND high AND s.item <> ALL (sifted) AND s.expected = 0;
                UPDATE session_state SET version = session_state.version + 1, value = s.value
                FROM unnest(s_item, s_session, s_key, s_expected, s_value) AS s (item, session, key, expected, value)
                WHERE s.item BETWEEN low AND high AND s.item <> ALL (sifted) AND s.expected > 0
                  AND session_state.session_id = s.session AND session_state.key = s.key
                  AND session_state.version = s.expected;
                GET DIAGNOSTICS changed = ROW_COUNT;
                SELECT count(*) INTO wanted FROM unnest(s_item, s_expected) AS s (item, expected)
                WHERE s.item BETWEEN low AND high AND s.item <> ALL (sifted) AND s.expected > 0;
                IF changed <> wanted THEN
                    RAISE EXCEPTION 'shared key was changed' USING ERRCODE = 'LD001';
                END IF;
            END IF;

            IF cardinality(b_item) > 0 THEN
                SELECT coalesce(array_agg(DISTINCT b.hash), '{}') INTO new_blobs
                FROM unnest(b_item, b_hash) AS b (item, hash)
                WHERE b.item BETWEEN low AND high AND b.item <> ALL (sifted)
                  AND NOT EXISTS (SELECT FROM blobs WHERE blobs.hash = b.hash AND blobs.bytes IS NOT NULL);
                DELETE FROM blob_parts WHERE hash = ANY (new_blobs);
                INSERT INTO blobs (hash, bytes, created_at)
                SELECT DISTINCT ON (b.hash) b.hash, b.bytes, b.at
                FROM unnest(b_item, b_hash, b_bytes, b_at) AS b (item, hash, bytes, at)
                WHERE b.item BETWEEN low AND high AND b.item <> ALL (sifted) AND b.hash = ANY (new_blobs)
                ORDER BY b.hash, b.item
                ON CONFLICT (hash) DO UPDATE SET bytes = excluded.bytes, created_at = excluded.created_at;
                INSERT INTO blob_parts (hash, position, data)
                SELECT x.hash, x.position, x.data
                FROM unnest(x_item, x_hash, x_position, x_data) AS x (item, hash, position, data)
                WHERE x.item BETWEEN low AND high AND x.item <> ALL (sifted) AND x.hash = ANY (new_blobs)
                ON CONFLICT (hash, position) DO NOTHING;
            END IF;

            IF cardinality(u_item) > 0 THEN
                -- Locked, so that nobody removes what is being taken into use.
                PERFORM FROM blobs WHERE hash = ANY (u_hash) ORDER BY hash FOR SHARE;
                IF EXISTS (
                    SELECT FROM unnest(u_item, u_hash) AS u (item, hash)
                    WHERE u.item BETWEEN low AND high AND u.item <> ALL (sifted)
                      AND NOT EXISTS (SELECT FROM blobs WHERE blobs.hash = u.hash AND blobs.bytes IS NOT NULL)
                ) THEN
                    RAISE EXCEPTION 'content is not there' USING ERRCODE = 'LD001';
                END IF;
                INSERT INTO blob_uses (hash, task_id)
                SELECT u.hash, u.task FROM unnest(u_item, u_hash, u_task) AS u (item, hash, task)
                WHERE u.item BETWEEN low AND high AND u.item <> ALL (sifted)
                ON CONFLICT (hash, task_id) DO NOTHING;
            END IF;

            IF cardinality(l_item) > 0 THEN
                DELETE FROM dead_letters USING unnest(l_item, l_step) AS l (item, step)
                WHERE l.item BETWEEN low AND high AND l.item <> ALL (sifted) AND dead_letters.step_id = l.step;
                INSERT INTO dead_letters (step_id, task_id, service, attempt, at, code, message, redriven)
                SELECT l.step, l.task, l.service, l.attempt, l.at, l.code, l.message, l.redriven
                FROM unnest(l_item, l_step, l_task, l_service, l_attempt, l_at, l_code, l_message, l_redriven)
                       WITH ORDINALITY
                  AS l (item, step, task, service, attempt, at, code, message, redriven, nth)
                WHERE l.item BETWEEN low AND high AND l.item <> ALL (sifted)
                ORDER BY l.nth;
            END IF;

            added := added + new_tasks;
            refused := refused || sifted;
        EXCEPTION
            WHEN SQLSTATE 'LD001' OR unique_violation OR program_limit_exceeded THEN
                IF low = high THEN
                    refused := refused || low;
                ELSIF NOT looked THEN
                    looked := true;
                    sifted := surely_refused(t_item, t_expected, t_id, d_item, d_step, a_item, a_step);
                    top := top + 1;  -- the same again, without these
                ELSE
                    sifted := '{}';
                    middle := (low + high) / 2;
                    lows[top + 1] := middle + 1;
                    highs[top + 1] := high;
                    lows[top + 2] := low;
                    highs[top + 2] := middle;
                    top := top + 2;
                END IF;
        END;
    END LOOP;

    UPDATE writers SET last_batch = p_batch, last_refused = refused, tasks = tasks + added WHERE owner = p_owner;
    highest := CASE WHEN added > 0 THEN currval('task_numbers') END;
END
$record$;
