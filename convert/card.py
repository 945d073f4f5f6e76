"""The model card: README.md with what the hub reads at its top."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlx_corematching.convert.recipe import Recipe
from mlx_corematching.errors import InputError

# Kept from the source's card; all else there is about other files.
_KEPT = ("license", "license_name", "license_link", "language")


def model_card(
    source: Path, recipe: Recipe, *, hub_id: str | None, revision: str | None, name: str
) -> str:
    """The text of README.md.

    Args:
        source: the source's folder, whose own card is read.
        hub_id: the source's, if it came from the hub.
        revision: the source's commit or revision, if known.
        name: what to call the result: its hub id or its folder.
    """
    from huggingface_hub import ModelCardData

    kept = _source_data(source)
    data = ModelCardData(
        base_model=hub_id or kept.get("base_model"),
        library_name="mlx",
        pipeline_tag="image-text-to-text",
        tags=["mlx", "llava", "corematching"],
        ignore_metadata_errors=True,
        **{key: kept[key] for key in _KEPT if kept.get(key)},
    )
    origin = f"[{hub_id}](https://huggingface.co/{hub_id})" if hub_id else f"`{source.name}`"
    rows = {
        "Source": origin,
        "Revision": f"`{revision}`" if revision else "not known (a local folder)",
        "Unquantised weights": recipe.dtype or "each in the source's own type",
        "Decoder": _describe(recipe),
        "Layout": "FFN matrices neuron-major: down_proj is [intermediate, hidden]",
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return f"""---
{data.to_yaml()}
---

# {name}

{origin} for MLX, converted with mlx-corematching, which decodes with core neurons and core
tokens alone (CoreMatching, arXiv 2505.19235).

| | |
|---|---|
{table}

```bash
pip install mlx-corematching
python -m mlx_corematching.generate --model {name} --image cat.jpg --prompt "What is this?"
```

```python
from mlx_corematching import generate, load

model, processor = load("{name}")
print(generate(model, processor, "What is this?", image="cat.jpg"))
```
"""


def _describe(recipe: Recipe) -> str:
    made = recipe.quantization
    if made is None:
        return "not quantised"
    return f"quantised to {made.bits} bits in groups of {made.group_size} (affine)"


def _source_data(source: Path) -> dict[str, Any]:
    """What the source's card says of itself; nothing if it has none or it cannot be read."""
    from huggingface_hub import metadata_load

    try:
        return metadata_load(source / "README.md") or {}
    except Exception:  # a source's odd card must not cost its conversion
        return {}


def check_upload(repo: str) -> None:
    """InputError if an upload is bound to fail, before any work is done for it."""
    from huggingface_hub import get_token

    from mlx_corematching.models.hub import is_hub_id

    if not is_hub_id(repo):
        raise InputError(f"--upload-repo {repo}: a hub id has the form owner/name")
    if get_token() is None:
        raise InputError(f"uploading to {repo} needs a login; run 'hf auth login' first")


def upload(folder: Path, repo: str) -> None:
    """Put a converted folder on the hub, its card included; raises InputError."""
    from huggingface_hub import HfApi

    from mlx_corematching.models.hub import hub_error

    try:
        api = HfApi()
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repo)
    except Exception as error:
        raise InputError(
            f"{folder} is converted, but could not be uploaded: {hub_error(repo, error)}"
        ) from error
