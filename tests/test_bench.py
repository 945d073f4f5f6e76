"""The bench: what it reports of models that are really there."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from mlx_corematching.bench.measure import Sample
from mlx_corematching.bench.modes import MODES, choose_modes
from mlx_corematching.bench.peer import Peer
from mlx_corematching.bench.results import of_peer, of_samples, ratios
from mlx_corematching.cli import main
from mlx_corematching.core.settings import CoreMatching
from mlx_corematching.errors import InputError

SMALL = [
    "bench", "--shape", "64,192,3,2,2,128", "--tower-layers", "2", "--image-tokens", "16",
    "--prompt-tokens", "9", "--new-tokens", "4", "--rounds", "2", "--warmup", "0",
]  # fmt: skip
VALUES = {
    "vision_s", "prefill_s", "first_token_s", "decode_tokens_per_s", "bytes_per_token",
    "prefill_flops", "decode_flops", "peak_memory_gb", "bandwidth_share",
}  # fmt: skip


@pytest.fixture(autouse=True)
def quick_bandwidth(monkeypatch):
    """The real measurement, on less memory."""
    from mlx_corematching.bench import bandwidth, comparison

    monkeypatch.setattr(
        comparison, "memory_bandwidth", lambda: bandwidth.memory_bandwidth(1 << 22, 2)
    )


def test_the_json_has_every_mode_and_its_ratios(tmp_path, capsys):
    file = tmp_path / "bench.json"
    assert main([*SMALL, "--keep-tokens", "4", "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert list(report["modes"]) == ["dense", "tokens", "neurons", "both"]
    assert report["machine"]["bandwidth_gb_s"] > 0
    assert report["question"] == {"text": 9, "image": 16, "new": 4}
    for name, values in report["modes"].items():
        assert values.keys() >= VALUES
        low, high = values["spread"]["prefill_s"]
        assert 0 < low <= values["prefill_s"] <= high
        assert values["kept"] == (4 if name in ("tokens", "both") else 16)
        assert values["first_token_s"] >= values["vision_s"] + values["prefill_s"]
    dense, both = report["modes"]["dense"], report["modes"]["both"]
    ratio = report["ratios"]["both"]
    assert ratio["decode"] == pytest.approx(
        both["decode_tokens_per_s"] / dense["decode_tokens_per_s"]
    )
    assert ratio["prefill"] == pytest.approx(dense["prefill_s"] / both["prefill_s"])
    assert ratio["bytes"] == pytest.approx(dense["bytes_per_token"] / both["bytes_per_token"])
    assert set(report["ratios"]["dense"].values()) == {1.0}
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.split("\n\n")[1].splitlines()[1:]] == list(MODES[:4])
    # Interleaved: every mode has its turn before any has its second.
    assert err.splitlines()[:5] == [
        *(f"round 1 of 2: {name}" for name in ("dense", "tokens", "neurons", "both")),
        "round 2 of 2: dense",
    ]


def test_streaming_measures_the_modes_that_can(tmp_path, capsys):
    file = tmp_path / "bench.json"
    assert main([*SMALL, "--memory", "streaming", "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert list(report["modes"]) == ["neurons", "both"]
    assert report["ratios"] == {}


def test_the_demo_model_and_markdown_and_a_projection(tmp_path, capsys):
    picture = tmp_path / "own.png"
    Image.new("RGB", (50, 70), (10, 200, 90)).save(picture)
    options = ["--rounds", "1", "--warmup", "0", "--new-tokens", "2", "--modes", "balanced"]
    ask = ["bench", "--image", str(picture), *options, "--markdown", "--project", "M2 Pro"]
    assert main(ask) == 0
    out = capsys.readouterr().out
    assert out.count("| dense |") == 3
    assert "| balanced |" in out
    assert "PROJECTION for M2 Pro" in out
    assert "not a measurement" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--new-tokens", "0"], "--new-tokens has to be 1 or more"),
        (["--rounds", "0"], "--rounds has to be 1 or more"),
        (["--layers", "2"], "--layers has an effect with --shape only"),
        (["--model", "m", "--shape", "llava-1.5-7b"], "two subjects"),
        (["--shape", "llava-1.5-7b", "--image", "a.png"], "with a model only"),
        (["--shape", "96,96,2,4,4,100"], "96 weights do not divide"),
        (["--beta", "1.5"], "from 0 to 1"),
        (["--project", "m0"], "there is no chip"),
        (["--json", "no/such/folder.json"], "there is no folder no/such"),
        (["--json", "."], "no file that can be written"),
        (["--plot", "plot.jpg"], "call it plot.png"),
        (["--quantize", "8"], "--quantize has an effect with --shape only"),
        (["--shape", "llava-1.5-7b", "--prompt", "Why?"], "with a model only"),
        (["--shape", "llava-1.5-7b", "--layers", "1"], "the prune layer is 2"),
        (
            ["--shape", "llava-1.5-7b", "--memory", "streaming", "--modes", "tokens"],
            "choose a mode",
        ),
        (["--shape", "llava-1.5-7b", "--image-tokens", "-5"], "-5 image tokens"),
        (["--shape", "llava-1.5-7b", "--prompt-tokens", "4000"], "context of 4096"),
        (["--shape", "65536,262144,99,64,64,32000", "--quantize", "none"], "fewer --layers"),
        (["--shape", "64,192,3,2,2,5"], "vocabulary of 5 is too small"),
        (["--peer-model", "m"], "with --peer mlx-vlm only"),
        (["--peer", "mlx-vlm", "--memory", "streaming", "--model", "m"], "leave --memory out"),
        (["--peer", "mlx-vlm"], "--peer needs --model and --peer-model"),
        (["--peer", "mlx-vlm", "--shape", "llava-1.5-7b"], "add --quantize none"),
        (["--memory", "streaming", "--modes", "tokens", "--new-tokens", "2"], "choose a mode"),
        (["--new-tokens", "9999"], "context"),
    ],
)
def test_bad_input_gets_one_sentence(capsys, options, message):
    assert main(["bench", *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_a_plot_is_a_picture_or_a_sentence(tmp_path, capsys):
    file = tmp_path / "plot.png"
    status = main([*SMALL, "--modes", "both", "--plot", str(file)])
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        assert status == 2
        assert "pip install 'mlx-corematching[plot]'" in capsys.readouterr().err
        return
    assert status == 0
    assert Image.open(file).size[0] > 500


def test_modes_take_the_settings_that_concern_them():
    changes = {"keep_tokens": 7, "beta": 0.2}
    modes = choose_modes(MODES, changes, CoreMatching.dense())
    assert next(iter(modes)) == "dense"
    assert modes["dense"] == modes["balanced"] == CoreMatching.dense()
    assert modes["both"] == CoreMatching(keep_tokens=7, beta=0.2)
    assert modes["neurons"] == CoreMatching(tokens=False, beta=0.2)
    assert modes["tokens"] == CoreMatching(neurons=False, keep_tokens=7, beta=0.2)


def sample(prefill, decode, tokens=5):
    return Sample(0.5, prefill, prefill + 0.5, decode, 1.0, 16, tuple(range(tokens)))


def test_medians_spread_and_ratios():
    slow = of_samples([sample(2.0, 8.0), sample(4.0, 1.0), sample(3.0, 4.0)])
    assert slow.values["prefill_s"] == 3.0
    assert slow.spread["prefill_s"] == (2.0, 4.0)
    assert slow.values["decode_tokens_per_s"] == 1.0
    fast = of_samples([sample(1.0, 2.0)])
    found = ratios(slow, fast)
    assert found["prefill"] == 3.0
    assert found["decode"] == 2.0
    assert found["end_to_end"] == pytest.approx(slow.values["total_s"] / 3.5)
    assert found["flops"] is None


def test_one_token_has_no_decode_speed():
    result = of_samples([sample(1.0, 0.0, tokens=1)])
    assert result.values["decode_tokens_per_s"] is None
    assert ratios(result, result)["decode"] is None


def test_a_peer_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="cannot be run"):
        Peer(str(tmp_path / "no-python"))
    with pytest.raises(InputError, match=r"No module named 'mlx_vlm'.*--peer-python"):
        Peer(sys.executable)
    with pytest.raises(InputError, match="is no Python"):
        Peer("/bin/cat" if Path("/bin/cat").exists() else "cat")


def test_a_peer_that_ends_early_is_reckoned_with_as_many_tokens():
    answer = {
        "prefill_s": 1.0, "first_token_s": 1.5, "decode_tokens_per_s": 2.0,
        "generated_tokens": 3, "peak_memory_gb": 1.0,
    }  # fmt: skip
    found = of_peer([answer], new_tokens=11)
    assert found.values["total_s"] == 1.5 + 10 / 2.0
    assert found.values["generated_tokens"] == 3


def test_a_random_source_is_converted_and_answers(tmp_path):
    from mlx_corematching import generate, load
    from mlx_corematching.bench.subject import Shape, write_pair
    from mlx_corematching.models.shapes import shape_config

    config = shape_config("64,192,3,2,2,256", image_tokens=16, tower_layers=2)
    _, converted = write_pair(Shape(config, "small", None, "float32", 9, 1), tmp_path)
    model, processor = load(converted)
    picture = Image.new("RGB", (60, 60), (200, 10, 10))
    text = generate(model, processor, "What is this?", picture, max_tokens=6)
    assert len(processor.tokenizer.encode(text, add_special_tokens=False)) >= 5
