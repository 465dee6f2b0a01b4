-- Queues: limits of how many activities run at once and start per second, over all workers, and the
-- fair sharing of a queue by key. Those without cost nothing: a claim pays one look at an empty table.
--
-- Fairness is start-time fair queueing. A place in a queue is task.id: a plain number for those who
-- come first to be served first, all below fair_start(). From its first attempt with a key on, a queue
-- (at one priority) has a clock, and places are tags: an attempt's is where its key's last one ended,
-- or what the clock shows if that is later, and it ends 1/weight further on. The clock shows the
-- place that was served last. So a claim stays a scan from the head of one index, a key with a long
-- line stands in line behind itself only, and a key that was away neither gains nor loses by it.

CREATE FUNCTION {s}.fair_start() RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN 2305843009213693952;

-- How far an attempt moves its key on: 1,000,000 at weight 1.
CREATE FUNCTION {s}.fair_cost(p_policy jsonb) RETURNS bigint LANGUAGE sql STABLE RETURN
    greatest(1, round(
        1000000 / coalesce((p_policy ->> 'fairness_weight')::double precision, 1)))::bigint;

-- Give activities places in queues that are shared out by key; those without a key share one. Locks
-- the rows of the keys, in order, to the end of the transaction.
CREATE FUNCTION {s}.enqueue_fairly(p_runs uuid[], p_refs integer[]) RETURNS void LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
BEGIN
    -- A new clock starts behind all that is in the queue.
    INSERT INTO {s}.fair_clock (queue, priority, now)
    SELECT w.queue, w.priority, greatest({s}.fair_start(), (
        SELECT t.id + 1 FROM {s}.task t
        WHERE t.queue = w.queue AND t.kind = 2 AND t.priority = w.priority AND t.session IS NULL
        ORDER BY t.id DESC LIMIT 1))
    FROM (SELECT DISTINCT a.queue, a.priority FROM unnest(p_runs, p_refs) AS i(run_id, ref)
          JOIN {s}.activity a ON a.run_id = ANY (ARRAY[i.run_id]) AND a.ref = i.ref) w
    WHERE NOT EXISTS (SELECT FROM {s}.fair_clock c
                      WHERE c.queue = w.queue AND c.priority = w.priority)
    ORDER BY 1, 2
    ON CONFLICT (queue, priority) DO NOTHING;

    INSERT INTO {s}.fair_key AS f (queue, priority, key, next, charged)
    SELECT w.queue, w.priority, w.key, w.cost + coalesce((
               SELECT c.now FROM {s}.fair_clock c
               WHERE c.queue = w.queue AND c.priority = w.priority), {s}.fair_start()), w.cost
    FROM (SELECT a.queue, a.priority, coalesce(a.policy ->> 'fairness_key', '') AS key,
                 sum({s}.fair_cost(a.policy))::bigint AS cost
          FROM unnest(p_runs, p_refs) AS i(run_id, ref)
          JOIN {s}.activity a ON a.run_id = ANY (ARRAY[i.run_id]) AND a.ref = i.ref
          GROUP BY 1, 2, 3) w
    ORDER BY 1, 2, 3
    ON CONFLICT (queue, priority, key) DO UPDATE
    SET next = greatest(f.next + excluded.charged, excluded.next), charged = excluded.charged;

    INSERT INTO {s}.task (id, queue, priority, kind, type, run_id, ref) OVERRIDING SYSTEM VALUE
    SELECT (SELECT f.next FROM {s}.fair_key f
            WHERE f.queue = w.queue AND f.priority = w.priority AND f.key = w.key)
           - (sum(w.cost) OVER (PARTITION BY w.queue, w.priority, w.key ORDER BY w.n DESC
                                ROWS UNBOUNDED PRECEDING))::bigint,
           w.queue, w.priority, 2, w.name, w.run_id, w.ref
    FROM (SELECT i.n, a.queue, a.priority, a.name, a.run_id, a.ref,
                 coalesce(a.policy ->> 'fairness_key', '') AS key, {s}.fair_cost(a.policy) AS cost
          FROM unnest(p_runs, p_refs) WITH ORDINALITY AS i(run_id, ref, n)
          JOIN {s}.activity a ON a.run_id = ANY (ARRAY[i.run_id]) AND a.ref = i.ref) w;
