"""Shared settings of the test run."""

import os
from pathlib import Path

from hypothesis import HealthCheck, settings

# Nothing here needs a network; a test that tried one would fail rather than wait.
os.environ["HF_HUB_OFFLINE"] = "1"

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")

GOLDEN = Path(__file__).parent / "golden"
