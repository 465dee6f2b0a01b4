-- What workers and supervisors do. See docs/internals/database.md for the order of locks.

-- What serves runs of a type that nobody defined: '' the dynamic workflow of a worker, 'job:' its
-- dynamic activity. Types with an @ are those of pinned workflows, which only their own code may run.
CREATE FUNCTION {s}.stand_in(p_type text) RETURNS text LANGUAGE sql IMMUTABLE
    RETURN CASE WHEN starts_with(p_type, 'job:') THEN 'job:'
                WHEN strpos(p_type, '@') = 0 AND NOT starts_with(p_type, 'durable:') THEN '' END;

-- Take wake tokens, own their runs. Each row is a run newly owned; with workflow_id NULL a run that
-- this session has already and that has mail; with run_id NULL, last, the time as created_us.
--
-- A token that is taken here leads to one of: we own the run; we owned it already; the token goes
-- back, for the owner we saw; the run is gone, parked or paused, and the token with it. Whoever owns a run
-- reads its inbox in a later statement, so no message is overlooked.
--
-- A claim does not wait for the disk. A server that crashes may forget it, so the fence is one that will
-- not be given again: whoever was given it writes nothing, and the token is there for the next claim.
CREATE FUNCTION {s}.claim_runs(
    p_session bigint, p_queues text[], p_types text[], p_limit integer
) RETURNS TABLE (
    run_id text, workflow_id text, workflow_type text, queue text, version text, fence bigint,
    next_seq integer, head_hash bigint, part integer, crashes integer, parent_run_id text,
    parent_ref integer, created_us bigint, start bytea, has_mail boolean,
    is_paused boolean, parks integer
) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    v_mail uuid[];
    v_taken uuid[] := '{}';
    v_more uuid[];
    v_seen uuid[];
    v_owned integer;
    v_queue text;
    v_scan integer;
    v_any boolean := '' = ANY (p_types) OR 'job:' = ANY (p_types);