END $$;

-- The clock goes on to what was just taken. A clock that another claim holds is left to that one.
CREATE FUNCTION {s}.fair_advance(p_queue text, p_priorities smallint[], p_ids bigint[])
RETURNS void LANGUAGE sql AS $$
    WITH locked AS MATERIALIZED (
        SELECT c.queue, c.priority FROM {s}.fair_clock c WHERE c.queue = p_queue
        ORDER BY c.priority FOR NO KEY UPDATE SKIP LOCKED
    )
    UPDATE {s}.fair_clock c SET now = served.id
    FROM locked l, LATERAL (
        SELECT max(i.id) AS id FROM unnest(p_priorities, p_ids) AS i(priority, id)
        WHERE i.priority = l.priority) served
    WHERE c.queue = l.queue AND c.priority = l.priority AND c.now < served.id
$$;

-- Forget the keys that the clock has passed: they would begin anew at the clock all the same. The clock
-- of an idle queue passes all of its keys, and goes itself the next time. Returns how many rows went.
CREATE FUNCTION {s}.fair_sweep(p_limit integer) RETURNS integer LANGUAGE plpgsql
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_keys integer;
    v_clocks integer;
BEGIN
    WITH idle AS MATERIALIZED (
        SELECT c.ctid FROM {s}.fair_clock c
        WHERE NOT EXISTS (SELECT FROM {s}.fair_key f
                          WHERE f.queue = c.queue AND f.priority = c.priority)
          AND NOT EXISTS (SELECT FROM {s}.task t WHERE t.queue = c.queue AND t.kind = 2
                          AND t.priority = c.priority AND t.session IS NULL)
        ORDER BY c.queue, c.priority FOR UPDATE SKIP LOCKED
    ) DELETE FROM {s}.fair_clock c USING idle WHERE c.ctid = idle.ctid;
    GET DIAGNOSTICS v_clocks = ROW_COUNT;

    WITH idle AS MATERIALIZED (
        SELECT c.ctid, (SELECT max(f.next) FROM {s}.fair_key f
                        WHERE f.queue = c.queue AND f.priority = c.priority) AS last
        FROM {s}.fair_clock c
        WHERE NOT EXISTS (SELECT FROM {s}.task t WHERE t.queue = c.queue AND t.kind = 2
                          AND t.priority = c.priority AND t.session IS NULL)
        ORDER BY c.queue, c.priority FOR NO KEY UPDATE SKIP LOCKED
    ) UPDATE {s}.fair_clock c SET now = idle.last FROM idle
      WHERE c.ctid = idle.ctid AND c.now < idle.last;

    WITH passed AS MATERIALIZED (
        SELECT f.ctid FROM {s}.fair_key f
        WHERE f.next <= (SELECT c.now FROM {s}.fair_clock c
                         WHERE c.queue = f.queue AND c.priority = f.priority)
        ORDER BY f.queue, f.priority, f.key LIMIT p_limit FOR UPDATE SKIP LOCKED
    ) DELETE FROM {s}.fair_key f USING passed WHERE f.ctid = passed.ctid;
    GET DIAGNOSTICS v_keys = ROW_COUNT;
    RETURN v_clocks + v_keys;
END $$;

-- What a queue's bucket has now.
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

-- How many attempts of a key run, at most p_most.
CREATE FUNCTION {s}.key_running(p_queue text, p_key text, p_most integer) RETURNS integer
LANGUAGE sql STABLE AS $$
    SELECT count(*)::integer FROM (
        SELECT FROM {s}.activity a
        WHERE a.queue = p_queue AND a.policy ->> 'fairness_key' = p_key AND a.state = 2
          AND a.policy ? 'fairness_key' AND a.session IS NOT NULL
        LIMIT p_most) running
$$;

