"""`plan`, and the refusal of what does not fit."""

import dataclasses

import mlx.core as mx
import pytest
from checkpoints import CONFIGS
from checkpoints import write_checkpoint as write_checkpoint_in_hub_format
from tiny import tiny_config

from mlx_corematching import CoreMatching, InputError
from mlx_corematching.bench.random_model import RandomWeights, complete_config, write_checkpoint
from mlx_corematching.cli import main
from mlx_corematching.loading import DEMO
from mlx_corematching.machine import Machine
from mlx_corematching.plan import (
    checkpoint_costs,
    expected_question,
    plan,
    refuse_what_does_not_fit,
    usable_of,
)

SEVEN = ["plan", "--shape", "llava-1.5-7b"]


@pytest.fixture
def folder(tmp_path):
    text = {"hidden_size": 256, "intermediate_size": 4096, "num_hidden_layers": 12}
    config = complete_config(tiny_config(text), None)
    write_checkpoint(tmp_path, RandomWeights(config, None, mx.float32))
    return tmp_path


def on_machine(monkeypatch, usable):
    real = Machine.this()
    monkeypatch.setattr(
        Machine, "this", lambda: dataclasses.replace(real, usable_bytes=int(usable))
    )


def rows_of(text):
    """The first table's rows: preset, memory, peak, fits."""
    lines = text.split("\n\n")[1].splitlines()
    return [line.split()[:4] for line in lines[1:]]


def test_every_preset_is_planned_in_every_mode_it_can_have(capsys):
    assert main([*SEVEN, "--memory-gb", "6", "--chip", "m2"]) == 0
    out = capsys.readouterr().out
    rows = rows_of(out)
    assert [row[:2] for row in rows] == [
        ["dense", "resident"],
        ["tokens", "resident"],
        *([p, m] for p in ("neurons", "paper", "balanced") for m in ("resident", "streaming")),
    ]
    for _, _, peak, fits in rows:
        assert (float(peak) <= 6 * 2**30 * 2 / 3 / 1e9) == (fits == "yes")
    assert "PROJECTION for M2" in out
    assert "not a measurement" in out
    assert out.rstrip().endswith("--memory streaming --max-tokens 256 --image PICTURE")


def test_nothing_fits_into_nothing(capsys):
    assert main([*SEVEN, "--memory-gb", "0.5"]) == 0
    out = capsys.readouterr().out
    assert {row[3] for row in rows_of(out)} == {"no"}
    assert "Nothing fits" in out


def test_flops_are_told_by_where_they_go(capsys):
    options = ["--flops", "--keep-tokens", "64", "--new-tokens", "101", "--prompt-tokens", "64"]
    assert main([*SEVEN, *options]) == 0
    table = capsys.readouterr().out.split("\n\n")[2]
    paper = next(line for line in table.splitlines() if line.startswith("paper"))
    assert paper.split()[-1] == "3.32×"


def test_a_checkpoint_is_planned_from_its_headers(capsys, folder):
    assert main(["plan", "--model", str(folder), "--new-tokens", "32"]) == 0
    assert f"--model {folder}" in capsys.readouterr().out
    assert main(["plan"]) == 0
    assert "demo" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("memory", "usable"), [(8, 5.33), (16, 10.67), (36, 27), (64, 48), (128, 96)]
)
def test_what_macos_lets_a_gpu_have(memory, usable):
    assert usable_of(memory << 30) / 2**30 == pytest.approx(usable, abs=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "a", "--shape", "llava-1.5-7b"], "two models"),
        (["--layers", "3"], "--layers has an effect with --shape only"),
        (["--quantize", "8"], "--quantize has an effect with --shape only"),
        (["--shape", "llava-2"], "there is no shape"),
        (["--chip", "m9"], "there is no chip"),
        (["--memory-gb", "0"], "no 0 GB"),
        (["--memory-gb", "nan"], "no nan GB"),
        (["--pictures", "-1"], "--pictures has to be 0 or more"),
        (["--keep-tokens", "-1"], "--keep-tokens has to be 0 or more"),
        (["--beta", "2"], "from 0 to 1"),
        (["--model", "no-such"], "there is no folder"),
        (["--shape", "64,192,3,0,0,128"], "cannot be"),
        (["--shape", "llava-1.5-7b", "--layers", "1"], "the prune layer is 2"),
        (["--shape", "llava-1.5-7b", "--new-tokens", "9999"], "context of 4096"),
    ],
)
def test_bad_input_gets_one_sentence(capsys, options, message):
    assert main(["plan", *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_keeping_every_neuron_takes_no_more_than_dense(folder):
    costs = checkpoint_costs(folder, cpu=True)
    every = CoreMatching(tokens=False, beta=1.0)
    ways = {"dense": CoreMatching.dense(), "every": every}
    question = expected_question(costs, every)
    rows = plan(costs, question, ways, int(1e12), cpu=True)
    assert [row.memory for row in rows] == ["resident", "resident"]
    assert rows[0].peak == rows[1].peak


def test_a_checkpoint_that_is_not_converted_is_told_so(tmp_path, capsys):
    write_checkpoint_in_hub_format(tmp_path / "hub", CONFIGS["llama"], seed=1)
    for command in (["plan"], ["generate", "--prompt", "What?"]):
        assert main([*command, "--model", str(tmp_path / "hub")]) == 2
        assert "not converted yet" in capsys.readouterr().err


def peaks(folder, settings):
    costs = checkpoint_costs(folder, cpu=True)
    question = expected_question(costs, settings, new=256)
    ways = {"asked": settings}
    return {row.memory: row.peak.nbytes for row in plan(costs, question, ways, int(1e12), cpu=True)}


def test_what_fits_is_not_refused(monkeypatch, folder):
    paper = CoreMatching.paper()
    on_machine(monkeypatch, peaks(folder, paper)["resident"])
    refuse_what_does_not_fit(folder, paper, "resident", pictures=1, new=256)


def test_the_mode_that_would_fit_is_named(monkeypatch, folder):
    paper = CoreMatching.paper()
    peak = peaks(folder, paper)
    assert peak["streaming"] < 0.7 * peak["resident"]
    on_machine(monkeypatch, peak["resident"] - 1)
    with pytest.raises(InputError, match=r"; --memory streaming fits \(0\.\d GB\), or --force"):
        refuse_what_does_not_fit(folder, paper, "resident", pictures=1, new=256)
    on_machine(monkeypatch, peak["streaming"])
    with pytest.raises(InputError, match="--preset paper --memory streaming fits"):
        refuse_what_does_not_fit(folder, CoreMatching.dense(), "resident", pictures=1, new=256)
    on_machine(monkeypatch, 1000)
    with pytest.raises(InputError, match="use a smaller model or fewer bits"):
        refuse_what_does_not_fit(folder, paper, "streaming", pictures=1, new=256)


def test_generate_refuses_before_it_loads_and_force_goes_on(monkeypatch, capsys):
    on_machine(monkeypatch, 1e7)
    picture = DEMO.parent.parent / "examples" / "images" / "scene_0012.png"
    ask = ["generate", "--model", str(DEMO), "--image", str(picture), "--max-tokens", "1"]
    monkeypatch.setattr("mlx_corematching.loading.load_model", None)  # not to be called
    assert main(ask) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: this will take ")
    assert err.count("\n") == 1
    monkeypatch.undo()
    on_machine(monkeypatch, 1e7)
    assert main([*ask, "--force"]) == 0
    assert capsys.readouterr().out.strip()
