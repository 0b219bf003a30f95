-- The first schema. `{schema}` is the schema that the store was given. Text is compared by its bytes (COLLATE "C"):
-- the same order on every machine, ranges of ids by prefix, and the cheapest comparison there is.

CREATE TABLE {schema}.meta (
    name  text COLLATE "C" PRIMARY KEY,
    value text NOT NULL
);

-- --- who writes ------------------------------------------------------------------------------------------------------

-- A process that has the store open. Its lease is prolonged here, in one row, whatever it holds.
CREATE TABLE {schema}.owners (
    owner           text COLLATE "C" PRIMARY KEY,
    lease_until     timestamptz NOT NULL,
    schema_known    integer NOT NULL,
    backend_pid     integer,
    backend_started timestamptz
) WITH (fillfactor = 20);

-- What each owner has written: its latest batch with that batch's refusals, so that a commit whose outcome was not
-- heard of is asked for again and not made again; and how many tasks it has added, so that counting reads few rows.
-- The row '' has what owners have left that are gone.
CREATE TABLE {schema}.writers (
    owner        text COLLATE "C" PRIMARY KEY,
    last_batch   bigint NOT NULL DEFAULT 0,
    last_refused integer[] NOT NULL DEFAULT '{}',
    tasks        bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 10, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);

INSERT INTO {schema}.writers (owner) VALUES ('');

CREATE TABLE {schema}.shards (
    shard integer PRIMARY KEY,
    owner text COLLATE "C" NOT NULL DEFAULT '',
    epoch bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 20);

-- --- tasks -----------------------------------------------------------------------------------------------------------

CREATE SEQUENCE {schema}.task_numbers;

CREATE TABLE {schema}.tasks (
    number     bigint PRIMARY KEY DEFAULT nextval('{schema}.task_numbers'),
    task_id    text COLLATE "C" NOT NULL UNIQUE,
    session_id text COLLATE "C" NOT NULL,
    service    text COLLATE "C" NOT NULL,
    state      text COLLATE "C" NOT NULL,
    version    integer NOT NULL,
    steps      bigint NOT NULL,
    created_at double precision NOT NULL,
    updated_at double precision NOT NULL,
    ended_at   double precision,
    origin     text COLLATE "C" NOT NULL,
    paused     smallint NOT NULL,
    error      text COLLATE "C" NOT NULL
) WITH (fillfactor = 80);

-- An update that leaves state, end and pause as they are touches no index (HOT): each hop of a task but its last.
CREATE INDEX tasks_unfinished ON {schema}.tasks (state, number) WHERE ended_at IS NULL;
CREATE INDEX tasks_unhappy ON {schema}.tasks (state, number) WHERE state IN ('failed', 'canceled', 'rejected');
-- A task without a session, an origin or a pause costs nothing here.
CREATE INDEX tasks_by_session ON {schema}.tasks (session_id, number) WHERE session_id <> task_id;
CREATE INDEX tasks_by_origin ON {schema}.tasks (origin, number) WHERE origin <> '';
CREATE INDEX tasks_paused ON {schema}.tasks (number) WHERE paused <> 0;

-- History and streams are append-only, under the number of their task: a narrow key, and in ranges of numbers whole
-- partitions grow old together and are dropped together.
CREATE TABLE {schema}.history (
    number bigint NOT NULL,
    seq    integer NOT NULL,
    at     double precision NOT NULL,
    kind   text COLLATE "C" NOT NULL,
    data   bytea NOT NULL,
    PRIMARY KEY (number, seq)
) PARTITION BY RANGE (number);

CREATE TABLE {schema}.stream_chunks (
    number        bigint NOT NULL,
    first         integer NOT NULL,
    count         integer NOT NULL,
    step_id       text COLLATE "C" NOT NULL,
    attempt       integer NOT NULL,
    attempt_first integer NOT NULL,
    at            double precision NOT NULL,
    data          bytea NOT NULL,
    PRIMARY KEY (number, first)
) PARTITION BY RANGE (number);

