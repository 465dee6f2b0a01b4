"""Workers: processes of a peer, driven over pipes by the peer's first process."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

READY_SECONDS_MAX = 60.0
ANSWER_SECONDS_MAX = 600.0
STOP_SECONDS_MAX = 15.0


class Workers:
    """``count`` fresh processes that run ``target(pipe, number, *arguments)``.

    The target sends "ready", then answers what it receives until that is "stop".
    """

    def __init__(self, target: Callable[..., None], count: int, *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes: list[Connection] = []
        self.processes = []
        for number in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=target, args=(theirs, number, *arguments))
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)
        for answer in self.answers(READY_SECONDS_MAX):
            assert answer == "ready", answer

    def answers(self, seconds: float) -> list[Any]:
        """One answer of each; raise what one of them sent as an error."""
        found = []
        for pipe in self.pipes:
            if not pipe.poll(seconds):
                raise TimeoutError("a worker process of the peer does not answer")
            answer = pipe.recv()
            if isinstance(answer, BaseException):
                raise answer
            found.append(answer)
        return found

    def ask(self, *message: Any) -> list[Any]:
        """Send to all, wait for all."""
        for pipe in self.pipes:
            pipe.send(message)
        return self.answers(ANSWER_SECONDS_MAX)

    def stop(self) -> None:
        """End them all."""
        for pipe in self.pipes:
            pipe.send(("stop",))
        for process in self.processes:
            process.join(STOP_SECONDS_MAX)
            if process.is_alive():
                process.kill()
                process.join()
