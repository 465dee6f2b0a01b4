"""Wrong uses of workflows, signals and clients. Marked lines must fail, and no other."""

from durable import Client, workflow
from durable.testing import WorkflowEnvironment


@workflow.defn
async def child(number: int) -> str:
    return str(number)


@workflow.defn  # expect: arg-type
def not_async(number: int) -> str:
    return str(number)


@workflow.defn
async def wrong_child_argument() -> None:
    await child("one")  # expect: arg-type


@workflow.defn
async def wrong_child_result() -> None:
    result: int = await child(1)  # expect: assignment
    workflow.set_vars(result=result)


@workflow.defn
async def wrong_handle_result() -> None:
    result: int = await workflow.start_child(child, 1)  # expect: arg-type
    workflow.set_vars(result=result)


@workflow.defn
async def wrong_signal_type() -> int:
    return await workflow.wait_signal("go", str)  # expect: arg-type


@workflow.defn(dynamic=True)  # expect: arg-type
def dynamic_not_async(name: str) -> str:
    return name


@workflow.defn
async def wrong_last_result() -> int | None:
    return workflow.last_result(str)  # expect: return-value


@workflow.defn
async def wrong_channel_type() -> None:
    total: int = await workflow.signal_channel("go", str).receive()  # expect: assignment
    workflow.set_vars(total=total)


@workflow.defn
async def wrong_duration() -> None:
    await workflow.sleep("1 s")  # expect: arg-type


@workflow.defn
class Basket:
    @workflow.run
    async def run(self) -> None: ...

    @workflow.update
    async def put(self, item: str) -> int:
        return 1

    @workflow.signal
    async def fill(self) -> None:
        await self.put(3)  # expect: arg-type

    @workflow.signal
    def add(self, item: str) -> None: ...


@workflow.defn
async def wrong_argument_to_a_started_child() -> None:
    await workflow.start_child(child, "one")  # expect: arg-type
    await workflow.execute_child(child, "one")  # expect: arg-type


async def wrong_start(client: Client) -> None:
    await client.start(child, 1)  # expect: call-overload
    await client.start(child, "one", id="two")  # expect: arg-type
    await client.start(child, id="two")  # expect: arg-type call-arg
    await client.start(child, 1, 2, id="two")  # expect: arg-type call-arg
    await client.start(child, 1, id=3)  # expect: call-overload
    result: int = await (await client.start(child, 1, id="one")).result()  # expect: assignment
    assert result


async def wrong_start_with_a_signal(client: Client) -> None:
    start = client.signal_with_start
    await start(child, "one", id="a", signal="go")  # expect: arg-type
    await start(child, 1, id="a")  # expect: call-overload
    await start(child, 1, id="a", signal=Basket.add, signal_args=(3,))  # expect: arg-type
    await start(child, 1, id="a", signal=Basket.add)  # expect: arg-type
    await start(child, 1, id="a", signal=Basket.add, signal_args=("a", 2))  # expect: arg-type
    await start(child, 1, id="a", signal="go", priorite=3)  # expect: call-overload
    await start(child, 1, id="a", signal="go", memo=["a"])  # expect: call-overload


async def wrong_start_with_an_update(client: Client) -> None:
    start = client.update_with_start
    await start(child, "one", id="a", update="go")  # expect: arg-type
    await start(child, 1, id="a", update=Basket.put)  # expect: arg-type
    await start(child, 1, id="a", update=Basket.put, update_args=(1,))  # expect: arg-type
    put = await start(child, 1, id="a", update=Basket.put, update_args=("a",))
    text: str = put  # expect: assignment
    assert text


async def wrong_messages_with_start_in_a_test(env: WorkflowEnvironment) -> None:
    start, ask = env.signal_with_start, env.update_with_start
    await start(child, "one", id="a", signal="go")  # expect: arg-type
    await start(child, 1)  # expect: call-overload
    await start(child, 1, id="a", signal=Basket.add, signal_args=(3,))  # expect: arg-type
    await start(child, 1, id="a", signal=Basket.add)  # expect: arg-type
    await start(child, 1, id="a", signal="go", priority=3)  # expect: call-overload
    await start(child, 1, id="a", signal="go", memo=["a"])  # expect: call-overload
    handle = await start(child, 1, id="a", signal=Basket.add, signal_args=("a",))
    number: int = await handle.result()  # expect: assignment
    await ask(child, "one", id="a", update="go")  # expect: arg-type
    await ask(child, 1, id="a", update=Basket.put)  # expect: arg-type
    await ask(child, 1, id="a", update=Basket.put, update_args=(1,))  # expect: arg-type
    put = await ask(child, 1, id="a", update=Basket.put, update_args=("a",))
    text: str = put  # expect: assignment
    assert f"{number} {text}"


async def wrong_options_of_starts(client: Client) -> None:
    await client.start(child, 1, id="a", memo=["a"])  # expect: call-overload
    await client.start_many(child, [], serch={"customer": "Ann"})  # expect: call-arg
    await client.start_many(child, [("a", [1], {"memos": {}})])  # expect: typeddict-unknown-key


async def wrong_test() -> None:
    async with WorkflowEnvironment() as env:
        await env.execute(child, "one")  # expect: call-overload
        result: int = await env.execute(child, 1)  # expect: call-overload
        await env.start(child, "one")  # expect: arg-type
        assert result
