"""Ask a vision-language model about pictures.

The answer streams to standard output; all else goes to standard error.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_corematching.core.settings import PRESETS, REFERENCES, CoreMatching
from mlx_corematching.errors import InputError

if TYPE_CHECKING:
    from mlx_corematching.generate import Response
    from mlx_corematching.models.llava import Llava

# Which of the method's halves a setting belongs to.
_TOKEN_SETTINGS = ("prune_layer", "keep_tokens")
_SHARED_SETTINGS = ("rho", "beta", "reference")

_JSON_FIELDS = (
    "text", "finish_reason", "model", "preset", "prompt_tokens", "image_tokens",
    "kept_image_tokens", "core_neuron_fraction", "generated_tokens", "vision_s", "prefill_s",
    "first_token_s", "decode_tokens_per_s", "peak_memory_gb",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", metavar="PATH_OR_ID", help="a converted folder or a hub id (default: demo model)"
    )
    parser.add_argument("--revision", help="a hub branch, tag or commit of --model")
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="PICTURE",
        help="a path, a URL, - (standard input), clipboard or screen; repeat it for more pictures",
    )
    parser.add_argument(
        "--prompt",
        default="What is shown in this image?",
        help="the question (default: %(default)r)",
    )
    method = parser.add_argument_group("CoreMatching")
    method.add_argument(
        "--preset", choices=PRESETS, default="balanced", help="how sparsely (default: %(default)s)"
    )
    method.add_argument(
        "--rho", type=float, help="share of a token's activated neurons that are its core, 0 to 1"
    )
    method.add_argument("--beta", type=float, help="share of neurons to decode with, 0 to 1")
    method.add_argument(
        "--prune-layer", type=int, metavar="L", help="drop image tokens after this layer, from 1"
    )
    method.add_argument(
        "--keep-tokens", type=int, metavar="N", help="keep N image tokens (default: by the knee)"
    )
    method.add_argument(
        "--reference", choices=REFERENCES, help="the prompt tokens whose core neurons count"
    )
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--max-tokens", type=int, default=256, help="longest answer (default: %(default)s)"
    )
    sampling.add_argument(
        "--temp", type=float, default=0.0, help="temperature; 0 is greedy (default: %(default)s)"
    )
    sampling.add_argument(
        "--top-p", type=float, default=1.0, help="nucleus sampling (default: %(default)s)"
    )
    sampling.add_argument("--seed", type=int, help="makes sampling repeatable")
    memory = parser.add_argument_group("memory")
    memory.add_argument(
        "--memory",
        choices=("resident", "streaming"),
        default="resident",
        help="streaming leaves vision tower and dense FFNs on disk and reads them with each "
        "prompt; it decodes with core neurons alone (default: %(default)s)",
    )
    memory.add_argument(
        "--force", action="store_true", help="load even what will not fit into memory"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print one JSON object instead")
    output.add_argument("--stats", action="store_true", help="add tokens and timings, on stderr")
    output.add_argument(
        "--save-overlay", metavar="PNG", help="draw the kept image tokens on the picture"
    )
    output.add_argument("--debug", action="store_true", help="show the traceback of an error")


def run(args: argparse.Namespace) -> None:
    """Answer; raises InputError for what cannot be used."""
    overlay = Path(args.save_overlay).expanduser() if args.save_overlay else None
    if overlay:
        _check_overlay(overlay, args.image)
    # Settings first: a typo there should not wait for a model to load.
    chosen = _settings(args)

    from mlx_corematching.conversation import PromptCache
    from mlx_corematching.generate import stream_generate
    from mlx_corematching.loading import load

    if args.model is None:
        _say("Using the bundled demo model; --model takes a converted folder or a hub id.")
    if args.model is not None and not args.force:
        _check_fits(args, chosen)
    model, processor = load(args.model, revision=args.revision, memory=args.memory)
    conversation = PromptCache()
    responses = stream_generate(
        model,
        processor,
        args.prompt,
        args.image or None,
        sparsity=_applied(chosen, args.preset, model),
        max_tokens=args.max_tokens,
        temp=args.temp,
        top_p=args.top_p,
        seed=args.seed,
        prompt_cache=conversation,
    )
    pieces = []
    for response in responses:
        pieces.append(response.text)
        if not args.json:
            print(response.text, end="", flush=True)
    text = "".join(pieces)
    if args.json:
        values = {name: getattr(response, name) for name in _JSON_FIELDS} | {"text": text}
        print(json.dumps(values, ensure_ascii=False, indent=2))
    else:
        print()
    if args.stats:
        _print_stats(response)
    if overlay:
        from mlx_corematching.overlay import draw_overlay

        assert response.trace is not None
        draw_overlay(conversation.pictures, response.trace, model, processor).save(overlay)
        _say(f"Saved {overlay}.")


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings given beside the preset; InputError for one that would have no effect."""
    given = {
        name: getattr(args, name)
        for name in (*_TOKEN_SETTINGS, *_SHARED_SETTINGS)
        if getattr(args, name) is not None
    }
    preset = CoreMatching.preset(args.preset)
    _check_effect(given, preset, f"--preset {args.preset}; leave one of them out")
    dataclasses.replace(preset, **given)  # raises for a value out of range
    return given


def _check_effect(given: dict[str, Any], settings: CoreMatching, otherwise: str) -> None:
    for name in given:
        used = settings.tokens if name in _TOKEN_SETTINGS else settings.tokens or settings.neurons
        if not used:
            raise InputError(f"--{name.replace('_', '-')} has no effect with {otherwise}")


def _applied(given: dict[str, Any], preset: str, model: Llava) -> CoreMatching:
    base = model.balanced if preset == "balanced" else CoreMatching.preset(preset)
    _check_effect(given, base, "this model's own settings; add --preset paper, say")
    return dataclasses.replace(base, **given)


def _check_fits(args: argparse.Namespace, chosen: dict[str, Any]) -> None:
    """InputError if this machine's memory will not hold the answer."""
    from mlx_corematching.loading import find_folder
    from mlx_corematching.models.config import LlavaConfig
    from mlx_corematching.plan import refuse_what_does_not_fit

    folder = find_folder(args.model, args.revision)
    settings = LlavaConfig.from_folder(folder).balanced
    if args.preset != "balanced":
        settings = CoreMatching.preset(args.preset)
    refuse_what_does_not_fit(
        folder,
        dataclasses.replace(settings, **chosen),
        args.memory,
        pictures=len(args.image),
        new=args.max_tokens,
    )


def _check_overlay(path: Path, images: list[str]) -> None:
    if not images:
        raise InputError("--save-overlay needs a picture; give one with --image")
    if path.suffix.lower() != ".png":
        raise InputError(f"the overlay is a PNG picture; call it {path.with_suffix('.png').name}")
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent} to save the overlay in")


def _print_stats(response: Response) -> None:
    def seconds(value: float) -> str:
        return f"{value:.3f} s"

    speed = response.decode_tokens_per_s
    _say(
        f"Prompt: {response.prompt_tokens} tokens, {response.kept_image_tokens} of "
        f"{response.image_tokens} image tokens kept\n"
        f"Neurons: {response.core_neuron_fraction:.1%} of each FFN while decoding "
        f"(preset {response.preset})\n"
        f"Vision {seconds(response.vision_s)}, prefill {seconds(response.prefill_s)}, first token "
        f"after {seconds(response.first_token_s)}\n"
        f"Decode: {response.generated_tokens} tokens"
        + (f", {speed:.1f} a second" if speed else "")
        + f"\nPeak memory: {response.peak_memory_gb:.3f} GB"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
