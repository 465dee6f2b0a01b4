"""`python -m bench.replay`: measure replay and print the table (bench/README.md)."""

import sys

import click
import pytest

from bench.replay.instructions import count_instructions
from bench.report import ROOT


@click.command()
@click.option("--quick", is_flag=True, help="Fewer samples and smaller peers; three minutes.")
@click.option("--no-peers", is_flag=True, help="Only ours and bare asyncio.")
@click.option("--only", multiple=True, metavar="WORKLOAD", help="Only this one; may be repeated.")
@click.option("--instructions", is_flag=True, help="Count instructions with callgrind instead.")
def main(quick: bool, no_peers: bool, only: tuple[str, ...], instructions: bool) -> None:
    """Measure cold and warm replay beside bare asyncio, Temporal and Absurd."""
    if instructions:
        count_instructions()
        return
    arguments = [
        str(ROOT / "bench" / "replay" / "test_replay.py"),
        "--benchmark-quiet",
        "-q",
        "--no-header",
        "--capture=no",
        "-p",
        "no:cacheprovider",
        # The package's own pytest plugin comes late: it is imported already.
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
        "-o",
        "console_output_style=classic",
        *(["--quick"] if quick else []),
        *(["--no-peers"] if no_peers else []),
        *(f"--only={name}" for name in only),
    ]
    sys.exit(pytest.main(arguments))


if __name__ == "__main__":
    main()
