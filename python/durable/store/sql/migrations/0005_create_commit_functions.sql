-- The group commit: these are called one after another in one transaction, commit_runs first. It
-- decides which runs go through; the others ask for the rows that it wrote (xmin is our own
-- transaction), so what was refused writes nothing anywhere.
--
-- (x IN (SELECT ...)) IS TRUE, here and elsewhere: a condition that is IN alone becomes a join, which
-- compares each with each, as the statements know no hash joins; as a value it is looked up in a hash.

-- Compare-and-swap of each run, its history row and its consumed inbox rows. Input is in order of
-- run id, and so are the locks. Returns one digit per run: 0 accepted, 1 stale, 2 unread.
--
-- A close needs the run row FOR UPDATE, so that no message is on its way, and then a fresh look at
-- the inbox; it never waits for a sender. So does a release: a sender that is under way would wake the
-- owner that is leaving, and a release that cannot see its message would wake nobody. p_close: 0 no,
-- 1 only if all is read, 2 whatever is unread, 3 the same, but not when that is the word that the run
-- has been paused.
CREATE FUNCTION {s}.commit_runs(
    p_flush bigint, p_run uuid[], p_fence bigint[], p_seq integer[], p_batch bytea[],
    p_head bigint[], p_close smallint[], p_read_run uuid[], p_read_id bigint[]
) RETURNS TABLE (verdicts text, now_us bigint) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    v_unread uuid[] := '{}';
    v_closable uuid[];
    v_count integer;
    -- Comparing two arrays takes the product of their sizes, so it is done only where they differ.
    v_some_held boolean;
BEGIN
    IF p_close IS NOT NULL THEN
        v_closable := ARRAY(
            SELECT r.run_id FROM unnest(p_run, p_close) AS i(run_id, close)
            JOIN {s}.run r ON r.run_id = ANY (ARRAY[i.run_id])
            WHERE i.close > 0 ORDER BY i.run_id FOR UPDATE OF r SKIP LOCKED);
        v_some_held := cardinality(v_closable) < cardinality(p_close)
            AND cardinality(v_closable) < (SELECT count(*) FROM unnest(p_close) c WHERE c > 0);
        v_unread := ARRAY(
            SELECT i.run_id FROM unnest(p_run, p_close) AS i(run_id, close)
            WHERE i.close > 0 AND (
                v_some_held AND i.run_id <> ALL (v_closable)
                OR i.close <> 2 AND (
                    SELECT true FROM {s}.inbox b
                    WHERE b.run_id = i.run_id
                      AND (b.kind = 202 OR i.close = 1 AND b.kind IN (5, 6, 201))
                      AND (b.id IN (SELECT unnest(p_read_id))) IS NOT TRUE LIMIT 1)));
    END IF;

    WITH i AS (
        SELECT * FROM unnest(p_run, p_fence, p_seq, p_batch, p_head)
                      AS i(run_id, fence, seq, batch, head)
    ), ok AS (
        UPDATE {s}.run r
        SET next_seq = r.next_seq + (i.batch IS NOT NULL)::integer, head_hash = i.head,
            flush = p_flush,
            -- A run's first batch only says what its start made it ask for: nothing has run yet.
            crashes = CASE WHEN i.seq = 1 AND i.batch IS NOT NULL THEN r.crashes ELSE 0 END,
            parks = CASE WHEN i.batch IS NULL THEN r.parks ELSE 0 END
        FROM i
        WHERE r.run_id = ANY (ARRAY[i.run_id]) AND r.fence = i.fence AND r.next_seq = i.seq
          AND r.flush <> p_flush AND r.run_id <> ALL (v_unread)
        RETURNING r.run_id, r.part, i.seq, i.batch
    ), written AS (
        INSERT INTO {s}.history (part, run_id, seq, batch)
        SELECT part, run_id, seq, batch FROM ok WHERE batch IS NOT NULL
    ), consumed AS (
        DELETE FROM {s}.inbox b USING unnest(p_read_run, p_read_id) AS c(run_id, id)
        WHERE b.run_id = ANY (ARRAY[c.run_id]) AND b.id = c.id
          AND (c.run_id IN (SELECT run_id FROM ok)) IS TRUE
    ) SELECT count(*) INTO v_count FROM ok;

    now_us := {s}.us(clock_timestamp());
    IF v_count = cardinality(p_run) THEN
        verdicts := repeat('0', v_count);
    ELSE
        -- Whose flush it says is ours was written: now, or by a first try whose answer was lost.
        SELECT string_agg(CASE
            WHEN r.run_id IS NOT NULL AND r.flush = p_flush THEN '0'
            WHEN r.run_id IS NULL OR r.fence <> i.fence OR r.next_seq <> i.seq THEN
                CASE WHEN (
                    SELECT (SELECT h.batch = i.batch FROM {s}.history h
                            WHERE h.part = c.part AND h.run_id = c.run_id AND h.seq = i.seq)
                    FROM {s}.closed_run c
                    WHERE c.run_id = i.run_id AND c.head_hash = i.head LIMIT 1
                ) THEN '0' ELSE '1' END
            ELSE '2' END, '' ORDER BY i.n)
        INTO verdicts
        FROM unnest(p_run, p_fence, p_seq, p_batch, p_head) WITH ORDINALITY
             AS i(run_id, fence, seq, batch, head, n)
        LEFT JOIN {s}.run r ON r.run_id = ANY (ARRAY[i.run_id]);
    END IF;
    RETURN NEXT;
