-- Listings: pages of runs, open and closed, the newest first; those that began in the same microsecond in
-- order of their run ids. The next page is what comes after the last run of the one before, so what
-- starts, closes or is dropped meanwhile moves nothing. One statement, and so one snapshot: a run that
-- closes just then is there once.

CREATE VIEW {s}.any_run AS
SELECT true AS is_open, run_id, workflow_id, workflow_type, queue, version,
       (CASE WHEN pause IS NOT NULL THEN 3 WHEN state = 2 THEN 0 ELSE state END)::smallint AS state,
       created_at, NULL::timestamptz AS closed_at, next_seq, head_hash, part, search, session
FROM {s}.run
UNION ALL
SELECT false, run_id, workflow_id, workflow_type, queue, version, state, created_at, closed_at,
       next_seq, head_hash, part, search, NULL::bigint
FROM {s}.closed_run;
COMMENT ON VIEW {s}.any_run IS
    'Open and closed runs. States: 0 running, 1 parked, 3 paused, 10 completed, 11 failed, 12 cancelled, '
    '13 terminated, 14 timed out, 15 continued as new.';

-- Whether a run fits, and comes after the last one. NULL (or no states) leaves all. Becomes part of
-- the statement that asks; planned with what is asked for, so what nobody asked for is not there.
CREATE FUNCTION {s}.is_listed(
    r {s}.any_run, p_open boolean, p_closed boolean, p_type text, p_states smallint[], p_queue text,
    p_prefix text, p_from_us bigint, p_until_us bigint, p_closed_from_us bigint,
    p_closed_until_us bigint, p_ids text[], p_before_us bigint, p_before uuid
) RETURNS boolean LANGUAGE sql STABLE RETURN
    ((r).is_open AND p_open OR NOT (r).is_open AND p_closed)
    AND (p_type IS NULL OR (r).workflow_type = p_type)
    AND (cardinality(p_states) = 0 OR (r).state = ANY (p_states))
    AND (p_queue IS NULL OR (r).queue = p_queue)
    AND (p_prefix IS NULL OR starts_with((r).workflow_id, p_prefix))
    AND (p_from_us IS NULL OR (r).created_at >= {s}.ts(p_from_us))
    AND (p_until_us IS NULL OR (r).created_at < {s}.ts(p_until_us))
    AND (p_closed_from_us IS NULL OR (r).closed_at >= {s}.ts(p_closed_from_us))
    AND (p_closed_until_us IS NULL OR (r).closed_at < {s}.ts(p_closed_until_us))
    AND (p_ids IS NULL OR (r).workflow_id = ANY (p_ids))
    AND (p_before_us IS NULL OR ((r).created_at, (r).run_id) < ({s}.ts(p_before_us), p_before));

-- In order of the index by time (and of the run ids in one microsecond), from where the last page
-- ended to the last row of this one.
CREATE FUNCTION {s}.list_runs(
    p_open boolean, p_closed boolean, p_type text, p_states smallint[], p_queue text,
    p_prefix text, p_from_us bigint, p_until_us bigint, p_closed_from_us bigint,
    p_closed_until_us bigint, p_ids text[], p_before_us bigint, p_before uuid, p_limit integer
) RETURNS SETOF {s}.any_run LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET jit = off
SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    RETURN QUERY
    SELECT r.* FROM {s}.any_run r
    WHERE {s}.is_listed(r, p_open, p_closed, p_type, p_states, p_queue, p_prefix, p_from_us,
                        p_until_us, p_closed_from_us, p_closed_until_us, p_ids, p_before_us, p_before)
    ORDER BY r.created_at DESC, r.run_id DESC LIMIT p_limit;
END $$;

-- Those with these search attributes or ids, or that closed since then, which few are: found by the
-- index of that, and sorted.
CREATE FUNCTION {s}.find_runs(
    p_search jsonb, p_open boolean, p_closed boolean, p_type text, p_states smallint[],
    p_queue text, p_prefix text, p_from_us bigint, p_until_us bigint, p_closed_from_us bigint,
    p_closed_until_us bigint, p_ids text[], p_before_us bigint, p_before uuid, p_limit integer
) RETURNS SETOF {s}.any_run LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    RETURN QUERY
    WITH found AS MATERIALIZED (
        SELECT r.* FROM {s}.any_run r
        WHERE (p_search IS NULL OR r.search @> p_search)
          AND {s}.is_listed(r, p_open, p_closed, p_type, p_states, p_queue, p_prefix, p_from_us,
                            p_until_us, p_closed_from_us, p_closed_until_us, p_ids, p_before_us, p_before)
    )
    SELECT f.* FROM found f ORDER BY f.created_at DESC, f.run_id DESC LIMIT p_limit;
END $$;
