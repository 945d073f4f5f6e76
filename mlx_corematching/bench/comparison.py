"""The comparison itself: every mode in turn, round by round, and the peer among them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_corematching.bench import results
from mlx_corematching.bench.bandwidth import memory_bandwidth
from mlx_corematching.bench.measure import Sample, measure
from mlx_corematching.bench.peer import Peer
from mlx_corematching.bench.report import Report
from mlx_corematching.bench.subject import Subject
from mlx_corematching.core.quantized import on_cpu
from mlx_corematching.core.settings import CoreMatching
from mlx_corematching.costs.chips import chip as chip_named
from mlx_corematching.costs.memory import predict_peak
from mlx_corematching.costs.projection import Projection, project
from mlx_corematching.costs.work import Costs, Question
from mlx_corematching.errors import InputError
from mlx_corematching.machine import Machine


@dataclass(frozen=True)
class PeerTask:
    """The peer, and the same question and picture for it."""

    peer: Peer
    prompt: str
    image: Path


def compare(
    subject: Subject,
    modes: Mapping[str, CoreMatching],
    *,
    rounds: int,
    warmup: int,
    new_tokens: int,
    peer: PeerTask | None = None,
    chip: str | None = None,
) -> Report:
    """Measure every mode `rounds` times, A B C D A B C D, after `warmup` rounds of the same.

    Where the model streams, modes that decode with every neuron are left out.

    Args:
        peer: takes its turn at the end of each round.
        chip: what to project the counts on.
    """
    if subject.model.memory == "streaming":
        modes = streamable(modes, subject.model.config.text.intermediate_size)
    bandwidth = memory_bandwidth()
    samples: dict[str, list[Sample]] = {name: [] for name in modes}
    answers: list[dict[str, Any]] = []
    for number in range(-warmup, rounds):
        label = "warm-up" if number < 0 else f"round {number + 1} of {rounds}"
        for name, settings in modes.items():
            print(f"{label}: {name}", file=sys.stderr, flush=True)
            sample = measure(subject.model, settings, subject.task)
            samples[name] += [sample] if number >= 0 else []
        if peer:
            print(f"{label}: mlx-vlm", file=sys.stderr, flush=True)
            answer = peer.peer.answer(peer.prompt, peer.image, new_tokens)
            answers += [answer] if number >= 0 else []

    config = subject.model.config
    costs = Costs(config, subject.storage)
    # An Apple GPU computes in the type that is stored, whatever this machine's backend does.
    on_gpu = Costs(config, subject.storage.on_gpu())
    found: dict[str, results.ModeResult] = {}
    projections: dict[str, Projection] = {}
    for name, settings in modes.items():
        found[name] = results.of_samples(samples[name])
        question = Question(subject.text, subject.image, samples[name][0].kept, new_tokens)
        results.add_counts(found[name], costs, question, settings, bandwidth)
        peak = predict_peak(costs, question, settings, subject.model.memory, cpu=on_cpu())
        found[name].values["predicted_peak_gb"] = peak.nbytes / 1e9
        if chip:
            projections[name] = project(on_gpu, question, settings, chip_named(chip))
    said = None
    if peer:
        found["mlx-vlm"] = results.of_peer(answers, new_tokens)
        said = _compared_texts(peer, answers[-1], samples, subject)
    return Report(
        machine=Machine.this(),
        bandwidth=bandwidth,
        subject={
            "what": subject.what,
            "memory": subject.model.memory,
            "bits": subject.storage.bits,
            "weights_gb": costs.weights.total.nbytes / 1e9,
        },
        question={"text": subject.text, "image": subject.image, "new": new_tokens},
        rounds=rounds,
        modes=found,
        peer=said,
        projections=projections or None,
    )


def streamable(modes: Mapping[str, CoreMatching], neurons: int) -> dict[str, CoreMatching]:
    """The modes that a streaming model can follow; InputError if there are none."""
    chosen = {name: mode for name, mode in modes.items() if mode.compacts(neurons)}
    if not chosen:
        raise InputError("streaming decodes with core neurons alone; choose a mode that does")
    return chosen


def _compared_texts(
    peer: PeerTask, answer: Mapping[str, Any], samples: Mapping[str, list[Sample]], subject: Subject
) -> dict[str, Any]:
    """What the peer said beside what dense said, and the peer's versions."""
    tokens = list(samples["dense"][-1].tokens)
    ends = subject.processor.tokenizer.eos_token_ids
    end = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    dense = subject.processor.tokenizer.decode(tokens[:end], skip_special_tokens=True)
    same = dense.strip() == str(answer["text"]).strip()
    return {**peer.peer.versions, "text": answer["text"], "dense_text": dense, "same_text": same}