END $$;

-- Those of the runs that this transaction has written.
CREATE FUNCTION {s}.mine(p_runs uuid[]) RETURNS SETOF uuid LANGUAGE sql STABLE ROWS 10
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
    SELECT r.run_id FROM (SELECT DISTINCT unnest(p_runs) AS run_id) i
    JOIN {s}.run r ON r.run_id = ANY (ARRAY[i.run_id])
    WHERE r.xmin = pg_current_xact_id()::xid
$$;

CREATE FUNCTION {s}.commit_timers(
    p_run uuid[], p_ref integer[], p_kind smallint[], p_due_us bigint[],
    p_done_run uuid[], p_done_ref integer[]
) RETURNS void LANGUAGE sql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
    DELETE FROM {s}.timer t
    USING unnest(p_done_run, p_done_ref) AS i(run_id, ref)
    WHERE t.run_id = ANY (ARRAY[i.run_id]) AND t.ref = i.ref AND t.kind + 0 = 1
      AND (i.run_id IN (SELECT {s}.mine(p_done_run))) IS TRUE;
    INSERT INTO {s}.timer (run_id, ref, kind, due_at)
    SELECT i.run_id, i.ref, i.kind, {s}.ts(i.due_us)
    FROM unnest(p_run, p_ref, p_kind, p_due_us) AS i(run_id, ref, kind, due_us)
    WHERE (i.run_id IN (SELECT {s}.mine(p_run))) IS TRUE
    ON CONFLICT (run_id, ref, kind) DO UPDATE SET due_at = excluded.due_at
$$;

CREATE FUNCTION {s}.commit_activities(
    p_run uuid[], p_ref integer[], p_name text[], p_queue text[], p_priority smallint[],
    p_attempt integer[], p_input bytea[], p_options bytea[], p_delay_us bigint[],
    p_failure bytea[], p_details bytea[], p_scheduled_us bigint[]
) RETURNS void LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    v_run uuid[];
    v_ref integer[];
    v_delay bigint[];
BEGIN
    WITH i AS MATERIALIZED (
        SELECT * FROM unnest(p_run, p_ref, p_name, p_queue, p_priority, p_attempt, p_input, p_options,
                             p_delay_us, p_failure, p_details, p_scheduled_us) WITH ORDINALITY
            AS i(run_id, ref, name, queue, priority, attempt, input, options, delay_us, failure,
                 details, scheduled_us, n)
        WHERE (run_id IN (SELECT {s}.mine(p_run))) IS TRUE
    ), queued AS (
        INSERT INTO {s}.activity AS a (run_id, ref, attempt, state, priority, scheduled_at, name,
                                       queue, input, options, policy, last_failure, details)
        SELECT i.run_id, i.ref, i.attempt, CASE WHEN i.delay_us > 0 THEN 0 ELSE 1 END, i.priority,
               CASE WHEN i.scheduled_us > 0 THEN {s}.ts(i.scheduled_us) ELSE clock_timestamp() END,
               i.name, i.queue, i.input, i.options,
               coalesce(nullif(convert_from(i.options, 'UTF8'), ''), '{}')::jsonb,
               i.failure, i.details
        FROM i ORDER BY i.run_id, i.ref
        ON CONFLICT (run_id, ref) DO UPDATE
        SET attempt = excluded.attempt, state = excluded.state, priority = excluded.priority,
            session = NULL, token = NULL, started_at = NULL, name = excluded.name, queue = excluded.queue,
            input = excluded.input, options = excluded.options, policy = excluded.policy,
            last_failure = excluded.last_failure, details = excluded.details
    )
    SELECT array_agg(i.run_id ORDER BY i.n), array_agg(i.ref ORDER BY i.n),
           array_agg(i.delay_us ORDER BY i.n)
    INTO v_run, v_ref, v_delay FROM i;
    IF v_run IS NOT NULL THEN
        PERFORM {s}.enqueue(v_run, v_ref, v_delay);
    END IF;
