-- Upkeep: partitions that come and go, wake-ups looked after, and what is worth watching. One
-- supervisor at a time does it (the lease); two at once would do no harm.
--
-- prepare_part and drop_part run DDL with the rights of the schema's owner, so that workers need
-- none. They do only what the policy in meta says, and give up at once on a table that is in use.

INSERT INTO {s}.meta VALUES ('retention_days', '30');

CREATE TABLE {s}.lease (
    name text PRIMARY KEY,
    holder bigint NOT NULL,
    expires_at timestamptz NOT NULL
);

-- Runs that start between opened_at and ended_at live in this part; the current one has no end.
CREATE TABLE {s}.part (
    id integer PRIMARY KEY,
    opened_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at timestamptz
);
INSERT INTO {s}.part (id, ended_at)
SELECT id, CASE WHEN id < value::integer THEN clock_timestamp() END
FROM {s}.meta, generate_series(1, value::integer) AS id WHERE name = 'current_part';

-- How long a closed run is kept at least; NULL is for ever.
CREATE FUNCTION {s}.retention() RETURNS interval LANGUAGE sql STABLE RETURN (
    SELECT CASE WHEN value ~ '^[0-9]+$' THEN value::integer * interval '1 day' END
    FROM {s}.meta WHERE name = 'retention_days');

-- Make the partitions of the part after the current one. Attaching them stops nobody.
CREATE FUNCTION {s}.prepare_part() RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms'
AS $$
DECLARE
    n integer;
    v_table text;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('{s} upkeep', 0)) THEN
        RETURN false;
    END IF;
    SELECT value::integer + 1 INTO n FROM {s}.meta WHERE name = 'current_part';
    IF to_regclass('{s}.history_p' || n) IS NOT NULL THEN
        RETURN false;
    END IF;
    FOREACH v_table IN ARRAY ARRAY['history', 'closed_run'] LOOP
        EXECUTE format('CREATE TABLE {s}.%1$s_p%2$s (LIKE {s}.%1$s INCLUDING DEFAULTS '
                       'INCLUDING CONSTRAINTS INCLUDING INDEXES INCLUDING STORAGE)', v_table, n);
        EXECUTE format('ALTER TABLE {s}.%1$s ATTACH PARTITION {s}.%1$s_p%2$s FOR VALUES IN (%2$s)',
                       v_table, n);
    END LOOP;
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END $$;

-- Let new runs live in the next part, if it is there and the current one is p_after_us old. A start
-- that read the old number goes to the old part, which stays for as long as closed runs do.
CREATE FUNCTION {s}.advance_part(p_after_us bigint) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    n integer;
BEGIN
    SELECT value::integer INTO n FROM {s}.meta WHERE name = 'current_part' FOR UPDATE;
    IF to_regclass('{s}.history_p' || n + 1) IS NULL OR NOT EXISTS (
        SELECT FROM {s}.part WHERE id = n
        AND opened_at <= clock_timestamp() - p_after_us * interval '1 microsecond')
    THEN
        RETURN n;
    END IF;
    UPDATE {s}.part SET ended_at = clock_timestamp() WHERE id = n;
    INSERT INTO {s}.part (id) VALUES (n + 1);
    UPDATE {s}.meta SET value = (n + 1)::text WHERE name = 'current_part';
    RETURN n + 1;
END $$;

CREATE OR REPLACE FUNCTION {s}.add_part() RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
    PERFORM {s}.prepare_part();
    RETURN {s}.advance_part(0);
END $$;

-- Open runs of an old part, moved to the current one with their history: at most p_limit of those
-- after p_after in order of id, and about 20,000 batches. Their owners, if any, go on: a commit
-- that waits here sees the new part. What somebody holds is left for later.
CREATE FUNCTION {s}.move_open_runs(p_part integer, p_after uuid, p_limit integer)
RETURNS TABLE (moved integer, last uuid) LANGUAGE plpgsql
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    v_to integer;
    v_seen uuid[];
    v_runs uuid[];
