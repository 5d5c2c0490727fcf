"""The standard normal of vectors is Pyro's normal, for less."""

import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch.quasirandom import SobolEngine

from ppgen.distributions import StandardNormal, even_normal

FAILURE_RATE = 2e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_it_is_pyros_normal_with_unit_scale(dtype, batch):
    zeros = torch.zeros(*batch, 3, dtype=dtype)
    ours, pyros = StandardNormal(zeros), dist.Normal(zeros, torch.ones_like(zeros)).to_event(1)
    x = 3 * torch.randn(5, *batch, 3, dtype=dtype)
    assert torch.allclose(ours.log_prob(x), pyros.log_prob(x), atol=1e-5)
    assert ours.log_prob(x).dtype == ours.rsample().dtype == dtype
    assert torch.equal(ours.mean, pyros.mean)
    assert torch.equal(ours.variance, pyros.variance)
    for made in (ours, StandardNormal(zeros[..., :1]).expand([7, *batch])):
        assert made.rsample(torch.Size([6])).shape == (6, *made.batch_shape, *made.event_shape)


def test_draws_are_normal_in_each_coordinate():
    draws = StandardNormal(torch.zeros(2)).rsample(torch.Size([2000]))
    for column in draws.T:
        assert stats.kstest(column.numpy(), "norm").pvalue > FAILURE_RATE


def test_what_is_no_vector_of_numbers_is_refused():
    with pytest.raises(ValueError, match="support"):
        StandardNormal(torch.zeros(2)).log_prob(torch.tensor([0.0, float("nan")]))


def test_even_draws_are_normal_each_and_their_means_vary_less():
    points = SobolEngine(3, scramble=True, seed=0).draw(64, dtype=torch.float64)
    draws = even_normal(points, [2000])
    assert draws.shape == (2000, 64, 3)
    for column in draws[:, 5].T:  # one draw of each set: 2000 that are independent
        assert stats.kstest(column.numpy(), "norm").pvalue > FAILURE_RATE
    length = draws.square().sum(-1)
    assert abs(length.mean() - 3) < 4.27 * length.mean(1).std() / 2000**0.5
    # 6 / 64 for independent draws, whose estimate is good to 14 %; a third is more than promised
    assert length.mean(1).var() < 6 / 64 / 3
    ends = even_normal(torch.tensor([[0.0], [1.0 - 1e-7]], dtype=torch.float32), [5000])
    assert ends.isfinite().all()
