"""A long activity that survives the death of its worker: it reports how far it came.

`heartbeat` says two things: I am alive (else the attempt is given up after ``heartbeat_timeout``),
and this is where I am. The next attempt, wherever it runs, begins there.
"""

from collections.abc import Iterator

from durable import RetryPolicy, activity, workflow

LINES_PER_BEAT = 100


def lines(name: str, begin: int) -> Iterator[tuple[int, str]]:
    """The lines of a file from number ``begin`` on; here they are made up."""
    for number in range(begin, 1_000):
        yield number, f"{name} line {number}"


def store(line: str) -> None:
    """Write a line where it belongs; writing it twice must do no harm."""


@activity.defn(heartbeat_timeout=30, retry=RetryPolicy(max_attempts=20, initial_interval=1))
def import_lines(name: str) -> int:
    """A plain function, so it may block: it runs on a thread."""
    begin: int = (activity.info().heartbeat_details or (0,))[0]
    number = begin
    for number, line in lines(name, begin):
        store(line)
        if number % LINES_PER_BEAT == 0:
            # Raises CancelledError when the run no longer wants it.
            activity.heartbeat(number)
    return number + 1


@workflow.defn
async def import_file(name: str) -> str:
    count = await import_lines(name)
    return f"{count} lines of {name}"