BEGIN
    SELECT value::integer INTO v_to FROM {s}.meta WHERE name = 'current_part';
    WITH head AS MATERIALIZED (
        SELECT run_id, next_seq FROM {s}.run
        WHERE part = p_part AND part < v_to AND run_id > p_after ORDER BY run_id LIMIT p_limit
    ), sized AS (
        SELECT run_id, sum(next_seq) OVER (ORDER BY run_id) - next_seq AS before FROM head
    )
    SELECT array_agg(run_id ORDER BY run_id) INTO v_seen FROM sized WHERE before < 20000;
    last := v_seen[cardinality(v_seen)];
    v_runs := ARRAY(
        SELECT run_id FROM {s}.run WHERE run_id = ANY (v_seen) AND part = p_part
        ORDER BY run_id FOR NO KEY UPDATE SKIP LOCKED);
    UPDATE {s}.history SET part = v_to WHERE part = p_part AND run_id = ANY (v_runs);
    UPDATE {s}.run SET part = v_to WHERE run_id = ANY (v_runs);
    moved := cardinality(v_runs);
    RETURN NEXT;
END $$;

-- Runs of an old part that closed too recently to go with it, moved to the current one.
CREATE FUNCTION {s}.move_closed_runs(p_part integer, p_limit integer) RETURNS integer
LANGUAGE plpgsql
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    v_to integer;
    v_runs uuid[];
BEGIN
    SELECT value::integer INTO v_to FROM {s}.meta WHERE name = 'current_part';
    WITH head AS MATERIALIZED (
        SELECT run_id, next_seq FROM {s}.closed_run
        WHERE part = p_part AND part < v_to AND closed_at >= statement_timestamp() - {s}.retention()
        ORDER BY closed_at LIMIT p_limit
    ), sized AS (
        SELECT run_id, sum(next_seq) OVER (ORDER BY run_id) - next_seq AS before FROM head
    )
    SELECT coalesce(array_agg(run_id ORDER BY run_id), '{}') INTO v_runs
    FROM sized WHERE before < 20000;
    UPDATE {s}.history SET part = v_to WHERE part = p_part AND run_id = ANY (v_runs);
    UPDATE {s}.closed_run SET part = v_to WHERE part = p_part AND run_id = ANY (v_runs);
    RETURN cardinality(v_runs);
END $$;

-- Drop an old part with all that is in it. False when it is not time, somebody needs it, or it is in
-- use. A run leaves `run` and enters `closed_run` in one transaction, and we look in that order, so
-- none is overlooked.
CREATE FUNCTION {s}.drop_part(p_part integer) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms' SET enable_seqscan = on
AS $$
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('{s} upkeep', 0)) OR NOT EXISTS (
        SELECT FROM {s}.part WHERE id = p_part AND ended_at < statement_timestamp() - {s}.retention())
    THEN
        RETURN false;
    END IF;
    IF EXISTS (SELECT FROM {s}.run WHERE part = p_part) THEN
        RETURN false;
    END IF;
    -- In the order in which a commit takes them. Who asks for them otherwise outwaits us.
    LOCK TABLE ONLY {s}.history, ONLY {s}.closed_run IN ACCESS EXCLUSIVE MODE;
    IF EXISTS (SELECT FROM {s}.closed_run
               WHERE part = p_part AND closed_at >= statement_timestamp() - {s}.retention())
    THEN
        RETURN false;
    END IF;
    EXECUTE format('DROP TABLE {s}.history_p%s, {s}.closed_run_p%s', p_part, p_part);
    DELETE FROM {s}.part WHERE id = p_part;
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END $$;

