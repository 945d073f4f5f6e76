"""The training loop that all stages share: batches by step, two optimizers, checkpoints, a log.

Everything a step does follows from its number, so a run that was interrupted goes on from its last
checkpoint as if nothing had happened.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mlx_corematching.errors import InputError

WARM_UP = 150  # steps
DECAY = 0.4  # of all steps, at the end


@dataclass
class Part:
    """A module to train. Matrices learn by Muon at ``rate``, all else by AdamW at ``rest``."""

    module: nn.Module
    rate: float
    rest: float


@dataclass
class Stage:
    """What one stage trains, on what, and how it is measured."""

    name: str
    parts: dict[str, Part]
    batch: Callable[[int], Any]
    losses: Callable[[Any], dict[str, torch.Tensor]]
    measure: Callable[[], dict[str, float]]


def run(stage: Stage, out: Path, steps: int, every: int) -> None:
    """Trains for ``steps`` in all; each ``every`` steps saves NAME.pt and adds to log.jsonl.

    Raises InputError if the checkpoint is of a run of another length, whose learning rates differ.
    """
    path = out / f"{stage.name}.pt"
    optimizers = _optimizers(list(stage.parts.values()))
    step, opening = _restore(path, stage, optimizers, steps)
    totals: dict[str, float] = {}
    since, begun = step, time.perf_counter()
    for batch in _ahead(stage.batch, range(step, steps)):
        share = _schedule(step, steps)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["full_rate"] * share
        losses = stage.losses(batch)
        sum(losses.values()).backward()
        for part in stage.parts.values():
            nn.utils.clip_grad_norm_(part.module.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        for name, loss in losses.items():
            totals[name] = totals.get(name, 0.0) + loss.item()
        if opening is None:
            opening = sum(totals.values())
        if step % every == 0 or step == steps:
            means = {name: round(total / (step - since), 4) for name, total in totals.items()}
            seconds = time.perf_counter() - begun
            measured = stage.measure()
            _save(path, stage, optimizers, step, steps, opening)
            _log(out, stage.name, step, steps, seconds / (step - since), means, measured)
            if step == steps:
                closing = sum(totals.values()) / (step - since)
                print(
                    f"{stage.name}: loss {opening:.3f} in the first step, "
                    f"{closing:.3f} on average over the last {step - since}",
                    file=sys.stderr,
                )
            totals, since, begun = {}, step, time.perf_counter()


def _ahead(build: Callable[[int], Any], steps: range) -> Iterator[Any]:
    """Each step's batch, the next one being built meanwhile."""
    with ThreadPoolExecutor(1) as builder:
        coming = [builder.submit(build, step) for step in steps[:1]]
        for step in steps:
            batch = coming.pop().result()
            if step + 1 < steps.stop:
                coming.append(builder.submit(build, step + 1))
            yield batch


def _schedule(step: int, steps: int) -> float:
    left = (steps - step) / (DECAY * steps)
    return min(1.0, (step + 1) / min(WARM_UP, steps), max(left, 0.02))


def _optimizers(parts: list[Part]) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside blocks, AdamW for embeddings, norms, biases and convolutions."""
    matrices, rest = [], []
    for part in parts:
        inner = {
            id(module.weight)
            for module in part.module.modules()
            if isinstance(module, nn.Linear) and module.weight.requires_grad
        }
        mine = [parameter for parameter in part.module.parameters() if parameter.requires_grad]
        matrices.append(
            {"params": [p for p in mine if id(p) in inner], "lr": part.rate, "full_rate": part.rate}
        )
        rest.append(
            {
                "params": [p for p in mine if id(p) not in inner],
                "lr": part.rest,
                "full_rate": part.rest,
            }
        )
    matrices = [group for group in matrices if group["params"]]
    rest = [group for group in rest if group["params"]]
    return [
        torch.optim.Muon(matrices, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, betas=(0.9, 0.95), weight_decay=0.01),
    ]


def _restore(
    path: Path, stage: Stage, optimizers: list[torch.optim.Optimizer], steps: int
) -> tuple[int, float | None]:
    """The number of steps taken, and the first one's loss."""
    if not path.exists():
        return 0, None
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["steps"] != steps:
        raise InputError(
            f"{path} is of a run of {state['steps']} steps, and {steps} are asked for; "
            "give another --out, or remove it"
        )
    for name, part in stage.parts.items():
        part.module.load_state_dict(state["modules"][name])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    print(f"{stage.name}: going on from step {state['step']}", file=sys.stderr)
    return state["step"], state["opening"]


def _save(
    path: Path,
    stage: Stage,
    optimizers: list[torch.optim.Optimizer],
    step: int,
    steps: int,
    opening: float | None,
) -> None:
    state = {
        "step": step,
        "steps": steps,
        "opening": opening,
        "modules": {name: part.module.state_dict() for name, part in stage.parts.items()},
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    unfinished = path.with_suffix(".unfinished")
    torch.save(state, unfinished)
    os.replace(unfinished, path)


def load_modules(path: Path, **modules: nn.Module) -> None:
    """Takes modules over from an earlier stage's checkpoint."""
    state = torch.load(path, map_location="cpu", weights_only=True)["modules"]
    for name, module in modules.items():
        module.load_state_dict(state[name])


def _log(
    out: Path, name: str, step: int, steps: int, seconds: float, losses: dict, measured: dict
) -> None:
    measured = {key: round(value, 3) for key, value in measured.items()}
    line = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "stage": name,
        "step": step,
        "steps": steps,
        "seconds_per_step": round(seconds, 3),
        "losses": losses,
        "measured": measured,
    }
    with (out / "log.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")
    shown = "  ".join(f"{key} {value}" for key, value in {**losses, **measured}.items())
    print(f"{name} {step}/{steps} ({seconds:.2f} s a step)  {shown}", file=sys.stderr, flush=True)
