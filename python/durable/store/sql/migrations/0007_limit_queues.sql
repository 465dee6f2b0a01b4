-- Limits of queues: how many activities of a queue run at once, and how many start per second, over
-- all workers. Without a row in queue_limit a claim pays one look at an empty table.

-- rate is in starts per second; tokens is what the bucket had at refilled_at, at most burst.
CREATE TABLE {s}.queue_limit (
    queue text PRIMARY KEY,
    concurrency integer CHECK (concurrency >= 0),
    rate double precision CHECK (rate > 0),
    burst double precision CHECK (burst >= 1),
    tokens double precision NOT NULL DEFAULT 0,
    refilled_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

CREATE FUNCTION {s}.limit_tokens(p_limit {s}.queue_limit) RETURNS double precision LANGUAGE sql
STABLE RETURN least(
    (p_limit).burst,
    (p_limit).tokens + (p_limit).rate * greatest(
        0, extract(epoch FROM clock_timestamp() - (p_limit).refilled_at)::double precision));

-- How many attempts of the queue may be taken now, at most p_wanted. The row of the limit is held to
-- the end of the claim, so that what others have taken is committed before we count; whoever finds
-- it held takes nothing this time.
CREATE FUNCTION {s}.limit_room(p_queue text, p_wanted integer) RETURNS integer LANGUAGE plpgsql
AS $$
DECLARE
    v_limit {s}.queue_limit;
    v_room integer := p_wanted;
BEGIN
    PERFORM FROM {s}.queue_limit WHERE queue = p_queue;
    IF NOT FOUND THEN
        RETURN p_wanted;
    END IF;
    SELECT * INTO v_limit FROM {s}.queue_limit WHERE queue = p_queue FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    IF v_limit.rate IS NOT NULL THEN
        v_room := least(v_room, floor({s}.limit_tokens(v_limit))::integer);
    END IF;
    IF v_limit.concurrency IS NOT NULL AND v_room > 0 THEN
        -- The claimed attempts of all queues: as many as the fleet has slots, at most.
        v_room := least(v_room, v_limit.concurrency - (
            SELECT count(*) FROM {s}.activity
            WHERE session IS NOT NULL AND queue = p_queue)::integer);
    END IF;
    RETURN greatest(v_room, 0);
END $$;

CREATE FUNCTION {s}.limit_charge(p_queue text, p_count integer) RETURNS void LANGUAGE sql AS $$
    UPDATE {s}.queue_limit l
    SET tokens = {s}.limit_tokens(l) - p_count, refilled_at = clock_timestamp()
    WHERE queue = p_queue AND rate IS NOT NULL
$$;

-- What is in the bucket stays in it, so that setting the same limit again is no gift.
CREATE FUNCTION {s}.set_queue_limit(
    p_queue text, p_concurrency integer, p_rate double precision, p_burst double precision
) RETURNS void LANGUAGE sql AS $$
    DELETE FROM {s}.queue_limit
    WHERE queue = p_queue AND p_concurrency IS NULL AND p_rate IS NULL;
    INSERT INTO {s}.queue_limit AS l (queue, concurrency, rate, burst, tokens)
    SELECT p_queue, p_concurrency, p_rate, p_burst, coalesce(p_burst, 0)
    WHERE p_concurrency IS NOT NULL OR p_rate IS NOT NULL
    ON CONFLICT (queue) DO UPDATE
    SET concurrency = excluded.concurrency, rate = excluded.rate, burst = excluded.burst,
        tokens = coalesce(least({s}.limit_tokens(l), excluded.burst), excluded.tokens),
        refilled_at = clock_timestamp()
$$;

-- Take queued attempts, each with a fresh token; of a queue with limits only as many as they allow.
CREATE OR REPLACE FUNCTION {s}.claim_activities(
    p_session bigint, p_queues text[], p_names text[], p_limit integer
) RETURNS TABLE (
    run_id text, workflow_id text, workflow_type text, ref integer, name text, queue text,
    attempt integer, token bigint, input bytea, options bytea, last_failure bytea, details bytea,
    scheduled_us bigint
) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    v_runs uuid[] := '{}';
    v_refs integer[] := '{}';
    v_more_runs uuid[];
    v_more_refs integer[];
    v_queue text;
    v_scan integer;
    v_limited boolean := EXISTS (SELECT FROM {s}.queue_limit);
    v_before integer;
    v_cap integer := p_limit;
BEGIN
    FOREACH v_queue IN ARRAY p_queues LOOP
        v_before := cardinality(v_runs);
        IF v_limited THEN
            v_cap := v_before + {s}.limit_room(v_queue, p_limit - v_before);
        END IF;
        FOREACH v_scan IN ARRAY ARRAY[1000, NULL] LOOP
            EXIT WHEN cardinality(v_runs) >= v_cap;
            WITH locked AS MATERIALIZED (
                SELECT t.ctid FROM (
                    SELECT h.ctid, h.type, h.priority, h.id FROM {s}.task h
                    WHERE h.queue = v_queue AND h.kind = 2 AND h.session IS NULL
                    ORDER BY h.priority, h.id LIMIT v_scan + p_limit
                ) head JOIN {s}.task t ON t.ctid = head.ctid
                WHERE head.type = ANY (p_names) AND t.session IS NULL
                ORDER BY head.priority, head.id
                LIMIT v_cap - cardinality(v_runs) FOR UPDATE OF t SKIP LOCKED
            ), gone AS (
                DELETE FROM {s}.task t USING locked WHERE t.ctid = locked.ctid
                RETURNING t.run_id, t.ref, t.priority, t.id
            ) SELECT array_agg(run_id ORDER BY priority, id), array_agg(ref ORDER BY priority, id)
              INTO v_more_runs, v_more_refs FROM gone;
            v_runs := v_runs || coalesce(v_more_runs, '{}');
            v_refs := v_refs || coalesce(v_more_refs, '{}');
            EXIT WHEN v_more_runs IS NOT NULL OR NOT EXISTS (
                SELECT FROM {s}.task WHERE queue = v_queue AND kind = 2 AND session IS NULL);
        END LOOP;
        IF v_limited AND cardinality(v_runs) > v_before THEN
            PERFORM {s}.limit_charge(v_queue, cardinality(v_runs) - v_before);
        END IF;
    END LOOP;
    IF cardinality(v_runs) = 0 THEN
        RETURN;
    END IF;
    PERFORM FROM {s}.session WHERE id = p_session FOR KEY SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'session % is not alive', p_session USING ERRCODE = 'DUR01';
    END IF;

    RETURN QUERY
    WITH locked AS MATERIALIZED (
        SELECT a.run_id, a.ref FROM unnest(v_runs, v_refs) AS i(run_id, ref)
        JOIN {s}.activity a USING (run_id, ref)
        WHERE a.state = 1
        ORDER BY a.run_id, a.ref FOR UPDATE OF a
    ), claimed AS (
        UPDATE {s}.activity a
        SET state = 2, session = p_session, token = nextval('{s}.activity_token'),
            started_at = clock_timestamp()
        FROM (SELECT DISTINCT run_id, ref FROM locked) l
        WHERE a.run_id = l.run_id AND a.ref = l.ref
        RETURNING a.*
    ), clock AS (
        INSERT INTO {s}.timer (run_id, ref, kind, due_at)
        SELECT c.run_id, c.ref, 3, {s}.attempt_due(c.policy, c.scheduled_at, NULL, c.started_at)
        FROM claimed c
        WHERE {s}.attempt_due(c.policy, c.scheduled_at, NULL, c.started_at) IS NOT NULL
        ON CONFLICT (run_id, ref, kind) DO UPDATE SET due_at = excluded.due_at
    ), quiet AS (
        DELETE FROM {s}.timer t USING claimed c
        WHERE t.run_id = c.run_id AND t.ref = c.ref AND t.kind = 3
          AND {s}.attempt_due(c.policy, c.scheduled_at, NULL, c.started_at) IS NULL
    )
    SELECT c.run_id::text, r.workflow_id, r.workflow_type, c.ref, c.name, c.queue, c.attempt,
           c.token, c.input, c.options, c.last_failure, c.details, {s}.us(c.scheduled_at)
    FROM claimed c JOIN {s}.run r USING (run_id)
    ORDER BY c.priority, c.scheduled_at, c.run_id, c.ref;
END $$;
