"""The scenarios of the Go system this project re-creates, as workflows of ours."""

import asyncio
import random
from dataclasses import dataclass

from durable import ActivityError, NonRetryable, activity, workflow


@activity.defn
async def draw(least: int, most: int) -> int:
    return random.randint(least, most)


@activity.defn
async def add(left: int, right: int) -> int:
    return left + right


@dataclass
class Sum:
    parts: list[int]
    total: int


@workflow.defn
async def sum_of_two_random_numbers(most: int) -> Sum:
    left = await draw(0, most)
    right = await draw(0, most)
    workflow.set_vars(left=left, right=right)
    return Sum([left, right], await add(left, right))


@workflow.defn
async def forty_at_once(count: int) -> Sum:
    parts = await asyncio.gather(*(draw(0, 1000) for _ in range(count)))
    return Sum(parts, sum(parts))


BALANCES = {"ann": 100, "bob": 100, "locked": 100}


@activity.defn
def withdraw(account: str, amount: int, transfer: str) -> str:
    if BALANCES[account] < amount:
        raise NonRetryable("not enough money")
    return f"{transfer}: -{amount} {account}"


@activity.defn
def deposit(account: str, amount: int, transfer: str) -> str:
    if account == "locked":
        raise NonRetryable("account locked")
    return f"{transfer}: +{amount} {account}"


@workflow.defn
async def bank_transfer(source: str, target: str, amount: int) -> list[str]:
    transfer = str(workflow.uuid4())
    moves: list[str] = []
    try:
        moves.append(await withdraw(source, amount, transfer))
        workflow.set_vars(moves=moves)
        moves.append(await deposit(target, amount, transfer))
    except ActivityError:
        if moves:
            moves.append(await deposit(source, amount, transfer))
            workflow.set_vars(moves=moves)
        raise
    return moves


@workflow.defn
async def await_event() -> str:
    workflow.set_vars(waits=True)
    return await workflow.wait_signal("hello", type=str)


@workflow.defn
async def handle_events(seconds: float) -> list[str]:
    heard: list[str] = []

    def hear(word: str) -> None:
        heard.append(word)
        workflow.set_vars(heard=list(heard))

    workflow.on_signal("word", hear)
    await workflow.sleep(seconds)
    return heard


@workflow.defn
async def two_stations(seconds: float) -> str:
    workflow.set_vars(first=await add(1, 2))
    await workflow.sleep(seconds)
    workflow.set_vars(second=await add(3, 4))
    return "arrived"
