"""The command line: what it prints, and one clear sentence for whatever cannot be used."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import CONFIGS, write_checkpoint
from PIL import Image

from mlx_corematching.cli import main
from mlx_corematching.loading import DEMO

IMAGES = Path(__file__).parent.parent / "examples" / "images"
SCENE = str(IMAGES / "scene_0012.png")
FIELDS = {
    "text", "finish_reason", "model", "preset", "prompt_tokens", "image_tokens",
    "kept_image_tokens", "core_neuron_fraction", "generated_tokens", "vision_s", "prefill_s",
    "first_token_s", "decode_tokens_per_s", "peak_memory_gb",
}  # fmt: skip


def ask(*arguments):
    return main(["generate", *arguments])


def test_the_answer_goes_to_standard_output_and_all_else_does_not(capsys):
    assert ask("--image", SCENE) == 0
    out, err = capsys.readouterr()
    assert out == "A pig and a frog on a green background, with a brown sign that says SNOW.\n"
    assert "demo model" in err


def test_json_is_one_object_with_the_promised_fields(capsys):
    question = ["--prompt", "What color is the background?"]
    assert ask("--image", SCENE, *question, "--preset", "paper", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer.keys() == FIELDS
    assert answer["text"] == "green"
    assert answer["kept_image_tokens"] < answer["image_tokens"] == 144
    assert answer["core_neuron_fraction"] <= 0.45
    assert answer["preset"] == "paper"


def test_settings_change_what_is_kept(capsys):
    options = ["--preset", "paper", "--keep-tokens", "20", "--beta", "0.25", "--prune-layer", "3"]
    assert ask("--image", SCENE, *options, "--json", "--max-tokens", "2") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["kept_image_tokens"] == 20
    assert answer["core_neuron_fraction"] == 0.25
    assert answer["preset"] == "custom"
    assert answer["finish_reason"] == "length"


def test_stats_and_an_overlay_that_shows_the_kept_tokens(tmp_path, capsys):
    target = tmp_path / "overlay.png"
    pictures = ["--image", SCENE, "--image", SCENE]
    options = ["--preset", "paper", "--keep-tokens", "36", "--max-tokens", "1", "--stats"]
    assert ask(*pictures, *options, "--save-overlay", str(target)) == 0
    err = capsys.readouterr().err
    assert "36 of 288 image tokens kept" in err
    assert "40.0% of each FFN" in err
    with Image.open(target) as drawn, Image.open(SCENE) as picture:
        assert drawn.size == (336 * 2 + 8, 336)
        original = picture.convert("RGB").resize((336, 336), Image.Resampling.BICUBIC)
        patch = 28
        shown = sum(
            drawn.getpixel((x + left, y)) == original.getpixel((x, y))
            for left in (0, 344)
            for x in range(patch // 2, 336, patch)
            for y in range(patch // 2, 336, patch)
        )
    assert shown == 36


def model_folders(folder):
    """Folders that are no usable model, and what is said of them."""

    def copy(name):
        shutil.copytree(DEMO, folder / name, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        return folder / name

    def config(path, **changes):
        file = path / "config.json"
        values = {**json.loads(file.read_text()), **changes}
        file.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))

    (folder / "empty").mkdir()
    write_checkpoint(folder / "source", CONFIGS["llama"])
    config(copy("mllama"), model_type="mllama")
    config(copy("other"), model_type="gpt2")
    config(copy("newer"), corematching={"format": 2, "down_proj": "neuron_major"})
    config(copy("wider"), text_config={"hidden_size": 320, "vocab_size": 768})
    weights = copy("cut") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    (copy("no weights") / "model.safetensors").unlink()
    (copy("no tokenizer") / "tokenizer.json").unlink()
    (copy("bad tokenizer") / "tokenizer.json").write_text("{}")
    (copy("no preprocessor") / "processor_config.json").unlink()
    (copy("bad config") / "config.json").write_text("{")
    return {
        "no/such/folder": "no such folder|there is no",
        "empty": "no config.json|empty",
        "source": "not converted yet",
        "mllama": "cross-attention",
        "other": "only 'llava' is supported",
        "newer": "another version",
        "wider": r"by config.json it has to be",
        "cut": "cut short",
        "no weights": "lacks the shard|no weights",
        "no tokenizer": "no tokenizer",
        "bad tokenizer": "tokenizer in .* cannot be read",
        "no preprocessor": "no preprocessor_config.json",
        "bad config": "cannot be read as JSON",
    }


def test_models_that_cannot_be_used(tmp_path, capsys):
    import re

    for name, message in model_folders(tmp_path).items():
        assert ask("--image", SCENE, "--model", str(tmp_path / name)) == 2, name
        out, err = capsys.readouterr()
        assert out == ""
        assert re.search(message, err), (name, err)
        assert len(err.splitlines()) == 1, err
        assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "no-such.png"], "there is no picture"),
        (["--image", str(IMAGES)], "is a folder"),
        (["--prompt", "  "], "prompt is empty"),
        (["--prompt", "word " * 3000], "context holds 1024"),
        (["--image", SCENE, "--rho", "1.2"], "rho is 1.2"),
        (["--image", SCENE, "--beta", "-0.1"], "beta is -0.1"),
        (["--image", SCENE, "--beta", "nan"], "beta is nan"),
        (["--image", SCENE, "--prune-layer", "9"], "no effect with this model's own settings"),
        (
            ["--image", SCENE, "--preset", "paper", "--prune-layer", "9"],
            "this model has 6 decoder layers",
        ),
        (["--image", SCENE, "--prune-layer", "0"], "counted from 1"),
        (["--image", SCENE, "--keep-tokens", "-1"], "0 or more"),
        (["--image", SCENE, "--preset", "dense", "--beta", "0.3"], "no effect with --preset dense"),
        (["--image", SCENE, "--preset", "neurons", "--keep-tokens", "3"], "no effect"),
        (["--image", SCENE, "--max-tokens", "0"], "max_tokens is 0"),
        (["--image", SCENE, "--temp", "-1"], "temperature"),
        (["--image", SCENE, "--top-p", "1.5"], "top_p"),
        (["--save-overlay", "a.png"], "needs a picture"),
        (["--image", SCENE, "--save-overlay", "a.jpg"], "is a PNG picture"),
        (["--image", SCENE, "--save-overlay", "no/such/a.png"], "no folder"),
    ],
)
def test_input_that_cannot_be_used(arguments, message, capsys):
    assert ask(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.parametrize("arguments", [["--preset", "guess"], ["--rho", "many"], ["--no-such"]])
def test_usage_that_is_not_understood(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        ask(*arguments)
    assert ended.value.code == 2


def test_debug_shows_where_an_error_came_from(capsys):
    assert ask("--image", "no-such.png", "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, check=False, **options
    )


def test_both_modules_run_and_explain_themselves():
    for module in ("mlx_corematching.generate", "mlx_corematching.convert"):
        shown = run(module, "--help")
        assert shown.returncode == 0
        assert "--" in shown.stdout
        assert shown.stderr == ""
    failed = run("mlx_corematching.generate", "--image", "no-such.png")
    assert failed.returncode == 2
    assert failed.stdout == ""
    assert "there is no picture no-such.png" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize("command", ["generate", "bench", "plan", "convert"])
def test_help_needs_no_heavy_import(command):
    code = (
        "import sys; from mlx_corematching.cli import main\n"
        f"try: main(['{command}', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'mlx.core', 'mlx_lm', 'transformers', 'numpy', 'PIL'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
