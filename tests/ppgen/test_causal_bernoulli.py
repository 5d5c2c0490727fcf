"""The law of images drawn pixel by pixel: a law, causal, and sampled as it is scored."""

import itertools

import pytest
import torch

from ppgen.distributions import CausalBernoulli
from ppgen.networks.likelihoods import BernoulliLikelihood, CausalBernoulliLikelihood

SHAPE = (3, 3)
EVERY = torch.tensor(list(itertools.product([0.0, 1.0], repeat=9)), dtype=torch.float64)


def law(batch=(), hidden=4, reach=1):
    likelihood = CausalBernoulliLikelihood(SHAPE, hidden, reach)
    likelihood.weight.data.normal_(0, 2)
    return likelihood(torch.randn(*batch, 9 * (1 + hidden)))


@pytest.mark.parametrize("reach", [1, 2, 5])
def test_probabilities_of_all_images_sum_to_one(reach):
    each = law((2,), reach=reach).log_prob(EVERY[:, None])
    torch.testing.assert_close(each.logsumexp(0), torch.zeros(2))


def test_a_pixel_is_told_of_its_neighbours_before_it_and_of_nothing_else():
    image = (5, 6)
    likelihood = CausalBernoulliLikelihood(image, 3, 2)
    pixels = likelihood(torch.randn(30 * 4))
    jacobian = torch.autograd.functional.jacobian(pixels.conditional_logits, torch.rand(30))
    for i, j in itertools.product(range(30), repeat=2):
        (row, column), (other_row, other_column) = divmod(i, 6), divmod(j, 6)
        near = row - other_row <= 2 and abs(column - other_column) <= 2
        assert (jacobian[i, j] != 0).item() == (j < i and near)


def test_draws_have_its_probabilities():
    pixels = law()
    draws = pixels.sample((20_000,))
    index = (draws @ 2.0 ** torch.arange(8, -1, -1)).long()
    expected = pixels.log_prob(EVERY).exp() * 20_000
    counts = torch.bincount(index, minlength=512)
    often = expected > 5
    observed = torch.cat([counts[often], counts[~often].sum()[None]])
    expected = torch.cat([expected[often], expected[~often].sum()[None]])
    chi_square = ((observed - expected) ** 2 / expected).sum().item()
    tail = torch.distributions.Chi2(torch.tensor(len(expected) - 1.0)).cdf(torch.tensor(chi_square))
    assert tail < 1 - 2e-5


def test_without_neighbours_pixels_are_independent():
    likelihood = CausalBernoulliLikelihood(SHAPE, 4)
    likelihood.weight.data.zero_()
    raw = torch.randn(7, 45)
    independent = BernoulliLikelihood()(raw.unflatten(-1, (9, 5))[..., 0])
    torch.testing.assert_close(likelihood(raw).log_prob(EVERY[:7]), independent.log_prob(EVERY[:7]))


def test_shapes_expansion_and_the_mean():
    pixels = law((4,))
    assert pixels.sample((2, 3)).shape == (2, 3, 4, 9)
    assert pixels.log_prob(torch.zeros(5, 1, 9)).shape == (5, 4)
    wider = pixels.expand((3, 4))
    torch.testing.assert_close(wider.log_prob(EVERY[:4]), pixels.log_prob(EVERY[:4]).expand(3, 4))
    exact = (pixels.log_prob(EVERY[:, None]).exp()[..., None] * EVERY[:, None]).sum(0)
    draws = pixels.sample((4000,)).mean(0)
    # 36 means of 4000 draws, each off by 5 standard errors once in 2e6
    error = 5 * (exact * (1 - exact) / 4000).sqrt() + 1e-9
    assert ((draws - exact).abs() < error).all()
    assert pixels.mean.shape == (4, 9)


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="3 by 3 has 9 pixels; got log-odds of 8"):
        CausalBernoulliLikelihood(SHAPE, 4)(torch.zeros(40))


def test_the_law_has_gradients_for_its_neighbours():
    likelihood = CausalBernoulliLikelihood(SHAPE, 4, 1)
    raw = torch.randn(6, 45, requires_grad=True)
    x = torch.bernoulli(torch.full((6, 9), 0.5))
    likelihood(raw).log_prob(x).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in [raw, *likelihood.parameters()])
    assert isinstance(likelihood(raw), CausalBernoulli)
    assert likelihood.check(x) is x