-- Take attempts of a queue with limits, as many as they allow.
CREATE FUNCTION {s}.take_limited(
    p_queue text, p_names text[], p_limit integer, OUT runs uuid[], OUT refs integer[]
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_room integer := {s}.limit_room(p_queue, p_limit);
    v_most integer;
    v_held record;
BEGIN
    IF v_room = 0 THEN
        RETURN;
    END IF;
    SELECT l.key_concurrency INTO v_most FROM {s}.queue_limit l WHERE l.queue = p_queue;
    IF v_most IS NULL THEN
        SELECT t.runs, t.refs INTO runs, refs FROM {s}.take_attempts(p_queue, p_names, v_room) t;
    ELSE
        SELECT * INTO v_held FROM {s}.take_held(p_queue, p_names, v_room, v_most);
        SELECT v_held.runs || t.runs, v_held.refs || t.refs INTO runs, refs
        FROM {s}.take_by_key(p_queue, p_names, v_room - cardinality(v_held.runs), v_most,
                             v_held.runs, v_held.refs) t;
    END IF;
    IF cardinality(runs) > 0 THEN
        PERFORM {s}.limit_charge(p_queue, cardinality(runs));
    END IF;
END $$;

-- Take attempts that were held because their key had no place, now that it has one: the next 50 keys
-- after those that the last claim looked at. A key whose places are all taken costs one probe and a
-- count of them, however many are held.
CREATE FUNCTION {s}.take_held(
    p_queue text, p_names text[], p_limit integer, p_most integer,
    OUT runs uuid[], OUT refs integer[]
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_first text := (SELECT l.held_after FROM {s}.queue_limit l WHERE l.queue = p_queue);
    v_key text := v_first;
    v_again boolean := v_first = '';
    v_looks integer := 50;
    v_room integer;
    v_more_runs uuid[];
    v_more_refs integer[];
BEGIN
    runs := '{}';
    refs := '{}';
    WHILE v_looks > 0 AND cardinality(runs) < p_limit LOOP
        v_looks := v_looks - 1;
        v_key := (SELECT a.policy ->> 'fairness_key' FROM {s}.activity a
                  WHERE a.queue = p_queue AND a.state = 3 AND a.policy ->> 'fairness_key' > v_key
                  ORDER BY a.policy ->> 'fairness_key' LIMIT 1);
        IF v_key IS NULL AND NOT v_again THEN
            v_again := true;
            v_key := '';
            CONTINUE;
        END IF;
        -- Once round is enough: what this claim freed of a key does not run yet, so a second look
        -- would give its places away twice.
        EXIT WHEN v_key IS NULL OR (v_again AND v_first <> '' AND v_key > v_first);
        v_room := least(p_most - {s}.key_running(p_queue, v_key, p_most),
                        p_limit - cardinality(runs));
        CONTINUE WHEN v_room <= 0;
        WITH next AS MATERIALIZED (
            SELECT a.run_id, a.ref FROM {s}.activity a
            WHERE a.queue = p_queue AND a.state = 3 AND a.policy ->> 'fairness_key' = v_key
              AND (a.name = ANY (p_names)) <> ('' = ANY (p_names))
            ORDER BY a.priority, a.scheduled_at LIMIT v_room FOR NO KEY UPDATE SKIP LOCKED
        ), freed AS (
            UPDATE {s}.activity a SET state = 1 FROM next n
            WHERE a.run_id = n.run_id AND a.ref = n.ref
            RETURNING a.run_id, a.ref
        ) SELECT array_agg(run_id), array_agg(ref) INTO v_more_runs, v_more_refs FROM freed;
        runs := runs || v_more_runs;
        refs := refs || v_more_refs;
    END LOOP;
    IF coalesce(v_key, '') <> v_first THEN
        UPDATE {s}.queue_limit SET held_after = coalesce(v_key, '') WHERE queue = p_queue;
    END IF;
END $$;

-- Take attempts from the queue; one whose key has no place left is held: it leaves the queue, so that
-- no later claim meets it there again. p_runs and p_refs are those that this claim has already.
CREATE FUNCTION {s}.take_by_key(
    p_queue text, p_names text[], p_limit integer, p_most integer, p_runs uuid[], p_refs integer[],
    OUT runs uuid[], OUT refs integer[]
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_running jsonb;
    v_taken record;
    v_each record;
    v_count integer;
    v_held_runs uuid[] := '{}';
    v_held_refs integer[] := '{}';
BEGIN
    runs := '{}';
    refs := '{}';
    SELECT coalesce(jsonb_object_agg(k.key, k.count + {s}.key_running(p_queue, k.key, p_most)), '{}')
    INTO v_running FROM (
        SELECT a.policy ->> 'fairness_key' AS key, count(*)
        FROM unnest(p_runs, p_refs) AS i(run_id, ref)
        JOIN {s}.activity a ON a.run_id = ANY (ARRAY[i.run_id]) AND a.ref = i.ref
        GROUP BY 1) k;
    FOR v_round IN 1..20 LOOP
        EXIT WHEN cardinality(runs) >= p_limit;
        SELECT * INTO v_taken
        FROM {s}.take_attempts(p_queue, p_names, p_limit - cardinality(runs));
        EXIT WHEN v_taken.runs IS NULL;
        FOR v_each IN
            SELECT a.run_id, a.ref, a.policy ->> 'fairness_key' AS key
            FROM unnest(v_taken.runs, v_taken.refs) WITH ORDINALITY AS i(run_id, ref, n)
            JOIN {s}.activity a ON a.run_id = ANY (ARRAY[i.run_id]) AND a.ref = i.ref
            WHERE a.state = 1 ORDER BY i.n
        LOOP
            IF v_each.key IS NOT NULL THEN
                v_count := coalesce((v_running ->> v_each.key)::integer,
                                    {s}.key_running(p_queue, v_each.key, p_most));
                IF v_count >= p_most THEN
                    v_held_runs := v_held_runs || v_each.run_id;
                    v_held_refs := v_held_refs || v_each.ref;
                    CONTINUE;
                END IF;
                v_running := v_running || jsonb_build_object(v_each.key, v_count + 1);
            END IF;
            runs := runs || v_each.run_id;
            refs := refs || v_each.ref;
        END LOOP;
    END LOOP;
    UPDATE {s}.activity a SET state = 3 FROM unnest(v_held_runs, v_held_refs) AS i(run_id, ref)
    WHERE a.run_id = ANY (ARRAY[i.run_id]) AND a.ref = i.ref AND a.state = 1;
END $$;

-- What is in the bucket stays in it, so that setting the same limit again is no gift. Without a limit
-- for each key nothing stays held: it goes back to the queue.
CREATE FUNCTION {s}.set_queue_limit(
    p_queue text, p_concurrency integer, p_rate double precision, p_burst double precision,
    p_key_concurrency integer
) RETURNS void LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
BEGIN
    DELETE FROM {s}.queue_limit
    WHERE queue = p_queue AND p_concurrency IS NULL AND p_rate IS NULL AND p_key_concurrency IS NULL;
    INSERT INTO {s}.queue_limit AS l (queue, concurrency, key_concurrency, rate, burst, tokens)
    SELECT p_queue, p_concurrency, p_key_concurrency, p_rate, p_burst, coalesce(p_burst, 0)
    WHERE p_concurrency IS NOT NULL OR p_rate IS NOT NULL OR p_key_concurrency IS NOT NULL
    ON CONFLICT (queue) DO UPDATE
    SET concurrency = excluded.concurrency, key_concurrency = excluded.key_concurrency,
        rate = excluded.rate, burst = excluded.burst,
        tokens = coalesce(least({s}.limit_tokens(l), excluded.burst), excluded.tokens),
        refilled_at = clock_timestamp();
    IF p_key_concurrency IS NULL THEN
        PERFORM {s}.enqueue(array_agg(run_id), array_agg(ref), array_agg(0::bigint))
        FROM (SELECT a.run_id, a.ref FROM {s}.activity a
              WHERE a.queue = p_queue AND a.state = 3
              ORDER BY a.run_id, a.ref FOR UPDATE) held
        HAVING count(*) > 0;
    END IF;
END $$;
