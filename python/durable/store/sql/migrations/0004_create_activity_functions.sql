-- Queued activities and due timers. Locks: run (KEY SHARE), then activity, then the rest;
-- promote_due holds timers and waits for nothing but the rows of fairness keys.

CREATE FUNCTION {s}.seconds(p_policy jsonb, p_name text) RETURNS interval LANGUAGE sql STABLE
    RETURN (p_policy ->> p_name)::double precision * interval '1 second';

-- When an attempt is over its time: the earliest of its limits, or NULL.
CREATE FUNCTION {s}.attempt_due(
    p_policy jsonb, p_scheduled timestamptz, p_queued timestamptz, p_started timestamptz
) RETURNS timestamptz LANGUAGE sql STABLE RETURN least(
    p_scheduled + {s}.seconds(p_policy, 'schedule_to_close'),
    CASE WHEN p_started IS NULL THEN p_queued + {s}.seconds(p_policy, 'schedule_to_start') END,
    p_started + {s}.seconds(p_policy, 'start_to_close'),
    p_started + {s}.seconds(p_policy, 'heartbeat'));

-- The wait before the attempt after p_attempt, without jitter; NULL when there is none left.
CREATE FUNCTION {s}.backoff(p_policy jsonb, p_attempt integer) RETURNS interval
LANGUAGE sql STABLE RETURN CASE
    WHEN p_attempt >= (p_policy -> 'retry' ->> 'attempts')::integer THEN NULL
    ELSE least(
        coalesce((p_policy -> 'retry' ->> 'max')::double precision, 60),
        coalesce((p_policy -> 'retry' ->> 'initial')::double precision, 1)
        * power(coalesce((p_policy -> 'retry' ->> 'backoff')::double precision, 2),
                least(p_attempt - 1, 60))
    ) * interval '1 second' END;

CREATE FUNCTION {s}.failure(p_type text, p_message text) RETURNS bytea LANGUAGE sql STABLE
    RETURN convert_to(json_build_object('type', p_type, 'message', p_message)::text, 'UTF8');

-- Put activities, already written, on their queues or under a timer: the only place that does. Where
-- a queue is shared out by fairness keys, the place in it is not simply the last one.
CREATE FUNCTION {s}.enqueue(p_runs uuid[], p_refs integer[], p_delay_us bigint[]) RETURNS void
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    v_clocks boolean := EXISTS (SELECT FROM {s}.fair_clock);
    v_runs uuid[];
    v_refs integer[];
BEGIN
    WITH i AS MATERIALIZED (
        SELECT i.n, a.run_id, a.ref, a.queue, a.priority, a.name, a.policy, a.scheduled_at,
               i.delay_us > 0 AS waits,
               clock_timestamp() + i.delay_us * interval '1 microsecond' AS due_at,
               a.policy ? 'fairness_key' OR v_clocks AND (
                   SELECT true FROM {s}.fair_clock c
                   WHERE c.queue = a.queue AND c.priority = a.priority) IS NOT NULL AS fair
        FROM unnest(p_runs, p_refs, p_delay_us) WITH ORDINALITY AS i(run_id, ref, delay_us, n)
        JOIN {s}.activity a ON a.run_id = ANY (ARRAY[i.run_id]) AND a.ref = i.ref
    ), ready AS (
        INSERT INTO {s}.task (queue, priority, kind, type, run_id, ref)
        SELECT queue, priority, 2, name, run_id, ref FROM i WHERE NOT waits AND NOT fair
    ), state AS (
        UPDATE {s}.activity a
        SET state = CASE WHEN i.waits THEN 0 ELSE 1 END, session = NULL, token = NULL,
            started_at = NULL
        FROM i
        WHERE a.run_id = ANY (ARRAY[i.run_id]) AND a.ref = i.ref
          AND (a.token IS NOT NULL OR a.state <> CASE WHEN i.waits THEN 0 ELSE 1 END)
    ), quiet AS (
        DELETE FROM {s}.timer t USING i
        WHERE t.run_id = ANY (ARRAY[i.run_id]) AND t.ref = i.ref AND (
            t.kind = 2 AND NOT i.waits
            OR t.kind = 3 AND {s}.attempt_due(i.policy, i.scheduled_at, i.due_at, NULL) IS NULL)
    ), clock AS (
        INSERT INTO {s}.timer (run_id, ref, kind, due_at)
        SELECT run_id, ref, 2, due_at FROM i WHERE waits
        UNION ALL
        SELECT run_id, ref, 3, {s}.attempt_due(policy, scheduled_at, due_at, NULL) FROM i
        WHERE {s}.attempt_due(policy, scheduled_at, due_at, NULL) IS NOT NULL
        ON CONFLICT (run_id, ref, kind) DO UPDATE SET due_at = excluded.due_at
    )
    SELECT array_agg(run_id ORDER BY n), array_agg(ref ORDER BY n) INTO v_runs, v_refs
    FROM i WHERE fair AND NOT waits;
    IF v_runs IS NOT NULL THEN
        PERFORM {s}.enqueue_fairly(v_runs, v_refs);
    END IF;
