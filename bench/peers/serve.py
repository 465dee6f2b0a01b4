"""Serve: the loop of a peer process. Requests come in on stdin, answers leave on stdout, as JSON.

A request is ``{"do": name, ...}`` and is answered by the function of that name with the rest as
keyword arguments. Whatever the peer's packages print goes to stderr.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any


def serve(verbs: Mapping[str, Callable[..., Any]]) -> None:
    """Answer requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = {"value": verbs[request.pop("do")](**request)}
        except BaseException as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(reply) + "\n")
    answers.flush()
    # Peers leave threads behind that would keep the process up.
    os._exit(0)
