"""The ``durable`` command: parse, build, run.

`serve` has the commands that keep running or prepare the database (dev, worker, migrate), `runs`
those about one workflow run. `target` says which database and app they mean, `report` turns errors
into one line and an exit code: 2 for wrong usage or bad input, 1 for anything that failed.
"""

from durable.cli.main import main

__all__ = ["main"]
