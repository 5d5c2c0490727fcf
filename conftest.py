"""What the examples in docstrings may rely on; tests/conftest.py says what tests may."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """An example that draws numbers draws the same ones in each run."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
