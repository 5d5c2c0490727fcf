"""Components without numbers: which sites they are, and sums over their orders."""

import math
from itertools import permutations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import biject_to, constraints

from ppgen.components import AnyOrder, Components, interchangeable
from ppgen.posterior import Posterior
from ppgen.program import Program
from tests.support.mixtures import NOISE, SPREAD, X, mixture


def beside_slopes(x):
    """Two predictors, which are no components, beside two components."""
    slopes = pyro.sample("slopes", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(slopes @ torch.tensor([1.0, 2.0]), 1.0), obs=torch.tensor(0.3))
    mixture(x)


def of_vectors(x):
    with pyro.plate("component", 3):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(2), SPREAD).to_event(1))
    with pyro.plate("data", len(x)):
        law = dist.Categorical(torch.ones(3))
        z = pyro.sample("z", law, infer={"enumerate": "parallel"})
        rows = torch.stack([x, x.square()], -1)
        pyro.sample("x", dist.Normal(mu[z], NOISE).to_event(1), obs=rows)


def hidden_states(x):
    """Both axes of the transitions are states: they change places together."""
    with pyro.plate("state", 2):
        rows = pyro.sample("rows", dist.Dirichlet(torch.ones(2)))
        mu = pyro.sample("mu", dist.Normal(0.0, SPREAD))
    forward = dist.Normal(mu, NOISE).log_prob(x[:1, None])[0] - math.log(2)
    for value in x[1:]:
        forward = (forward[:, None] + rows.log()).logsumexp(0)
        forward = forward + dist.Normal(mu, NOISE).log_prob(value)
    pyro.factor("chain", forward.logsumexp(0))


def in_order(x):
    base = dist.Normal(torch.zeros(2), SPREAD).to_event(1)
    mu = pyro.sample("mu", dist.TransformedDistribution(base, dist.transforms.OrderedTransform()))
    with pyro.plate("data", len(x)):
        law = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(mu, NOISE))
        pyro.sample("x", law, obs=x)


@pytest.mark.parametrize(
    ("story", "found"),
    [
        (mixture, (Components(2, (("weights", -1), ("mu", -1))),)),
        (beside_slopes, (Components(2, (("weights", -1), ("mu", -1))),)),
        (of_vectors, (Components(3, (("mu", -2),)),)),
        (hidden_states, (Components(2, (("rows", -2), ("rows", -1), ("mu", -1))),)),
        (in_order, ()),
    ],
)
def test_components_are_the_axes_that_change_places_together(story, found):
    program = Program(story, X)
    assert interchangeable(program, torch.randn(4, program.dim)) == found


def test_permuted_moves_each_axis():
    values = {"w": torch.tensor([[0.0, 1.0, 2.0]]), "m": torch.arange(6.0).reshape(1, 3, 2)}
    moved = Components(3, (("w", -1), ("m", -2))).permuted(values, torch.tensor([[2, 0, 1]]))
    assert moved["w"].tolist() == [[2.0, 0.0, 1.0]]
    assert moved["m"].tolist() == [[[4.0, 5.0], [0.0, 1.0], [2.0, 3.0]]]


class Shares:
    """Three shares, largest last."""

    def model(self):
        pyro.sample("weights", dist.Dirichlet(torch.tensor([2.0, 2.0, 2.0])))

    def canonical(self, values):
        return {"weights": values["weights"].sort(-1).values}


def test_a_guide_in_any_order_is_the_mean_over_orders():
    """On the sites' own scale, where orders have no Jacobian, against all six by hand."""
    program = Program(Shares().model)
    z = torch.randn(8, program.dim)
    normal = dist.Normal(torch.tensor([0.3, -0.5]), torch.tensor([0.5, 1.4])).to_event(1)
    simplex = biject_to(constraints.simplex)

    def own_scale(weights):
        z = simplex.inv(weights)
        return normal.log_prob(z) - simplex.log_abs_det_jacobian(z, weights)

    weights = simplex(z)
    orders = [own_scale(weights[:, list(order)]) for order in permutations(range(3))]
    expected = torch.stack(orders).logsumexp(0) - math.log(6)
    found = AnyOrder(program, normal.log_prob)(z) - simplex.log_abs_det_jacobian(z, weights)
    assert torch.allclose(found, expected, atol=1e-10)


def test_draws_that_are_reordered_keep_their_densities():
    """An order has no Jacobian on the unconstrained scale: that of a simplex is symmetric."""
    program = Program(Shares().model)
    z = torch.randn(1, 50, program.dim)
    lp = program.log_density(z)
    found = Posterior.from_program(program, z, engine="test", kind="independent", log_density=lp)
    assert not torch.allclose(found.unconstrained, z)
    assert torch.allclose(program.log_density(found.unconstrained), lp)
