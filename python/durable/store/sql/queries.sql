-- Every statement that is not a function of the schema. `-- name: x` begins a query; {s} is the
-- quoted schema. Parameters are positional. Most calls are functions, made by the migrations.

-- name: check_version
SELECT value::integer FROM {s}.meta WHERE name = 'schema_version'

-- name: has_meta
SELECT to_regclass($1 || '.meta') IS NOT NULL

-- name: now
SELECT {s}.us(clock_timestamp())

-- name: register_session
INSERT INTO {s}.session (id, host, pid, build_id, queues, expires_at)
VALUES ($1, $2, $3, $4, $5, clock_timestamp() + $6::bigint * interval '1 microsecond')
ON CONFLICT (id) DO UPDATE SET expires_at = excluded.expires_at

-- name: suspect
UPDATE {s}.session SET suspect = $2::uuid WHERE id = $1 RETURNING true

-- name: heartbeat
-- HOT: touches no indexed column.
UPDATE {s}.session SET expires_at = clock_timestamp() + $2::bigint * interval '1 microsecond'
FROM (SELECT id AS mine FROM {s}.session WHERE id = ANY ($1::bigint[])
      ORDER BY id FOR NO KEY UPDATE) locked
WHERE id = mine
RETURNING id

-- name: end_sessions
SELECT sessions, runs FROM {s}.end_sessions($1::bigint[], $2, $3)

-- name: tidy_claims
SELECT {s}.tidy_claims()

-- name: register_types
INSERT INTO {s}.type_info (kind, name, queue, signature, doc, takes_plain)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::boolean[])
    AS i(kind, name, queue, signature, doc, takes_plain)
ORDER BY kind, name
ON CONFLICT (kind, name) DO UPDATE
SET queue = excluded.queue, signature = excluded.signature, doc = excluded.doc,
    seen_at = excluded.seen_at, takes_plain = excluded.takes_plain

-- name: types
SELECT name, kind, queue, signature, doc, takes_plain FROM {s}.type_info ORDER BY kind DESC, name

-- name: start_runs
SELECT run_id::text, state, holder_id, holder_us, {s}.tell($19, $20) FROM {s}.start_runs(
    $1::uuid[], $2::text[], $3::text[], $4::text[], $5::smallint[], $6::text[], $7::bytea[],
    $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::smallint[],
    $14::uuid[], $15::integer[], $16::text[], $17::text[], $18::text[])

-- name: start_run
SELECT r[1], r[2]::smallint, r[3]::boolean FROM (SELECT {s}.start_run(
    $1::uuid, $2::text, $3::text, $4::text, $5::smallint, $6::text, $7::bytea, $8::bigint,
    $9::smallint, $10::text, $11::text, $12::text) AS r OFFSET 0) once

-- name: replace_start
SELECT {s}.replace_start($1::uuid, $2::text, $3::smallint, $4::bytea, $5::bigint, $6::bigint,
                         $7::bigint, $8::bigint, $9::text)

-- name: start_and_send
SELECT run_id::text, state FROM {s}.start_and_send(
    $1::uuid[], $2::text[], $3::text[], $4::text[], $5::smallint[], $6::text[], $7::bytea[],
    $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::smallint[],
    $14::uuid[], $15::integer[], $16::text[], $17::smallint[], $18::text[], $19::bytea[],
    $20::bytea[], $21::text[])

-- name: send
SELECT run_id::text FROM {s}.send(
    $1::smallint[], $2::text[], $3::uuid[], $4::text[], $5::bytea[], $6::bytea[], $7::integer[],
    $8::text[], $9)

-- name: send_and_tell
SELECT run_id::text, told FROM {s}.send_and_tell(
    $1::smallint[], $2::text[], $3::uuid[], $4::text[], $5::bytea[], $6::bytea[], $7::integer[],
    $8::text[], $9, $10)

-- name: view_run
-- Open runs first: by workflow id the open one, else the latest closed.
(SELECT run_id::text, workflow_id, workflow_type, queue, version,
        CASE WHEN pause IS NULL THEN state ELSE 3 END AS state, {s}.us(created_at),
        NULL::bigint AS closed_us, next_seq, head_hash, part, NULL::bytea, coalesce(pause, park),
        search::text, session, fence
 FROM {s}.run WHERE run_id = $1::uuid OR ($1 IS NULL AND workflow_id = $2))
UNION ALL
(SELECT run_id::text, workflow_id, workflow_type, queue, version, state, {s}.us(created_at),
        {s}.us(closed_at), next_seq, head_hash, part, result, failure, search::text,
        NULL::bigint, 0::bigint
 FROM {s}.closed_run WHERE run_id = $1::uuid
 LIMIT 1)
