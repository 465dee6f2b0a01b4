"""An agent: a language model that calls tools, and a person who chats with it.

Model and tools are activities: each answer is paid for once, whatever crashes. The loop between
them is plain code. The chat is an update: the person's message goes in, the agent's answer comes
out. The model here is a fake that follows simple rules, so that the example needs no network.
"""

from dataclasses import dataclass, field

from durable import ActivityError, RetryPolicy, activity, workflow

CALLS_MAX = 8
"""Tool calls for one message: a loop without an end is a bill without an end."""


@dataclass
class Message:
    role: str
    text: str


@dataclass
class Step:
    """What the model wants: to call a tool, or to answer."""

    tool: str | None = None
    arguments: list[str] = field(default_factory=list)
    answer: str = ""


@activity.defn(start_to_close_timeout=120, retry=RetryPolicy(max_attempts=6, max_interval=60))
async def think(messages: list[Message]) -> Step:
    last = messages[-1]
    if last.role == "tool":
        return Step(answer=f"It is {last.text}.")
    if last.text.startswith("weather in "):
        return Step(tool="weather", arguments=[last.text.removeprefix("weather in ")])
    if last.text.startswith("add "):
        return Step(tool="add", arguments=last.text.removeprefix("add ").split(" and "))
    return Step(answer="I can tell the weather and add numbers.")


@activity.defn
async def weather(city: str) -> str:
    return f"sunny in {city}"


@activity.defn
async def add(left: str, right: str) -> str:
    return str(int(left) + int(right))


TOOLS: dict[str, activity.ActivityDefinition[..., str]] = {"weather": weather, "add": add}


@workflow.defn
class Agent:
    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.is_over = False

    @workflow.run
    async def run(self) -> list[Message]:
        await workflow.wait_condition(lambda: self.is_over)
        await workflow.wait_condition(workflow.all_handlers_finished)
        return self.messages

    @workflow.update
    async def say(self, text: str) -> str:
        self.messages.append(Message("user", text))
        for _ in range(CALLS_MAX):
            step = await think(self.messages)
            if step.tool is None:
                self.messages.append(Message("agent", step.answer))
                return step.answer
            self.messages.append(Message("tool", await self.use(step)))
        return "I am going round in circles; please ask in another way."

    async def use(self, step: Step) -> str:
        """Call a tool. What goes wrong is for the model to read, not for the run to die of."""
        tool = TOOLS.get(step.tool or "")
        if tool is None:
            return f"there is no tool {step.tool}"
        try:
            return await workflow.execute_activity(tool, *step.arguments)
        except ActivityError as error:
            return f"failed: {error.__cause__}"

    @workflow.query
    def chat(self) -> list[Message]:
        return self.messages

    @workflow.signal
    def goodbye(self) -> None:
        self.is_over = True