BEGIN
    -- Tokens of runs that are ours already take no room, so they do not count. Many of them may be
    -- of runs that have closed since.
    WITH head AS MATERIALIZED (
        SELECT ctid FROM {s}.task WHERE session = p_session LIMIT 2000 FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM {s}.task t USING head WHERE t.ctid = head.ctid RETURNING t.run_id
    ) SELECT coalesce(array_agg(run_id), '{}') INTO v_mail FROM gone;

    -- Tokens of other types may stand before ours. The scan over them is bounded, unless it finds
    -- nothing at all: then we go through, so that nobody starves.
    FOREACH v_queue IN ARRAY p_queues LOOP
        FOREACH v_scan IN ARRAY ARRAY[1000, NULL] LOOP
            EXIT WHEN cardinality(v_taken) >= p_limit;
            WITH locked AS MATERIALIZED (
                SELECT t.ctid FROM (
                    SELECT h.ctid, h.type, h.priority, h.id FROM {s}.task h
                    WHERE h.queue = v_queue AND h.kind = 1 AND h.session IS NULL
                    ORDER BY h.priority, h.id LIMIT v_scan + p_limit
                ) head JOIN {s}.task t ON t.ctid = head.ctid
                WHERE t.session IS NULL AND (
                    head.type = ANY (p_types)
                    OR v_any AND {s}.stand_in(head.type) = ANY (p_types))
                ORDER BY head.priority, head.id
                LIMIT p_limit - cardinality(v_taken) FOR UPDATE OF t SKIP LOCKED
            ), gone AS (
                DELETE FROM {s}.task t USING locked WHERE t.ctid = locked.ctid RETURNING t.run_id
            ) SELECT array_agg(run_id) INTO v_more FROM gone;
            v_taken := v_taken || coalesce(v_more, '{}');
            EXIT WHEN v_more IS NOT NULL OR NOT EXISTS (
                SELECT FROM {s}.task WHERE queue = v_queue AND kind = 1 AND session IS NULL);
        END LOOP;
    END LOOP;

    IF cardinality(v_taken) + cardinality(v_mail) > 0 THEN
        -- A session that is being ended is waited for, and then it is gone.
        PERFORM FROM {s}.session WHERE id = p_session FOR KEY SHARE;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'session % is not alive', p_session USING ERRCODE = 'DUR01';
        END IF;
        PERFORM set_config('synchronous_commit', 'off', true);

        v_seen := ARRAY(SELECT DISTINCT t FROM unnest(v_mail || v_taken) t);
        -- By ctid, so that a row is looked up once. One that changes between our snapshot and our
        -- lock is not met again under its new ctid: its token goes back, like that of a locked one.
        RETURN QUERY
        WITH locked AS MATERIALIZED (
            SELECT r.ctid FROM {s}.run r
            WHERE r.run_id = ANY (v_seen) AND r.session IS NULL AND (
                r.state = 0 AND r.pause IS NULL
                OR (SELECT true FROM {s}.inbox b WHERE b.run_id = r.run_id AND (
                    b.kind IN (13, 14) OR b.kind = 6 AND r.state = 2 AND r.pause IS NULL) LIMIT 1))
            ORDER BY r.run_id FOR NO KEY UPDATE OF r SKIP LOCKED
        ), owned AS (
            UPDATE {s}.run r SET session = p_session, state = 0, park = NULL,
                                     fence = r.fence + 1 + (random() * 1e9)::bigint
            FROM locked WHERE r.ctid = locked.ctid
            RETURNING r.*
        ), noted AS (
            INSERT INTO {s}.claim (session, runs)
            SELECT p_session, array_agg(run_id)
            FROM (SELECT run_id, row_number() OVER () - 1 AS n FROM owned) numbered
            GROUP BY n / 100
        )
        SELECT o.run_id::text, o.workflow_id, o.workflow_type, o.queue, o.version, o.fence,
               o.next_seq, o.head_hash, o.part, o.crashes::integer, o.parent_run_id::text,
               o.parent_ref, {s}.us(o.created_at),
               -- A new run is about to run: what it starts with saves it a round trip. Scalar
               -- sub-selects, because they can only be looked up row by row.
               (SELECT h.batch FROM {s}.history h
                WHERE o.next_seq = 1 AND h.part = o.part AND h.run_id = o.run_id AND h.seq = 0),
               (SELECT true FROM {s}.inbox b WHERE b.run_id = o.run_id LIMIT 1) IS NOT NULL,
               o.pause IS NOT NULL, o.parks::integer
        FROM owned o;
        GET DIAGNOSTICS v_owned = ROW_COUNT;

        IF v_owned < cardinality(v_seen) THEN
            RETURN QUERY
            WITH rest AS MATERIALIZED (
                SELECT r.run_id, r.queue, r.priority, r.workflow_type, r.session
                FROM unnest(v_seen) i(run_id) JOIN {s}.run r ON r.run_id = ANY (ARRAY[i.run_id])
                WHERE r.xmin <> pg_current_xact_id()::xid AND (
                    r.state = 0 AND r.pause IS NULL OR r.session IS NOT NULL
                    OR (SELECT true FROM {s}.inbox b WHERE b.run_id = r.run_id AND (
                        b.kind IN (13, 14) OR b.kind = 6 AND r.state = 2 AND r.pause IS NULL)
                        LIMIT 1))
            ), back AS (
                INSERT INTO {s}.task (queue, priority, kind, type, run_id, session)
                SELECT queue, priority, 1, workflow_type, run_id, session FROM rest
                WHERE session IS DISTINCT FROM p_session
            )
            SELECT rest.run_id::text, NULL::text, NULL::text, NULL::text, NULL::text, NULL::bigint,
                   NULL::integer, NULL::bigint, NULL::integer, NULL::integer, NULL::text,
                   NULL::integer, NULL::bigint, NULL::bytea, NULL::boolean,
                   NULL::boolean, NULL::integer
            FROM rest WHERE session = p_session;
        END IF;
    END IF;
    RETURN QUERY
    SELECT NULL::text, NULL::text, NULL::text, NULL::text, NULL::text, NULL::bigint, NULL::integer,
           NULL::bigint, NULL::integer, NULL::integer, NULL::text, NULL::integer,
           {s}.us(clock_timestamp()), NULL::bytea, NULL::boolean, NULL::boolean, NULL::integer;
END $$;

-- Declare sessions dead and hand over what they own. The session rows go first: a claim holds its
-- own session row, so that after this statement we see every run that a claim has got. The fences
-- make what the dead still send void. p_expired: those whose lease is over, besides.
--
-- A crash is counted for all that the session had, or, while a run was on trial, for that one only.
-- An attempt whose worker died is put back as it was. From the third worker in a row on it is the
-- attempt that is suspected: it counts as failed then, and waits like any other that failed.
CREATE FUNCTION {s}.end_sessions(
    p_sessions bigint[], p_crashed boolean, p_expired boolean
) RETURNS TABLE (sessions integer, runs integer) LANGUAGE plpgsql
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    v_dead bigint[];
    v_tried bigint[];
    v_suspects uuid[];
    v_runs uuid[];
    v_act_run uuid[];
    v_act_ref integer[];
    v_guilty boolean[];