UNION ALL
(SELECT run_id::text, workflow_id, workflow_type, queue, version, state, {s}.us(created_at),
        {s}.us(closed_at), next_seq, head_hash, part, result, failure, search::text,
        NULL::bigint, 0::bigint
 FROM {s}.closed_run WHERE $1 IS NULL AND workflow_id = $2
 ORDER BY closed_at DESC LIMIT 1)
LIMIT 1

-- name: list_runs
SELECT run_id::text, workflow_id, workflow_type, queue, version, state, {s}.us(created_at),
       {s}.us(closed_at), next_seq, head_hash, part, NULL::bytea, NULL::bytea, search::text, session
FROM {s}.list_runs($1, $2, $3, $4::smallint[], $5, $6, $7, $8, $9, $10, $11::text[], $12, $13::uuid,
                   $14)

-- name: find_runs
SELECT run_id::text, workflow_id, workflow_type, queue, version, state, {s}.us(created_at),
       {s}.us(closed_at), next_seq, head_hash, part, NULL::bytea, NULL::bytea, search::text, session
FROM {s}.find_runs($1::jsonb, $2, $3, $4, $5::smallint[], $6, $7, $8, $9, $10, $11, $12::text[], $13,
                   $14::uuid, $15)

-- name: open_page
SELECT run_id::text, workflow_id, workflow_type, queue, version,
       CASE WHEN pause IS NULL THEN state ELSE 3 END, {s}.us(created_at),
       NULL::bigint, next_seq, head_hash, part, NULL::bytea, NULL::bytea, search::text, session
FROM {s}.open_page($1, $2::smallint[], $3, $4, $5::jsonb, $6, $7, $8::uuid, $9, $10::text[])

-- name: count_open
SELECT count(*) FROM {s}.run r
WHERE {s}.fits(r, $1::text, $2::smallint[], $3::text, $4::text, $5::jsonb, $6::bigint, $7::bigint)
  AND ($8::text[] IS NULL OR r.workflow_id = ANY ($8))

-- name: closed
SELECT * FROM {s}.closed_views($1::uuid[])

-- name: responses
SELECT request_id, payload, failure FROM {s}.response WHERE request_id = ANY ($1::text[])

-- name: purge_responses
DELETE FROM {s}.response WHERE created_at < statement_timestamp() - interval '1 hour'

-- name: claim_runs
SELECT * FROM {s}.claim_runs($1, $2::text[], $3::text[], $4)

-- name: look
-- One probe of an index for each session, queue and the timers.
SELECT ARRAY(SELECT s FROM unnest($1::bigint[]) s
             WHERE (SELECT true FROM {s}.task t WHERE t.session = s LIMIT 1)),
       EXISTS (SELECT FROM unnest($2::text[]) q
               WHERE (SELECT true FROM {s}.task t WHERE t.queue = q AND t.session IS NULL LIMIT 1))
       OR (SELECT min(due_at) <= statement_timestamp() FROM {s}.timer) IS TRUE

-- name: load
-- One look per run: with two arrays compared as sets the planner may read whole partitions.
-- A run is told by its place in the arrays (from 1), which is shorter than its id in every row.
SELECT i.n, h.batch
FROM unnest($1::integer[], $2::uuid[]) WITH ORDINALITY AS i(part, run_id, n)
CROSS JOIN LATERAL (
    SELECT h.seq, h.batch FROM {s}.history h
    WHERE h.part = i.part AND h.run_id = i.run_id OFFSET 0
) h
ORDER BY i.n, h.seq

-- name: load_packed
-- As load, put together: one row, which costs the reader what a single batch does. Numbers have four
-- bytes. A run without a history counts 0.
SELECT string_agg(int4send(p.count), ''), string_agg(p.lengths, ''), string_agg(p.batches, '')
FROM (
    SELECT h.count, h.lengths, h.batches
    FROM unnest($1::integer[], $2::uuid[]) WITH ORDINALITY AS i(part, run_id, n)
    CROSS JOIN LATERAL (
        SELECT count(*)::integer AS count, string_agg(int4send(length(b.batch)), '') AS lengths,
               string_agg(b.batch, '') AS batches
        FROM (
            SELECT h.batch FROM {s}.history h
            WHERE h.part = i.part AND h.run_id = i.run_id ORDER BY h.seq
        ) b
    ) h
    ORDER BY i.n
) p

-- name: first_batches
SELECT i.run_id::text, h.batch
FROM unnest($1::integer[], $2::uuid[]) AS i(part, run_id)
CROSS JOIN LATERAL (
    SELECT h.batch FROM {s}.history h
    WHERE h.part = i.part AND h.run_id = i.run_id AND h.seq = 0 OFFSET 0
) h

