"""What every test may rely on, and what none may leave behind."""

import os
from collections.abc import Iterator

import pyro
import pytest
import torch

from ppgen.progress import quiet

if "PYTEST_XDIST_WORKER" in os.environ:  # whose threads would wait for those of the others
    torch.set_num_threads(1)

FAILURE_RATE = 2e-5  # of one correct statistical test; tolerances are derived from it


def _globals() -> tuple[object, ...]:
    return (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        torch.distributions.Distribution._validate_args,
        pyro.distributions.torch_distribution.TorchDistributionMixin.__call__,
        tuple(pyro.poutine.runtime._PYRO_STACK),
    )


@pytest.fixture(autouse=True)
def _isolated() -> Iterator[None]:
    """Fork the RNG, seed, use float64, scope Pyro's store; assert that globals come back."""
    dtype = torch.get_default_dtype()
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float64)
        before = _globals()
        try:
            yield
            assert _globals() == before, "a test changed a global of torch or Pyro"
        finally:
            torch.set_default_dtype(dtype)


@pytest.fixture
def silent() -> Iterator[None]:
    """Show no progress."""
    with quiet():
        yield
