"""User code that is wrong. Each marked line must be an error of the marked code, and no other."""

from durable import activity, workflow


@activity.defn
async def charge(cents: int) -> str:
    return str(cents)


@activity.defn(start_to_close_timeout=5)
def count(items: list[str]) -> int:
    return len(items)


@workflow.defn
async def wrong_argument() -> None:
    await charge("five")  # expect: arg-type


@workflow.defn
async def missing_argument() -> None:
    await charge()  # expect: call-arg


@workflow.defn
async def extra_argument() -> None:
    await charge(5, 6)  # expect: call-arg


@workflow.defn
async def wrong_keyword() -> None:
    await charge(euros=5)  # expect: call-arg


@workflow.defn
async def wrong_result() -> None:
    number: int = await charge(5)  # expect: assignment
    workflow.set_vars(number=number)


@workflow.defn
async def not_awaited() -> None:
    number: int = count(["a"])  # expect: assignment
    workflow.set_vars(number=number)


@workflow.defn
async def wrong_argument_of_a_sync_activity() -> int:
    return await count([1])  # expect: list-item


@workflow.defn
async def wrong_argument_with_options() -> None:
    await charge.with_options(priority=1)("five")  # expect: arg-type


@workflow.defn
async def wrong_argument_to_a_handle() -> None:
    charge.start("five")  # expect: arg-type


@activity.defn(retries=3)  # expect: call-overload untyped-decorator
async def unknown_option() -> None: ...


@workflow.defn
async def returns_something_else() -> int:
    return await charge(5)  # expect: return-value