-- Forget claims of runs that closed or changed hands: for each session that has claimed a thousand
-- more than were left to it the last time, and so twice for each claim in the long run. A session
-- that is being ended is waited for, and then it is gone. One statement, so one snapshot: a claim that
-- is not seen leaves its own row. Oldest first, and what is left to do is done the next time.
--
-- Rows that were forgotten are walked over in the index until vacuum has been there, so a look begins
-- a minute before the last time. A claim that took longer than that stays until its session ends.
CREATE FUNCTION {s}.tidy_claims() RETURNS integer LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    v_sessions bigint[];
    v_seen integer;
    v_gone integer;
BEGIN
    v_sessions := ARRAY(
        SELECT s.id FROM {s}.session s WHERE 1000 < (
            SELECT sum(CASE WHEN c.kept THEN -cardinality(c.runs) ELSE cardinality(c.runs) END)
            FROM {s}.claim c WHERE c.session = s.id AND c.claimed_at >= s.claims_since)
        ORDER BY s.id FOR KEY SHARE OF s);
    IF cardinality(v_sessions) = 0 THEN
        RETURN 0;
    END IF;
    WITH head AS MATERIALIZED (
        SELECT c.ctid, sum(cardinality(c.runs)) OVER (ORDER BY s.id, c.claimed_at) AS so_far
        FROM {s}.session s CROSS JOIN LATERAL (
            SELECT c.ctid, c.claimed_at, c.runs FROM {s}.claim c
            WHERE c.session = s.id AND c.claimed_at >= s.claims_since OFFSET 0
        ) c WHERE s.id = ANY (v_sessions)
    ), gone AS (
        DELETE FROM {s}.claim c USING head h WHERE c.ctid = h.ctid AND h.so_far <= 200000
        RETURNING c.session, c.runs
    ), owned AS (
        SELECT session, run_id, row_number() OVER (PARTITION BY session) - 1 AS n
        FROM (SELECT DISTINCT g.session, i.run_id FROM gone g, unnest(g.runs) AS i(run_id)) i
        WHERE (SELECT r.session FROM {s}.run r WHERE r.run_id = i.run_id) = i.session
    ), kept AS (
        INSERT INTO {s}.claim (session, kept, runs)
        SELECT session, true, array_agg(run_id) FROM owned GROUP BY session, n / 100
    ) SELECT (SELECT count(*) FROM head), (SELECT count(*) FROM gone) INTO v_seen, v_gone;
    IF v_gone = v_seen THEN
        UPDATE {s}.session SET claims_since = statement_timestamp() - interval '1 minute'
        WHERE id = ANY (v_sessions);
    END IF;
    RETURN v_gone;
END $$;

-- Give a token to runs that have unread messages, no owner and no token: a wake-up was lost. This
-- never happens; it is counted so that everybody can see that. One statement, so one snapshot.
CREATE FUNCTION {s}.repair_wakeups(p_age_us bigint) RETURNS integer LANGUAGE plpgsql
SET enable_seqscan = on SET enable_hashjoin = on SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    v_count integer;
BEGIN
    WITH unread AS MATERIALIZED (
        SELECT DISTINCT r.run_id, r.queue, r.priority, r.workflow_type
        FROM {s}.inbox b JOIN {s}.run r USING (run_id)
        WHERE b.created_at <= statement_timestamp() - p_age_us * interval '1 microsecond'
          AND r.session IS NULL
          AND (b.kind IN (13, 14)
               OR r.pause IS NULL AND (r.state = 0 OR b.kind = 6 AND r.state = 2))
        LIMIT 10000
    )
    INSERT INTO {s}.task (queue, priority, kind, type, run_id)
    SELECT u.queue, u.priority, 1, u.workflow_type, u.run_id FROM unread u
    WHERE NOT EXISTS (SELECT FROM {s}.task t WHERE t.run_id = u.run_id AND t.kind = 1);
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_count;
END $$;

-- Rights beyond those on rows are given by name.
REVOKE ALL ON FUNCTION {s}.prepare_part(), {s}.drop_part(integer) FROM PUBLIC;
