"""Every example runs and gives the result it promises."""

import asyncio
import importlib
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import date, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest

from durable import Client, NonDeterminismError, NonRetryable, Supervisor, Worker
from durable.errors import UpdateRejectedError, WorkflowCancelledError, WorkflowNotFoundError
from durable.options import SupervisorOptions, WorkerOptions
from durable.testing import Replayer, WorkflowEnvironment

EXAMPLES = Path(__file__).parents[1] / "examples"
ELSEWHERE = {"demo", "subscription"}
"""Run by other tests: `make demo`, and the README's."""
OPTIONS = WorkerOptions(poll_max_seconds=0.2, drain_seconds=1.0)


@pytest.fixture(autouse=True)
def _examples_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.fixture(params=[False, True], ids=["plain", "crashing"])
async def env(request: pytest.FixtureRequest) -> AsyncIterator[WorkflowEnvironment]:
    async with WorkflowEnvironment(crash_at_every_event=request.param) as made:
        yield made


def load(name: str) -> ModuleType:
    return importlib.import_module(name)


def test_every_example_is_run_here() -> None:
    text = Path(__file__).read_text()
    names = {path.stem for path in EXAMPLES.glob("*.py")} - ELSEWHERE
    assert len(names) >= 15
    for name in names:
        assert f'"{name}"' in text or f"{name}.py" in text, f"no test runs examples/{name}.py"


async def test_order_saga_undoes_what_it_did(env: WorkflowEnvironment) -> None:
    example = load("order_saga")
    released, refunded = env.mock(example.release, None), env.mock(example.refund, None)

    tea = await env.execute(example.buy, example.Order("1", "tea", 350))
    assert tea == "parcel with tea"
    assert released.call_count == refunded.call_count == 0

    moon = await env.execute(example.buy, example.Order("2", "moon", 350))
    assert moon == "cancelled: we do not ship moon"
    assert released.args == ("shelf for moon",)
    assert refunded.args[0].startswith("payment ")


