-- Streams: values that a run gives out while it goes on, in order, under a name. They go when their
-- run is no longer known: sweep_streams, called by the upkeep after it has dropped a part.

CREATE TABLE {s}.stream (
    run_id uuid NOT NULL,
    name text NOT NULL,
    items bigint NOT NULL DEFAULT 0,
    flush bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (run_id, name)
) WITH (fillfactor = 50);
COMMENT ON COLUMN {s}.stream.flush IS
    'Random id of the last append: tells an append whose answer was lost that it had happened.';

-- An item without a payload is the end mark of its writer.
CREATE TABLE {s}.stream_item (
    run_id uuid NOT NULL,
    name text NOT NULL,
    "offset" bigint NOT NULL,
    attempt integer NOT NULL,
    payload bytea,
    PRIMARY KEY (run_id, name, "offset")
);
ALTER TABLE {s}.stream_item ALTER payload SET STORAGE EXTERNAL;

-- What stands against an append: 0 nothing, -1 the run is not open, -3 the attempt is not the one that
-- runs: another worker owns the run (p_ref 0: p_token is the fence that the run had), or the token of
-- its activity is void.
CREATE FUNCTION {s}.stream_refusal(p_run uuid, p_ref integer, p_token bigint)
RETURNS integer LANGUAGE plpgsql STABLE
SET enable_seqscan = off
AS $$
DECLARE
    v_fence bigint;
BEGIN
    SELECT fence INTO v_fence FROM {s}.run WHERE run_id = p_run;
    IF NOT FOUND THEN
        RETURN -1;
    ELSIF p_ref = 0 AND v_fence = p_token THEN
        RETURN 0;
    ELSIF EXISTS (SELECT FROM {s}.activity WHERE run_id = p_run AND ref = p_ref AND token = p_token
                                                 AND state = 2) THEN
        RETURN 0;
    END IF;
    RETURN -3;
END $$;

-- Append items to a stream of an open run; its writers take turns by the lock of its row. Returns the
-- offset of the last item; what stream_refusal says; -2 when the stream would be over p_max items. The
-- attempt is looked at with the lock, so that none of its items comes behind those of the next one.
CREATE FUNCTION {s}.append_stream(
    p_run uuid, p_name text, p_attempt integer, p_items bytea[], p_flush bigint, p_max bigint,
    p_ref integer, p_token bigint
) RETURNS bigint LANGUAGE plpgsql
SET enable_seqscan = off
AS $$
DECLARE
    v_stream {s}.stream;
    v_last bigint;
    v_refusal integer;
BEGIN
    SELECT * INTO v_stream FROM {s}.stream WHERE run_id = p_run AND name = p_name
    FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        v_refusal := {s}.stream_refusal(p_run, p_ref, p_token);
        IF v_refusal < 0 THEN
            RETURN v_refusal;
        END IF;
        INSERT INTO {s}.stream (run_id, name) VALUES (p_run, p_name) ON CONFLICT DO NOTHING;
        SELECT * INTO v_stream FROM {s}.stream WHERE run_id = p_run AND name = p_name
        FOR NO KEY UPDATE;
    END IF;
    IF v_stream.flush = p_flush THEN
        RETURN v_stream.items;
    END IF;
    v_refusal := {s}.stream_refusal(p_run, p_ref, p_token);
    IF v_refusal < 0 THEN
        RETURN v_refusal;
    END IF;
    v_last := v_stream.items + cardinality(p_items);
    IF v_last > p_max THEN
        RETURN -2;
    END IF;
    INSERT INTO {s}.stream_item (run_id, name, "offset", attempt, payload)
    SELECT p_run, p_name, v_stream.items + i.n, p_attempt, i.payload
    FROM unnest(p_items) WITH ORDINALITY AS i (payload, n);
    UPDATE {s}.stream SET items = v_last, flush = p_flush WHERE run_id = p_run AND name = p_name;
    RETURN v_last;
END $$;

-- Items behind p_after, in order: at most p_limit, and no more than fit into p_bytes but for the
-- first one.
CREATE FUNCTION {s}.read_stream(
    p_run uuid, p_name text, p_after bigint, p_limit integer, p_bytes bigint
) RETURNS TABLE ("offset" bigint, attempt integer, payload bytea) LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    v_last bigint;
BEGIN
    SELECT max("offset") INTO v_last FROM (
        SELECT "offset", row_number() OVER behind AS place,
               sum(coalesce(length(payload), 0)) OVER behind AS bytes
        FROM (
            SELECT "offset", payload FROM {s}.stream_item
            WHERE run_id = p_run AND name = p_name AND "offset" > p_after
            ORDER BY "offset" LIMIT p_limit
        ) head WINDOW behind AS (ORDER BY "offset")
    ) sized WHERE bytes <= p_bytes OR place = 1;
    RETURN QUERY
    SELECT "offset", attempt, payload FROM {s}.stream_item
    WHERE run_id = p_run AND name = p_name AND "offset" > p_after AND "offset" <= v_last
    ORDER BY "offset";
END $$;

-- Look at p_limit streams after (p_run, p_name) and remove those whose run is not known any more.
-- Returns the last one it looked at; no row when there was none.
CREATE FUNCTION {s}.sweep_streams(p_run uuid, p_name text, p_limit integer)
RETURNS TABLE (run_id uuid, name text) LANGUAGE plpgsql
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    v_row record;
BEGIN
    FOR v_row IN
        SELECT s.run_id, s.name,
               NOT EXISTS (SELECT FROM {s}.run r WHERE r.run_id = s.run_id)
               AND NOT EXISTS (SELECT FROM {s}.closed_run c WHERE c.run_id = s.run_id) AS is_gone
        FROM {s}.stream s WHERE (s.run_id, s.name) > (p_run, p_name)
        ORDER BY s.run_id, s.name LIMIT p_limit
    LOOP
        run_id := v_row.run_id;
        name := v_row.name;
        IF v_row.is_gone THEN
            DELETE FROM {s}.stream_item i WHERE i.run_id = v_row.run_id AND i.name = v_row.name;
            DELETE FROM {s}.stream t WHERE t.run_id = v_row.run_id AND t.name = v_row.name;
        END IF;
    END LOOP;
    IF run_id IS NOT NULL THEN
        RETURN NEXT;
    END IF;
END $$;