-- name: inbox
SELECT b.id, b.run_id::text, b.kind, b.ref, b.name, b.meta, b.payload, {s}.us(b.created_at)
FROM (SELECT DISTINCT unnest($1::uuid[]) AS run_id) i, LATERAL (
    SELECT * FROM {s}.inbox
    WHERE run_id = i.run_id AND ($3::smallint[] IS NULL OR kind = ANY ($3)) ORDER BY id LIMIT $2
) b ORDER BY b.id

-- name: mail_after
SELECT * FROM {s}.mail_after($1::uuid[], $2, $3::bigint[], $4::bigint[])

-- name: claim_activities
SELECT run_id, workflow_id, workflow_type, ref, name, queue, attempt, token, input, options,
       last_failure, details, scheduled_us
FROM {s}.claim_activities($1, $2::text[], $3::text[], $4)

-- name: finish_activities
SELECT good FROM {s}.finish_activities(
    $1::uuid[], $2::integer[], $3::integer[], $4::bigint[], $5::smallint[], $6::bytea[],
    $7::bigint[], $8::bytea[], $9::boolean[]) AS good

-- name: heartbeat_activity
SELECT {s}.heartbeat_activity($1::uuid, $2, $3, $4)

-- name: detach_activity
UPDATE {s}.activity SET session = NULL
WHERE run_id = $1::uuid AND ref = $2 AND token = $3 AND state = 2
RETURNING true

-- name: promote_due
SELECT promoted, next_due_us, now_us FROM {s}.promote_due($1)

-- name: unpark
SELECT {s}.unpark($1::uuid[])

-- name: pause
SELECT {s}.pause($1::uuid[], $2::bytea[])

-- name: resume
SELECT {s}.resume($1::uuid[])

-- name: commit_runs
SELECT verdicts, now_us FROM {s}.commit_runs(
    $1, $2::uuid[], $3::bigint[], $4::integer[], $5::bytea[], $6::bigint[], $7::smallint[],
    $8::uuid[], $9::bigint[])

-- name: commit_and_close
-- What most ends of runs are: without a pipeline, and clients are told in the same transaction.
SELECT verdicts, now_us, {s}.commit_closes($10::uuid[], $11::smallint[], $12::bytea[], $13::bytea[],
                                           $14::uuid[])::text, {s}.tell($15, $16)
FROM {s}.commit_runs(
    $1, $2::uuid[], $3::bigint[], $4::integer[], $5::bytea[], $6::bigint[], $7::smallint[],
    $8::uuid[], $9::bigint[])

-- name: commit_and_respond
-- The same where runs answer, and nothing else.
SELECT verdicts, now_us, {s}.commit_responses($10::uuid[], $11::text[], $12::bytea[], $13::bytea[])::text,
       {s}.tell($14, $15)
FROM {s}.commit_runs(
    $1, $2::uuid[], $3::bigint[], $4::integer[], $5::bytea[], $6::bigint[], $7::smallint[],
    $8::uuid[], $9::bigint[])

-- name: close_run
SELECT r[1], r[2]::bigint, r[3]::boolean FROM (SELECT {s}.close_run(
    $1::bigint, $2::uuid, $3::bigint, $4::integer, $5::bytea, $6::bigint, $7::smallint,
    $8::bigint[], $9::smallint, $10::bytea, $11::bytea, $12::text, $13::text) AS r OFFSET 0) once

-- name: commit_timers
SELECT {s}.commit_timers(
    $1::uuid[], $2::integer[], $3::smallint[], $4::bigint[], $5::uuid[], $6::integer[])

-- name: commit_activities
SELECT {s}.commit_activities(
    $1::uuid[], $2::integer[], $3::text[], $4::text[], $5::smallint[], $6::integer[], $7::bytea[],
    $8::bytea[], $9::bigint[], $10::bytea[], $11::bytea[], $12::bigint[])

-- name: commit_activities_done
SELECT {s}.commit_activities_done($1::uuid[], $2::integer[])

-- name: commit_responses
SELECT {s}.commit_responses($1::uuid[], $2::text[], $3::bytea[], $4::bytea[])

-- name: commit_children
SELECT {s}.commit_children(
    $1::uuid[], $2::text[], $3::text[], $4::text[], $5::smallint[], $6::text[], $7::bytea[],
    $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::smallint[],
    $14::uuid[], $15::integer[], $16::text[])

-- name: commit_messages
SELECT {s}.commit_messages(
    $1::uuid[], $2::smallint[], $3::text[], $4::uuid[], $5::text[], $6::bytea[], $7::bytea[],
    $8::integer[], $9::text[])

-- name: commit_search
SELECT {s}.commit_search($1::uuid[], $2::text[])

-- name: commit_kept
SELECT {s}.commit_kept($1::uuid[], $2::smallint[], $3::integer[], $4::bytea[])

