"""A person in the loop: a text that is edited by updates until somebody approves it.

An update is a request with an answer. Its validator refuses what makes no sense before anything is
recorded; its handler may wait for activities. A web page needs nothing else: it shows the query and
sends the updates.
"""

from dataclasses import dataclass

from durable import activity, workflow


@dataclass
class Draft:
    text: str
    version: int


@activity.defn
async def write(topic: str, remarks: list[str]) -> str:
    return f"About {topic}" + "".join(f"; {remark}" for remark in remarks)


@activity.defn
async def publish(text: str) -> str:
    return f"published: {text}"


@workflow.defn
class Review:
    def __init__(self) -> None:
        self.remarks: list[str] = []
        self.draft = Draft("", 0)
        self.is_approved = False

    @workflow.run
    async def run(self, topic: str) -> str:
        self.topic = topic
        self.draft = Draft(await write(topic, []), 1)
        await workflow.wait_condition(lambda: self.is_approved)
        return await publish(self.draft.text)

    @workflow.query
    def current(self) -> Draft:
        return self.draft

    @workflow.update
    async def remark(self, version: int, text: str) -> Draft:
        self.remarks.append(text)
        self.draft = Draft(await write(self.topic, self.remarks), self.draft.version + 1)
        return self.draft

    @remark.validator
    def is_current(self, version: int, text: str) -> None:
        if version != self.draft.version:
            raise ValueError(f"you read version {version}; this is version {self.draft.version}")

    @workflow.update
    def approve(self, version: int) -> None:
        self.is_approved = True

    @approve.validator
    def can_approve(self, version: int) -> None:
        self.is_current(version, "")