def test_approval_is_tested_as_its_users_would() -> None:
    plugin = ["-p", "no:durable", "-p", "durable.testing.plugin", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", *plugin, "--durable-crash"]
    command += ["-c", "/dev/null", "--rootdir", str(EXAMPLES), "-o", "asyncio_mode=auto"]
    command += ["-o", "asyncio_default_fixture_loop_scope=function"]
    done = subprocess.run(
        [*command, str(EXAMPLES / "test_approval.py")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
    load("approval")


async def test_poll_job_asks_until_it_is_done(env: WorkflowEnvironment) -> None:
    example = load("poll_job")
    answers = iter([example.Status("running", n * 10) for n in range(9)])
    mock = env.mock(example.ask, lambda job: next(answers, example.Status("done", 100)))
    begin = env.now

    assert await env.execute(example.render, "cake") == "job for cake"
    assert mock.call_count == 10
    assert env.now - begin == timedelta(seconds=10 + 20 + 40 + 80 + 160 + 320 + 600 * 3)


async def test_poll_job_stops_the_job_when_it_is_cancelled(env: WorkflowEnvironment) -> None:
    example = load("poll_job")
    env.mock(example.ask, example.Status("running"))
    aborted = env.mock(example.abort, None)
    handle = await env.start(example.render, "cake")
    await env.advance(60)
    await handle.cancel()
    with pytest.raises(WorkflowCancelledError):
        await handle.result()
    assert aborted.args == ("job for cake",)


async def test_batch_sends_a_thousand_mails() -> None:
    example = load("batch")
    addresses = [f"user{n}@example.org" for n in range(1000)]
    addresses[17] = addresses[500] = "nonsense"
    async with WorkflowEnvironment() as env:
        handle = await env.start(example.newsletter, addresses)
        assert await handle.result() == example.Report(998, ["nonsense", "nonsense"])
        assert len((await handle.history()).activities) == 1000


async def test_account_lives_on_in_new_runs(env: WorkflowEnvironment) -> None:
    example = load("account")
    handle = await env.start(example.Account)
    for _ in range(150):
        await handle.signal("deposit", 100)
    assert await handle.query("balance") == 15_000
    assert await handle.update("withdraw", 5_000) == 10_000
    with pytest.raises(UpdateRejectedError, match="not enough money"):
        await handle.update("withdraw", 10_001)
    await handle.signal("close")
    assert await handle.result() == 10_000
    assert len(await handle.histories()) == 2


async def test_nightly_misses_no_night(env: WorkflowEnvironment) -> None:
    example = load("nightly")

    def report(day: date) -> int:
        if day == date(2030, 2, 3):
            raise NonRetryable("disk full")
        return 1

    mock = env.mock(example.report, report)
    failed = await env.execute(example.nightly, date(2030, 1, 2), date(2030, 3, 3), [])
    assert failed == [date(2030, 2, 3)]
    assert mock.call_count == 61


async def test_review_goes_on_until_approved(env: WorkflowEnvironment) -> None:
    example = load("review")
    handle = await env.start(example.Review, "tea")
    assert await handle.query("current") == example.Draft("About tea", 1)
    draft = await handle.update("remark", 1, "mention milk")
    assert draft == example.Draft("About tea; mention milk", 2)
    with pytest.raises(UpdateRejectedError, match="you read version 1"):
        await handle.update("approve", 1)
    await handle.update("approve", 2)
    assert await handle.result() == "published: About tea; mention milk"


async def test_agent_uses_its_tools(env: WorkflowEnvironment) -> None:
    example = load("agent")
    handle = await env.start(example.Agent)
    assert await handle.update("say", "hello") == "I can tell the weather and add numbers."
    assert await handle.update("say", "weather in Oslo") == "It is sunny in Oslo."
    assert await handle.update("say", "add 20 and 22") == "It is 42."
    await handle.signal("goodbye")
    messages = await handle.result()
    assert [each.role for each in messages].count("tool") == 2


async def test_agent_survives_a_broken_tool(env: WorkflowEnvironment) -> None:
    example = load("agent")
    env.mock(example.weather, NonRetryable("no satellite"))
    handle = await env.start(example.Agent)
    assert await handle.update("say", "weather in Oslo") == "It is failed: no satellite."


async def test_deploy_keeps_old_runs_on_their_path() -> None:
    example = load("deploy")
    async with WorkflowEnvironment() as before:
        handle = await before.start(example.payment_v1, 200_000)
        await handle.signal("confirmed")
        assert await handle.result() == "charged 200000"
        old = await handle.history()
    async with WorkflowEnvironment() as after:
        handle = await after.start(example.payment, 200_000)
        await handle.signal("confirmed")
        assert await handle.result() == "refused"
        new = await handle.history()

    Replayer([example.payment]).replay_all([old, new]).check()
    assert new.patches == ["check-fraud"]
    with pytest.raises(NonDeterminismError, match="check_fraud"):
        Replayer([example.payment_careless]).replay(old)


async def test_word_count_adds_up(env: WorkflowEnvironment) -> None:
    example = load("word_count")
    pages = ["tea tea milk", "Tea and milk", "tea"]
    assert await env.execute(example.word_count, pages) == {"tea": 4, "milk": 2, "and": 1}


async def test_auction_goes_to_the_highest_limit(env: WorkflowEnvironment) -> None:
    example = load("auction")
    sale = await env.start(example.auction, "teapot", id="sale")
    ann = await env.start(example.bidder, "sale", 100, 150, id="ann")
    bob = await env.start(example.bidder, "sale", 100, 120, id="bob")
    assert await bob.result() == "gave up"
    best = await sale.result()
    assert best is not None
    assert (best.bidder, best.cents) == ("ann", 120)
    assert await ann.result() == "won teapot for 120"


async def test_onboarding_leaves_its_tour_running(env: WorkflowEnvironment) -> None:
    example = load("onboarding")
    tips = env.mock(example.send_tip, None)
    handle = await env.start(example.onboard_team, ["Ann", "B0b", "Eve"])
    assert await handle.result() == ["ann@example.org", "eve@example.org"]
    assert await handle.vars() == {"failed": 1}
    assert await env.get_handle("tour").result() == 6
    assert tips.call_count == 6


async def test_import_file_goes_on_where_it_stopped(
    env: WorkflowEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = load("import_file")
    stored: list[str] = []

    def store(line: str) -> None:
        stored.append(line)
        if len(stored) == 250:
            raise ConnectionError("the cable was pulled")

    monkeypatch.setattr(example, "store", store)
    assert await env.execute(example.import_file, "big") == "1000 lines of big"
    # Lines 200 to 249 were written twice, the 200 before them once.
    assert len(stored) == 1050
    assert len(set(stored)) == 1000


async def test_transfer_gives_back_what_cannot_be_given(
    env: WorkflowEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = load("transfer")
    monkeypatch.setattr(example, "LEDGER", {"Ann": 10_000, "Bob": 0})
    monkeypatch.setattr(example, "BOOKED", set())

    async def move(target: str, cents: int) -> Any:
        return await env.execute(example.move_money, example.Transfer("Ann", target, cents))

    assert await move("Bob", 4_000) == "moved"
    assert await move("Bob", 7_000) == "refused: Ann has not enough money"
    assert await move("Eve", 1_000) == "returned: the account of Eve is locked"
    assert example.LEDGER == {"Ann": 6_000, "Bob": 4_000}


async def test_fastest_takes_the_first_good_answer(env: WorkflowEnvironment) -> None:
    example = load("fastest")

    async def quote(provider: str, item: str) -> int:
        await env.sleep({"slow": 3.0, "quick": 1.0, "broken": 0.1, "dead": 100.0}[provider])
        if provider == "broken":
            raise RuntimeError("out of order")
        return 7

    env.mock(example.quote, quote)
    everyone = ["slow", "quick", "broken", "dead"]
    assert await env.execute(example.fastest_quote, everyone, "tea") == "quick: 7"
    assert await env.execute(example.fastest_quote, ["dead"], "tea") == "nobody in time"
    assert await env.execute(example.fastest_quote, ["broken"], "tea") == "nobody could"


async def test_outbox_commits_both_or_neither(dsn: str) -> None:
    example = load("outbox")
    async with Client.connect(dsn) as client, await psycopg.AsyncConnection.connect(dsn) as conn:
        await conn.execute("CREATE TABLE shop_order (id serial PRIMARY KEY, item text NOT NULL)")
        await conn.commit()

        async with conn.transaction():
            first = await example.place_order(client, conn, "tea")
        with pytest.raises(ValueError, match="an order needs an item"):
            async with conn.transaction():
                await example.place_order(client, conn, "nothing")

        cursor = await conn.execute("SELECT id FROM shop_order")
        assert await cursor.fetchall() == [(first,)]
        async with Worker(
            dsn, workflows=[example.handle_order], activities=[example.confirm], options=OPTIONS
        ):
            handle = client.get_handle(f"order-{first}")
            assert await handle.result(30) == f"order {first} confirmed"
        with pytest.raises(WorkflowNotFoundError):
            await client.get_handle(f"order-{first + 1}").describe()


async def test_tracing_is_one_trace_over_worker_processes(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    example = load("tracing")
    app = str(EXAMPLES / "tracing.py")
    # Its workers are processes that import the app by themselves, and its interceptors with it.
    options = SupervisorOptions(processes=1, http_port=None)
    caplog.set_level("INFO", "tracing")
    async with Supervisor(app, dsn, options=options, worker_options=OPTIONS):
        first, second = await example.main(dsn, "tea")
    lines = [record.getMessage().split() for record in caplog.records if record.name == "tracing"]
    assert [name for name, _, _ in lines] == ["start:ship", "request"]
    (trace_id,) = {traceparent.split("-")[1] for _, traceparent, _ in lines}
    assert first == f"tea {trace_id}"
    assert second == f"tea, packed {trace_id}"


async def test_tracing_hangs_each_span_below_the_right_one(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    example = load("tracing")
    caplog.set_level("INFO", "tracing")
    async with Worker(
        dsn,
        workflows=[example.ship, example.pack],
        activities=[example.label],
        options=OPTIONS,
        interceptors=example.interceptors,
    ):
        await example.main(dsn, "tea")
    lines = [record.getMessage().split() for record in caplog.records if record.name == "tracing"]
    names = {traceparent.split("-")[2]: name for name, traceparent, _ in lines}
    below = sorted((name, names.get(parent, "-")) for name, _, parent in lines)
    assert below == [
        ("activity:label", "run:pack"),
        ("activity:label", "run:ship"),
        ("request", "-"),
        ("run:pack", "run:ship"),
        ("run:ship", "start:ship"),
        ("start:ship", "request"),
    ]


async def test_encryption_leaves_nothing_to_read(dsn: str) -> None:
    pytest.importorskip("cryptography")
    example = load("encryption")
    codec = example.make_codec({"2024": example.new_key()}, active="2024")
    patient = example.Patient("Ann Canary", "hiccupcanary")
    async with (
        Client.connect(dsn, codec=codec) as client,
        Worker(
            dsn,
            workflows=[example.treatment],
            activities=[example.prescribe],
            options=OPTIONS,
            codec=codec,
        ),
    ):
        handle = await client.start(example.treatment, patient, id="patient-1")
        assert await handle.result(30) == "rest, against hiccupcanary"
        assert await handle.vars() == {"patient": "Ann Canary"}

    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        cursor = await conn.execute(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables "
            "WHERE schemaname = 'durable'"
        )
        for (table,) in await cursor.fetchall():
            rows = await (await conn.execute(f"SELECT t::text FROM {table} t")).fetchall()
            for (row,) in rows:
                assert b"canary".hex() not in row
                assert "canary" not in row.lower()


CHAT = "You ask me about tea and I say yes"


async def test_chat_goes_on_with_its_answer_when_the_model_breaks_off(
    env: WorkflowEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = load("chat")
    model, asked = example.model, []

    async def breaks_off(prompt: str, said: list[str]) -> AsyncIterator[str]:
        asked.append(list(said))
        async for word in model(prompt, said):
            if word == "tea" and len(asked) == 1:
                raise ConnectionError("the cable was pulled")
            yield word

    monkeypatch.setattr(example, "model", breaks_off)
    handle = await env.start(example.chat, "tea")
    assert await handle.result() == CHAT
    assert asked == [[], ["You", "ask", "me", "about"]]
    words = [item.value.text async for item in handle.stream("words", type=example.Word)]
    assert " ".join(words) == CHAT


async def test_chat_is_read_along_while_its_worker_goes_away(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = load("chat")
    model, asked = example.model, []

    async def hangs(prompt: str, said: list[str]) -> AsyncIterator[str]:
        asked.append(list(said))
        async for word in model(prompt, said):
            if word == "tea" and len(asked) == 1:
                await asyncio.Event().wait()
            yield word

    monkeypatch.setattr(example, "model", hangs)
    hasty = WorkerOptions(poll_max_seconds=0.2, drain_seconds=0.1)
    known = {"workflows": [example.chat], "activities": [example.answer]}
    async with Client.connect(dsn) as client, asyncio.timeout(60):
        handle = await client.start(example.chat, "tea", id="chat-1")
        reader = example.read_along(client, "chat-1")
        async with Worker(dsn, options=hasty, **known):
            shown = [await anext(reader) for _ in range(4)]
        assert shown[-1] == "You ask me about"
        async with Worker(dsn, options=OPTIONS, **known):
            assert await handle.result() == CHAT
        shown = [each async for each in reader]
    assert shown[-1] == CHAT
    assert len(asked) == 2
    assert CHAT.startswith(" ".join(asked[1]))
