-- For plain SQL: psql, triggers, other languages. These functions are called by people, so they take
-- one thing at a time, check what they get and say what is wrong with it. They run with the rights of
-- the schema's owner and nobody may call them until it is granted (docs/guides/sql.md).
--
-- The settings on the three functions for people hold for what they call, as in
-- 0002_create_client_functions.sql.
--
-- SQLSTATE: 22023 a bad argument, DUR10 the id or key is taken, DUR11 no such workflow type, DUR12 no
-- open run, DUR13 the workers of that type read nothing that is not encrypted.
--
-- A run that was started here has, in the place of its first batch, what that batch is to be made of:
-- python/durable/store/written.py makes it, the same one each time. Such a run has head_hash 0 until
-- its owner's first commit.

CREATE FUNCTION {s}.sql_refuse(p_message text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '%', p_message USING ERRCODE = '22023';
END $$;

-- An id or a name as clients allow it (client/checks.py).
CREATE FUNCTION {s}.sql_check_id(p_value text, p_what text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF coalesce(p_value, '') = '' THEN
        PERFORM {s}.sql_refuse(format('%s must be a text that is not empty', p_what));
    ELSIF length(p_value) > 512 THEN
        PERFORM {s}.sql_refuse(format('%s has %s characters; at most 512 are allowed', p_what,
                                      length(p_value)));
    ELSIF p_value ~ '[\u0001-\u001f\u007f-\u009f\u2028\u2029]' THEN
        PERFORM {s}.sql_refuse(format('%s must not have control characters', p_what));
    END IF;
END $$;

-- The arguments of a call as the text of a JSON list: an array is the list, NULL is none, and anything
-- else is the one argument.
CREATE FUNCTION {s}.sql_arguments(p_args jsonb, p_what text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_list text := coalesce(CASE jsonb_typeof(p_args) WHEN 'array' THEN p_args::text
                            ELSE '[' || p_args::text || ']' END, '[]');
BEGIN
    IF octet_length(convert_to(v_list, 'UTF8')) > 2097152 THEN
        PERFORM {s}.sql_refuse(format('%s: %s bytes are over the limit of 2097152; store the data '
            'elsewhere and pass a reference', p_what, octet_length(convert_to(v_list, 'UTF8'))));
    END IF;
    RETURN v_list;
END $$;

-- A JSON object of names and values, of at most so many bytes; empty for NULL.
CREATE FUNCTION {s}.sql_names(p_values jsonb, p_what text, p_most integer) RETURNS jsonb
LANGUAGE plpgsql AS $$
BEGIN
    IF p_values IS NULL THEN
        RETURN '{}';
    ELSIF jsonb_typeof(p_values) <> 'object' THEN
        PERFORM {s}.sql_refuse(format('%s is a JSON object of names and values, not: %s', p_what,
                                      jsonb_typeof(p_values)));
    ELSIF octet_length(convert_to(p_values::text, 'UTF8')) > p_most THEN
        PERFORM {s}.sql_refuse(format('%s has more than %s bytes', p_what, p_most));
    ELSIF (SELECT true FROM jsonb_object_keys(p_values) AS k(name)
           WHERE length(k.name) NOT BETWEEN 1 AND 512 LIMIT 1) THEN
        PERFORM {s}.sql_refuse(format('a name in %s has 1 to 512 characters', p_what));
    END IF;
    RETURN p_values;
END $$;

-- A duration in microseconds; at most a hundred years, as everywhere.
CREATE FUNCTION {s}.sql_us(p_value interval, p_what text) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    IF extract(epoch FROM p_value) NOT BETWEEN 0 AND 3155760000 THEN
        PERFORM {s}.sql_refuse(format('%s must be between 0 and 100 years, not %s', p_what, p_value));
    END IF;
    RETURN (extract(epoch FROM p_value) * 1000000)::bigint;
END $$;

CREATE FUNCTION {s}.sql_state_name(p_state smallint) RETURNS text LANGUAGE sql IMMUTABLE RETURN
    CASE p_state WHEN 1 THEN 'parked' WHEN 3 THEN 'paused' WHEN 10 THEN 'completed'
                 WHEN 11 THEN 'failed' WHEN 12 THEN 'cancelled' WHEN 13 THEN 'terminated'
                 WHEN 14 THEN 'timed_out' WHEN 15 THEN 'continued_as_new' ELSE 'running' END;

-- The queue on which workers registered the type. Refuses a type that nobody registered, and one
-- whose workers would not read what is stored here.
CREATE FUNCTION {s}.sql_type_queue(p_type text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_queue text;
    v_takes_plain boolean;
    v_known text;
BEGIN
    SELECT i.queue, i.takes_plain INTO v_queue, v_takes_plain
    FROM {s}.type_info i WHERE i.kind = 'workflow' AND i.name = ANY (ARRAY[p_type, {s}.stand_in(p_type)])
    ORDER BY i.name DESC LIMIT 1;
    IF v_queue IS NULL THEN
        SELECT string_agg(name, ', ') INTO v_known FROM (
            SELECT name FROM {s}.type_info WHERE kind = 'workflow' AND name <> '' ORDER BY name LIMIT 100) known;
        RAISE EXCEPTION 'no workflow is called %; registered: %', quote_literal(p_type),
                        coalesce(v_known, 'none; has a worker run yet?') USING ERRCODE = 'DUR11';
    ELSIF NOT v_takes_plain THEN
        RAISE EXCEPTION 'the workers of workflow % read nothing that is not encrypted, and SQL cannot '
                        'encrypt', quote_literal(p_type)
            USING ERRCODE = 'DUR13', HINT = 'Use a client, or give their codec allow_plaintext=True.';
    END IF;
    RETURN v_queue;
END $$;

-- Start a run, in the caller's transaction; return its run id, or that of the run that holds dedup_key
-- or, with on_conflict => 'existing', the workflow id.
CREATE FUNCTION {s}.start_workflow(
    workflow_type text, workflow_id text, args jsonb DEFAULT NULL, queue text DEFAULT NULL,
    priority integer DEFAULT 0, delay interval DEFAULT NULL, start_at timestamptz DEFAULT NULL,
    run_timeout interval DEFAULT NULL, execution_timeout interval DEFAULT NULL,
    memo jsonb DEFAULT NULL, search jsonb DEFAULT NULL, id_reuse text DEFAULT 'reject',
    dedup_key text DEFAULT NULL, on_conflict text DEFAULT 'error', notify boolean DEFAULT true,
    version text DEFAULT NULL, fairness_key text DEFAULT NULL,
    fairness_weight double precision DEFAULT 1
) RETURNS uuid LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_variable
DECLARE
    v_type_queue text := {s}.sql_type_queue(workflow_type);
    v_queue text := coalesce(queue, v_type_queue);
    v_args text := {s}.sql_arguments(args, 'the arguments of workflow ' || workflow_type);
    v_memo jsonb := {s}.sql_names(memo, 'memo', 2097152);
    v_search jsonb := {s}.sql_names(search, 'search', 32768);
    v_timeout_us bigint := {s}.sql_us(run_timeout, 'run_timeout');
    v_delay_us bigint := coalesce({s}.sql_us(delay, 'delay'), 0);
    v_reuse integer := array_position(ARRAY['reject', 'after_close', 'after_failure'], id_reuse) - 1;
    v_now_us bigint := {s}.us(clock_timestamp());
    v_start_us bigint := CASE WHEN isfinite(start_at) THEN {s}.us(start_at) END;
    v_begin_us bigint := greatest(v_now_us + v_delay_us, v_start_us);
    -- A UUID of version 7, like those that clients make: milliseconds, then chance.
    v_run_id uuid := encode(set_bit(set_bit(
        overlay(uuid_send(gen_random_uuid()) PLACING substring(int8send(v_now_us / 1000) FROM 3)
                FROM 1 FOR 6), 52, 1), 53, 1), 'hex')::uuid;
    v_meta jsonb;
    v_start bytea;
    v_found record;
BEGIN
    PERFORM {s}.sql_check_id(workflow_id, 'a workflow id');
    PERFORM {s}.sql_check_id(v_queue, 'a queue');
    PERFORM {s}.sql_check_id(dedup_key, 'a dedup_key') WHERE dedup_key IS NOT NULL;
    PERFORM {s}.sql_check_id(version, 'a version') WHERE version IS NOT NULL;
    IF priority IS NULL OR priority NOT BETWEEN -32768 AND 32767 THEN
        PERFORM {s}.sql_refuse(format('a priority is -32768 to 32767, not %s', priority));
    ELSIF delay IS NOT NULL AND start_at IS NOT NULL THEN
        PERFORM {s}.sql_refuse('give delay or start_at, not both');
    ELSIF v_reuse IS NULL THEN
        PERFORM {s}.sql_refuse('id_reuse is reject, after_close or after_failure');
    ELSIF on_conflict IS NULL OR on_conflict NOT IN ('error', 'existing') THEN
        PERFORM {s}.sql_refuse('on_conflict is error or existing');
    ELSIF length(fairness_key) NOT BETWEEN 1 AND 128 THEN
        PERFORM {s}.sql_refuse('a fairness_key has 1 to 128 characters');
    ELSIF fairness_weight IS NULL OR fairness_weight NOT BETWEEN 0.001 AND 1000 THEN
        PERFORM {s}.sql_refuse(format('a fairness_weight is 0.001 to 1000, not %s',
                                      fairness_weight));
    ELSIF NOT isfinite(start_at) OR start_at >= '9999-01-01' THEN
        PERFORM {s}.sql_refuse('start_at must be a point in time before the year 9999');
    END IF;

    SELECT coalesce(jsonb_object_agg(e.key, e.value), '{}') INTO v_search
    FROM jsonb_each(v_search) e WHERE e.value <> 'null';
    v_meta := jsonb_build_object('workflow_id', workflow_id, 'queue', v_queue);
    IF v_begin_us <> v_now_us THEN
        v_meta := v_meta || jsonb_build_object('start_us', v_begin_us);
    END IF;
    IF v_timeout_us IS NOT NULL THEN
        v_meta := v_meta || jsonb_build_object('run_timeout_us', v_timeout_us);
    END IF;
    IF execution_timeout IS NOT NULL THEN
        v_meta := v_meta || jsonb_build_object(
            'execution_timeout_us', {s}.sql_us(execution_timeout, 'execution_timeout'));
    END IF;
    IF priority <> 0 THEN
        v_meta := v_meta || jsonb_build_object('priority', priority);
    END IF;
    IF version IS NOT NULL THEN
        v_meta := v_meta || jsonb_build_object('version', version);
    END IF;
    IF fairness_key IS NOT NULL THEN
        v_meta := v_meta || jsonb_build_object(
            'fairness', jsonb_build_array(fairness_key, fairness_weight));
    END IF;
    IF v_memo <> '{}' THEN
        v_meta := v_meta || jsonb_build_object('memo', v_memo);
    END IF;
    IF v_search <> '{}' THEN
        v_meta := v_meta || jsonb_build_object('search', v_search);
    END IF;
    v_start := convert_to('{"type":' || to_json(workflow_type) || ',"us":' || v_begin_us
                          || ',"meta":' || v_meta || ',"args":' || v_args || '}', 'UTF8');
    v_start := '\x53'::bytea || substring(sha256(v_start) FROM 1 FOR 16) || v_start;

    -- Who held a key may be gone when it is looked who it is.
    FOR attempt IN 1..10 LOOP
        SELECT s.* INTO v_found FROM {s}.start_runs(
            ARRAY[v_run_id], ARRAY[workflow_id], ARRAY[workflow_type], ARRAY[v_queue],
            ARRAY[priority::smallint], ARRAY[version], ARRAY[v_start], ARRAY[0::bigint],
            ARRAY[v_delay_us], ARRAY[v_start_us], ARRAY[v_timeout_us],
            ARRAY[{s}.sql_us(execution_timeout, 'execution_timeout')], ARRAY[v_reuse::smallint],
            ARRAY[NULL::uuid], ARRAY[NULL::integer],
            ARRAY[CASE WHEN v_search <> '{}' THEN v_search::text END],
            CASE WHEN dedup_key IS NOT NULL THEN ARRAY[dedup_key] END) s;
        EXIT WHEN v_found.run_id IS NOT NULL;
    END LOOP;
    IF v_found.run_id IS NULL THEN
        RAISE EXCEPTION 'a key changed hands too often to be had; try again' USING ERRCODE = '40001';
    ELSIF v_found.run_id <> v_run_id AND v_found.holder_id IS NULL AND on_conflict = 'error' THEN
        RAISE EXCEPTION 'workflow id % is taken by run % (%); pick another id, or pass id_reuse => to '
                        'say when an id may be used again', quote_literal(workflow_id),
                        v_found.run_id, {s}.sql_state_name(v_found.state)
            USING ERRCODE = 'DUR10', DETAIL = v_found.run_id::text;
    END IF;
    IF notify AND v_found.run_id = v_run_id AND v_begin_us = v_now_us THEN
        PERFORM pg_notify(btrim('{s}', '"'), 'runs');
    END IF;
    RETURN v_found.run_id;
END $$;

-- Deliver one message to the open run of a workflow id, in the caller's transaction.
CREATE FUNCTION {s}.sql_send(
    p_kind smallint, p_workflow_id text, p_name text, p_args text, p_request_id text,
    p_notify boolean
) RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
    v_run_id uuid;
    v_type text;
BEGIN
    PERFORM {s}.sql_check_id(p_workflow_id, 'a workflow id');
    PERFORM {s}.sql_check_id(p_request_id, 'a request id') WHERE p_request_id IS NOT NULL;
    IF p_args IS NOT NULL THEN
        SELECT r.workflow_type INTO v_type FROM {s}.run r WHERE r.workflow_id = p_workflow_id;
        IF (SELECT NOT i.takes_plain FROM {s}.type_info i
            WHERE i.kind = 'workflow' AND i.name = v_type) THEN
            PERFORM {s}.sql_type_queue(v_type);
        END IF;
    END IF;
    SELECT s.run_id INTO v_run_id FROM {s}.send(
        ARRAY[p_kind], ARRAY[p_workflow_id], ARRAY[NULL::uuid], ARRAY[p_name], ARRAY[NULL::bytea],
        ARRAY[convert_to(p_args, 'UTF8')], ARRAY[0],
        ARRAY[coalesce(p_request_id, gen_random_uuid()::text)]) s;
    IF v_run_id IS NULL THEN
        RAISE EXCEPTION 'no run of workflow % is open', quote_literal(p_workflow_id)
            USING ERRCODE = 'DUR12';
    END IF;
    IF p_notify THEN
        PERFORM pg_notify(btrim('{s}', '"'), 'runs');
    END IF;
    RETURN v_run_id;
END $$;

-- Send a signal to the open run of a workflow id; return its run id. A repeated request id is a no-op.
CREATE FUNCTION {s}.signal_workflow(
    workflow_id text, name text, args jsonb DEFAULT NULL, request_id text DEFAULT NULL,
    notify boolean DEFAULT true
) RETURNS uuid LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    PERFORM {s}.sql_check_id(name, 'a signal');
    RETURN {s}.sql_send(5::smallint, workflow_id, name,
                        {s}.sql_arguments(args, 'the arguments of signal ' || name),
                        request_id, notify);
END $$;

-- Ask the open run of a workflow id to end; return its run id.
CREATE FUNCTION {s}.cancel_workflow(
    workflow_id text, reason text DEFAULT NULL, notify boolean DEFAULT true
) RETURNS uuid LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    RETURN {s}.sql_send(6::smallint, workflow_id, NULL,
                        CASE WHEN reason <> ''
                             THEN {s}.sql_arguments(jsonb_build_array(reason), 'the reason') END,
                        NULL, notify);
END $$;

REVOKE ALL ON FUNCTION
    {s}.start_workflow(text, text, jsonb, text, integer, interval, timestamptz, interval, interval,
                       jsonb, jsonb, text, text, text, boolean, text, text, double precision),
    {s}.signal_workflow(text, text, jsonb, text, boolean),
    {s}.cancel_workflow(text, text, boolean)
FROM PUBLIC;
