"""A chat that shows its answer while it is made, and goes on with it after a crash.

A language model gives its answer word by word. The activity writes each word to a stream, for
whoever reads along, and keeps what it has as its heartbeat: the next attempt, on another machine if
need be, asks the model to go on from there. Each word says its place, so that a reader may get one
twice and shows it once. The model here is a fake that needs no network.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from durable import Client, RetryPolicy, activity, workflow


@dataclass
class Word:
    place: int
    text: str


async def model(prompt: str, said: list[str]) -> AsyncIterator[str]:
    """The rest of an answer that begins with what was said already."""
    for word in f"You ask me about {prompt} and I say yes".split()[len(said) :]:
        yield word


@activity.defn(start_to_close_timeout=300, heartbeat_timeout=30, retry=RetryPolicy(max_attempts=6))
async def answer(prompt: str) -> str:
    said: list[str] = list(activity.info().heartbeat_details)
    words = activity.stream("words")
    async for text in model(prompt, said):
        await words.write(Word(len(said), text))
        said.append(text)
        activity.heartbeat(*said)
    return " ".join(said)


@workflow.defn
async def chat(prompt: str) -> str:
    return await answer(prompt)


async def read_along(client: Client, workflow_id: str) -> AsyncIterator[str]:
    """The answer so far, each time that there is more of it."""
    shown: list[str] = []
    async for item in client.get_handle(workflow_id).stream("words", type=Word):
        shown[item.value.place :] = [item.value.text]
        yield " ".join(shown)