END $$;

-- Activities that are void (cancelled). Their task rows are dropped when somebody takes them.
CREATE FUNCTION {s}.commit_activities_done(p_run uuid[], p_ref integer[]) RETURNS void LANGUAGE sql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
    WITH i AS MATERIALIZED (
        SELECT * FROM unnest(p_run, p_ref) AS i(run_id, ref) WHERE (run_id IN (SELECT {s}.mine(p_run))) IS TRUE
    ), locked AS MATERIALIZED (
        SELECT a.run_id, a.ref FROM i
        JOIN {s}.activity a ON a.run_id = ANY (ARRAY[i.run_id]) AND a.ref = i.ref
        ORDER BY i.run_id, i.ref FOR UPDATE OF a
    ), gone AS (
        DELETE FROM {s}.activity a USING locked l
        WHERE a.run_id = ANY (ARRAY[l.run_id]) AND a.ref = l.ref
    )
    DELETE FROM {s}.timer t USING i
    WHERE t.run_id = ANY (ARRAY[i.run_id]) AND t.ref = i.ref AND t.kind + 0 IN (2, 3)
$$;

CREATE FUNCTION {s}.commit_responses(
    p_run uuid[], p_request_id text[], p_payload bytea[], p_failure bytea[]
) RETURNS void LANGUAGE sql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
    INSERT INTO {s}.response (request_id, payload, failure)
    SELECT DISTINCT ON (i.request_id) i.request_id, i.payload, i.failure
    FROM unnest(p_run, p_request_id, p_payload, p_failure) WITH ORDINALITY
         AS i(run_id, request_id, payload, failure, n)
    WHERE (i.run_id IN (SELECT {s}.mine(p_run))) IS TRUE
    ORDER BY i.request_id, i.n DESC
    ON CONFLICT (request_id) DO UPDATE
    SET payload = excluded.payload, failure = excluded.failure, created_at = clock_timestamp()
$$;

-- Children of runs, and what became of each start, for the inbox of its parent.
CREATE FUNCTION {s}.commit_children(
    p_run_id uuid[], p_workflow_id text[], p_type text[], p_queue text[], p_priority smallint[],
    p_version text[], p_batch bytea[], p_head bigint[], p_delay_us bigint[], p_due_us bigint[],
    p_timeout_us bigint[], p_execution_us bigint[], p_reuse smallint[], p_parent uuid[],
    p_parent_ref integer[], p_search text[]
) RETURNS void LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    v_mine uuid[] := ARRAY(SELECT {s}.mine(p_parent));
    v_wake uuid[];
