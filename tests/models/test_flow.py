"""Flows on continuous data are exact; on discrete data their bounds meet enumeration."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO

from ppgen.data import load
from ppgen.distributions import SphereUniform
from ppgen.inference.elbo import ELBO
from ppgen.inference.likelihood import log_likelihood
from ppgen.inference.train import train
from ppgen.models.dequantized_flow import Cell, DequantizedFlow, UniformCell
from ppgen.models.flow import Flow
from ppgen.models.image_flow import ImageFlow
from ppgen.models.moebius_mixture import MoebiusMixture
from ppgen.models.sphere_flow import SphereFlow
from ppgen.models.torus_flow import TorusFlow
from ppgen.transforms.autoregressive import Autoregressive
from ppgen.transforms.circle import TURN
from ppgen.transforms.coupling import Coupling
from ppgen.transforms.cube import ToCube
from ppgen.transforms.scalar import Affine, LinearSpline

LOSSES = [Trace_ELBO, TraceMeanField_ELBO, ELBO]


def perturbed(story, spread=0.3):
    with torch.no_grad():
        for parameter in story.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return story.eval()


def adam(story, loss, x, steps, rate=0.01):
    optimizer = torch.optim.Adam(story.parameters(), rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss.loss_and_grads(story.model, story.guide, x)
        optimizer.step()


def test_an_untrained_flow_is_the_standard_normal():
    x = torch.randn(5, 3)
    expected = dist.Normal(0.0, 1.0).log_prob(x).sum(-1)
    assert torch.allclose(Flow(3).log_prob(x), expected, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_of_the_pair_is_the_log_likelihood(loss):
    flow, x = perturbed(Flow(2, hidden=(8,))), torch.randn(6, 2)
    value = loss().loss(flow.model, flow.guide, x)
    assert value == pytest.approx(-flow.log_prob(x).sum().item(), abs=1e-10)


def test_fitted_to_a_correlated_normal_it_reaches_its_entropy():
    """An affine autoregressive flow contains every normal, so that the optimum is known."""
    x = torch.randn(400, 2) @ torch.tensor([[1.0, 0.0], [0.8, 0.6]]).T * 2 + 1
    flow = Flow(2, transforms=[Autoregressive(2, Affine(), ())])
    adam(flow, ELBO(), x, 250, rate=0.05)
    covariance = torch.cov(x.T, correction=0)
    # the maximum likelihood of a normal: -log det(2 pi e S) / 2
    best = -0.5 * torch.logdet(2 * math.pi * math.e * covariance).item()
    likelihood = log_likelihood(flow, x)
    assert likelihood.kind == "exact"
    # the network's skip weights make the conditional scale depend on x1, hence a little above
    assert best - 0.005 < likelihood.lower < best + 0.02


def test_samples_follow_the_density():
    flow = perturbed(Flow(2, layers=2, hidden=(8,)), 0.2)
    draws = flow.sample(3000)
    # E_p[N(x; 0, 1) / p(x)] = 1; heavy weights are cut, which errs to below one
    ratio = (dist.Normal(0.0, 1.0).log_prob(draws).sum(-1) - flow.log_prob(draws)).exp().detach()
    error = ratio.std() / 3000**0.5
    assert abs(ratio.mean() - 1) < 4.3 * error


def test_parts_can_be_passed_in():
    flow = Flow(3, transforms=[Coupling(3, Affine()), Coupling(3, Affine(), fixed=[1])])
    assert perturbed(flow).log_prob(torch.randn(4, 3)).isfinite().all()
    assert len(dict(flow.named_parameters())) == 12


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("build", [lambda: Flow(3), lambda: DequantizedFlow(3, hidden=(8,))])
def test_svi_changes_every_parameter_of_two_instances(loss, build):
    x = torch.bernoulli(torch.full((20, 3), 0.5))
    for _ in range(2):
        story = perturbed(build(), 0.1)
        before = {name: p.detach().clone() for name, p in story.named_parameters()}
        with pyro.get_param_store().scope():
            svi = SVI(story.model, story.guide, pyro.optim.Adam({"lr": 0.01}), loss=loss())
            svi.step(x)
        for name, parameter in story.named_parameters():
            if parameter.numel() > 1:
                assert not torch.equal(parameter, before[name]), name


def test_predictive_draws():
    flow = perturbed(DequantizedFlow(3, levels=4, hidden=(8,)))
    draws = Predictive(flow.guide, num_samples=5)(torch.ones(2, 3))
    assert draws["v"].shape == (5, 2, 3)
    assert (draws["v"] >= 0.25).all()
    assert (draws["v"] < 0.5).all()


@pytest.mark.parametrize("levels", [2, 3, 40])
def test_the_bound_of_a_dequantized_flow_meets_enumeration(levels):
    """In two dimensions the mass of a cell is a quadrature; all masses sum to one."""
    flow = perturbed(DequantizedFlow(2, levels=levels, hidden=(8,), layers=2), 0.2)
    if levels == 40:  # one row of cells instead of all 1600
        every = torch.cartesian_prod(torch.tensor([7.0]), torch.arange(3.0))
    else:
        every = torch.cartesian_prod(*[torch.arange(float(levels))] * 2)
    side = (torch.arange(60) + 0.5) / 60
    within = torch.cartesian_prod(side, side)
    density = flow.density().log_prob((every + within[:, None]) / levels).detach()
    exact = density.logsumexp(0) - math.log(3600 * levels**2)
    if levels < 40:
        # the midpoint rule on 60 x 60 points of each cell; the density's kinks cost a few 1e-4
        assert exact.exp().sum().item() == pytest.approx(1.0, abs=2e-3)
    likelihood = log_likelihood(flow, every, samples=3000, seed=0)
    assert likelihood.kind == "lower"
    assert likelihood.details["elbo"] <= likelihood.lower + 1e-9
    assert abs(likelihood.lower - exact.mean().item()) < 2e-3 + 4.3 * likelihood.lower_error


def test_log_weights_are_the_elbo_of_the_pair():
    flow = perturbed(DequantizedFlow(3, hidden=(8,)))
    x = torch.bernoulli(torch.full((6, 3), 0.5))
    torch.manual_seed(0)
    loss = ELBO().loss(flow.model, flow.guide, x)
    torch.manual_seed(0)
    # the guide and log_weights draw the same uniforms in the same order
    assert loss == pytest.approx(-flow.log_weights(x, 1).sum().item(), abs=1e-9)


def test_independent_pixels_are_learned_exactly():
    """Without a network in between, two levels are two probabilities: the base-rate model."""
    x = torch.bernoulli(torch.tensor([0.1, 0.9, 0.4]).expand(300, 3))
    flow = DequantizedFlow(3, transforms=[Autoregressive(3, LinearSpline(2), ())])
    with torch.no_grad():
        flow.transforms[0].conditioner.skip.mask.zero_()
    adam(flow, ELBO(), x, 200, rate=0.05)
    rates = x.mean(0)
    best = (x * rates.log() + (1 - x) * (1 - rates).log()).sum(-1).mean().item()
    likelihood = log_likelihood(flow, x, samples=2)
    # 200 steps of Adam end within 1e-3; the floor of a level costs 1e-6
    assert likelihood.lower == pytest.approx(best, abs=2e-3)
    assert likelihood.lower_error < 1e-6  # uniform within each cell: the bound is tight


def test_samples_are_whole_levels():
    flow = perturbed(DequantizedFlow(3, levels=17, hidden=(8,)))
    x = flow.sample(50)
    assert torch.equal(x, x.floor())
    assert x.min() >= 0
    assert x.max() <= 16
    walls = torch.tensor([[0.0, 1.0]])  # which floats can reach
    assert Cell(walls, 17).sample().tolist() == [[0.0, 16.0]]
    back, log_det = ToCube([2]).inverse_with_log_det(walls)
    assert back.isfinite().all()
    assert log_det.isfinite().all()


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_no_draw_leaves_its_cell_in_float32(levels):
    x = torch.full((200000,), levels - 1.0, dtype=torch.float32)
    cell = UniformCell(x / levels, (x + 1) / levels)
    v = cell.sample()
    assert (v < 1).all()
    assert cell.log_prob(v).isfinite().all()
    assert Cell(v[None], levels).log_prob(x[None]).item() == 0.0


def test_a_cell_gives_nothing_to_its_neighbours():
    cell = Cell(torch.tensor([[0.6, 0.2]]), 2)
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=2)))
    assert cell.log_prob(every).exp().tolist() == [0.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("wrong", [0.5, 4.0, -1.0, float("nan")])
def test_what_is_no_level_is_refused_with_its_row_and_column(wrong):
    flow, x = DequantizedFlow(3, levels=4, hidden=(8,)), torch.ones(5, 3)
    x[4, 1] = wrong
    for use in (flow.model, flow.guide, lambda x: flow.log_weights(x, 2)):
        with pytest.raises(ValueError, match="row 4, column 1"):
            use(x)


def test_wrong_widths_and_levels_are_refused():
    with pytest.raises(ValueError, match="3 coordinates"):
        Flow(3).log_prob(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="at least 2"):
        DequantizedFlow(3, levels=1)
    with pytest.raises(ValueError, match="must hold a layer at least"):
        DequantizedFlow(3, transforms=[])
    for dim in (2, 3):  # the default number of them is None
        with pytest.raises(ValueError, match="layers"):
            SphereFlow(dim, layers=0)


FLOWS = {
    "Flow": (lambda: Flow(2, hidden=(8,)), lambda: torch.randn(6, 2)),
    "TorusFlow": (lambda: TorusFlow(2, hidden=(8,)), lambda: TURN * torch.rand(6, 2)),
    "SphereFlow": (lambda: SphereFlow(2, hidden=(8,)), lambda: SphereUniform(2).sample((6,))),
    "MoebiusMixture": (lambda: MoebiusMixture(2, 3), lambda: SphereUniform(2).sample((6,))),
}


@pytest.mark.parametrize("name", FLOWS)
def test_data_follow_the_dtype_of_the_flow_and_may_be_none(name):
    make, data = FLOWS[name]
    flow, x = perturbed(make()).float(), data()
    assert flow.log_prob(x).dtype == torch.float32
    assert torch.allclose(flow.log_prob(x), flow.log_prob(x.float()))
    assert torch.allclose(flow.double().log_prob(x), flow.log_prob(x.float()), rtol=1e-4)
    assert flow.log_prob(x[:0]).shape == (0,)
    assert flow.log_prob(x[0]).shape == ()


@pytest.mark.parametrize("name", ["TorusFlow", "SphereFlow", "MoebiusMixture"])
def test_the_pair_scores_no_data_outside_the_support(name):
    """Without validation, as our losses run it: a spline of an angle beyond a turn is finite."""
    make, data = FLOWS[name]
    flow, wrong = make(), data()
    wrong[3] = 9.0
    with pytest.raises(ValueError, match=r"row .*3"):
        Trace_ELBO().loss(flow.model, flow.guide, wrong)
    for good in (0, 3):  # steps before it: from the second on they are recorded
        loss = ELBO()
        for _ in range(good):
            loss.loss_and_grads(flow.model, flow.guide, data())
        with pytest.raises(ValueError, match=r"row .*3"):
            loss.loss_and_grads(flow.model, flow.guide, wrong)


def test_a_flow_of_images_is_normalised_over_every_binary_image():
    """Of 2 x 2 pixels: the cells of all 16 images hold all of the mass."""
    flow = perturbed(ImageFlow((1, 2, 2), scales=1, steps=2, hidden=4), 0.2)
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)))
    with torch.no_grad():
        weights = flow.log_weights(every, samples=4000).exp()
    total, error = weights.mean(0).sum(), (weights.var(0) / 4000).sum().sqrt()
    assert abs(total - 1) < 4.27 * error
    x = flow.sample(3)
    assert x.shape == (3, 4)
    assert torch.isin(x, torch.tensor([0.0, 1.0])).all()
    v = flow.density().sample(torch.Size([5]))
    again, log_q = flow.density().rsample_with_log_prob(torch.Size([5]))
    assert v.shape == again.shape == (5, 4)
    assert torch.allclose(flow.density().log_prob(again), log_q, atol=1e-6)


@pytest.mark.slow
def test_a_flow_of_images_learns_the_digits(silent):
    """In minutes of one core it passes pixels that are independent, each with its own levels."""
    levels = (16 * load("digits", binarisation="none").x).round()
    held = (16 * load("digits", "test", binarisation="none").x).round()
    flow = ImageFlow((1, 8, 8), levels=17, steps=3, hidden=32).double()
    train(flow, levels, epochs=15, batch_size=100, learning_rate=2e-3)
    flow.eval()
    found = log_likelihood(flow, held, samples=20)
    counts = torch.stack([(levels == level).sum(0) for level in range(17)]).double() + 0.5
    shares = counts / counts.sum(0)
    independent = shares.log().gather(0, held.long()).sum(-1).mean().item()
    assert found.lower > independent + 5
    assert flow.sample(4).max() <= 16
