"""The console command `mlx-corematching`: one subcommand a room, each imported when it is run."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from importlib import import_module

from mlx_corematching._version import __version__

# Subcommand -> the module that has its add_arguments and run, and the line that describes it.
_COMMANDS = {
    "generate": ("mlx_corematching.generate_command", "ask a question about pictures"),
    "plan": ("mlx_corematching.plan_command", "say what fits into a machine's memory"),
    "bench": ("mlx_corematching.bench.command", "measure latency on this machine"),
    "convert": (
        "mlx_corematching.convert.command",
        "turn LLaVA weights into this runtime's format",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit status."""
    from mlx_corematching.command import run_command

    parser = argparse.ArgumentParser(
        prog="mlx-corematching",
        description="LLaVA vision-language models in MLX, decoded with core neurons and core "
        "tokens alone (CoreMatching).",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, summary) in _COMMANDS.items():
        room = import_module(module)
        sub = subparsers.add_parser(name, help=summary, description=room.__doc__)
        room.add_arguments(sub)
        sub.set_defaults(run=room.run)
    args = parser.parse_args(argv)
    run: Callable[[argparse.Namespace], None] = args.run
    return run_command(run, args)