-- What comes in for a task that is not there (it was erased meanwhile) stands under a number that no task has.
CREATE FUNCTION {schema}.stray(task_id text) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN -1 - (hashtextextended(task_id COLLATE "C", 0) & 4611686018427387903);

CREATE TABLE {schema}.history_strays PARTITION OF {schema}.history FOR VALUES FROM (MINVALUE) TO (0);
CREATE TABLE {schema}.stream_chunks_strays PARTITION OF {schema}.stream_chunks FOR VALUES FROM (MINVALUE) TO (0);

-- The partitions that there are. `filled_s`: how long it took to fill, once it is full.
CREATE TABLE {schema}.partitions (
    low      bigint PRIMARY KEY,
    high     bigint NOT NULL,
    made_at  timestamptz NOT NULL DEFAULT now(),
    filled_s double precision,
    swept_to bigint NOT NULL
);

CREATE TABLE {schema}.deliveries (
    step_id    text COLLATE "C" PRIMARY KEY,
    task_id    text COLLATE "C" NOT NULL,
    service    text COLLATE "C" NOT NULL,
    attempt    integer NOT NULL,
    visible_at double precision NOT NULL,
    seq        integer NOT NULL,
    position   integer NOT NULL,
    parked     integer NOT NULL,
    started    smallint NOT NULL,
    shard      integer NOT NULL
) WITH (
    fillfactor = 70, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_threshold = 2000, autovacuum_analyze_scale_factor = 0
);

CREATE INDEX deliveries_due ON {schema}.deliveries (visible_at) WHERE parked = 0;

CREATE TABLE {schema}.sessions (
    number     bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    session_id text COLLATE "C" NOT NULL UNIQUE,
    created_at double precision NOT NULL
);

-- A removed key keeps its row (value NULL): its version still guards. Keys are bytes: a user's text may have any
-- character, NUL included.
CREATE TABLE {schema}.session_state (
    session_id text COLLATE "C" NOT NULL,
    key        bytea NOT NULL,
    version    integer NOT NULL,
    value      bytea,
    PRIMARY KEY (session_id, key)
) WITH (fillfactor = 70);

CREATE TABLE {schema}.idempotency (
    key     text COLLATE "C" PRIMARY KEY,
    task_id text COLLATE "C" NOT NULL,
    digest  text NOT NULL
);

CREATE INDEX idempotency_by_task ON {schema}.idempotency (task_id);

-- --- what is kept beside tasks ---------------------------------------------------------------------------------------

CREATE TABLE {schema}.services (
    name       text COLLATE "C" PRIMARY KEY,
    definition bytea NOT NULL
);

CREATE TABLE {schema}.documents (
    kind text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (kind, name)
);

CREATE TABLE {schema}.dead_letters (
    number   bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    step_id  text COLLATE "C" NOT NULL UNIQUE,
    task_id  text COLLATE "C" NOT NULL,
    service  text COLLATE "C" NOT NULL,
    attempt  integer NOT NULL,
    at       double precision NOT NULL,
    code     text NOT NULL,
    message  bytea NOT NULL,
    redriven text COLLATE "C" NOT NULL
);

CREATE INDEX dead_letters_by_service ON {schema}.dead_letters (service, number);
CREATE INDEX dead_letters_by_task ON {schema}.dead_letters (task_id);

-- Content by its hash (SHA-256, hex), in parts of bounded size. A content is there once `bytes` is: before that it is
-- an upload that is not finished, or a content that is being removed.
CREATE TABLE {schema}.blobs (
    hash       text COLLATE "C" PRIMARY KEY,
    bytes      bigint,
    created_at double precision NOT NULL
);

CREATE TABLE {schema}.blob_parts (
    hash     text COLLATE "C" NOT NULL,
    position integer NOT NULL,
    data     bytea NOT NULL,
    PRIMARY KEY (hash, position)
);

-- Which tasks need a content; what no task needs is removed.
CREATE TABLE {schema}.blob_uses (
    hash    text COLLATE "C" NOT NULL,
    task_id text COLLATE "C" NOT NULL,
    PRIMARY KEY (hash, task_id)
);

CREATE INDEX blob_uses_by_task ON {schema}.blob_uses (task_id);
