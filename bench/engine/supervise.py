"""Supervise: `durable worker` without its command line: the supervisor and its worker processes.

python -m bench.engine.supervise APP PROCESSES PORT         (the DSN in DURABLE_DSN)
"""

import asyncio
import logging
import os
import sys

from durable.options import SupervisorOptions
from durable.runtime.supervisor import Supervisor


def main(app: str, processes: str, port: str) -> None:
    """Serve until SIGTERM."""
    logging.basicConfig(level=logging.WARNING)
    options = SupervisorOptions(processes=int(processes), http_port=int(port))
    supervisor = Supervisor(app, os.environ["DURABLE_DSN"], options=options)
    asyncio.run(supervisor.run(handle_signals=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
