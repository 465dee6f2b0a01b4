-- Functions for what is done to many open runs: pages of those that fit a filter, in order of run_id.
-- A filter's arguments are the same everywhere; NULL (or no states) leaves all. States are those that
-- clients see: 3 is paused, and a delayed run is a running one.

-- Whether a run fits. Becomes part of the statement that asks.
CREATE FUNCTION {s}.fits(r {s}.run, p_type text, p_states smallint[], p_queue text, p_prefix text,
                         p_search jsonb, p_from_us bigint, p_until_us bigint)
RETURNS boolean LANGUAGE sql STABLE RETURN
    (p_type IS NULL OR (r).workflow_type = p_type)
    AND (cardinality(p_states) = 0 OR CASE WHEN (r).pause IS NOT NULL THEN 3 WHEN (r).state = 2 THEN 0
                                           ELSE (r).state END = ANY (p_states))
    AND (p_queue IS NULL OR (r).queue = p_queue)
    AND (p_prefix IS NULL OR starts_with((r).workflow_id, p_prefix))
    AND (p_search IS NULL OR (r).search @> p_search)
    AND (p_from_us IS NULL OR (r).created_at >= {s}.ts(p_from_us))
    AND (p_until_us IS NULL OR (r).created_at < {s}.ts(p_until_us));

-- The next page. Read in the order of the primary key, from where the last page ended to the last row
-- of this one; a bitmap or a sort would read all open runs for each page. Runs of given ids are looked up.
CREATE FUNCTION {s}.open_page(p_type text, p_states smallint[], p_queue text, p_prefix text,
                              p_search jsonb, p_from_us bigint, p_until_us bigint,
                              p_after uuid, p_limit integer, p_ids text[])
RETURNS SETOF {s}.run LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    IF p_ids IS NOT NULL THEN
        RETURN QUERY
        WITH found AS MATERIALIZED (
            SELECT r.* FROM (SELECT DISTINCT unnest(p_ids) AS id) i
            JOIN {s}.run r ON r.workflow_id = ANY (ARRAY[i.id])
            WHERE {s}.fits(r, p_type, p_states, p_queue, p_prefix, p_search, p_from_us, p_until_us)
        )
        SELECT f.* FROM found f
        WHERE f.run_id > coalesce(p_after, '00000000-0000-0000-0000-000000000000'::uuid)
        ORDER BY f.run_id LIMIT p_limit;
        RETURN;
    END IF;
    RETURN QUERY
    SELECT r.* FROM {s}.run r
    WHERE r.run_id > coalesce(p_after, '00000000-0000-0000-0000-000000000000'::uuid)
      AND {s}.fits(r, p_type, p_states, p_queue, p_prefix, p_search, p_from_us, p_until_us)
    ORDER BY r.run_id LIMIT p_limit;
END $$;