BEGIN
    WITH i AS MATERIALIZED (
        SELECT array_agg(run_id ORDER BY n) AS run_id, array_agg(workflow_id ORDER BY n) AS workflow_id,
               array_agg(type ORDER BY n) AS type, array_agg(queue ORDER BY n) AS queue,
               array_agg(priority ORDER BY n) AS priority, array_agg(version ORDER BY n) AS version,
               array_agg(batch ORDER BY n) AS batch, array_agg(head ORDER BY n) AS head,
               array_agg(delay_us ORDER BY n) AS delay_us, array_agg(due_us ORDER BY n) AS due_us,
               array_agg(timeout_us ORDER BY n) AS timeout_us,
               array_agg(execution_us ORDER BY n) AS execution_us, array_agg(reuse ORDER BY n) AS reuse,
               array_agg(parent ORDER BY n) AS parent, array_agg(parent_ref ORDER BY n) AS parent_ref,
               array_agg(search ORDER BY n) AS search
        FROM unnest(p_run_id, p_workflow_id, p_type, p_queue, p_priority, p_version, p_batch, p_head,
                    p_delay_us, p_due_us, p_timeout_us, p_execution_us, p_reuse, p_parent, p_parent_ref,
                    p_search)
             WITH ORDINALITY
             AS i(run_id, workflow_id, type, queue, priority, version, batch, head, delay_us, due_us,
                  timeout_us, execution_us, reuse, parent, parent_ref, search, n)
        WHERE parent = ANY (v_mine)
        HAVING count(*) > 0
    ), done AS MATERIALIZED (
        SELECT i.*, s.run_id AS got, s.n
        FROM i, {s}.start_runs(
            i.run_id, i.workflow_id, i.type, i.queue, i.priority, i.version, i.batch, i.head,
            i.delay_us, i.due_us, i.timeout_us, i.execution_us, i.reuse, i.parent, i.parent_ref,
            i.search)
            WITH ORDINALITY AS s(run_id, state, holder_id, holder_us, n)
    ), told AS (
        INSERT INTO {s}.inbox (run_id, kind, ref, payload)
        SELECT parent[n], CASE WHEN got = run_id[n] THEN 8 ELSE 10 END, coalesce(parent_ref[n], 0),
               CASE WHEN got = run_id[n]
                    THEN convert_to(json_build_object('run_id', got)::text, 'UTF8')
                    ELSE {s}.failure('WorkflowAlreadyStartedError',
                                     'workflow id ' || workflow_id[n] || ' is taken by run ' || got)
                    END
        FROM done ORDER BY n
        RETURNING run_id
    ) SELECT array_agg(run_id) INTO v_wake FROM told;
    PERFORM {s}.wake(v_wake);
END $$;

-- Messages from runs to others; with a ref, the sender's inbox says how it went.
CREATE FUNCTION {s}.commit_messages(
    p_sender uuid[], p_kind smallint[], p_workflow_id text[], p_run_id uuid[], p_name text[],
    p_meta bytea[], p_payload bytea[], p_ref integer[], p_request_id text[]
) RETURNS void LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    v_mine uuid[] := ARRAY(SELECT {s}.mine(p_sender));
    v_wake uuid[];
BEGIN
    WITH i AS MATERIALIZED (
        SELECT array_agg(sender ORDER BY n) AS sender, array_agg(kind ORDER BY n) AS kind,
               array_agg(workflow_id ORDER BY n) AS workflow_id, array_agg(run_id ORDER BY n) AS run_id,
               array_agg(name ORDER BY n) AS name, array_agg(meta ORDER BY n) AS meta,
               array_agg(payload ORDER BY n) AS payload, array_agg(ref ORDER BY n) AS ref,
               array_agg(0) AS no_ref, array_agg(request_id ORDER BY n) AS request_id
        FROM unnest(p_sender, p_kind, p_workflow_id, p_run_id, p_name, p_meta, p_payload, p_ref,
                    p_request_id) WITH ORDINALITY
             AS i(sender, kind, workflow_id, run_id, name, meta, payload, ref, request_id, n)
        WHERE sender = ANY (v_mine)
        HAVING count(*) > 0
    ), done AS MATERIALIZED (
        SELECT i.sender, i.ref, s.run_id AS got, s.n
        FROM i, {s}.send(i.kind, i.workflow_id, i.run_id, i.name, i.meta, i.payload, i.no_ref,
                         i.request_id) WITH ORDINALITY AS s(run_id, n)
    ), told AS (
        INSERT INTO {s}.inbox (run_id, kind, ref, payload)
        SELECT sender[n], CASE WHEN got IS NULL THEN 12 ELSE 11 END, ref[n],
               CASE WHEN got IS NULL
                    THEN {s}.failure('WorkflowNotFoundError', 'no open run has that id') END
        FROM done WHERE ref[n] > 0 ORDER BY n
        RETURNING run_id
    ) SELECT array_agg(run_id) INTO v_wake FROM told;
    PERFORM {s}.wake(v_wake);
END $$;

-- New search attributes.
CREATE FUNCTION {s}.commit_search(p_run uuid[], p_search text[]) RETURNS void LANGUAGE sql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
    UPDATE {s}.run r SET search = i.search::jsonb
    FROM unnest(p_run, p_search) AS i(run_id, search)
    WHERE r.run_id = ANY (ARRAY[i.run_id]) AND r.xmin = pg_current_xact_id()::xid
