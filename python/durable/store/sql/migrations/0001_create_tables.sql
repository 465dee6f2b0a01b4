-- The tables. docs/internals/database.md explains who writes what, and the rules of locking.
-- {s} is the schema's name, quoted. Kinds and states are the numbers of durable/events.py;
-- run.state 2 is a run whose start is delayed, which clients see as running.

CREATE SCHEMA IF NOT EXISTS {s};

CREATE TABLE {s}.meta (
    name text PRIMARY KEY,
    value text NOT NULL
);
INSERT INTO {s}.meta VALUES ('schema_version', '0'), ('current_part', '1');

-- Microseconds since the epoch, as everything outside of SQL counts them.
CREATE FUNCTION {s}.us(t timestamptz) RETURNS bigint LANGUAGE sql STABLE PARALLEL SAFE
    RETURN (extract(epoch FROM t) * 1000000)::bigint;
CREATE FUNCTION {s}.ts(us bigint) RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE
    RETURN timestamptz '1970-01-01 00:00:00+00' + us * interval '1 microsecond';

CREATE TABLE {s}.session (
    id bigint PRIMARY KEY,
    host text NOT NULL,
    pid integer NOT NULL,
    build_id text NOT NULL,
    queues text[] NOT NULL,
    suspect uuid,
    claims_since timestamptz NOT NULL DEFAULT '-infinity',
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- An open run. Claims and flushes touch no indexed column, and room on each page keeps them HOT: more
-- than half of it, for one commit may write every row that is there.
CREATE TABLE {s}.run (
    run_id uuid PRIMARY KEY,
    workflow_id text NOT NULL,
    workflow_type text NOT NULL,
    queue text NOT NULL,
    version text,
    session bigint,
    fence bigint NOT NULL DEFAULT 0,
    head_hash bigint NOT NULL,
    flush bigint NOT NULL DEFAULT 0,
    next_seq integer NOT NULL DEFAULT 1,
    part integer NOT NULL,
    priority smallint NOT NULL DEFAULT 0,
    state smallint NOT NULL DEFAULT 0,
    crashes smallint NOT NULL DEFAULT 0,
    parks smallint NOT NULL DEFAULT 0,
    parent_ref integer,
    parent_run_id uuid,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    search jsonb,
    park bytea,
    pause bytea,
    dedup_key text,
    debounce_key text,
    CONSTRAINT run_workflow_id_key UNIQUE (workflow_id)
) WITH (
    fillfactor = 45,
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_cost_delay = 0
);
-- By what people look for runs, with @>. Most runs have no attributes and pay nothing here; a step
-- that changes them is the one update of a run that is not HOT.
CREATE INDEX run_search_idx ON {s}.run USING gin (search jsonb_path_ops)
    WITH (gin_pending_list_limit = 512) WHERE search IS NOT NULL;
-- A key is held by one open run of its type and queue: for deduplication until the run (or its chain)
-- ends, for debouncing until it begins.
CREATE UNIQUE INDEX run_dedup_key_idx ON {s}.run (dedup_key, queue, workflow_type)
    WHERE dedup_key IS NOT NULL;
CREATE UNIQUE INDEX run_debounce_key_idx ON {s}.run (debounce_key, queue, workflow_type)
    WHERE debounce_key IS NOT NULL;
-- For listings. It never changes, so steps stay HOT. Without the run id, which a plan for one run could
-- look for in here, all through the index, where statistics say that it is empty.
CREATE INDEX run_created_at_idx ON {s}.run (created_at);
CREATE INDEX run_paused_idx ON {s}.run (run_id) WHERE pause IS NOT NULL;
COMMENT ON COLUMN {s}.run.pause IS
    'Why the run is paused; NULL when it is not. A run may be parked or delayed besides.';
COMMENT ON COLUMN {s}.run.parks IS
    'How often the run was parked since its last batch, or since somebody unparked it: the pause grows.';
COMMENT ON COLUMN {s}.run.flush IS
    'Random id of the last group commit that wrote this run: tells a commit whose answer was lost '
    'that it had happened.';

-- What sessions have claimed, a row for each claim of up to a hundred runs, in its transaction: so a
-- dead session's runs are found without an index on run.session, and a claim of a run touches no
-- index of it. Whose a run is says run.session alone: what is here may have closed, or be somebody
-- else's by now. tidy_claims (0006) drops that; kept are the rows which it left.
CREATE TABLE {s}.claim (
    session bigint NOT NULL,
    claimed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    kept boolean NOT NULL DEFAULT false,
    runs uuid[] NOT NULL
) WITH (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_insert_scale_factor = 0.5,
    autovacuum_vacuum_cost_delay = 0, vacuum_truncate = off
);
CREATE INDEX claim_session_idx ON {s}.claim (session, claimed_at);

-- Append only. Payloads are compressed, if at all, by whoever wrote them.
CREATE TABLE {s}.history (
    part integer NOT NULL,
    run_id uuid NOT NULL,
    seq integer NOT NULL,
    batch bytea NOT NULL,
    PRIMARY KEY (part, run_id, seq)
) PARTITION BY LIST (part);

ALTER TABLE {s}.history ALTER batch SET STORAGE EXTERNAL;

CREATE TABLE {s}.closed_run (
    part integer NOT NULL,
    run_id uuid NOT NULL,
    workflow_id text NOT NULL,
    workflow_type text NOT NULL,
    queue text NOT NULL,
    version text,
    state smallint NOT NULL,
    next_seq integer NOT NULL,
    head_hash bigint NOT NULL,
    parent_ref integer,
    parent_run_id uuid,
    created_at timestamptz NOT NULL,
    closed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    search jsonb,
    dedup_key text,
    result bytea,
    failure bytea,
    PRIMARY KEY (run_id, part)
) PARTITION BY LIST (part);
ALTER TABLE {s}.closed_run ALTER result SET STORAGE EXTERNAL, ALTER failure SET STORAGE EXTERNAL;
CREATE INDEX closed_run_workflow_id_idx ON {s}.closed_run (workflow_id, closed_at);
CREATE INDEX closed_run_closed_at_idx ON {s}.closed_run (closed_at);
CREATE INDEX closed_run_created_at_idx ON {s}.closed_run (created_at);
CREATE INDEX closed_run_search_idx ON {s}.closed_run USING gin (search jsonb_path_ops)
    WITH (gin_pending_list_limit = 512) WHERE search IS NOT NULL;

CREATE TABLE {s}.history_p1 PARTITION OF {s}.history FOR VALUES IN (1);
CREATE TABLE {s}.closed_run_p1 PARTITION OF {s}.closed_run FOR VALUES IN (1);

-- Open the next partition: runs that start from now on live there. Returns its number. DDL, so it
-- is for the owner of the schema; a start that read the old number goes to the old partition.
CREATE FUNCTION {s}.add_part() RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    n integer;
BEGIN
    SELECT value::integer + 1 INTO n FROM {s}.meta WHERE name = 'current_part' FOR UPDATE;
    EXECUTE format('CREATE TABLE {s}.history_p%s PARTITION OF {s}.history FOR VALUES IN (%s)', n, n);
    EXECUTE format(
        'CREATE TABLE {s}.closed_run_p%s PARTITION OF {s}.closed_run FOR VALUES IN (%s)', n, n);
    UPDATE {s}.meta SET value = n::text WHERE name = 'current_part';
    RETURN n;
END $$;

-- A wake token of a run (kind 1, type is the workflow type) or a claimable attempt of an activity
-- (kind 2, type is its name). Insert and delete only. A token outlives what it is about: whoever
-- takes one looks again, so cancelling needs no index here. id is the place in the queue at its
-- priority, not a key: a fair queue gives places of its own (0007). Tokens are taken where the index
-- begins, so a vacuum has to clean it however few they are: each claim walks over what is left there.
CREATE TABLE {s}.task (
    id bigint GENERATED ALWAYS AS IDENTITY,
    queue text NOT NULL,
    priority smallint NOT NULL,
    kind smallint NOT NULL,
    type text NOT NULL,
    run_id uuid NOT NULL,
    ref integer NOT NULL DEFAULT 0,
    session bigint
) WITH (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_insert_scale_factor = 0.5,
    autovacuum_vacuum_cost_delay = 0, vacuum_truncate = off, vacuum_index_cleanup = on
);
CREATE INDEX task_shared_idx ON {s}.task (queue, kind, priority, id) WHERE session IS NULL;
CREATE INDEX task_owned_idx ON {s}.task (session) WHERE session IS NOT NULL;

CREATE TABLE {s}.timer (
    run_id uuid NOT NULL,
    ref integer NOT NULL,
    kind smallint NOT NULL,
    due_at timestamptz NOT NULL,
    PRIMARY KEY (run_id, ref, kind)
) WITH (
    autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_cost_delay = 0, vacuum_index_cleanup = on
);
CREATE INDEX timer_due_at_idx ON {s}.timer (due_at);

CREATE TABLE {s}.inbox (
    id bigint GENERATED ALWAYS AS IDENTITY,
    run_id uuid NOT NULL,
    kind smallint NOT NULL,
    ref integer NOT NULL DEFAULT 0,
    name text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    meta bytea,
    payload bytea,
    PRIMARY KEY (run_id, id)
) WITH (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_cost_delay = 0, vacuum_truncate = off
);

ALTER TABLE {s}.inbox ALTER payload SET STORAGE EXTERNAL;

-- Which messages an open run has had, so that a repeated send is a no-op even after the first was
-- read. Goes with the run.
CREATE TABLE {s}.request (
    run_id uuid NOT NULL,
    request_id text NOT NULL,
    PRIMARY KEY (run_id, request_id)
);

-- state: 0 waits for its retry timer, 1 queued, 2 claimed, 3 held: taken from the queue while its
-- fairness key had no place left, and first in line when it has one. policy is options, parsed.
-- crashes: how many workers in a row died while they had it.
CREATE TABLE {s}.activity (
    run_id uuid NOT NULL,
    ref integer NOT NULL,
    attempt integer NOT NULL,
    state smallint NOT NULL,
    priority smallint NOT NULL,
    crashes smallint NOT NULL DEFAULT 0,
    session bigint,
    token bigint,
    scheduled_at timestamptz NOT NULL,
    started_at timestamptz,
    name text NOT NULL,
    queue text NOT NULL,
    input bytea NOT NULL,
    options bytea NOT NULL,
    policy jsonb NOT NULL,
    last_failure bytea,
    details bytea,
    PRIMARY KEY (run_id, ref)
) WITH (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_cost_delay = 0
);
ALTER TABLE {s}.activity ALTER input SET STORAGE EXTERNAL;
CREATE INDEX activity_session_idx ON {s}.activity (session) WHERE session IS NOT NULL;
CREATE INDEX activity_running_idx ON {s}.activity (queue, (policy ->> 'fairness_key'))
    WHERE state = 2 AND policy ? 'fairness_key';
CREATE INDEX activity_held_idx
    ON {s}.activity (queue, (policy ->> 'fairness_key'), priority, scheduled_at) WHERE state = 3;
CREATE SEQUENCE {s}.activity_token CACHE 100;

-- Limits of the activities of a queue; a row per queue that has any. rate is in starts per second;
-- tokens is what its bucket had at refilled_at, at most burst. key_concurrency is for each fairness
-- key; held_after is the key where the last claim stopped looking for one that has room again.
CREATE TABLE {s}.queue_limit (
    queue text PRIMARY KEY,
    concurrency integer CHECK (concurrency >= 0),
    key_concurrency integer CHECK (key_concurrency >= 1),
    rate double precision CHECK (rate > 0),
    burst double precision CHECK (burst >= 1),
    tokens double precision NOT NULL DEFAULT 0,
    refilled_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    held_after text NOT NULL DEFAULT ''
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- A queue, at one priority, that is shared out by fairness keys; now is the place in it (task.id) that
-- was served last. Only such a queue has a row, and loses it when it has been idle for a while.
CREATE TABLE {s}.fair_clock (
    queue text NOT NULL,
    priority smallint NOT NULL,
    now bigint NOT NULL,
    PRIMARY KEY (queue, priority)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- next is where the next attempt of a key is put, unless the clock is past that: then the row says
-- nothing and may go. charged is what the last insert moved it by.
CREATE TABLE {s}.fair_key (
    queue text NOT NULL,
    priority smallint NOT NULL,
    key text NOT NULL,
    next bigint NOT NULL,
    charged bigint NOT NULL,
    PRIMARY KEY (queue, priority, key)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

CREATE TABLE {s}.response (
    request_id text PRIMARY KEY,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    payload bytea,
    failure bytea
);
CREATE INDEX response_created_at_idx ON {s}.response (created_at);

CREATE TABLE {s}.type_info (
    kind text NOT NULL,
    name text NOT NULL,
    queue text NOT NULL,
    signature text NOT NULL,
    doc text NOT NULL,
    seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    takes_plain boolean NOT NULL DEFAULT true,
    PRIMARY KEY (kind, name)
);
