"""The recipe of the demo model; needs the extra ``train`` (torch, transformers)."""
