"""The hub, without a network: what is asked of its client, and what becomes of its errors."""

import re
import sys
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from checkpoints import CONFIGS, write_checkpoint
from huggingface_hub import ModelCard, errors

from mlx_corematching.convert import convert, verify
from mlx_corematching.convert.command import main
from mlx_corematching.errors import InputError
from mlx_corematching.models.hub import is_hub_id, resolve_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with one model; `hub.fetched` lists the files that were asked for."""

    class Hub:
        files = write_checkpoint(tmp_path / "remote", CONFIGS["llama"], tokenizer=True)
        fetched: list[str] = []  # noqa: RUF012

        def snapshot_download(self, repo, revision, allow_patterns, ignore_patterns):
            assert repo == "someone/llava"
            assert revision in (None, "v1")
            folder = tmp_path / "cache" / "snapshots" / COMMIT
            folder.mkdir(parents=True, exist_ok=True)
            for file in self.files.iterdir():
                if any(fnmatch(file.name, pattern) for pattern in allow_patterns):
                    self.fetched.append(file.name)
                    # The cache's files are links too.
                    if not (folder / file.name).exists():
                        (folder / file.name).symlink_to(file)
            return str(folder)

    made = Hub()
    made.fetched = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    return made


def test_a_hub_model(hub, tmp_path):
    (hub.files / "README.md").write_text("---\nlicense: mit\nbase_model: older/one\n---\n")
    for name in ("pytorch_model.bin", "modeling.py", "flax_model.msgpack"):
        (hub.files / name).write_text("not needed")
    convert("someone/llava", tmp_path / "out", revision="v1", verify=True)
    assert "model.safetensors" in hub.fetched
    assert not {"pytorch_model.bin", "modeling.py", "flax_model.msgpack"} & set(hub.fetched)
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.base_model == "someone/llava"
    assert card.data.license == "mit"
    assert COMMIT in card.text
    verify("someone/llava", tmp_path / "out", revision="v1")


def test_pickles_are_fetched_only_where_there_is_nothing_else(hub, tmp_path):
    (hub.files / "model.safetensors").rename(hub.files / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin|pip install torch"):
        convert("someone/llava", tmp_path / "out")  # its content is no pickle
    assert "pytorch_model.bin" in hub.fetched


@pytest.mark.parametrize("status", [401, 404])
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (errors.RepositoryNotFoundError, "no model someone/llava"),
        (errors.GatedRepoError, "is gated"),
        (errors.RevisionNotFoundError, "no such revision"),
        (errors.HfHubHTTPError, "could not be asked"),
    ],
)
def test_answers_of_the_hub(kind, words, status, tmp_path, monkeypatch, capsys):
    response = SimpleNamespace(status_code=status, headers={}, request=None)

    def refuse(*_, **__):
        raise kind("a long\nexplanation", response=response)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    assert main(["--hf-path", "someone/llava", "--mlx-path", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert words in said


@pytest.mark.parametrize("error", [ConnectionError("no route"), RuntimeError("no route")])
def test_no_network(error, monkeypatch):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(InputError, match=r"someone/llava \(no route\)"):
        resolve_folder("someone/llava")


def test_a_folder_wins_over_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone/llava").mkdir(parents=True)
    assert resolve_folder("someone/llava") == Path("someone/llava")


@pytest.mark.parametrize(
    ("text", "is_id"),
    [
        ("llava-hf/llava-1.5-7b-hf", True),
        ("llava", False),
        ("a/b/c", False),
        ("./llava", False),
        ("~/llava", False),
        ("../llava", False),
        ("/llava", False),
        ("a/b--c", False),
        ("a\\b/c", False),
        ("", False),
    ],
)
def test_hub_ids(text, is_id):
    assert is_hub_id(text) is is_id


def test_upload(tmp_path, monkeypatch, capsys):
    calls = []

    class Api:
        def create_repo(self, repo, exist_ok):
            calls.append(("create", repo, exist_ok))

        def upload_folder(self, folder_path, repo_id):
            calls.append(("upload", repo_id, sorted(path.name for path in folder_path.iterdir())))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    source = write_checkpoint(tmp_path / "source", CONFIGS["llama"])
    arguments = ["--hf-path", str(source), "--mlx-path", str(tmp_path / "out")]
    assert main([*arguments, "--upload-repo", "me/llava-mlx"]) == 0
    files = ["README.md", "config.json", "model.safetensors", "model.safetensors.index.json"]
    assert calls == [("create", "me/llava-mlx", True), ("upload", "me/llava-mlx", files)]
    assert "--model me/llava-mlx" in (tmp_path / "out/README.md").read_text()
    assert "Uploaded to me/llava-mlx" in capsys.readouterr().err


def test_an_upload_that_fails_leaves_the_result(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    source = write_checkpoint(tmp_path / "source", CONFIGS["llama"])
    out = tmp_path / "out"
    arguments = ["--hf-path", str(source), "--mlx-path", str(out)]
    assert main([*arguments, "--upload-repo", "me/llava-mlx"]) == 2  # HF_HUB_OFFLINE is set
    said = capsys.readouterr().err
    assert re.match(r"error: .* is converted, but could not be uploaded: .*\n$", said)
    verify(source, out)


@pytest.mark.parametrize(
    ("repo", "token", "words"), [("me", "a token", "owner/name"), ("me/llava", None, "login")]
)
def test_an_upload_that_must_fail_is_refused_first(
    repo, token, words, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
    source = write_checkpoint(tmp_path / "source", CONFIGS["llama"])
    arguments = ["--hf-path", str(source), "--mlx-path", str(tmp_path / "out")]
    assert main([*arguments, "--upload-repo", repo]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_bar_where_somebody_watches(capsys, monkeypatch):
    from mlx_corematching.convert.progress import bar

    assert list(bar(["a", "b"], "Converting", 2)) == ["a", "b"]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(bar(["a", "b"], "Converting", 2)) == ["a", "b"]
    assert "Converting" in capsys.readouterr().err
