"""Starting and testing workflows, as it should be done."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from durable import Client, Interceptor, SyncClient, SyncWorkflowHandle, activity, workflow
from durable.interceptors import ActivityCall, HandlerCall, Proceed, RunCall, StartCall
from durable.testing import Mock, Replayer, TestHandle, WorkflowEnvironment


@activity.defn
async def charge(cents: int) -> str:
    return str(cents)


@workflow.defn
async def order(cents: int, note: str = "") -> str:
    return await charge(cents) + note


@workflow.defn
class Basket:
    @workflow.run
    async def run(self, owner: str) -> int:
        return 1

    @workflow.signal
    def add(self, item: str) -> None: ...

    @workflow.signal
    def clear(self) -> None: ...

    @workflow.update
    async def put(self, item: str, count: int) -> int:
        return count

    @workflow.update
    def close(self) -> str:
        return ""


async def start(dsn: str) -> str:
    async with Client.connect(dsn) as client:
        handle = await client.start(order, 5, id="order-7", start_delay=timedelta(hours=1))
        await client.start(order, 5, "by hand", id="order-8")
        await client.start(order, 5, note="by name", id="order-9")
        await handle.signal("go", 1)
        result: str = await handle.result(timeout=5)
        return result


def start_and_wait(dsn: str) -> str:
    with SyncClient.connect(dsn) as client:
        handle = client.start(order, 5, id="order-7", start_delay=timedelta(hours=1))
        handle.signal("go", 1)
        again: SyncWorkflowHandle[str] = client.get_handle("order-7", workflow=order)
        taken: list[bool] = client.signal_many("go", [("order-7", [1])])
        assert taken == [True]
        first: str = again.result(timeout=5)
        result: str = handle.result(timeout=5)
        return first + result


async def start_and_talk(client: Client) -> int:
    run = Basket.run
    handle = await client.signal_with_start(
        run, "ann", id="b", signal=Basket.add, signal_args=("tea",), queue="slow", memo={"a": 1}
    )
    total: int = await handle.result()
    await client.signal_with_start(run, "ann", id="b", signal=Basket.clear, request_id="r")
    await client.signal_with_start(run, "ann", id="b", signal="add", signal_args=["tea"])
    await client.signal_with_start(Basket, "ann", id="b", signal=Basket.add, signal_args=["tea"])
    await client.signal_with_start("Basket", "ann", id="b", signal="clear")
    await client.signal_with_start(order, 5, id="o", signal="go", search={"customer": "Ann"})
    count: int = await client.update_with_start(
        run, "ann", id="b", update=Basket.put, update_args=("tea", 2), timeout=timedelta(seconds=5)
    )
    text: str = await client.update_with_start(run, "ann", id="b", update=Basket.close)
    named: int = await client.update_with_start(
        "Basket", id="b", update="put", update_args=["tea", 2], result_type=int
    )
    many = await client.start_many(
        order, [("a", [1]), ("b", [2], {"memo": {"n": 2}})], search={"customer": "Ann"}
    )
    return total + count + len(text) + named + len(many)


async def test_order() -> None:
    async with WorkflowEnvironment(crash_at_every_event=True) as env:
        mock: Mock = env.mock(charge, "paid")
        result: str = await env.execute(order, 5, note="x")
        handle: TestHandle[str] = await env.start(order, 5, id="order-7")
        again: str = await handle.result()
        assert result == again == "paid"
        assert mock.call_count == 2
        assert await env.execute(Basket, "ann") == 1
        Replayer([order]).replay(await handle.history())


async def test_basket(env: WorkflowEnvironment) -> None:
    run = Basket.run
    handle: TestHandle[int] = await env.signal_with_start(
        run, "ann", id="b", signal=Basket.add, signal_args=("tea",), queue="slow", memo={"a": 1}
    )
    total: int = await handle.result()
    await env.signal_with_start(run, "ann", id="b", signal=Basket.clear, start_delay=5)
    await env.signal_with_start(run, "ann", id="b", signal="add", signal_args=["tea"])
    await env.signal_with_start(Basket, "ann", id="b", signal=Basket.add, signal_args=["tea"])
    await env.signal_with_start("Basket", "ann", id="b", signal="clear")
    count: int = await env.update_with_start(
        run, "ann", id="b", update=Basket.put, update_args=("tea", 2), search={"who": "Ann"}
    )
    text: str = await env.update_with_start(run, "ann", id="b", update=Basket.close)
    named: int = await env.update_with_start("Basket", id="b", update="put", update_args=["a", 2])
    assert f"{total} {count} {text} {named}"


async def outside() -> str:
    """Outside of a workflow an activity is the plain function."""
    return await charge(3)


class Tenants(Interceptor):
    async def start_workflow(self, call: StartCall, proceed: Proceed[StartCall]) -> Any:
        call.headers["tenant"] = "acme"
        return await proceed(call)

    async def run_workflow(self, call: RunCall, proceed: Proceed[RunCall]) -> Any:
        return None if call.is_replaying else await proceed(call)

    def handle_query(self, call: HandlerCall, proceed: Callable[[HandlerCall], Any]) -> Any:
        return proceed(call)

    async def run_activity(self, call: ActivityCall, proceed: Proceed[ActivityCall]) -> str:
        tenant: str = call.headers["tenant"]
        await proceed(call)
        return tenant


async def surrounded(dsn: str) -> None:
    async with Client.connect(dsn, interceptors=[Tenants()]) as client:
        await client.start(order, 5, id="order-7", headers={"own": 1})
    WorkflowEnvironment(interceptors=[Tenants()])
    Replayer([order], interceptors=(Tenants(),))
