"""The latency bench: `python -m mlx_corematching.bench`."""
