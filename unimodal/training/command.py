"""The command line that every recipe shares: ``python recipes/NAME.py [CONFIG.yaml] [--set a.b=c …] [--dry-run]``,
and ``--restart`` for those that train.

A mistake in the settings or the data is one line on stderr and exit status 2; an interrupted run exits with 130.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from unimodal.config import Config, load_config
from unimodal.media.registry import load_plugins

ConfigT = TypeVar("ConfigT", bound=Config)


@dataclass(frozen=True)
class Flags:
    """The command-line flags of a recipe that trains."""

    dry_run: bool = False  # say what would be done, and stop
    restart: bool = False  # begin anew where a run lies already


def run_recipe(
    config_class: type[ConfigT], run: Callable[[ConfigT, bool], None], description: str | None = None
) -> None:
    """Import the plugins of `$UNIMODAL_PLUGINS`, read the settings and call ``run(config, dry_run)``.

    A ValueError becomes one line on stderr and exit status 2.
    """
    parser = _make_parser(description)
    args = parser.parse_args()
    _run(args, config_class, lambda cfg: run(cfg, args.dry_run))


def run_training(
    config_class: type[ConfigT], run: Callable[[ConfigT, Flags], None], description: str | None = None
) -> None:
    """`run_recipe` for a recipe that trains: with `--restart`, and ``run(config, flags)``."""
    parser = _make_parser(description)
    parser.add_argument(
        "--restart", action="store_true", help="begin anew; what an earlier run left is moved into its earlier-N"
    )
    args = parser.parse_args()
    _run(args, config_class, lambda cfg: run(cfg, Flags(args.dry_run, args.restart)))


def _make_parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description or sys.modules["__main__"].__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", type=Path, help="a YAML file with what differs from the defaults")
    parser.add_argument(
        "--set", action="append", default=[], metavar="a.b=c", dest="overrides", help="change one setting"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    return parser


def _run(args: argparse.Namespace, config_class: type[ConfigT], run: Callable[[ConfigT], None]) -> None:
    from unimodal.training.distributed import leave
    from unimodal.training.loop import Interrupted
    from unimodal.training.processor import keep_freed_memory

    keep_freed_memory()
    status = 0
    try:
        load_plugins()
        run(load_config(config_class, args.config, args.overrides))
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        status = 130
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    leave(status)  # a rank ends here
    if status:
        raise SystemExit(status)
