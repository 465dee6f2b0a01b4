"""An entity: a bank account that lives for years as one workflow.

Its state is an object, its methods are signals, queries and updates, and nothing else can touch it.
So that its history stays short it goes on as a new run now and then; what is sent meanwhile goes
along. Its id is the account's number.
"""

from dataclasses import dataclass, field

from durable import ApplicationError, workflow

ENTRIES_MAX = 100
"""How many entries one run takes; with larger entries ask `workflow.should_continue_as_new`."""


@dataclass
class State:
    balance: int = 0
    entries: int = 0
    last: list[str] = field(default_factory=list)


@workflow.defn
class Account:
    def __init__(self) -> None:
        self.state = State()
        self.taken = 0
        self.is_closed = False

    @workflow.run
    async def run(self, state: State | None = None) -> int:
        if state is not None:
            self.state = state
        await workflow.wait_condition(lambda: self.is_closed or self.taken >= ENTRIES_MAX)
        # Let updates that are under way end before the state is handed on.
        await workflow.wait_condition(workflow.all_handlers_finished)
        if not self.is_closed:
            workflow.continue_as_new(self.state)
        return self.state.balance

    @workflow.signal
    def deposit(self, cents: int) -> None:
        self.book("deposit", cents)

    @workflow.update
    def withdraw(self, cents: int) -> int:
        self.book("withdraw", -cents)
        return self.state.balance

    @withdraw.validator
    def can_withdraw(self, cents: int) -> None:
        # A refusal leaves no trace in history.
        if cents > self.state.balance:
            raise ApplicationError("not enough money", self.state.balance, type="Overdrawn")

    @workflow.query
    def balance(self) -> int:
        return self.state.balance

    @workflow.signal
    def close(self) -> None:
        self.is_closed = True

    def book(self, what: str, cents: int) -> None:
        self.taken += 1
        self.state.entries += 1
        self.state.balance += cents
        self.state.last = [*self.state.last[-4:], f"{what} {cents}"]