$$;

-- Outcomes of activities that a paused run gets when it is resumed.
CREATE FUNCTION {s}.commit_kept(
    p_run uuid[], p_kind smallint[], p_ref integer[], p_payload bytea[]
) RETURNS void LANGUAGE sql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
    INSERT INTO {s}.inbox (run_id, kind, ref, payload)
    SELECT i.run_id, i.kind, i.ref, i.payload
    FROM unnest(p_run, p_kind, p_ref, p_payload) WITH ORDINALITY AS i(run_id, kind, ref, payload, n)
    WHERE (i.run_id IN (SELECT {s}.mine(p_run))) IS TRUE
    ORDER BY i.n
$$;

-- Give runs up: parked (with a reason) or simply released. What is unread gets a token: for a
-- released run any message, for a parked or paused one only what ends it.
CREATE FUNCTION {s}.commit_releases(p_run uuid[], p_park bytea[], p_unpark_us bigint[])
RETURNS void LANGUAGE sql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
    WITH i AS MATERIALIZED (
        SELECT * FROM unnest(p_run, p_park, p_unpark_us) AS i(run_id, park, unpark_us)
        WHERE (run_id IN (SELECT {s}.mine(p_run))) IS TRUE
    ), given AS (
        UPDATE {s}.run r
        SET session = NULL, fence = r.fence + 1, state = (i.park IS NOT NULL)::integer, park = i.park,
            parks = least(r.parks + (i.park IS NOT NULL)::integer, 1000)
        FROM i WHERE r.run_id = ANY (ARRAY[i.run_id])
        RETURNING r.run_id, r.queue, r.priority, r.workflow_type,
                  r.state = 0 AND r.pause IS NULL AS is_ready
    ), unpark AS (
        INSERT INTO {s}.timer (run_id, ref, kind, due_at)
        SELECT run_id, 0, 6, {s}.ts(unpark_us) FROM i
        WHERE park IS NOT NULL AND unpark_us IS NOT NULL
        ON CONFLICT (run_id, ref, kind) DO UPDATE SET due_at = excluded.due_at
    )
    INSERT INTO {s}.task (queue, priority, kind, type, run_id)
    SELECT queue, priority, 1, workflow_type, run_id FROM given g
    WHERE (SELECT true FROM {s}.inbox b
           WHERE b.run_id = g.run_id AND (g.is_ready OR b.kind IN (13, 14)) LIMIT 1)
$$;

-- Ends of runs; p_next is the successor of a continue-as-new or of a failure that is tried again: it
-- gets what is unread, the deadline of the chain and, by start_runs right after, the workflow id. Parents are told of every end
-- without a successor: the end of the chain.
CREATE FUNCTION {s}.commit_closes(
    p_run uuid[], p_state smallint[], p_result bytea[], p_failure bytea[], p_next uuid[]
) RETURNS void LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    v_gone uuid[];
    v_wake uuid[];