BEGIN
    WITH dead AS (
        SELECT id FROM {s}.session
        WHERE id = ANY (p_sessions) OR p_expired AND expires_at < statement_timestamp()
        ORDER BY id FOR UPDATE
    ), gone AS (
        DELETE FROM {s}.session s USING dead WHERE s.id = dead.id RETURNING s.id, s.suspect
    )
    SELECT coalesce(array_agg(id), '{}'),
           coalesce(array_agg(id) FILTER (WHERE suspect IS NOT NULL), '{}'),
           coalesce(array_agg(suspect) FILTER (WHERE suspect IS NOT NULL), '{}')
    INTO v_dead, v_tried, v_suspects FROM gone;
    sessions := cardinality(v_dead);
    v_dead := v_dead || p_sessions;

    v_runs := ARRAY(SELECT DISTINCT unnest(runs) FROM {s}.claim WHERE session = ANY (v_dead));
    WITH locked AS MATERIALIZED (
        SELECT r.run_id FROM unnest(v_runs) AS i(run_id)
        JOIN {s}.run r ON r.run_id = ANY (ARRAY[i.run_id]) AND r.session = ANY (v_dead)
        ORDER BY i.run_id FOR NO KEY UPDATE OF r
    ), gone AS (
        DELETE FROM {s}.claim WHERE session = ANY (v_dead)
    ), freed AS (
        UPDATE {s}.run r
        SET session = NULL, fence = r.fence + 1,
            crashes = least(r.crashes + (p_crashed AND (
                r.run_id = ANY (v_suspects) OR r.session <> ALL (v_tried)))::integer, 32767)
        FROM locked WHERE r.run_id = ANY (ARRAY[locked.run_id])
        RETURNING r.run_id
    ) SELECT coalesce(array_agg(run_id), '{}') INTO v_runs FROM freed;
    runs := cardinality(v_runs);
    PERFORM {s}.wake(v_runs);

    PERFORM FROM (
        -- Neither this nor the next asks for an order that the primary key has: where statistics say
        -- that there are no activities, a plan would walk through all of it.
        SELECT r.run_id FROM (
            SELECT DISTINCT unnest(ARRAY(
                SELECT a.run_id FROM {s}.activity a
                WHERE a.session = ANY (v_dead) AND p_crashed AND a.crashes >= 2)) AS run_id
        ) i JOIN {s}.run r ON r.run_id = ANY (ARRAY[i.run_id])
        ORDER BY i.run_id FOR KEY SHARE OF r
    ) held;
    SELECT array_agg(run_id), array_agg(ref),
           array_agg(p_crashed AND crashes >= 2 AND session <> ALL (v_tried))
    INTO v_act_run, v_act_ref, v_guilty FROM (
        SELECT run_id, ref, crashes, session FROM {s}.activity WHERE session = ANY (v_dead)
        ORDER BY (run_id, ref) FOR UPDATE
    ) locked;
    IF v_act_run IS NOT NULL THEN
        UPDATE {s}.activity a SET crashes = least(a.crashes + (
            p_crashed AND a.session <> ALL (v_tried))::integer, 32767)
        FROM unnest(v_act_run, v_act_ref) AS i(run_id, ref)
        WHERE a.run_id = ANY (ARRAY[i.run_id]) AND a.ref = i.ref;
        PERFORM {s}.enqueue(array_agg(run_id), array_agg(ref), array_agg(0::bigint))
        FROM unnest(v_act_run, v_act_ref, v_guilty) AS i(run_id, ref, guilty)
        WHERE NOT guilty HAVING count(*) > 0;
        PERFORM {s}.fail_attempts(array_agg(run_id), array_agg(ref), 'WorkerCrashedError',
                                  'its worker died while it ran this attempt, once again')
        FROM unnest(v_act_run, v_act_ref, v_guilty) AS i(run_id, ref, guilty)
        WHERE guilty HAVING count(*) > 0;
    END IF;

    -- Those that somebody holds right now are found by free_stale_tokens later.
    UPDATE {s}.task t SET session = NULL
    FROM (SELECT ctid FROM {s}.task WHERE session = ANY (v_dead) FOR UPDATE SKIP LOCKED) mine
    WHERE t.ctid = mine.ctid;
    RETURN NEXT;
END $$;

-- Tokens for a session that is no more, inserted while it ended. One probe per session.
CREATE FUNCTION {s}.free_stale_tokens() RETURNS integer LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_stale bigint[];
    v_count integer := 0;
