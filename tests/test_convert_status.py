"""Exit statuses and messages that all commands share: `run_command`."""

import argparse
import subprocess
import sys

import pytest

from mlx_corematching.command import run_command
from mlx_corematching.errors import InputError


def run(error, capsys, **options):
    def command(_):
        if error is not None:
            raise error

    status = run_command(command, argparse.Namespace(**options))
    return status, capsys.readouterr()


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (None, 0, ""),
        (InputError("no\n  such file"), 2, "error: no such file\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (
            KeyError("x"),
            1,
            "error: internal: KeyError: 'x'; run again with --debug for the traceback\n",
        ),
    ],
)
def test_statuses(error, status, line, capsys):
    found, captured = run(error, capsys)
    assert (found, captured.err, captured.out) == (status, line, "")


@pytest.mark.parametrize(
    ("error", "status"), [(InputError("bad"), 2), (KeyError("x"), 1), (KeyboardInterrupt(), 130)]
)
def test_debug_adds_the_traceback(error, status, capsys):
    found, captured = run(error, capsys, debug=True)
    assert found == status
    assert "Traceback" in captured.err
    assert "run again" not in captured.err


def test_a_reader_that_goes_away_is_no_error():
    program = (
        "import argparse, sys\n"
        "from mlx_corematching.command import run_command\n"
        "def command(_):\n"
        "    for _ in range(100000): print('a long answer')\n"
        "sys.exit(run_command(command, argparse.Namespace()))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141
