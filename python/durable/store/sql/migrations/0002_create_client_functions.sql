-- What clients and every insert of a message do. Arrays are parallel; one call, many rows.
--
-- The settings on each function pin its plans to nested loops over indexes, whatever the statistics
-- say: each of these arrays is small, each table can be huge. EXISTS with anything but AND around it
-- may still become a hash of the whole table, planned while that was small, so such a look is a
-- scalar sub-select, which can only be done row by row. Where statistics say that a table has many
-- pages and no row (it was emptied, and vacuumed), an equality that could be merged makes the planner
-- walk through its whole index, and crowds come later: hence `= ANY (ARRAY[x])`, which only looks up.
-- For the same reason a later column of an index is compared as `x + 0` where it is one fixed value, a
-- sort is by what comes from the array, and a row that need only be there is a scalar sub-select.

-- Insert one wake token per run, for the session that owns it now.
CREATE FUNCTION {s}.wake(p_runs uuid[]) RETURNS void LANGUAGE sql AS $$
    INSERT INTO {s}.task (queue, priority, kind, type, run_id, session)
    SELECT r.queue, r.priority, 1, r.workflow_type, r.run_id, r.session
    FROM (SELECT DISTINCT unnest(p_runs) AS run_id) i
    JOIN {s}.run r ON r.run_id = ANY (ARRAY[i.run_id])
$$;

-- The same for runs whose time has come, as if a thousand others had been there before: many timers
-- may be due in one instant, and what comes now, from somebody who waits, does not stand behind them.
CREATE FUNCTION {s}.wake_late(p_runs uuid[]) RETURNS void LANGUAGE sql AS $$
    INSERT INTO {s}.task (id, queue, priority, kind, type, run_id, session) OVERRIDING SYSTEM VALUE
    SELECT nextval('{s}.task_id_seq') + 1000, r.queue, r.priority, 1, r.workflow_type, r.run_id,
           r.session
    FROM (SELECT DISTINCT unnest(p_runs) AS run_id) i
    JOIN {s}.run r ON r.run_id = ANY (ARRAY[i.run_id])
$$;

