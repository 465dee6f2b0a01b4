"""Interceptors of an app: found in its module, and around the code wherever it is replayed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from click.testing import CliRunner

from durable import Client, Worker
from durable.cli.main import main
from durable.runtime.app import AppError, load_app

SOON = 20.0

APP = '''
from durable import Interceptor, workflow


class Waits(Interceptor):
    """Its timer is a command of the run: without it the code parts from its history."""

    async def run_workflow(self, call, proceed):
        await workflow.sleep(0.01)
        workflow.set_vars(around=call.info.name)
        return await proceed(call)


class Others:
    pass


interceptors = [{interceptors}]


@workflow.defn
async def short(text: str) -> str:
    return text
'''


def write(folder: Path, name: str, interceptors: str) -> str:
    path = folder / f"{name}.py"
    path.write_text(APP.replace("{interceptors}", interceptors))
    return str(path)


def test_an_app_has_the_interceptors_of_its_module(tmp_path: Path) -> None:
    app = load_app(write(tmp_path, "app_with_one", "Waits()"))
    assert [type(each).__name__ for each in app.interceptors] == ["Waits"]
    # Something else that happens to have the name.
    assert load_app(write(tmp_path, "app_with_words", "'none'")).interceptors == ()
    assert load_app(write(tmp_path, "app_with_none", "")).interceptors == ()


@pytest.mark.parametrize("given", ["Waits", "Waits(), Others()"])
def test_a_list_that_is_no_list_of_interceptors_is_refused(tmp_path: Path, given: str) -> None:
    name = f"app_bad_{len(given)}"
    with pytest.raises(AppError, match="interceptors of"):
        load_app(write(tmp_path, name, given))


async def test_commands_replay_with_the_interceptors_of_the_app(dsn: str, tmp_path: Path) -> None:
    good = write(tmp_path, "app_as_it_ran", "Waits()")
    bare = write(tmp_path, "app_without", "")
    app = load_app(good)
    async with (
        Worker(dsn, workflows=app.workflows, interceptors=app.interceptors),
        Client.connect(dsn) as client,
    ):
        handle = await client.start("short", "x", id="s")
        assert await handle.result(SOON) == "x"

    def run(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, [*words, "--dsn", dsn])
        return done.exit_code, done.output

    code, output = await asyncio.to_thread(run, "vars", "s", "--app", good)
    assert code == 0, output
    assert '"around": "short"' in output
    exported = tmp_path / "s.json"
    code, output = await asyncio.to_thread(run, "export", "s")
    assert code == 0, output
    exported.write_text(output)
    for source in ((), ("--histories", str(exported))):
        words = ("check", "--replay", "--processes", "1", *source)
        code, output = await asyncio.to_thread(run, *words, good)
        assert code == 0, output
        code, output = await asyncio.to_thread(run, *words, bare)
        assert code == 1, output
