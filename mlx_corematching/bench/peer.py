"""mlx-vlm as the peer: an installed one, in its own process, one answer at a time."""

from __future__ import annotations

import json
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlx_corematching.errors import InputError

_WORKER = Path(__file__).with_name("peer_worker.py")


class Peer:
    """mlx-vlm in its own process. A context manager: the process ends with the block.

    Args:
        python: the Python of an environment that has mlx-vlm.

    Attributes:
        versions: of mlx_vlm, mlx and transformers there.

    Raises:
        InputError: that Python or mlx-vlm is not to be had; the message says why.
    """

    def __init__(self, python: str) -> None:
        # What its libraries print is told only if it ends before its time.
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                [python, str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                text=True,
            )
        except OSError as error:
            raise InputError(f"{python} cannot be run ({error}); see --peer-python") from None
        try:
            self.versions = self._ask({"do": "versions"})
        except BaseException:
            self.close()
            raise

    def load(self, model: Path) -> None:
        """Load a checkpoint in Hugging Face format; InputError if mlx-vlm cannot."""
        self._ask({"do": "load", "model": str(model)})

    def answer(self, prompt: str, image: Path | None, max_tokens: int) -> dict[str, Any]:
        """One greedy answer; what it holds is said in `peer_worker.Answer`."""
        return self._ask(
            {
                "do": "answer",
                "prompt": prompt,
                "image": str(image) if image else None,
                "max_tokens": max_tokens,
            }
        )

    def close(self) -> None:
        """End the process."""
        with suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status = self._process.wait()
            self._said.seek(0)
            last = (self._said.read().strip().splitlines() or ["it said nothing"])[-1]
            raise InputError(f"mlx-vlm's process ended with status {status} ({last})")
        try:
            reply = json.loads(line)
        except ValueError:
            raise InputError(
                f"what --peer-python names is no Python: it said {line.strip()[:60]!r}"
            ) from None
        if "error" in reply:
            raise InputError(
                f"mlx-vlm cannot do this ({reply['error']}); --peer-python takes the Python of "
                "an environment with mlx-vlm"
            )
        return reply
