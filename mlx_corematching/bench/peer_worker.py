"""mlx-vlm, run and timed one request at a time, by the Python of an environment that has it.

    PYTHON peer_worker.py

One JSON request a line on standard input, one JSON reply a line on standard output:

    {"do": "versions"}
        {"mlx_vlm": VERSION, "mlx": VERSION, "transformers": VERSION}
    {"do": "load", "model": FOLDER}
        {"load_s": SECONDS}
    {"do": "answer", "prompt": QUESTION, "image": PATH or null, "max_tokens": N}
        {"text", "finish_reason", "prompt_tokens", "generated_tokens", "prefill_s",
         "first_token_s", "decode_tokens_per_s", "peak_memory_gb"}; see `Answer`
    anything that fails
        {"error": "Type: message"}

The worker ends with its input. It imports nothing of mlx_corematching, which that environment
need not have.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import mlx.core as mx


@dataclasses.dataclass
class Answer:
    """A greedy answer; every one reads its picture and its whole prompt anew.

    Attributes:
        text: the whole answer.
        finish_reason: `stop` (the model ended) or `length`.
        prompt_tokens: tokens of the prompt, the picture's included.
        generated_tokens: tokens of the answer, the one that ends it included.
        prefill_s: seconds in vision tower, projector and decoder until the first token.
        first_token_s: seconds from the request to the first token, reading the picture included.
        decode_tokens_per_s: tokens after the first, a second; None if there are none.
        peak_memory_gb: MLX's peak during the request, weights included, in 10^9 bytes.
    """

    text: str
    finish_reason: str | None
    prompt_tokens: int
    generated_tokens: int
    prefill_s: float
    first_token_s: float
    decode_tokens_per_s: float | None
    peak_memory_gb: float


class Greedy:
    """The likeliest token, and when each one was asked for."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    def __call__(self, logprobs: mx.array) -> mx.array:
        import mlx.core as mx

        self.asked.append(time.perf_counter())
        return mx.argmax(logprobs, axis=-1)


class Worker:
    """The model that was loaded last, and what can be asked of it."""

    def __init__(self) -> None:
        self.model: Any = None
        self.processor: Any = None

    def reply(self, line: str) -> dict[str, Any]:
        """What to say to one line of input; a failure is a reply too."""
        try:
            request = json.loads(line)
            if request["do"] == "versions":
                return self.versions()
            if request["do"] == "load":
                return self.load(request["model"])
            if request["do"] == "answer":
                answer = self.answer(request["prompt"], request.get("image"), request["max_tokens"])
                return dataclasses.asdict(answer)
            raise ValueError(f"there is no {request['do']!r}; there are versions, load and answer")
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}

    def versions(self) -> dict[str, Any]:
        from importlib.metadata import version

        import mlx_vlm  # type: ignore[import-not-found, unused-ignore]  # noqa: F401

        packages = {"mlx_vlm": "mlx-vlm", "mlx": "mlx", "transformers": "transformers"}
        return {name: version(package) for name, package in packages.items()}

    def load(self, folder: str) -> dict[str, Any]:
        import mlx_vlm  # type: ignore[import-not-found, unused-ignore]

        if not os.path.isdir(folder):
            # mlx-vlm would look for it on the hub.
            raise FileNotFoundError(f"there is no folder {folder}")
        self.model = self.processor = None  # never two models in memory
        began = time.perf_counter()
        self.model, self.processor = mlx_vlm.load(folder)
        return {"load_s": time.perf_counter() - began}

    def answer(self, prompt: str, image: str | None, max_tokens: int) -> Answer:
        import mlx.core as mx
        from mlx_vlm import stream_generate  # type: ignore[import-not-found, unused-ignore]
        from mlx_vlm.prompt_utils import (  # type: ignore[import-not-found, unused-ignore]
            apply_chat_template,
        )

        if self.model is None:
            raise ValueError("no model is loaded")
        if max_tokens < 1:
            raise ValueError(f"max_tokens is {max_tokens}; it has to be 1 or more")
        mx.reset_peak_memory()
        began = time.perf_counter()
        images = [] if image is None else [image]
        # As mlx-vlm's own command line does it.
        text = apply_chat_template(
            self.processor, self.model.config, prompt, num_images=len(images)
        )
        greedy = Greedy()
        texts: list[str] = []
        times: list[float] = []
        # No prompt_cache_state, vision_cache or apc_manager: nothing of an earlier answer is used.
        for piece in stream_generate(
            self.model,
            self.processor,
            text,
            images or None,
            max_tokens=max_tokens,
            sampler=greedy,
        ):
            texts.append(piece.text)
            # The last piece may bring no token, only the end of the text.
            if len(times) < piece.generation_tokens:
                times.append(time.perf_counter())
        # mlx-vlm's prompt_tps says how long before its first piece it began to prefill.
        prefilling = times[0] - piece.prompt_tokens / piece.prompt_tps
        # The second token's pass is queued before the first piece comes, which takes no time on a
        # GPU. MLX's CPU backend waits there for most of that pass; but it has waited for the
        # first one, too, by the time that the second token is asked for.
        cpu = mx.default_device().type == mx.DeviceType.cpu
        first = greedy.asked[1] if cpu else times[0]
        # Every piece comes as late as the first one, so that their distances are right.
        decoding_s = times[-1] - times[0]
        return Answer(
            text="".join(texts),
            finish_reason=piece.finish_reason,
            prompt_tokens=piece.prompt_tokens,
            generated_tokens=len(times),
            prefill_s=first - prefilling,
            first_token_s=first - began,
            decode_tokens_per_s=(len(times) - 1) / decoding_s if len(times) > 1 else None,
            peak_memory_gb=mx.get_peak_memory() / 1e9,
        )


def main() -> None:
    # Standard output is for replies alone: whatever the libraries print goes to standard error.
    replies: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        print(json.dumps(worker.reply(line)), file=replies, flush=True)


if __name__ == "__main__":
    main()
