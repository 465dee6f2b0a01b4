-- Start and end of a single run, written out for one. Who waits for one run waits for all that the server
-- does before the first row, and that is several times as much for statements over sets. Whatever is
-- not plain is left to the functions for many, so each of these has one path only.

-- Start one run that begins now, may take its time, and has no key and no parent; with a hint (see
-- tell). Insert first, look after, as start_runs does. Returns the run that has the id, its state, and
-- whether the hint is sent.
CREATE FUNCTION {s}.start_run(
    p_run_id uuid, p_workflow_id text, p_type text, p_queue text, p_priority smallint,
    p_version text, p_batch bytea, p_head bigint, p_reuse smallint, p_search text,
    p_channel text, p_payload text
) RETURNS text[] LANGUAGE plpgsql
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_part integer;
    v_started text[];
BEGIN
    SELECT value::integer INTO v_part FROM {s}.meta WHERE name = 'current_part';
    INSERT INTO {s}.run (run_id, workflow_id, workflow_type, queue, priority, version, head_hash, part,
                         state, search)
    VALUES (p_run_id, p_workflow_id, p_type, p_queue, p_priority, p_version, p_head, v_part, 0,
            p_search::jsonb)
    ON CONFLICT DO NOTHING;
    IF FOUND THEN
        -- The id is free among the open runs; is it among the closed ones? A run id is used once.
        IF (SELECT true FROM {s}.closed_run c WHERE c.run_id = p_run_id LIMIT 1)
           OR p_reuse <> 1 AND (
               SELECT p_reuse = 0 OR c.state = 10 FROM {s}.closed_run c
               WHERE c.workflow_id = p_workflow_id ORDER BY c.closed_at DESC LIMIT 1)
        THEN
            DELETE FROM {s}.run WHERE run_id = p_run_id;
        ELSE
            INSERT INTO {s}.history (part, run_id, seq, batch) VALUES (v_part, p_run_id, 0, p_batch);
            INSERT INTO {s}.task (queue, priority, kind, type, run_id)
            VALUES (p_queue, p_priority, 1, p_type, p_run_id);
            RETURN ARRAY[p_run_id::text, '0', {s}.tell(p_channel, p_payload)::text];
        END IF;
    END IF;
    SELECT ARRAY[s.run_id::text, s.state::text, 'false'] INTO v_started
    FROM {s}.start_runs(
        ARRAY[p_run_id], ARRAY[p_workflow_id], ARRAY[p_type], ARRAY[p_queue], ARRAY[p_priority],
        ARRAY[p_version], ARRAY[p_batch], ARRAY[p_head], ARRAY[0::bigint], ARRAY[NULL::bigint],
        ARRAY[NULL::bigint], ARRAY[NULL::bigint], ARRAY[p_reuse], ARRAY[NULL::uuid],
        ARRAY[NULL::integer], ARRAY[p_search]) s;
    RETURN v_started;
END $$;

-- The last commit of one run, which has no successor: commit_runs and commit_closes, and the hint.
-- Returns the verdict, the time, and whether the hint is sent.
CREATE FUNCTION {s}.close_run(
    p_flush bigint, p_run uuid, p_fence bigint, p_seq integer, p_batch bytea, p_head bigint,
    p_close smallint, p_read bigint[], p_state smallint, p_result bytea, p_failure bytea,
    p_channel text, p_payload text
) RETURNS text[] LANGUAGE plpgsql
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_run {s}.run;
    v_ctid tid;
    v_closed text[];
BEGIN
    SELECT r.ctid INTO v_ctid FROM {s}.run r
    WHERE r.run_id = p_run AND r.fence = p_fence AND r.next_seq = p_seq AND r.parent_run_id IS NULL
    FOR UPDATE SKIP LOCKED;
    IF FOUND AND (p_close = 2 OR (
        -- A fresh look, now that no message is on its way.
        SELECT true FROM {s}.inbox b
        WHERE b.run_id = p_run AND (b.kind = 202 OR p_close = 1 AND b.kind IN (5, 6, 201))
          AND b.id <> ALL (coalesce(p_read, '{}')) LIMIT 1) IS NULL)
    THEN
        DELETE FROM {s}.run WHERE ctid = v_ctid RETURNING * INTO v_run;
    END IF;
    IF v_run.run_id IS NULL THEN
        -- Refused, for a reason that those know; or it has a parent that is to be told.
        SELECT ARRAY[verdicts, now_us::text, (
            {s}.commit_closes(ARRAY[p_run], ARRAY[p_state], ARRAY[p_result], ARRAY[p_failure],
                              ARRAY[NULL::uuid]) IS NULL)::text]
        INTO v_closed
        FROM {s}.commit_runs(p_flush, ARRAY[p_run], ARRAY[p_fence], ARRAY[p_seq], ARRAY[p_batch],
                             ARRAY[p_head], ARRAY[p_close],
                             array_fill(p_run, ARRAY[coalesce(cardinality(p_read), 0)]), p_read);
        RETURN v_closed[1:2] || {s}.tell(p_channel, p_payload)::text;
    END IF;
    IF p_batch IS NOT NULL THEN
        INSERT INTO {s}.history (part, run_id, seq, batch)
        VALUES (v_run.part, p_run, p_seq, p_batch);
    END IF;
    INSERT INTO {s}.closed_run (part, run_id, workflow_id, workflow_type, queue, version, state,
                                next_seq, head_hash, created_at, search, dedup_key, result, failure)
    VALUES (v_run.part, p_run, v_run.workflow_id, v_run.workflow_type, v_run.queue, v_run.version,
            p_state, p_seq + (p_batch IS NOT NULL)::integer, p_head, v_run.created_at, v_run.search,
            v_run.dedup_key, p_result, p_failure);
    WITH inbox AS (
        DELETE FROM {s}.inbox WHERE run_id = p_run
    ), request AS (
        DELETE FROM {s}.request WHERE run_id = p_run
    ), timer AS (
        DELETE FROM {s}.timer WHERE run_id = p_run
    ) DELETE FROM {s}.activity WHERE run_id = p_run;
    RETURN ARRAY['0', {s}.us(clock_timestamp())::text, {s}.tell(p_channel, p_payload)::text];
END $$;
