"""The commands ``check`` (does the code still fit its histories?) and ``export``."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import orjson

from durable.check import Finding, check_file
from durable.cli.report import BadInput, finish, show_json
from durable.cli.runs import codec_of
from durable.cli.target import Target, database_options, find_target
from durable.engine.registry import Registry
from durable.errors import InvalidArgumentError, WorkflowNotFoundError
from durable.events import RunState
from durable.runtime.app import load_app
from durable.runtime.recorded import Problem, RecordedRun, find_problem
from durable.runtime.replay_pool import ReplayPool, Source, list_runs
from durable.runtime.replay_work import Tally
from durable.store.postgres import PostgresStore
from durable.store.sealed import seal_store

EXAMPLES_SHOWN = 3


@click.command()
@click.argument("targets", nargs=-1, metavar="[APP|FILE|FOLDER|MODULE]...")
@click.option("--replay", is_flag=True, help="Replay the runs of the database against APP.")
@click.option(
    "--histories",
    type=click.Path(exists=True, path_type=Path),
    help="Replay exported histories: a file, or a folder of *.json. No database needed.",
)
@click.option(
    "--closed",
    type=click.IntRange(min=0),
    default=1000,
    show_default=True,
    help="With --replay: also so many of the newest closed runs.",
)
@click.option("--type", "workflow_type", help="With --replay: only runs of this workflow type.")
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=lambda: os.cpu_count() or 1,
    help="With --replay: processes to replay in. Default: one per core.",
)
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
@database_options
def check(
    targets: tuple[str, ...],
    replay: bool,
    histories: Path | None,
    closed: int,
    workflow_type: str | None,
    processes: int,
    as_json: bool,
    dsn: str | None,
    schema: str,
) -> None:
    """Look for what breaks replays, before it is deployed.

    Without --replay: reads the workflow code and finds calls that differ from replay to replay
    (clocks, random numbers, sets, files, threads). A comment `# durable: allow` takes a line out.

    With --replay: runs the code of APP against all open runs of the database and a sample of the
    closed ones, and shows where they part. Changes nothing. Exit code 0: all is well; 1: not.

    \b
      durable check flows.py shop/
      durable check --replay --dsn postgresql://... shop.flows
      durable check --histories tests/histories shop.flows
    """
    if not replay and histories is None:
        if not targets:
            raise BadInput("what to check? give a file, a folder or a module")
        show_findings(targets, as_json)
        return
    if len(targets) > 1:
        raise BadInput("a replay is against one app; give one")
    app = targets[0] if targets else None
    if histories is not None:
        if app is None:
            raise BadInput("a replay needs the workflow's code: give the app")
        tally = replay_files(app, histories)
    else:
        target = find_target(dsn, schema, app)
        tally = replay_database(target, workflow_type, closed, processes)
    show_tally(tally, as_json)
    if tally.problems:
        sys.exit(1)


# -- static ------------------------------------------------------------------------------------


def show_findings(targets: Sequence[str], as_json: bool) -> None:
    """Print what the static check finds; exit code 1 when it is something."""
    files = [file for target in targets for file in files_of(target)]
    findings: list[Finding] = [found for file in files for found in check_file(file)]
    if as_json:
        show_json([found.to_dict() for found in findings])
    else:
        for found in findings:
            click.echo(found.render())
        click.echo(f"{len(files)} files, {len(findings)} to look at", err=True)
    if findings:
        sys.exit(1)


def files_of(target: str) -> list[Path]:
    """The Python files of a path or a module name; raise InvalidArgumentError for neither."""
    path = Path(target)
    if path.is_file():
        return [path]
    if path.is_dir():
        return sorted(path.rglob("*.py"))
    name = target.partition(":")[0]
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        spec = find_spec(name) if name and not name.endswith(".py") else None
    except (ImportError, ValueError) as error:
        raise InvalidArgumentError(f"cannot find module {name}: {error}") from None
    if spec is None or spec.origin is None:
        raise InvalidArgumentError(f"there is no file, folder or module {target}")
    if spec.submodule_search_locations:
        return sorted(Path(spec.origin).parent.rglob("*.py"))
    return [Path(spec.origin)]


# -- replays -----------------------------------------------------------------------------------


def replay_files(app: str, path: Path) -> Tally:
    """Replay exported histories in this process."""
    # What user code prints must not end up in the report.
    with redirect_stdout(sys.stderr):
        loaded = load_app(app)
    registry = Registry(loaded.workflows, loaded.activities, interceptors=loaded.interceptors)
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    if not files:
        raise InvalidArgumentError(f"there are no histories (*.json) in {path}")
    tally = Tally()
    with click.progressbar(files, label="replaying", file=sys.stderr) as bar:
        for file in bar:
            recorded = RecordedRun.load(file)
            problem = find_problem(registry, recorded)
            tally.count(recorded.workflow_type, problem)
    return tally


def replay_database(
    target: Target, workflow_type: str | None, closed: int, processes: int
) -> Tally:
    """Replay the runs of a database in processes of their own."""
    source = Source(target.needed_app(), str(target.folder or Path.cwd()))
    with ReplayPool(processes) as pool:

        async def work() -> Tally:
            store = PostgresStore(target.dsn, schema=target.schema)
            await store.open()
            try:
                pages = list_runs(store, workflow_type=workflow_type, closed_max=closed)
                with click.progressbar(length=0, label="replaying", file=sys.stderr) as bar:

                    def progress(listed: int, done: int) -> None:
                        bar.length = (bar.length or 0) + listed
                        bar.update(done)

                    return await pool.replay(source, store, pages, progress)
            finally:
                await store.close()

        tally: Tally = finish(work)
        return tally


def show_tally(tally: Tally, as_json: bool) -> None:
    """Print the report: a summary, and one example of each kind of problem."""
    groups: dict[tuple[str, ...], list[Problem]] = {}
    for problem in tally.problems:
        groups.setdefault(problem.signature, []).append(problem)
    if as_json:
        show_json(
            {
                "replayed": tally.replayed,
                "problems": len(tally.problems),
                "by_type": tally.by_type,
                "kinds": [kind_to_dict(group) for group in groups.values()],
            }
        )
        return
    failed = Counter(problem.workflow_type for problem in tally.problems)
    for name, count in sorted(tally.by_type.items()):
        bad = failed.get(name, 0)
        click.echo(f"{name}: {count} replayed, {f'{bad} with a problem' if bad else 'all well'}")
    for group in groups.values():
        example = group[0]
        click.echo("")
        ids = ", ".join(each.workflow_id for each in group[:EXAMPLES_SHOWN])
        more = ", ..." if len(group) > EXAMPLES_SHOWN else ""
        click.echo(f"{example.kind} in {example.workflow_type}: {len(group)} ({ids}{more})")
        for line in example.message.splitlines():
            click.echo(f"  {line}")
    if groups:
        click.echo("")
    click.echo(
        f"{tally.replayed} runs replayed, {len(tally.problems)} with a problem"
        + (f", {tally.gone} gone meanwhile" if tally.gone else "")
    )


def kind_to_dict(group: list[Problem]) -> dict[str, Any]:
    """One kind of problem, for JSON."""
    example = group[0]
    return {
        "kind": example.kind,
        "workflow_type": example.workflow_type,
        "count": len(group),
        "workflow_ids": [each.workflow_id for each in group[:EXAMPLES_SHOWN]],
        "event_id": example.event_id,
        "expected": example.expected,
        "found": example.found,
        "source": example.source,
        "message": example.message,
    }


# -- export ------------------------------------------------------------------------------------


@click.command()
@click.argument("workflow_id", metavar="ID")
@click.option("--run", "run_id", help="The run id; else the open or latest run of ID.")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="A file instead of stdout.")
@database_options
def export(
    workflow_id: str, run_id: str | None, output: Path | None, dsn: str | None, schema: str
) -> None:
    """Write the history of a run as it is in the database, checksums included.

    `Replayer` and `durable check --histories` read it; keep some with your tests. Where the app
    has a codec that encrypts, the file holds what it hides.

    \b
      durable export order-7 -o tests/histories/order-7.json
    """
    target = find_target(dsn, schema)
    recorded: RecordedRun = finish(lambda: read_run(target, workflow_id, run_id))
    data = orjson.dumps(orjson.loads(recorded.to_json()), option=orjson.OPT_INDENT_2)
    if output is None:
        click.echo(data.decode())
        return
    try:
        output.write_bytes(data + b"\n")
    except OSError as error:
        raise InvalidArgumentError(f"cannot write {output}: {error.strerror}") from None


async def read_run(target: Target, workflow_id: str, run_id: str | None) -> RecordedRun:
    """A run's history; raise WorkflowNotFoundError when there is no such run."""
    store = seal_store(PostgresStore(target.dsn, schema=target.schema), codec_of(target))
    await store.open()
    try:
        view = await store.view(workflow_id=None if run_id else workflow_id, run_id=run_id)
        if view is None or view.workflow_id != workflow_id:
            raise WorkflowNotFoundError(f"there is no workflow with id {workflow_id!r}")
        batches = (await store.load({view.run_id: view.part}))[view.run_id]
    finally:
        await store.close()
    return RecordedRun(
        view.run_id,
        view.workflow_id,
        view.workflow_type,
        batches[: view.event_batches],
        view.head_hash,
        view.queue,
        RunState(view.state).name.lower(),
    )
