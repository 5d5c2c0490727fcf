"""When chains go on: where more draws are all that is missing."""

import pytest
import torch

from ppgen.inference.many_chains import missing
from ppgen.posterior import Posterior


def chains(*, apart, divergences):
    """16 chains of 100 independent draws whose means differ: R-hat is about 1 + apart^2 / 2."""
    x = torch.randn(16, 100) + apart * torch.linspace(-1.7, 1.7, 16)[:, None]
    diverging = torch.zeros(16, 100, dtype=torch.bool)
    diverging[0, :divergences] = True
    return Posterior({"x": x}, "HMC", "chains", converged=False, stats={"diverging": diverging})


@pytest.mark.parametrize(
    ("apart", "divergences", "goes_on"),
    [
        (0.25, 0, True),
        (0.25, 1, True),  # 1 in 1,600 says little of the whole
        (0.25, 5, False),  # a region that chains cannot enter
        (0.0, 1, False),  # nothing is missing that draws could bring
        (2.0, 0, False),  # R-hat would take more than is allowed
    ],
)
def test_chains_go_on_where_draws_are_what_is_missing(apart, divergences, goes_on):
    more = missing(chains(apart=apart, divergences=divergences), 2000)
    assert 0 < more <= 1900 if goes_on else more == 0
