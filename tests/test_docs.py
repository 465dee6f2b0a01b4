"""The documentation: code in it runs, links lead somewhere, no page is lost."""

import re
import sys
from importlib import util
from pathlib import Path
from types import ModuleType

import pytest
from click import Group
from click.testing import CliRunner

from durable import Client, Worker
from durable.cli.main import main
from durable.runtime.metrics import BY_NAME

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "bench").glob("*.md")])
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [code for name, code in BLOCK.findall(page.read_text()) if name == language]


def import_source(name: str, source: str, folder: Path) -> ModuleType:
    path = folder / f"{name}.py"
    path.write_text(source)
    spec = util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_page_is_on_the_map() -> None:
    mapped = {
        (DOCS / target).resolve() for target in LINK.findall((DOCS / "README.md").read_text())
    }
    lost = {page for page in DOCS.rglob("*.md") if page.name != "README.md"} - mapped
    assert not lost, f"add to docs/README.md: {sorted(page.name for page in lost)}"


def test_the_example_of_the_readme_is_the_example() -> None:
    shown = blocks(ROOT / "README.md", "python")[0].removeprefix("# subscription.py\n")
    source = (ROOT / "examples" / "subscription.py").read_text()
    assert source.endswith(shown)


def test_python_blocks_are_python() -> None:
    for page in PAGES:
        for code in blocks(page, "python"):
            compile(
                f"async def block():\n{re.sub('^', '    ', code, flags=re.M)}", page.name, "exec"
            )


def test_commands_in_the_docs_exist() -> None:
    for page in PAGES:
        for line in "\n".join(blocks(page, "console")).splitlines():
            words = line.removeprefix("$ ").split()
            if line.startswith("$ ") and words[0].endswith("durable"):
                # A command of a group has options of its own.
                path = words[1:3] if isinstance(main.commands.get(words[1]), Group) else words[1:2]
                result = CliRunner().invoke(main, [*path, "--help"])
                assert result.exit_code == 0, f"{page.name}: {line}"
                for option in (word for word in words if word.startswith("--")):
                    assert option in result.output, f"{page.name}: {line}"


def test_make_verbs_in_the_docs_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        for verb in re.findall(r"\bmake ([a-z][a-z-]+)", "\n".join(blocks(page, "console"))):
            assert re.search(rf"^{verb}:", makefile, re.MULTILINE), f"{page.name}: make {verb}"


def test_metrics_in_docs_alerts_and_dashboards_exist() -> None:
    sources = [
        *PAGES,
        ROOT / "docker" / "alerts.yml",
        *(ROOT / "docker" / "grafana").rglob("*.json"),
    ]
    for source in sources:
        for name in re.findall(r"\bdurable_[a-z_]+[a-z]\b", source.read_text()):
            base = re.sub(r"_(bucket|count|sum)$", "", name)
            assert name in BY_NAME or base in BY_NAME, f"{source.name}: {name}"


async def test_the_client_of_the_readme_gets_its_receipt(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example, use = blocks(ROOT / "README.md", "python")
    module = import_source("readme_subscription", example, tmp_path)
    monkeypatch.setattr(module.random, "random", lambda: 1.0)
    use = use.replace("seconds=2", "seconds=0.1")
    names: dict[str, object] = {**vars(module), "Client": Client, "dsn": dsn}
    exec(f"async def use():\n{re.sub('^', '    ', use, flags=re.M)}\n    return receipt", names)
    async with Worker(dsn, workflows=[module.subscription], activities=[module.pay]):
        receipt = await names["use"]()  # type: ignore[operator]
    assert receipt == module.Receipt(paid=99, overdue=0)


async def test_the_first_workflow_of_the_guide_answers(dsn: str, tmp_path: Path) -> None:
    source = blocks(DOCS / "start.md", "python")[0].replace("sleep(2)", "sleep(0.05)")
    module = import_source("guide_hello", source, tmp_path)
    assert await module.greet("Ann") == "Hello, Ann!"
    async with (
        Worker(dsn, workflows=[module.welcome], activities=[module.greet]),
        Client.connect(dsn) as client,
    ):
        handle = await client.start(module.welcome, "Ann", id="hello-1")
        await handle.signal("answer", "hi")
        assert await handle.result(30) == "Hello, Ann! You said: hi"
