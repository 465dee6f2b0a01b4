"""The guides' code runs: all Python blocks of a page are one module, and do what the page says."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType

import psycopg
import pytest

from durable import Client, NonDeterminismError, Worker, WorkflowHandle, activity, workflow
from durable.errors import WorkflowCancelledError, WorkflowFailedError
from durable.options import WorkerOptions
from durable.testing import Replayer, WorkflowEnvironment

GUIDES = Path(__file__).parents[1] / "docs" / "guides"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def load(page: str) -> ModuleType:
    source = "\n".join(BLOCK.findall((GUIDES / f"{page}.md").read_text()))
    module = ModuleType(f"guide_{page.replace('-', '_')}")
    sys.modules[module.__name__] = module
    exec(compile(source, str(GUIDES / f"{page}.md"), "exec"), vars(module))
    return module


@pytest.fixture(params=[False, True], ids=["plain", "crashing"])
async def env(request: pytest.FixtureRequest) -> AsyncIterator[WorkflowEnvironment]:
    async with WorkflowEnvironment(crash_at_every_event=request.param) as made:
        yield made


async def test_workflows(env: WorkflowEnvironment) -> None:
    page = load("workflows")
    answers = iter(["on its way", "on its way"])
    env.mock(page.where_is, lambda parcel_id: next(answers, "delivered"))
    begin = env.now
    oslo = page.Parcel("7", "Oslo")

    assert await env.execute(page.deliver, oslo) == "label for Oslo"
    assert env.now - begin == timedelta(hours=2)
    assert await env.execute(page.hurry, oslo) == "label for Oslo"
    assert await env.execute(page.deliver_all, [oslo] * 60) == 60
    with pytest.raises(WorkflowFailedError, match="no flight"):
        await env.execute(page.trip)

    counter = await env.start(page.Counter.run, 3)
    await counter.signal("add", 2)
    assert await counter.query("so_far") == 2
    await counter.signal("add", 1)
    assert await counter.result() == 3

    countdown = await env.start(page.Countdown.run, 3)
    await countdown.signal("take", 3)
    assert await countdown.result() == 3

    room = await env.start(page.rent, "12")
    labels = env.mock(page.print_label, "cleaned")
    await room.cancel()
    with pytest.raises(WorkflowCancelledError):
        await room.result()
    assert labels.args == (page.Parcel("12", "cleaning"),)


async def test_workflows_of_any_type() -> None:
    page = load("workflows")
    async with WorkflowEnvironment(workflows=[page.interpreter], activities=[page.forward]) as env:
        told = await env.execute("invoice", {"title": "No. 7"})
    assert told == ["invoice check: No. 7", "invoice archive: No. 7"]


async def test_workflows_go_on_as_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    page = load("workflows")
    monkeypatch.setattr(workflow, "HISTORY_LENGTH_SUGGESTED", 10)
    async with WorkflowEnvironment() as env:
        handle = await env.start(page.meter)
        for number in [*range(30), -1]:
            await handle.signal("reading", number)
        assert await handle.result() == sum(range(30))
        assert len(await handle.histories()) > 1


async def test_workflows_are_found(dsn: str) -> None:
    page = load("workflows")
    async with Client.connect(dsn) as client:
        assert await page.find(client) == {"meter-7": {"hall": "east"}}


async def test_signals(env: WorkflowEnvironment) -> None:
    page = load("signals")
    assert await env.execute(page.ask) == "no answer"
    asked = await env.start(page.ask)
    await asked.signal("answer", page.Answer("Ann", True))
    assert await asked.result() == "Ann says yes"

    adding = await env.start(page.add_up)
    for number in (1, 2, 3):
        await adding.signal("add", number)
    await adding.signal("done")
    assert await adding.result() == 6
    assert await page.shop(await env.start(page.Basket)) == {"tea": 300}


async def test_signals_with_a_start(dsn: str) -> None:
    page = load("signals")
    async with (
        Client.connect(dsn) as client,
        Worker(dsn, workflows=[page.add_up, page.Basket], activities=[page.price_of]),
    ):
        assert await page.tell(client) == 7
        assert await page.put_into(client, "12") == 300
        assert await page.put_into(client, "12") == 300
        assert len(await client.list(search={"customer": "12"})) == 1


async def test_children(env: WorkflowEnvironment) -> None:
    page = load("children")
    assert await env.execute(page.party, ["nut", "stone"]) == ["nut cake", "no cake"]
    assert await env.execute(page.with_handle) == "hello"
    assert await env.execute(page.patient) == 3


async def test_versioning() -> None:
    page = load("versioning")
    histories = []
    for flow in (page.pay_before, page.pay, page.pay_later):
        async with WorkflowEnvironment() as env:
            handle = await env.start(flow, 5)
            assert await handle.result() == "charged 5"
            histories.append(await handle.history())
    before, patched, later = histories

    page.replay_all([before, patched])
    Replayer([page.pay_later]).replay_all([patched, later]).check()
    with pytest.raises(NonDeterminismError, match=r"history: ACTIVITY_SCHEDULED charge"):
        Replayer([page.pay_later]).replay(before)


async def test_errors(env: WorkflowEnvironment) -> None:
    page = load("errors")
    results = [await env.execute(page.buy, card) for card in ("good", "stolen", "empty", "slow")]
    assert results == ["paid", "declined: 43", "no money", "paid"]
    assert await page.ask(await env.start(page.careless, {})) == "KeyError"


async def test_jobs(dsn: str) -> None:
    page = load("jobs")
    options = WorkerOptions(queues=("images", "images-big"), poll_max_seconds=0.2)
    async with (
        Client.connect(dsn) as client,
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn,
        Worker(dsn, activities=[page.resize], options=options),
    ):
        assert await page.upload(client, "cat") == "cat at 300"
        assert await page.campaign(client, ["a", "b"]) == 2
        assert await client.get_handle("cover-900").result(30) == "cover at 900"
        assert await page.look(client) == [
            "COMPLETED",
            "RUN_STARTED",
            "ACTIVITY_SCHEDULED",
            "ACTIVITY_COMPLETED",
            "RUN_COMPLETED",
        ]
        await conn.execute("CREATE TABLE picture (name text)")
        await page.register(client, conn, "dog")
        assert len(await client.list(workflow_type="job:resize")) == 11


async def test_outbox(dsn: str) -> None:
    page = load("outbox")
    options = WorkerOptions(poll_max_seconds=0.2)
    worker = Worker(dsn, workflows=[page.handle_order], activities=[page.confirm], options=options)
    async with (
        Client.connect(dsn) as client,
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn,
        worker,
    ):
        await conn.execute("CREATE TABLE shop_order (id serial PRIMARY KEY, item text NOT NULL)")
        order_id = await page.place_order(client, conn, "tea")
        handle = client.get_handle(f"order-{order_id}")
        assert await handle.result(30) == f"order {order_id} confirmed"
        with pytest.raises(psycopg.errors.NotNullViolation):
            await page.place_order(client, conn, None)
        assert len(await client.list()) == 1


async def test_activities(env: WorkflowEnvironment) -> None:
    page = load("activities")
    assert await env.execute(page.order, "visa") == "paid 350 with visa"
    assert [each[:6] for each in await env.execute(page.calls, "visa")] == [
        "paid 1",
        "paid 2",
        "paid 3",
    ]
    begin = env.now
    assert await env.execute(page.page, "tea") == "page tea"
    assert env.now - begin == timedelta(minutes=2)
    assert await env.execute(page.page, "gone") == "fetch gave up: the page is gone"
    assert await env.execute(page.copy, ["a", "b"]) == 2
    assert page.resize(b"image", 2) == b"im"


async def test_from_temporal(env: WorkflowEnvironment, dsn: str) -> None:
    page = load("from-temporal")
    assert await page.main(dsn) == "paid 350"
    assert await env.execute(page.OrderWorkflow.run, page.Order("8", 1)) == "expired"
    handle = await env.start(page.order_workflow, page.Order("9", 2))
    await handle.signal("approve")
    assert await handle.result() == "paid 2"


async def test_from_dbos(env: WorkflowEnvironment, dsn: str) -> None:
    page = load("from-dbos")
    assert (await page.main(dsn)).startswith("paid 350 after ")
    assert await env.execute(page.order, 1) == "expired"


async def test_what_activities_promise(dsn: str) -> None:
    page = load("activities")
    workflows = [page.deposit, page.remind, page.print_page]
    activities = [page.book, page.send_letter, page.ask_printer]
    async with (
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn,
        Worker(dsn, workflows=workflows, activities=activities),
        Client.connect(dsn) as client,
    ):
        await conn.execute("CREATE TABLE account (name text PRIMARY KEY, cents integer NOT NULL)")
        await conn.execute("INSERT INTO account VALUES ('ann', 1)")
        handle = await client.start(page.deposit, "ann", 2, id="deposit")
        assert await handle.result(30) == 3
        handle = await client.start(page.remind, "Bob", id="remind")
        assert await handle.result(30) == "sent to Bob"
        handle = await client.start(page.print_page, "text", id="print")
        async with asyncio.timeout(30):
            while not page.tokens:
                await asyncio.sleep(0.01)
        await page.printer_is_done(client)
        assert await handle.result(30) == "printed"


async def test_schedules(env: WorkflowEnvironment) -> None:
    page = load("schedules")
    reports = env.mock(page.report, "done")
    first = (env.now + timedelta(days=1)).date()
    night = await env.start(page.every_night, first)
    await env.advance(timedelta(days=40))
    days = [args[0] for args, _ in reports.calls]
    assert days[:35] == [first + timedelta(days=number) for number in range(35)]
    await night.cancel()
    begin = env.now
    assert await env.execute(page.every_five_minutes, 3) == 3
    assert env.now - begin == timedelta(minutes=15)


async def test_a_schedule_is_installed_once(dsn: str) -> None:
    page = load("schedules")
    async with Client.connect(dsn) as client:
        await page.install(client)
        await page.install(client)
        assert [view.workflow_id for view in await client.list()] == ["every-night"]


def test_values() -> None:
    assert load("values").codec is not None


async def test_determinism(env: WorkflowEnvironment) -> None:
    page = load("determinism")
    assert await env.execute(page.order, "tea") == "tea reserved in stock"


def test_every_guide_with_code_has_a_test() -> None:
    tested = set(re.findall(r'load\("([\w-]+)"\)', Path(__file__).read_text()))
    with_code = {page.stem for page in GUIDES.glob("*.md") if BLOCK.search(page.read_text())}
    # The testing guide has a test of its own, tests/testing/test_guide.py; the code of queues.md
    # needs the client and the activities of a reader; that of sql.md runs in tests/test_sql.py.
    assert with_code == tested | {"testing", "queues", "sql"}


async def test_reset(dsn: str) -> None:
    page, shop = load("reset"), load("versioning")
    async with (
        Client.connect(dsn, workflows=[shop.pay_before]) as client,
        Worker(dsn, workflows=[shop.pay_before], activities=[shop.charge]),
    ):
        first = await client.start(shop.pay_before, 5, id="order-7")
        assert await first.result(20) == "charged 5"
        await page.charge_again(client)
        again = client.get_handle("order-7")
        assert await again.result(20) == "charged 5"
        assert (await again.describe()).run_id != first.run_id


async def test_sync(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    page = load("sync")
    monkeypatch.setenv("DURABLE_DSN", dsn)
    options = WorkerOptions(poll_max_seconds=0.2, drain_seconds=1.0)
    async with Worker(dsn, workflows=[page.order], activities=[page.charge], options=options):
        client = page.the_client()
        try:
            placed = asyncio.to_thread(page.place, client, "7", 500)
            assert await placed == "receipt for 7: 500"
            answer = await asyncio.to_thread(page.order_view, "8", 500)
            assert answer == {"order": "8", "state": "accepted"}
        finally:
            client.close()


async def test_interceptors(dsn: str) -> None:
    page = load("interceptors")
    async with Worker(
        dsn,
        workflows=[page.report],
        activities=[page.table],
        options=WorkerOptions(poll_max_seconds=0.2, drain_seconds=1.0),
        interceptors=page.interceptors,
    ):
        assert await page.ask(dsn) == "orders_acme of acme"


@pytest.mark.parametrize("page", ["from-temporal", "from-dbos"])
def test_names_for_newcomers_exist(page: str) -> None:
    text = (GUIDES / f"{page}.md").read_text()
    # Of a table the last column is ours, and so are the words of the sections about us.
    rows = re.findall(r"^\| .* \| (.*) \|$", text, re.MULTILINE)
    besides = re.findall(r"^## What is here besides$(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    owners = {
        "workflow": workflow,
        "activity": activity,
        "client": Client,
        "handle": WorkflowHandle,
    }
    checked = 0
    for part in re.findall(r"`([^`]+)`", "\n".join([*rows, *besides])):
        for owner, name in re.findall(r"\b(workflow|activity|client|handle)\.([a-z_0-9]+)", part):
            assert hasattr(owners[owner], name), f"{page}: {owner}.{name}"
            checked += 1
        for options in re.findall(r"WorkerOptions\((.*?)\)", part):
            for name in re.findall(r"(\w+)=", options):
                assert name in WorkerOptions.__dataclass_fields__, f"{page}: {name}="
                checked += 1
    assert checked > 20


async def test_streams(dsn: str) -> None:
    page = load("streams")
    options = WorkerOptions(poll_max_seconds=0.2, drain_seconds=1.0)
    async with (
        Worker(dsn, workflows=[page.chat], activities=[page.answer], options=options),
        Client.connect(dsn) as client,
        asyncio.timeout(30),
    ):
        handle = await client.start(page.chat, "why?", id="chat-7")
        assert await page.show(client, "chat-7") == ["You", "asked:", "why?"]
        assert await handle.result(20) == "You asked: why?"


async def test_streams_in_an_environment(env: WorkflowEnvironment) -> None:
    page = load("streams")
    handle = await env.start(page.chat, "why?")
    assert await handle.result() == "You asked: why?"
    items = [item async for item in handle.stream("tokens", after=1, type=str)]
    assert [(item.offset, item.value) for item in items] == [(2, "asked:"), (3, "why?")]