-- Send a hint together with what this transaction writes: one trip less for who waits for it. A commit
-- that notifies holds a lock of the whole server until it is on disk, so only one transaction does so at
-- a time; any other is told that it did not, and hints when it is committed.
CREATE FUNCTION {s}.tell(p_channel text, p_payload text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF p_channel IS NULL OR NOT pg_try_advisory_xact_lock(hashtextextended('{s} tell', 0)) THEN
        RETURN false;
    END IF;
    PERFORM pg_notify(p_channel, p_payload);
    RETURN true;
END $$;

-- Start runs. Insert first, look after: the unique workflow id makes a concurrent start or close of
-- the same id wait, so what the later statements see is final. Locks in order of workflow id.
-- p_due_us: absolute start time, or NULL for p_delay_us from now. Returns the run that has the id, or
-- the one that holds the key, then with its workflow id and the time it was made. No run at all: the
-- one in the way was gone when we looked, so the start is to be sent again.
CREATE FUNCTION {s}.start_runs(
    p_run_id uuid[], p_workflow_id text[], p_type text[], p_queue text[], p_priority smallint[],
    p_version text[], p_batch bytea[], p_head bigint[], p_delay_us bigint[], p_due_us bigint[],
    p_timeout_us bigint[], p_execution_us bigint[], p_reuse smallint[], p_parent uuid[],
    p_parent_ref integer[], p_search text[], p_dedup text[] DEFAULT NULL,
    p_debounce text[] DEFAULT NULL
) RETURNS TABLE (run_id uuid, state smallint, holder_id text, holder_us bigint) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    v_new uuid[];
    v_taken uuid[];
    v_part integer;
    -- All of them are new: then no set has to be compared with another, which would take the square
    -- of their number.
    v_all boolean;
    -- All of them begin now and may take their time.
    v_plain boolean := NOT EXISTS (
        SELECT FROM unnest(p_delay_us, p_due_us, p_timeout_us, p_execution_us)
                    AS i(delay, due, timeout, execution)
        WHERE i.delay > 0 OR i.due IS NOT NULL OR i.timeout IS NOT NULL
           OR i.execution IS NOT NULL);
BEGIN
    SELECT value::integer INTO v_part FROM {s}.meta WHERE name = 'current_part';
    WITH i AS (
        SELECT * FROM unnest(
            p_run_id, p_workflow_id, p_type, p_queue, p_priority, p_version, p_head, p_delay_us,
            p_due_us, p_parent, p_parent_ref, p_search, p_dedup, p_debounce
        ) AS i(run_id, workflow_id, type, queue, priority, version, head, delay_us, due_us, parent,
               parent_ref, search, dedup, debounce)
        ORDER BY workflow_id
    ), started AS (
        INSERT INTO {s}.run (run_id, workflow_id, workflow_type, queue, priority, version, head_hash,
                             part, state, parent_run_id, parent_ref, search, dedup_key,
                             debounce_key)
        SELECT i.run_id, i.workflow_id, i.type, i.queue, i.priority, i.version, i.head, v_part,
               CASE WHEN coalesce({s}.ts(i.due_us), clock_timestamp()
                                  + i.delay_us * interval '1 microsecond') > clock_timestamp()
                    THEN 2 ELSE 0 END,
               i.parent, i.parent_ref, i.search::jsonb, i.dedup, i.debounce
        FROM i
        ON CONFLICT DO NOTHING
        RETURNING run_id
    ) SELECT array_agg(run_id) INTO v_new FROM started;

    IF v_new IS NOT NULL THEN
        v_all := cardinality(v_new) = cardinality(p_run_id);
        -- The id is free among the open runs; is it among the closed ones? A run id is used once.
        WITH blocked AS (
            SELECT i.run_id
            FROM unnest(p_run_id, p_workflow_id, p_reuse) AS i(run_id, workflow_id, reuse)
            WHERE (v_all OR i.run_id = ANY (v_new)) AND (
                (SELECT true FROM {s}.closed_run c WHERE c.run_id = i.run_id LIMIT 1)
                OR i.reuse <> 1 AND (
                    SELECT i.reuse = 0 OR c.state = 10 FROM {s}.closed_run c
                    WHERE c.workflow_id = i.workflow_id ORDER BY c.closed_at DESC LIMIT 1))
        ), undone AS (
            DELETE FROM {s}.run r USING blocked b WHERE r.run_id = ANY (ARRAY[b.run_id])
        ) SELECT array_agg(run_id) INTO v_taken FROM blocked;
        v_all := v_all AND v_taken IS NULL;

        IF v_all AND v_plain THEN
            WITH history AS (
                INSERT INTO {s}.history (part, run_id, seq, batch)
                SELECT v_part, i.run_id, 0, i.batch
                FROM unnest(p_run_id, p_batch) AS i(run_id, batch)
            )
            INSERT INTO {s}.task (queue, priority, kind, type, run_id)
            SELECT i.queue, i.priority, 1, i.type, i.run_id
            FROM unnest(p_run_id, p_queue, p_priority, p_type)
                 AS i(run_id, queue, priority, type);
            RETURN QUERY SELECT i.run_id, 0::smallint, NULL::text, NULL::bigint
            FROM unnest(p_run_id) AS i(run_id);
            RETURN;
        ELSIF v_all THEN
            INSERT INTO {s}.history (part, run_id, seq, batch)
            SELECT v_part, i.run_id, 0, i.batch
            FROM unnest(p_run_id, p_batch) AS i(run_id, batch);
        ELSE
            INSERT INTO {s}.history (part, run_id, seq, batch)
            SELECT v_part, i.run_id, 0, i.batch
            FROM unnest(p_run_id, p_workflow_id, p_batch) AS i(run_id, workflow_id, batch)
            WHERE i.run_id = ANY (v_new)
              AND (SELECT r.workflow_id = i.workflow_id FROM {s}.run r WHERE r.run_id = i.run_id);
        END IF;

        INSERT INTO {s}.task (queue, priority, kind, type, run_id)
        SELECT r.queue, r.priority, 1, r.workflow_type, r.run_id
        FROM unnest(v_new) WITH ORDINALITY AS i(run_id, n)
        JOIN {s}.run r ON r.run_id = ANY (ARRAY[i.run_id])
        WHERE r.state = 0;

        IF NOT v_plain THEN
            INSERT INTO {s}.timer (run_id, ref, kind, due_at)
            SELECT r.run_id, 0, t.kind, t.due_at
            FROM unnest(p_run_id, p_delay_us, p_due_us, p_timeout_us, p_execution_us)
                 AS i(run_id, delay_us, due_us, timeout_us, execution_us)
            JOIN {s}.run r ON r.run_id = ANY (ARRAY[i.run_id])
            CROSS JOIN LATERAL (
                SELECT coalesce({s}.ts(i.due_us),
                                r.created_at + i.delay_us * interval '1 microsecond') AS due_at
            ) start
            CROSS JOIN LATERAL (
                SELECT 4 AS kind, start.due_at WHERE r.state = 2
                UNION ALL
                SELECT 5, greatest(start.due_at, r.created_at)
                          + i.timeout_us * interval '1 microsecond'
                WHERE i.timeout_us IS NOT NULL
                UNION ALL
                SELECT 7, greatest(start.due_at, r.created_at)
                          + i.execution_us * interval '1 microsecond'
                WHERE i.execution_us IS NOT NULL
            ) t
            WHERE v_all OR i.run_id = ANY (v_new)
            ON CONFLICT DO NOTHING;
        END IF;
    END IF;

    IF v_all THEN
        RETURN QUERY SELECT i.run_id, 0::smallint, NULL::text, NULL::bigint
        FROM unnest(p_run_id) AS i(run_id);
        RETURN;
    END IF;
    RETURN QUERY
    SELECT coalesce(mine.run_id, keyed.run_id, opened.run_id, closed.run_id),
           coalesce(mine.state, keyed.state, opened.state, closed.state),
           keyed.workflow_id, {s}.us(keyed.created_at)
    FROM unnest(p_run_id, p_workflow_id, p_type, p_queue, p_dedup, p_debounce) WITH ORDINALITY
         AS i(run_id, workflow_id, type, queue, dedup, debounce, n)
    LEFT JOIN LATERAL (
        SELECT i.run_id, 0::smallint AS state
        WHERE i.run_id = ANY (v_new) AND i.run_id <> ALL (coalesce(v_taken, '{}'))
              AND (SELECT r.workflow_id = i.workflow_id FROM {s}.run r WHERE r.run_id = i.run_id)
    ) mine ON true
    LEFT JOIN LATERAL (
        SELECT r.run_id, CASE WHEN r.pause IS NULL THEN r.state ELSE 3::smallint END AS state,
               r.workflow_id, r.created_at
        FROM {s}.run r
        WHERE r.dedup_key = i.dedup AND r.queue = i.queue AND r.workflow_type = i.type
          AND mine.run_id IS NULL
        UNION ALL
        SELECT r.run_id, CASE WHEN r.pause IS NULL THEN r.state ELSE 3::smallint END,
               r.workflow_id, r.created_at
        FROM {s}.run r
        WHERE r.debounce_key = i.debounce AND r.queue = i.queue AND r.workflow_type = i.type
          AND mine.run_id IS NULL
        LIMIT 1
    ) keyed ON true
    LEFT JOIN LATERAL (
        SELECT r.run_id, CASE WHEN r.pause IS NULL THEN r.state ELSE 3::smallint END AS state
        FROM {s}.run r
        WHERE r.workflow_id = ANY (ARRAY[i.workflow_id])
          AND mine.run_id IS NULL AND keyed.run_id IS NULL
    ) opened ON true
    LEFT JOIN LATERAL (
        SELECT c.run_id, c.state FROM {s}.closed_run c
        WHERE c.workflow_id = i.workflow_id AND mine.run_id IS NULL AND keyed.run_id IS NULL
          AND opened.run_id IS NULL
        ORDER BY c.run_id = i.run_id DESC, c.closed_at DESC LIMIT 1
    ) closed ON true
    ORDER BY i.n;
END $$;

-- Give a debounced run, which has not begun, another input and another time to begin. False when it
-- has begun, or is about to end: then its key is free for the next start.
CREATE FUNCTION {s}.replace_start(
    p_run_id uuid, p_version text, p_priority smallint, p_batch bytea, p_head bigint,
    p_due_us bigint, p_timeout_us bigint, p_execution_us bigint, p_search text
) RETURNS boolean LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    v_part integer;
BEGIN
    SELECT part INTO v_part FROM {s}.run
    WHERE run_id = p_run_id AND state = 2 AND session IS NULL AND debounce_key IS NOT NULL
    FOR NO KEY UPDATE;
    IF v_part IS NULL OR (SELECT true FROM {s}.inbox
                          WHERE run_id = p_run_id AND kind IN (6, 13, 14) LIMIT 1) THEN
        UPDATE {s}.run SET debounce_key = NULL
        WHERE run_id = p_run_id AND debounce_key IS NOT NULL;
        -- Unless it is this very input: sent again, as the answer was lost.
        SELECT part INTO v_part FROM (
            SELECT part FROM {s}.run WHERE run_id = p_run_id
            UNION ALL SELECT part FROM {s}.closed_run WHERE run_id = p_run_id LIMIT 1) found;
        RETURN coalesce((SELECT batch = p_batch FROM {s}.history
                         WHERE part = v_part AND run_id = p_run_id AND seq = 0), false);
    END IF;
    UPDATE {s}.run SET version = p_version, priority = p_priority, head_hash = p_head,
                       search = p_search::jsonb
    WHERE run_id = p_run_id;
    UPDATE {s}.history SET batch = p_batch WHERE part = v_part AND run_id = p_run_id AND seq = 0;
    UPDATE {s}.timer SET due_at = {s}.ts(p_due_us)
    WHERE run_id = p_run_id AND ref = 0 AND kind = 4;
    DELETE FROM {s}.timer WHERE run_id = p_run_id AND ref = 0 AND kind IN (5, 7);
    INSERT INTO {s}.timer (run_id, ref, kind, due_at)
    SELECT p_run_id, 0, t.kind, {s}.ts(p_due_us) + t.us * interval '1 microsecond'
    FROM (VALUES (5, p_timeout_us), (7, p_execution_us)) AS t(kind, us) WHERE t.us IS NOT NULL;
    RETURN true;
END $$;

-- Send messages to open runs, by run id or else by workflow id. KEY SHARE holds off a close but not
-- a flush; waiting for a close that is under way, we look again: its successor may have the id now.
-- A message without an id of its own has that of the call, if there is one: a call that is repeated
-- sends nothing twice. Returns the run that each message went to (the first time, when it is repeated),
-- or NULL.
CREATE FUNCTION {s}.send(
    p_kind smallint[], p_workflow_id text[], p_run_id uuid[], p_name text[], p_meta bytea[],
    p_payload bytea[], p_ref integer[], p_request_id text[], p_call text DEFAULT NULL
) RETURNS TABLE (run_id uuid) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    v_one uuid;
    v_wanted uuid[];
    v_target uuid[];
    v_held uuid[];
BEGIN
    -- Mostly one run gets it all: that is found and held in one step.
    IF p_run_id[1] = ALL (p_run_id) THEN
        SELECT r.run_id INTO v_one FROM {s}.run r WHERE r.run_id = p_run_id[1] FOR KEY SHARE;
    ELSIF p_workflow_id[1] = ALL (p_workflow_id) AND cardinality(array_remove(p_run_id, NULL)) = 0 THEN
        SELECT r.run_id INTO v_one FROM {s}.run r WHERE r.workflow_id = p_workflow_id[1] FOR KEY SHARE;
    END IF;
    IF v_one IS NOT NULL THEN
        v_target := array_fill(v_one, ARRAY[cardinality(p_kind)]);
    ELSE
        FOR attempt IN 1..5 LOOP
            SELECT array_agg(r.run_id ORDER BY i.n) INTO v_wanted
            FROM unnest(p_workflow_id, p_run_id) WITH ORDINALITY AS i(workflow_id, run_id, n)
            LEFT JOIN LATERAL (
                SELECT a.run_id FROM {s}.run a WHERE a.run_id = i.run_id
                UNION ALL
                SELECT b.run_id FROM {s}.run b WHERE i.run_id IS NULL AND b.workflow_id = i.workflow_id
            ) r ON true;
            SELECT array_agg(run_id) INTO v_held FROM (
                SELECT r.run_id FROM (SELECT DISTINCT unnest(v_wanted) AS run_id) i
                JOIN {s}.run r ON r.run_id = ANY (ARRAY[i.run_id])
                ORDER BY i.run_id FOR KEY SHARE OF r
            ) held;
            v_target := ARRAY(
                SELECT CASE WHEN w = ANY (v_held) THEN w END
                FROM unnest(v_wanted) WITH ORDINALITY AS t(w, n) ORDER BY n);
            EXIT WHEN NOT EXISTS (
                SELECT FROM unnest(v_wanted, v_target) AS t(w, got) WHERE w IS NOT NULL AND got IS NULL);
        END LOOP;
    END IF;

    IF v_one IS NOT NULL AND cardinality(array_remove(p_request_id, NULL)) = 0
       AND 200 <> ALL (p_kind)
    THEN
        INSERT INTO {s}.request (run_id, request_id)
        SELECT v_one, p_call WHERE p_call IS NOT NULL ON CONFLICT DO NOTHING;
        IF FOUND OR p_call IS NULL THEN
            INSERT INTO {s}.inbox (run_id, kind, ref, name, meta, payload)
            SELECT v_one, kind, ref, name, meta, payload
            FROM unnest(p_kind, p_name, p_meta, p_payload, p_ref)
                 WITH ORDINALITY AS t(kind, name, meta, payload, ref, n) ORDER BY n;
        END IF;
    ELSE
        -- Of messages with one request id the first counts, if it is the run's first with that id; of those
        -- with the call's, all. A query is not kept in mind. Found by hashing, not by a join: there may be
        -- a thousand.
        WITH i AS MATERIALIZED (
            SELECT *, request_id IS NULL OR kind = 200 AS is_free,
                   row_number() OVER (PARTITION BY run_id, request_id, kind = 200 ORDER BY n) AS nth
            FROM (
                SELECT run_id, kind, name, meta, payload, ref, n, own IS NULL AS is_of_call,
                       coalesce(own, p_call) AS request_id
                FROM unnest(v_target, p_kind, p_name, p_meta, p_payload, p_ref, p_request_id)
                     WITH ORDINALITY AS t(run_id, kind, name, meta, payload, ref, own, n)
                WHERE run_id IS NOT NULL
            ) given
        ), fresh AS (
            INSERT INTO {s}.request (run_id, request_id)
            SELECT run_id, request_id FROM i WHERE NOT is_free AND nth = 1
            ORDER BY 1, 2
            ON CONFLICT DO NOTHING
            RETURNING run_id, request_id
        )
        INSERT INTO {s}.inbox (run_id, kind, ref, name, meta, payload)
        SELECT i.run_id, i.kind, i.ref, i.name, i.meta, i.payload FROM i
        WHERE i.is_free
           OR (i.nth = 1 OR i.is_of_call)
              AND (i.run_id, i.request_id) IN (SELECT f.run_id, f.request_id FROM fresh f)
        ORDER BY i.n;
    END IF;

    PERFORM {s}.wake(array_remove(v_target, NULL));
    RETURN QUERY SELECT t.run_id FROM unnest(v_target) WITH ORDINALITY AS t(run_id, n) ORDER BY n;
END $$;

-- The same with a hint in the transaction (see tell), which names the sessions that own the runs: nobody
-- else can read this mail. Returns besides whether the hint is sent.
CREATE FUNCTION {s}.send_and_tell(
    p_kind smallint[], p_workflow_id text[], p_run_id uuid[], p_name text[], p_meta bytea[],
    p_payload bytea[], p_ref integer[], p_request_id text[], p_call text, p_channel text
) RETURNS TABLE (run_id uuid, told boolean) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    v_runs uuid[] := ARRAY(
        SELECT s.run_id
        FROM {s}.send(p_kind, p_workflow_id, p_run_id, p_name, p_meta, p_payload, p_ref, p_request_id,
                      p_call) WITH ORDINALITY AS s(run_id, n) ORDER BY s.n);
    v_sessions text;
BEGIN
    SELECT CASE WHEN bool_and(r.session IS NOT NULL) THEN string_agg(DISTINCT r.session::text, ',') END
    INTO v_sessions FROM {s}.run r WHERE r.run_id = ANY (v_runs);
    told := cardinality(array_remove(v_runs, NULL)) > 0
            AND {s}.tell(p_channel, 'runs' || coalesce(':' || v_sessions, ''));
    RETURN QUERY SELECT t.run_id, told FROM unnest(v_runs) WITH ORDINALITY AS t(run_id, n) ORDER BY t.n;
END $$;

-- Unread mail of runs, each from its floor on; below zero is what stands before all other mail. What was
-- read and is not cleaned up yet stands before what is new: a scan from the floor on passes it by, and one
-- in the order of the index notes what is dead, which a bitmap never does. A function for its plan, as
-- closed_views is.
CREATE FUNCTION {s}.mail_after(
    p_runs uuid[], p_limit integer, p_floors bigint[], p_servers bigint[]
) RETURNS TABLE (
    id bigint, run_id text, kind smallint, ref integer, name text, meta bytea, payload bytea,
    created_us bigint, server bigint, snapshot_xmin bigint, snapshot_xmax bigint
) LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET enable_bitmapscan = off SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH now AS MATERIALIZED (
        SELECT pg_current_snapshot() AS snapshot, {s}.us(pg_postmaster_start_time()) AS server
    )
    SELECT b.id, b.run_id::text, b.kind, b.ref, b.name, b.meta, b.payload, {s}.us(b.created_at),
           now.server, pg_snapshot_xmin(now.snapshot)::text::bigint,
           pg_snapshot_xmax(now.snapshot)::text::bigint
    FROM now, unnest(p_runs, p_floors, p_servers) AS i(run_id, floor, server), LATERAL (
        (SELECT * FROM {s}.inbox x WHERE x.run_id = i.run_id AND x.id < 0 ORDER BY x.id LIMIT p_limit)
        UNION ALL
        (SELECT * FROM {s}.inbox x
         WHERE x.run_id = i.run_id AND x.id > CASE WHEN i.server = now.server THEN i.floor ELSE 0 END
         ORDER BY x.id LIMIT p_limit)
    ) b ORDER BY b.id;
END $$;

-- Send each message to the open run that has the workflow id, or else start the run and send it
-- there: when that commits, the run has its message. A repeated call names the same run and request
-- ids: whatever became of the run that it started, the message is not sent again.
-- Returns the run that took the message, or the closed one that forbids a start.
CREATE FUNCTION {s}.start_and_send(
    p_run_id uuid[], p_workflow_id text[], p_type text[], p_queue text[], p_priority smallint[],
    p_version text[], p_batch bytea[], p_head bigint[], p_delay_us bigint[], p_due_us bigint[],
    p_timeout_us bigint[], p_execution_us bigint[], p_reuse smallint[], p_parent uuid[],
    p_parent_ref integer[], p_search text[],
    p_kind smallint[], p_name text[], p_meta bytea[], p_payload bytea[], p_request_id text[]
) RETURNS TABLE (run_id uuid, state smallint) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    v_run uuid[];
    v_state smallint[];
    v_target uuid[];
    v_sent uuid[];
BEGIN
    -- A run that closes after it was found to be open is looked for again: another may have the id.
    FOR attempt IN 1..5 LOOP
        SELECT array_agg(s.run_id ORDER BY n), array_agg(s.state ORDER BY n) INTO v_run, v_state
        FROM {s}.start_runs(
            p_run_id, p_workflow_id, p_type, p_queue, p_priority, p_version, p_batch, p_head,
            p_delay_us, p_due_us, p_timeout_us, p_execution_us, p_reuse, p_parent, p_parent_ref,
            p_search) WITH ORDINALITY AS s(run_id, state, holder_id, holder_us, n);
        SELECT array_agg(coalesce(done.run_id, i.run_id) ORDER BY n),
               array_agg(coalesce(done.state, i.state) ORDER BY n),
               array_agg(CASE WHEN done.run_id IS NULL AND i.state < 10 THEN i.run_id END ORDER BY n)
        INTO v_run, v_state, v_target
        FROM unnest(v_run, v_state, p_run_id) WITH ORDINALITY AS i(run_id, state, mine, n)
        LEFT JOIN LATERAL (
            SELECT c.run_id, c.state FROM {s}.closed_run c WHERE c.run_id = i.mine LIMIT 1
        ) done ON true;
        SELECT array_agg(s.run_id ORDER BY n) INTO v_sent
        FROM {s}.send(
            p_kind, array_fill(NULL::text, ARRAY[cardinality(p_kind)]), v_target, p_name, p_meta,
            p_payload, array_fill(0, ARRAY[cardinality(p_kind)]), p_request_id
        ) WITH ORDINALITY AS s(run_id, n);
        EXIT WHEN v_sent IS NOT DISTINCT FROM v_target;
    END LOOP;
    IF v_sent IS DISTINCT FROM v_target THEN
        RAISE EXCEPTION 'the runs closed as often as they were found' USING ERRCODE = '40001';
    END IF;
    RETURN QUERY SELECT t.run_id, t.state
    FROM unnest(v_run, v_state) WITH ORDINALITY AS t(run_id, state, n) ORDER BY n;
END $$;

-- Those of the runs that are closed. A function for its plan: that of a statement over all parts of a
-- table would be made again for each call, and takes ten times as long as the look itself.
CREATE FUNCTION {s}.closed_views(p_runs uuid[]) RETURNS TABLE (
    run_id text, workflow_id text, workflow_type text, queue text, version text, state smallint,
    created_us bigint, closed_us bigint, next_seq integer, head_hash bigint, part integer,
    result bytea, failure bytea, search text, due_us bigint
) LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    RETURN QUERY
    SELECT c.run_id::text, c.workflow_id, c.workflow_type, c.queue, c.version, c.state,
           {s}.us(c.created_at), {s}.us(c.closed_at), c.next_seq, c.head_hash, c.part, c.result,
           c.failure, c.search::text, NULL::bigint
    FROM {s}.closed_run c WHERE c.run_id = ANY (p_runs);
END $$;