BEGIN
    WITH RECURSIVE owner AS (
        (SELECT session FROM {s}.task WHERE session IS NOT NULL ORDER BY session LIMIT 1)
        UNION ALL
        SELECT (SELECT t.session FROM {s}.task t
                WHERE t.session > o.session ORDER BY t.session LIMIT 1)
        FROM owner o WHERE o.session IS NOT NULL
    )
    SELECT array_agg(o.session) INTO v_stale FROM owner o
    WHERE o.session IS NOT NULL AND NOT EXISTS (SELECT FROM {s}.session s WHERE s.id = o.session);
    IF v_stale IS NOT NULL THEN
        UPDATE {s}.task t SET session = NULL
        FROM (SELECT ctid FROM {s}.task WHERE session = ANY (v_stale) FOR UPDATE SKIP LOCKED) mine
        WHERE t.ctid = mine.ctid;
        GET DIAGNOSTICS v_count = ROW_COUNT;
    END IF;
    RETURN v_count;
END $$;

-- Make parked runs claimable again. Runs that somebody holds right now are left out.
CREATE FUNCTION {s}.unpark(p_runs uuid[]) RETURNS integer LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    v_runs uuid[];
BEGIN
    WITH locked AS MATERIALIZED (
        SELECT r.run_id FROM (SELECT DISTINCT unnest(p_runs) AS run_id) i
        JOIN {s}.run r ON r.run_id = ANY (ARRAY[i.run_id]) AND r.state = 1
        ORDER BY i.run_id FOR NO KEY UPDATE OF r SKIP LOCKED
    ), quiet AS (
        DELETE FROM {s}.timer t USING locked l
        WHERE t.run_id = ANY (ARRAY[l.run_id]) AND t.ref + 0 = 0 AND t.kind + 0 = 6
    ), ready AS (
        UPDATE {s}.run r SET state = 0, park = NULL, parks = 0 FROM locked l
        WHERE r.run_id = ANY (ARRAY[l.run_id])
        RETURNING r.run_id
    ) SELECT array_agg(run_id) INTO v_runs FROM ready;
    PERFORM {s}.wake(v_runs);
    RETURN coalesce(cardinality(v_runs), 0);
END $$;

-- Pause open runs: from now on they are claimed only for what ends them. An owner is told, and stops
-- at its next turn: the word has a negative id, so that it is read before all other mail, the newest
-- one first. Returns how many there are; those that are paused already get the new reason.
CREATE FUNCTION {s}.pause(p_runs uuid[], p_pause bytea[]) RETURNS integer LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    v_runs uuid[];
    v_owned uuid[];
BEGIN
    PERFORM FROM {s}.run WHERE run_id = ANY (p_runs) ORDER BY run_id FOR NO KEY UPDATE;
    WITH paused AS (
        UPDATE {s}.run r SET pause = i.pause
        FROM unnest(p_runs, p_pause) AS i(run_id, pause) WHERE r.run_id = ANY (ARRAY[i.run_id])
        RETURNING r.run_id, r.session
    )
    SELECT array_agg(run_id), array_agg(run_id) FILTER (WHERE session IS NOT NULL)
    INTO v_runs, v_owned FROM paused;
    INSERT INTO {s}.inbox (id, run_id, kind, name) OVERRIDING SYSTEM VALUE
    SELECT -nextval('{s}.inbox_id_seq'), run_id, 202, 'paused' FROM unnest(v_owned) AS i(run_id);
    PERFORM {s}.wake(v_owned);
    RETURN coalesce(cardinality(v_runs), 0);
END $$;

-- Let paused runs go on: the word that one has been paused is taken back where nobody has read it.
CREATE FUNCTION {s}.resume(p_runs uuid[]) RETURNS integer LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    v_runs uuid[];
    v_owned uuid[];
BEGIN
    PERFORM FROM {s}.run WHERE run_id = ANY (p_runs) ORDER BY run_id FOR NO KEY UPDATE;
    WITH resumed AS (
        UPDATE {s}.run r SET pause = NULL WHERE r.run_id = ANY (p_runs) AND r.pause IS NOT NULL
        RETURNING r.run_id, r.session
    )
    SELECT array_agg(run_id), array_agg(run_id) FILTER (WHERE session IS NOT NULL)
    INTO v_runs, v_owned FROM resumed;
    DELETE FROM {s}.inbox WHERE run_id = ANY (v_runs) AND kind = 202;
    INSERT INTO {s}.inbox (id, run_id, kind, name) OVERRIDING SYSTEM VALUE
    SELECT -nextval('{s}.inbox_id_seq'), run_id, 202, 'resumed' FROM unnest(v_owned) AS i(run_id);
    PERFORM {s}.wake(v_runs);
    RETURN coalesce(cardinality(v_runs), 0);
END $$;
