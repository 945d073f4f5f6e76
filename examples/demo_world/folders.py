"""Folders that appear when they are whole, and errors of the file system in one sentence."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlx_corematching.errors import InputError


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of ``folder`` once all is written."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        if folder.exists():
            shutil.rmtree(folder)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def file_errors_in_a_sentence() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        about = f"{error.filename}: " if error.filename else ""
        raise InputError(f"{about}{error.strerror or error}.") from error
