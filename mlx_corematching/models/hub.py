"""From a path or a Hugging Face hub id to a folder on this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from mlx_corematching.errors import InputError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def resolve_folder(
    path_or_hub_id: str | Path,
    revision: str | None = None,
    patterns: Sequence[str] | None = None,
) -> Path:
    """The folder of a model, fetched from the hub unless it is here already.

    Args:
        path_or_hub_id: a folder, or a hub id, which has the form owner/name. A folder that
            exists wins.
        revision: a hub branch, tag or commit.
        patterns: the files to fetch, as shell patterns; all if left out. Files in
            subfolders of the repository are never fetched.

    Raises:
        InputError: there is no such folder or hub model, or the hub cannot be reached.
    """
    given = str(path_or_hub_id)
    folder = Path(given).expanduser()
    if given and folder.is_dir():
        if revision is not None:
            raise InputError(
                f"a revision ({revision}) can be chosen for a hub id only, and {given} is a folder"
            )
        return folder
    if given and folder.exists():
        raise InputError(f"{given} is a file, not a model folder")
    if isinstance(path_or_hub_id, Path) or not is_hub_id(given):
        raise InputError(
            f"there is no folder {given or repr(given)} (and a hub id has the form owner/name)"
        )
    return _download(given, revision, patterns)


def is_hub_id(text: str) -> bool:
    """Whether a text has the form owner/name; it may be a relative path all the same."""
    return _HUB_ID.fullmatch(text) is not None and ".." not in text and "--" not in text


def commit_of(folder: Path) -> str | None:
    """The commit of a folder in the hub's cache; None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else None


def hub_error(repo: str, error: Exception) -> str:
    """Why the hub did not do what was asked, in one sentence."""
    from huggingface_hub import errors

    # The order matters: a gated repository is also a repository that was not found.
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{repo} is gated: accept its terms at https://huggingface.co/{repo} and log in "
            "with 'hf auth login'"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub's {repo} has no such revision"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"the hub has no model {repo}, or it is private: check the name, or log in with "
            "'hf auth login'"
        )
    if isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        return (
            f"{repo} is neither a folder nor in the hub's cache, and the hub cannot be reached: "
            "check the network and HF_HUB_OFFLINE, or give a folder"
        )
    if isinstance(error, OSError) and error.filename:
        return f"{repo} cannot be stored in the hub's cache ({error})"
    reason = str(error).split("\n")[0] or type(error).__name__
    return f"the hub could not be asked about {repo} ({reason})"


def _download(repo: str, revision: str | None, patterns: Sequence[str] | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            repo,
            revision=revision,
            allow_patterns=list(patterns) if patterns is not None else None,
            # Patterns know no folders: `*.json` would fetch `onnx/config.json` too.
            ignore_patterns=["*/*"],
        )
    # Whichever HTTP library the hub's client uses, its errors are OSErrors or plain Exceptions.
    except Exception as error:
        raise InputError(hub_error(repo, error)) from error
    return Path(os.fspath(folder))