-- name: commit_releases
SELECT {s}.commit_releases($1::uuid[], $2::bytea[], $3::bigint[])

-- name: commit_closes
SELECT {s}.commit_closes($1::uuid[], $2::smallint[], $3::bytea[], $4::bytea[], $5::uuid[])

-- name: commit_successors
SELECT {s}.commit_successors(
    $1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::smallint[], $7::text[],
    $8::bytea[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::uuid[],
    $14::integer[], $15::text[])

-- name: notify
SELECT true FROM pg_notify($1, $2)

-- name: owned_runs
SELECT r.run_id::text, workflow_id, workflow_type, queue, version, fence, next_seq, head_hash, part,
       crashes::integer, parent_run_id::text, parent_ref, {s}.us(created_at),
       NULL::bytea, true, pause IS NOT NULL, parks::integer
FROM (SELECT DISTINCT unnest(runs) AS run_id FROM {s}.claim WHERE session = $1::bigint) c
JOIN {s}.run r ON r.run_id = ANY (ARRAY[c.run_id]) WHERE r.session = $1::bigint

-- name: owned_activities
SELECT a.run_id::text, r.workflow_id, r.workflow_type, a.ref, a.name, a.queue, a.attempt, a.token,
       a.input, a.options, a.last_failure, a.details, {s}.us(a.scheduled_at)
FROM {s}.activity a JOIN {s}.run r ON r.run_id = ANY (ARRAY[a.run_id]) WHERE a.session = $1::bigint

-- name: waiting
SELECT run_id::text, ref FROM {s}.activity WHERE run_id = ANY ($1::uuid[])

-- name: take_lease
INSERT INTO {s}.lease AS l (name, holder, expires_at)
VALUES ($1, $2, clock_timestamp() + $3::bigint * interval '1 microsecond')
ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at
WHERE l.holder = excluded.holder OR l.expires_at < clock_timestamp()
RETURNING true

-- name: drop_lease
DELETE FROM {s}.lease WHERE name = $1 AND holder = $2 RETURNING true

-- name: retention
SELECT value FROM {s}.meta WHERE name = 'retention_days'

-- name: set_retention
UPDATE {s}.meta SET value = $1 WHERE name = 'retention_days' RETURNING value

-- name: prepare_part
SELECT {s}.prepare_part()

-- name: advance_part
SELECT {s}.advance_part($1)

-- name: expired_parts
SELECT id FROM {s}.part WHERE ended_at < statement_timestamp() - {s}.retention() ORDER BY id

-- name: move_open_runs
SELECT moved, last::text FROM {s}.move_open_runs($1, $2::uuid, $3)

-- name: move_closed_runs
SELECT {s}.move_closed_runs($1, $2)

-- name: drop_part
SELECT {s}.drop_part($1)

-- name: repair_wakeups
SELECT {s}.repair_wakeups($1)

-- name: gauges
SELECT (SELECT count(*) FROM {s}.run),
       (SELECT count(*) FROM {s}.run WHERE pause IS NOT NULL),
       (SELECT count(*) FROM {s}.part),
       (SELECT greatest(0, extract(epoch FROM clock_timestamp() - min(due_at)))::double precision
        FROM {s}.timer)

-- name: dead_rows
SELECT relname::text, n_dead_tup FROM pg_stat_user_tables WHERE relid = ANY (ARRAY[
    '{s}.run', '{s}.task', '{s}.timer', '{s}.inbox', '{s}.activity', '{s}.session']::regclass[])

-- name: relocate
SELECT run_id::text, part FROM {s}.run WHERE run_id = ANY ($1::uuid[])
UNION ALL
SELECT run_id::text, part FROM {s}.closed_run WHERE run_id = ANY ($1::uuid[])

-- name: set_queue_limit
SELECT true FROM {s}.set_queue_limit($1, $2, $3, $4, $5)

-- name: queue_limits
SELECT queue, concurrency, rate, key_concurrency FROM {s}.queue_limit ORDER BY queue

-- name: queue_depths
SELECT queue, count(*) FILTER (WHERE state = 1), count(*) FILTER (WHERE state = 3),
       count(*) FILTER (WHERE state = 2), count(*) FILTER (WHERE state = 0),
       {s}.us(min(scheduled_at) FILTER (WHERE state IN (1, 3)))
FROM {s}.activity GROUP BY queue ORDER BY queue

-- name: fair_sweep
SELECT {s}.fair_sweep($1)

-- name: append_stream
SELECT {s}.append_stream($1::uuid, $2, $3, $4::bytea[], $5, $6, $7, $8)

-- name: read_stream
SELECT "offset", attempt, payload FROM {s}.read_stream($1::uuid, $2, $3, $4, $5)

-- name: sweep_streams
SELECT run_id::text, name FROM {s}.sweep_streams($1::uuid, $2, $3)
