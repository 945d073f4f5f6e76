"""What every command does about errors."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress

from mlx_corematching.errors import InputError


def run_command(run: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """Run a command; returns its exit status.

    0: done. 1: a fault of the program. 2: input that cannot be used. 130: interrupted.
    141: whoever read the output went away. Errors are one line on standard error; with
    `args.debug` the traceback comes before it.
    """
    # Temporary folders go on the way out; a plain SIGTERM would leave them.
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        run(args)
        # A closed pipe is to show here, not while the interpreter shuts down.
        sys.stdout.flush()
    except InputError as error:
        return _fail(args, 2, f"error: {error}")
    except BrokenPipeError:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return _fail(args, 130, "interrupted")
    except Exception as error:
        message = f"error: internal: {type(error).__name__}: {error}"
        if not getattr(args, "debug", False):
            message += "; run again with --debug for the traceback"
        return _fail(args, 1, message)
    return 0


def _fail(args: argparse.Namespace, status: int, message: str) -> int:
    if getattr(args, "debug", False):
        traceback.print_exc()
    print(" ".join(message.split()), file=sys.stderr, flush=True)
    return status