END $$;

-- The outcome of activities is known: the rows go, the facts go to the inboxes of their runs.
CREATE FUNCTION {s}.settle(
    p_runs uuid[], p_refs integer[], p_kinds smallint[], p_payloads bytea[]
) RETURNS void LANGUAGE sql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
    WITH i AS MATERIALIZED (
        SELECT * FROM unnest(p_runs, p_refs, p_kinds, p_payloads)
                      WITH ORDINALITY AS i(run_id, ref, kind, payload, n)
    ), gone AS (
        DELETE FROM {s}.activity a USING i
        WHERE a.run_id = ANY (ARRAY[i.run_id]) AND a.ref = i.ref
    ), quiet AS (
        DELETE FROM {s}.timer t USING i
        WHERE t.run_id = ANY (ARRAY[i.run_id]) AND t.ref = i.ref AND t.kind + 0 IN (2, 3)
    )
    INSERT INTO {s}.inbox (run_id, kind, ref, payload)
    SELECT i.run_id, i.kind, i.ref, i.payload FROM i
    WHERE (SELECT true FROM {s}.run r WHERE r.run_id = i.run_id) ORDER BY i.n;
    SELECT {s}.wake(p_runs)
$$;

-- Take attempts of one queue from its head, in order. Those of other names may stand before them: the
-- scan over those is bounded, unless it finds nothing at all. With '' among them all names are taken but
-- these. No settings: it has those of its caller.
CREATE FUNCTION {s}.take_attempts(
    p_queue text, p_names text[], p_limit integer, OUT runs uuid[], OUT refs integer[]
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_scan integer;
    v_priorities smallint[];
    v_ids bigint[];
    v_last bigint;
BEGIN
    FOREACH v_scan IN ARRAY ARRAY[1000, NULL] LOOP
        WITH locked AS MATERIALIZED (
            SELECT t.ctid FROM (
                SELECT h.ctid, h.type, h.priority, h.id FROM {s}.task h
                WHERE h.queue = p_queue AND h.kind = 2 AND h.session IS NULL
                ORDER BY h.priority, h.id LIMIT v_scan + p_limit
            ) head JOIN {s}.task t ON t.ctid = head.ctid
            WHERE t.session IS NULL AND (head.type = ANY (p_names)) <> ('' = ANY (p_names))
            ORDER BY head.priority, head.id
            LIMIT p_limit FOR UPDATE OF t SKIP LOCKED
        ), gone AS (
            DELETE FROM {s}.task t USING locked WHERE t.ctid = locked.ctid
            RETURNING t.run_id, t.ref, t.priority, t.id
        ) SELECT array_agg(run_id ORDER BY priority, id), array_agg(ref ORDER BY priority, id),
                 array_agg(priority), array_agg(id), max(id)
          INTO runs, refs, v_priorities, v_ids, v_last FROM gone;
        EXIT WHEN runs IS NOT NULL OR NOT EXISTS (
            SELECT FROM {s}.task WHERE queue = p_queue AND kind = 2 AND session IS NULL);
    END LOOP;
    IF v_last >= {s}.fair_start() THEN
        PERFORM {s}.fair_advance(p_queue, v_priorities, v_ids);
    END IF;
END $$;

-- Take queued attempts, each with a fresh token; of a queue with limits only as many as they allow.
CREATE FUNCTION {s}.claim_activities(
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
    v_limited boolean := EXISTS (SELECT FROM {s}.queue_limit);
BEGIN
    FOREACH v_queue IN ARRAY p_queues LOOP
        EXIT WHEN cardinality(v_runs) >= p_limit;
        IF v_limited THEN
            SELECT runs, refs INTO v_more_runs, v_more_refs
            FROM {s}.take_limited(v_queue, p_names, p_limit - cardinality(v_runs));
        ELSE
            SELECT runs, refs INTO v_more_runs, v_more_refs
            FROM {s}.take_attempts(v_queue, p_names, p_limit - cardinality(v_runs));
        END IF;
        v_runs := v_runs || v_more_runs;
        v_refs := v_refs || v_more_refs;
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
        SELECT a.ctid FROM unnest(v_runs, v_refs) AS i(run_id, ref)
        JOIN {s}.activity a ON a.run_id = ANY (ARRAY[i.run_id]) AND a.ref = i.ref
        WHERE a.state = 1
        ORDER BY i.run_id, i.ref FOR UPDATE OF a
    ), claimed AS (
        UPDATE {s}.activity a
        SET state = 2, session = p_session, token = nextval('{s}.activity_token'),
            started_at = clock_timestamp()
        FROM locked l WHERE a.ctid = l.ctid
        RETURNING a.*
    ), clock AS (
        INSERT INTO {s}.timer (run_id, ref, kind, due_at)
        SELECT c.run_id, c.ref, 3, {s}.attempt_due(c.policy, c.scheduled_at, NULL, c.started_at)
        FROM claimed c
        WHERE {s}.attempt_due(c.policy, c.scheduled_at, NULL, c.started_at) IS NOT NULL
        ON CONFLICT (run_id, ref, kind) DO UPDATE SET due_at = excluded.due_at
    ), quiet AS (
        -- A queued attempt had one only for these limits.
        DELETE FROM {s}.timer t USING claimed c
        WHERE c.policy ?| ARRAY['schedule_to_start', 'schedule_to_close']
          AND {s}.attempt_due(c.policy, c.scheduled_at, NULL, c.started_at) IS NULL
          AND t.run_id = ANY (ARRAY[c.run_id]) AND t.ref = c.ref AND t.kind + 0 = 3
    )
    SELECT c.run_id::text, r.workflow_id, r.workflow_type, c.ref, c.name, c.queue, c.attempt,
           c.token, c.input, c.options, c.last_failure, c.details, {s}.us(c.scheduled_at)
    FROM claimed c JOIN {s}.run r ON r.run_id = ANY (ARRAY[c.run_id])
    ORDER BY c.priority, c.scheduled_at, c.run_id, c.ref;
END $$;

-- Record how claimed attempts ended; true where the token was still good. p_kind 0: once more.
CREATE FUNCTION {s}.finish_activities(
    p_run uuid[], p_ref integer[], p_attempt integer[], p_token bigint[], p_kind smallint[],
    p_payload bytea[], p_delay_us bigint[], p_details bytea[], p_count boolean[]
) RETURNS SETOF boolean LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    v_good boolean[];
BEGIN
    PERFORM FROM (
        SELECT r.run_id FROM (SELECT DISTINCT unnest(p_run) AS run_id) i
        JOIN {s}.run r ON r.run_id = ANY (ARRAY[i.run_id])
        ORDER BY i.run_id FOR KEY SHARE OF r
    ) held;
    WITH locked AS MATERIALIZED (
        SELECT a.run_id, a.ref, i.n
        FROM unnest(p_run, p_ref, p_attempt, p_token) WITH ORDINALITY
             AS i(run_id, ref, attempt, token, n)
        JOIN {s}.activity a ON a.run_id = ANY (ARRAY[i.run_id]) AND a.ref = i.ref
        WHERE a.state = 2 AND a.attempt = i.attempt AND a.token = i.token
        ORDER BY i.run_id, i.ref FOR UPDATE OF a
    )
    SELECT array_agg(i.n IN (SELECT l.n FROM locked l) ORDER BY i.n) INTO v_good
    FROM generate_subscripts(p_run, 1) AS i(n);

    PERFORM {s}.settle(array_agg(run_id), array_agg(ref), array_agg(kind), array_agg(payload))
    FROM unnest(p_run, p_ref, p_kind, p_payload, v_good) AS i(run_id, ref, kind, payload, good)
    WHERE good AND kind <> 0 HAVING count(*) > 0;

    UPDATE {s}.activity a
    SET attempt = a.attempt + i.count::integer, crashes = 0, last_failure = coalesce(i.payload, a.last_failure),
        details = coalesce(i.details, a.details)
    FROM unnest(p_run, p_ref, p_kind, p_payload, p_details, p_count, v_good)
         AS i(run_id, ref, kind, payload, details, count, good)
    WHERE i.good AND i.kind = 0 AND a.run_id = ANY (ARRAY[i.run_id]) AND a.ref = i.ref;
    PERFORM {s}.enqueue(array_agg(run_id), array_agg(ref), array_agg(delay_us))
    FROM unnest(p_run, p_ref, p_kind, p_delay_us, v_good) AS i(run_id, ref, kind, delay_us, good)
    WHERE good AND kind = 0 HAVING count(*) > 0;
    RETURN QUERY SELECT good FROM unnest(v_good) WITH ORDINALITY AS g(good, n) ORDER BY n;
END $$;

-- Attempts that failed without saying so: by a time limit (p_type NULL) or for p_message. Try again,
-- or give up. The rows are locked already.
CREATE FUNCTION {s}.fail_attempts(
    p_runs uuid[], p_refs integer[], p_type text, p_message text
) RETURNS void LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    t timestamptz := clock_timestamp();
    v_again boolean[];
    v_failure bytea[];
    v_delay bigint[];
BEGIN
    SELECT array_agg(o.retry ORDER BY i.n),
           array_agg(convert_to(json_build_object(
               'type', coalesce(p_type, 'TimeoutError'), 'message', o.reason,
               'attempt', a.attempt)::text, 'UTF8') ORDER BY i.n),
           array_agg(coalesce((extract(epoch FROM o.wait) * 1000000)::bigint, 0) ORDER BY i.n)
    INTO v_again, v_failure, v_delay
    FROM unnest(p_runs, p_refs) WITH ORDINALITY AS i(run_id, ref, n)
    JOIN {s}.activity a ON a.run_id = ANY (ARRAY[i.run_id]) AND a.ref = i.ref
    CROSS JOIN LATERAL (
        SELECT coalesce(a.scheduled_at + {s}.seconds(a.policy, 'schedule_to_close') <= t, false)
               AS over,
               {s}.backoff(a.policy, a.attempt) AS wait
    ) b
    CROSS JOIN LATERAL (
        SELECT b.wait, a.state = 2 AND NOT b.over AND b.wait IS NOT NULL AS retry,
               CASE WHEN p_type IS NOT NULL THEN p_message
                    WHEN b.over THEN 'schedule-to-close timeout'
                    WHEN a.state <> 2 THEN 'schedule-to-start timeout'
                    WHEN a.started_at + {s}.seconds(a.policy, 'start_to_close') <= t
                    THEN 'start-to-close timeout'
                    ELSE 'heartbeat timeout' END AS reason
    ) o;

    UPDATE {s}.activity a SET attempt = a.attempt + 1, last_failure = i.failure
    FROM unnest(p_runs, p_refs, v_again, v_failure) AS i(run_id, ref, again, failure)
    WHERE i.again AND a.run_id = ANY (ARRAY[i.run_id]) AND a.ref = i.ref;
    PERFORM {s}.enqueue(array_agg(run_id), array_agg(ref), array_agg(delay))
    FROM unnest(p_runs, p_refs, v_again, v_delay) AS i(run_id, ref, again, delay)
    WHERE again HAVING count(*) > 0;
    PERFORM {s}.settle(array_agg(run_id), array_agg(ref), array_agg(3::smallint),
                       array_agg(failure))
    FROM unnest(p_runs, p_refs, v_again, v_failure) AS i(run_id, ref, again, failure)
    WHERE NOT again HAVING count(*) > 0;
END $$;

-- Turn due timers into what they stand for. A timer whose run or activity somebody holds right now
-- stays due and is met again; one that is about nothing any more goes.
CREATE FUNCTION {s}.promote_due(p_limit integer)
RETURNS TABLE (promoted integer, next_due_us bigint, now_us bigint) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    v_run uuid[];
    v_ref integer[];
    v_kind smallint[];
    v_held uuid[];
    v_ready uuid[];
    v_act_run uuid[];
    v_act_ref integer[];
    v_act_state smallint[];
BEGIN
    SELECT array_agg(run_id), array_agg(ref), array_agg(kind) INTO v_run, v_ref, v_kind FROM (
        SELECT run_id, ref, kind FROM {s}.timer WHERE due_at <= statement_timestamp()
        ORDER BY due_at LIMIT p_limit FOR UPDATE SKIP LOCKED
    ) due;
    promoted := coalesce(cardinality(v_run), 0);
    IF promoted > 0 THEN
        v_held := ARRAY(
            SELECT r.run_id FROM (SELECT DISTINCT unnest(v_run) AS run_id) i
            JOIN {s}.run r ON r.run_id = ANY (ARRAY[i.run_id])
            ORDER BY i.run_id FOR KEY SHARE OF r SKIP LOCKED);

        -- Starts and parked runs to try again.
        WITH locked AS MATERIALIZED (
            SELECT r.run_id FROM unnest(v_run, v_kind) AS i(run_id, kind)
            JOIN {s}.run r ON r.run_id = ANY (ARRAY[i.run_id])
            WHERE (i.kind = 4 AND r.state = 2 OR i.kind = 6 AND r.state = 1)
              AND i.run_id = ANY (v_held)
            ORDER BY i.run_id FOR NO KEY UPDATE OF r SKIP LOCKED
        ), ready AS (
            UPDATE {s}.run r SET state = 0, park = NULL, debounce_key = NULL
            FROM locked l WHERE r.run_id = ANY (ARRAY[l.run_id])
            RETURNING r.run_id
        ) SELECT coalesce(array_agg(run_id), '{}') INTO v_ready FROM ready;

        -- Timers of the workflow, and the end of its time.
        INSERT INTO {s}.inbox (run_id, kind, ref, name, payload)
        SELECT i.run_id, CASE i.kind WHEN 1 THEN 4 ELSE 14 END, i.ref,
               CASE i.kind WHEN 7 THEN 'execution' END,
               CASE i.kind WHEN 5 THEN {s}.failure('TimeoutError', 'the time of the run is over')
                           WHEN 7 THEN {s}.failure('TimeoutError',
                                                   'the time of the whole execution is over') END
        FROM unnest(v_run, v_ref, v_kind) WITH ORDINALITY AS i(run_id, ref, kind, n)
        WHERE i.kind IN (1, 5, 7) AND i.run_id = ANY (v_held) ORDER BY i.n;

        SELECT array_agg(run_id), array_agg(ref), array_agg(state)
        INTO v_act_run, v_act_ref, v_act_state FROM (
            SELECT a.run_id, a.ref, a.state
            FROM unnest(v_run, v_ref, v_kind) AS i(run_id, ref, kind)
            JOIN {s}.activity a ON a.run_id = ANY (ARRAY[i.run_id]) AND a.ref = i.ref
            WHERE i.run_id = ANY (v_held) AND (i.kind = 2 AND a.state = 0 OR i.kind = 3)
            ORDER BY i.run_id, i.ref FOR UPDATE OF a SKIP LOCKED
        ) locked;

        DELETE FROM {s}.timer t USING unnest(v_run, v_ref, v_kind) AS i(run_id, ref, kind)
        WHERE t.run_id = ANY (ARRAY[i.run_id]) AND t.ref = i.ref AND t.kind = i.kind AND (
            i.kind IN (1, 5, 7) AND i.run_id = ANY (v_held)
            OR i.kind IN (4, 6) AND i.run_id = ANY (v_ready)
            OR i.kind IN (2, 3) AND (i.run_id, i.ref) IN (
                SELECT a.run_id, a.ref FROM unnest(v_act_run, v_act_ref) AS a(run_id, ref))
            OR (SELECT true FROM {s}.run r WHERE r.run_id = i.run_id
                AND (i.kind NOT IN (4, 6) OR i.kind = 4 AND r.state = 2 OR i.kind = 6 AND r.state = 1)
               ) IS NULL
            OR i.kind IN (2, 3) AND (
                SELECT true FROM {s}.activity a WHERE a.run_id = i.run_id AND a.ref = i.ref
                AND (i.kind = 3 OR a.state = 0)) IS NULL);
        GET DIAGNOSTICS promoted = ROW_COUNT;

        PERFORM {s}.enqueue(array_agg(run_id), array_agg(ref), array_agg(0::bigint))
        FROM (SELECT a.run_id, a.ref
              FROM unnest(v_act_run, v_act_ref, v_act_state) AS a(run_id, ref, state)
              WHERE a.state = 0
                AND ((a.run_id, a.ref) IN (
                    SELECT i.run_id, i.ref FROM unnest(v_run, v_ref, v_kind) AS i(run_id, ref, kind)
                    WHERE i.kind = 2)) IS TRUE
                AND ((a.run_id, a.ref) IN (
                    SELECT o.run_id, o.ref FROM unnest(v_run, v_ref, v_kind) AS o(run_id, ref, kind)
                    WHERE o.kind = 3)) IS NOT TRUE) again
        HAVING count(*) > 0;
        PERFORM {s}.fail_attempts(array_agg(run_id), array_agg(ref), NULL, NULL)
        FROM (SELECT DISTINCT i.run_id, i.ref
              FROM unnest(v_run, v_ref, v_kind) AS i(run_id, ref, kind)
              WHERE i.kind = 3 AND ((i.run_id, i.ref) IN (
                  SELECT a.run_id, a.ref FROM unnest(v_act_run, v_act_ref) AS a(run_id, ref)
                  )) IS TRUE) late
        HAVING count(*) > 0;
        PERFORM {s}.wake_late(array_agg(run_id)) FROM (
            SELECT i.run_id FROM unnest(v_run, v_kind) AS i(run_id, kind)
            WHERE i.kind IN (1, 5, 7) AND i.run_id = ANY (v_held)
            UNION SELECT unnest(v_ready)
        ) woken HAVING count(*) > 0;
    END IF;
    PERFORM {s}.free_stale_tokens();
    SELECT {s}.us(due_at) INTO next_due_us FROM {s}.timer ORDER BY due_at LIMIT 1;
    now_us := {s}.us(clock_timestamp());
    RETURN NEXT;
END $$;

-- Keep progress details; the time without a heartbeat starts anew.
CREATE FUNCTION {s}.heartbeat_activity(
    p_run uuid, p_ref integer, p_token bigint, p_details bytea
) RETURNS boolean LANGUAGE plpgsql
SET enable_seqscan = off
AS $$
#variable_conflict use_column
DECLARE
    v_activity {s}.activity;
BEGIN
    UPDATE {s}.activity SET details = p_details
    WHERE run_id = p_run AND ref = p_ref AND token = p_token AND state = 2
    RETURNING * INTO v_activity;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF v_activity.policy ? 'heartbeat' THEN
        UPDATE {s}.timer
        SET due_at = least(
            v_activity.scheduled_at + {s}.seconds(v_activity.policy, 'schedule_to_close'),
            v_activity.started_at + {s}.seconds(v_activity.policy, 'start_to_close'),
            clock_timestamp() + {s}.seconds(v_activity.policy, 'heartbeat'))
        WHERE run_id = p_run AND ref = p_ref AND kind = 3;
    END IF;
    RETURN true;
END $$;