BEGIN
    -- What was asked goes along with each row: joining two sets would take the square of their size.
    WITH gone AS (
        DELETE FROM {s}.run r
        USING unnest(p_run, p_state, p_result, p_failure, p_next)
              AS i(run_id, ended, result, failure, next)
        WHERE r.run_id = ANY (ARRAY[i.run_id]) AND r.xmin = pg_current_xact_id()::xid
        RETURNING r.*, i.ended, i.result, i.failure, i.next
    ), kept AS (
        INSERT INTO {s}.closed_run (part, run_id, workflow_id, workflow_type, queue, version, state,
                                    next_seq, head_hash, parent_ref, parent_run_id, created_at,
                                    search, dedup_key, result, failure)
        SELECT part, run_id, workflow_id, workflow_type, queue, version, ended, next_seq, head_hash,
               parent_ref, parent_run_id, created_at, search, dedup_key, result, failure
        FROM gone
    ), parent AS MATERIALIZED (
        SELECT p.run_id, g.parent_ref, g.ended AS state, coalesce(g.result, g.failure) AS payload
        FROM gone g JOIN {s}.run p ON p.run_id = ANY (ARRAY[g.parent_run_id])
        WHERE g.next IS NULL AND g.parent_run_id IS NOT NULL
        ORDER BY g.parent_run_id FOR KEY SHARE OF p
    ), told AS (
        INSERT INTO {s}.inbox (run_id, kind, ref, payload)
        SELECT run_id, CASE state WHEN 10 THEN 9 ELSE 10 END, coalesce(parent_ref, 0), payload
        FROM parent
        RETURNING run_id
    ) SELECT (SELECT array_agg(run_id) FROM gone), (SELECT array_agg(run_id) FROM told)
    INTO v_gone, v_wake;
    IF v_wake IS NOT NULL THEN
        PERFORM {s}.wake(v_wake);
    END IF;

    IF cardinality(array_remove(p_next, NULL)) > 0 THEN
        UPDATE {s}.inbox b SET run_id = i.next
        FROM unnest(p_run, p_next) AS i(run_id, next)
        WHERE b.run_id = ANY (ARRAY[i.run_id]) AND i.next IS NOT NULL AND i.run_id = ANY (v_gone)
          AND (b.kind IN (5, 6, 13, 200, 201) OR b.kind = 14 AND b.name = 'execution');
        UPDATE {s}.request q SET run_id = i.next
        FROM unnest(p_run, p_next) AS i(run_id, next)
        WHERE q.run_id = ANY (ARRAY[i.run_id]) AND i.next IS NOT NULL AND i.run_id = ANY (v_gone);
        UPDATE {s}.timer t SET run_id = i.next
        FROM unnest(p_run, p_next) AS i(run_id, next)
        WHERE t.run_id = ANY (ARRAY[i.run_id]) AND t.ref + 0 = 0 AND t.kind + 0 = 7
          AND i.next IS NOT NULL AND i.run_id = ANY (v_gone);
    END IF;
    -- One statement, because most of these find nothing, and four would take longer to begin than to run.
    WITH inbox AS (
        DELETE FROM {s}.inbox WHERE run_id = ANY (v_gone)
    ), request AS (
        DELETE FROM {s}.request WHERE run_id = ANY (v_gone)
    ), timer AS (
        DELETE FROM {s}.timer WHERE run_id = ANY (v_gone)
    ) DELETE FROM {s}.activity WHERE run_id = ANY (v_gone);
END $$;

-- Successors of runs that commit_closes has closed in this transaction.
CREATE FUNCTION {s}.commit_successors(
    p_old uuid[],
    p_run_id uuid[], p_workflow_id text[], p_type text[], p_queue text[], p_priority smallint[],
    p_version text[], p_batch bytea[], p_head bigint[], p_delay_us bigint[], p_due_us bigint[],
    p_timeout_us bigint[], p_parent uuid[], p_parent_ref integer[], p_search text[]
) RETURNS void LANGUAGE sql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
    SELECT {s}.start_runs(
        array_agg(i.run_id ORDER BY n), array_agg(c.workflow_id ORDER BY n),
        array_agg(type ORDER BY n), array_agg(i.queue ORDER BY n), array_agg(priority ORDER BY n),
        array_agg(i.version ORDER BY n), array_agg(batch ORDER BY n), array_agg(head ORDER BY n),
        array_agg(delay_us ORDER BY n), array_agg(due_us ORDER BY n),
        array_agg(timeout_us ORDER BY n), NULL, array_agg(1::smallint),
        array_agg(coalesce(parent, c.parent_run_id) ORDER BY n),
        array_agg(coalesce(i.parent_ref, c.parent_ref) ORDER BY n),
        array_agg(coalesce(i.search, c.search::text) ORDER BY n),
        -- On another queue, or as another type, the key may be somebody else's.
        array_agg(CASE WHEN i.queue = c.queue AND i.type = c.workflow_type THEN c.dedup_key END
                  ORDER BY n))
    FROM unnest(p_old, p_run_id, p_workflow_id, p_type, p_queue, p_priority, p_version, p_batch,
                p_head, p_delay_us, p_due_us, p_timeout_us, p_parent, p_parent_ref, p_search)
         WITH ORDINALITY
         AS i(old, run_id, workflow_id, type, queue, priority, version, batch, head, delay_us, due_us,
              timeout_us, parent, parent_ref, search, n)
    CROSS JOIN LATERAL (
        SELECT c.* FROM {s}.closed_run c
        WHERE c.run_id = i.old AND c.xmin = pg_current_xact_id()::xid LIMIT 1
    ) c
    HAVING count(*) > 0
$$;
