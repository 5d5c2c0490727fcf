"""Program: the recorded log density is Pyro's own, for every kind of story."""

import math
import time
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer.mcmc.util import initialize_model
from pyro.infer.reparam import LocScaleReparam
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn

from ppgen.distributions import RestrictedBoltzmann, SphericalCauchy
from ppgen.program import Program
from ppgen.transforms.stereographic import sphere

Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], dtype=torch.float64)
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], dtype=torch.float64)
X = torch.linspace(-2, 2, 24, dtype=torch.float64).reshape(8, 3)
TABLE, COUNTS = torch.ones(3, 2), torch.ones(4, 3)
BIG = torch.tensor([3, 900_001, 7])
GRID = torch.arange(12.0, dtype=torch.float64).reshape(3, 4)


def eight_schools(y=Y):
    mu = pyro.sample("mu", dist.Normal(0, 5))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", 8):
        eta = pyro.sample("eta", dist.Normal(0, 1))
        theta = pyro.deterministic("theta", mu + tau * eta)
        pyro.sample("y", dist.Normal(theta, SIGMA), obs=y)


def crossed_plates(y=TABLE):
    scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
    rows = pyro.plate("rows", 3, dim=-2)
    columns = pyro.plate("columns", 2, dim=-1)
    with rows:
        a = pyro.sample("a", dist.Normal(0, scale))
    with columns:
        b = pyro.sample("b", dist.Laplace(0, scale))
    with rows, columns:
        pyro.sample("y", dist.StudentT(4.0, a + b, scale), obs=y)


def nested_plates(y=COUNTS):
    with pyro.plate("inner", 3, dim=-1):
        mu = pyro.sample("mu", dist.Normal(0, 1))
        with pyro.plate("outer", 4, dim=-2):
            pyro.sample("y", dist.Poisson(torch.exp(mu)), obs=y)


def supports():
    pyro.sample("interval", dist.Uniform(-1.0, 3.0))
    pyro.sample("unit", dist.Beta(2.0, 3.0))
    pyro.sample("simplex", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0, 0.5])))
    pyro.sample("correlation", dist.LKJCholesky(3, 2.0))
    ordered = dist.TransformedDistribution(
        dist.Normal(0.0, 1.0).expand([3]).to_event(1),
        [pyro.distributions.transforms.OrderedTransform()],
    )
    pyro.sample("ordered", ordered)
    pyro.sample("lower", dist.Pareto(1.5, 2.0))


def support_that_moves():
    top = pyro.sample("top", dist.LogNormal(0.0, 1.0))
    with pyro.plate("units", 3):
        pyro.sample("u", dist.Uniform(0.0, top))


def mixtures():
    thirds = dist.Categorical(torch.ones(3))
    loc = torch.tensor([-3.0, 0.0, 2.0])
    pyro.sample("real", dist.MixtureSameFamily(thirds, dist.Normal(loc, 0.5)))
    pyro.sample("positive", dist.MixtureSameFamily(thirds, dist.Gamma(loc.exp(), 1.0)))
    corners = dist.Dirichlet(1 + 4 * torch.eye(3))
    pyro.sample("corners", dist.MixtureSameFamily(thirds, corners))
    directions = SphericalCauchy(0.7 * torch.eye(3))
    with pyro.plate("rows", 2):
        pyro.sample("direction", dist.MixtureSameFamily(thirds, directions))
        normals = dist.Normal(loc[:, None] * torch.ones(2), 1.0).to_event(1)
        pyro.sample("vector", dist.MixtureSameFamily(thirds, normals))
    each = dist.Categorical(torch.ones(2, 3))
    several = dist.Beta(loc.exp() * torch.ones(2, 1), 2.0)
    pyro.sample("shares", dist.MixtureSameFamily(each, several).to_event(1))


def factors(y=Y):
    mu = pyro.sample("mu", dist.Normal(0, 1))
    pyro.factor("penalty", -(mu**4))
    with pyro.poutine.scale(scale=0.5), pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1).mask(y > 0), obs=y)


def improper(y=Y):
    mu = pyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()))
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    order = pyro.sample("order", dist.ImproperUniform(constraints.ordered_vector, (), (2,)))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu + order.sum(-1), sigma), obs=y)


conditioned = pyro.condition(lambda: eight_schools(None), data={"y": Y})


def branches_on_data(y=Y):
    mu = pyro.sample("mu", dist.Normal(0, 1))
    scale = 2.0 if y.mean() > 0 else 1.0
    pyro.sample("y", dist.Normal(mu, scale).expand([8]).to_event(1), obs=y)


def sequential_plate(y=Y):
    mu = pyro.sample("mu", dist.Normal(0, 1))
    for i in pyro.plate("steps", 4):
        x = pyro.sample(f"x_{i}", dist.Normal(mu, 1))
        pyro.sample(f"y_{i}", dist.Normal(x, 1), obs=y[i])


def correlated(y=Y):
    sd = pyro.sample("sd", dist.HalfNormal(torch.ones(3)).to_event(1))
    factor = pyro.sample("factor", dist.LKJCholesky(3, 1.0))
    scale = sd.unsqueeze(-1) * factor
    with pyro.plate("data", 8):
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(3), scale_tril=scale), obs=X)


def in_place(y=Y):
    mu = pyro.sample("mu", dist.Normal(0, 1))
    level = torch.zeros(8)
    level[::2] = 1.0
    level = level * mu
    pyro.sample("y", dist.Normal(level, 1.0).to_event(1), obs=y)


STORIES = {
    "eight schools": eight_schools,
    "crossed plates": crossed_plates,
    "nested plates": nested_plates,
    "supports": supports,
    "support that moves": support_that_moves,
    "mixtures": mixtures,
    "factor, scale, mask": factors,
    "improper priors": improper,
    "observed by condition": conditioned,
    "branch on data": branches_on_data,
    "sequential plate": sequential_plate,
    "LKJ": correlated,
    "in place": in_place,
}


# of which torch has no bijection: those of the components
COMPONENTS = {
    "real": constraints.real,
    "positive": constraints.positive,
    "corners": constraints.simplex,
    "direction": sphere,
    "vector": constraints.real_vector,
    "shares": constraints.independent(constraints.unit_interval, 1),
}


def pyro_log_density(story, program, z):
    """Pyro's own log joint plus the log Jacobian, one point; nothing of ours but the slicing."""
    values, jacobian = {}, torch.zeros(())
    for name, site in program.anatomy.of_kind("latent").items():
        with pyro.poutine.trace() as trace, pyro.validation_enabled(False):
            pyro.poutine.condition(story, data={**_harmless(program), **values})()
        support = trace.trace.nodes[name]["fn"].support
        transform = torch.distributions.biject_to(COMPONENTS.get(name, support))
        point = z[site.start : site.stop].reshape(site.unconstrained_shape)
        values[name] = transform(point)
        jacobian = jacobian + transform.log_abs_det_jacobian(point, values[name]).sum()
    trace = pyro.poutine.trace(pyro.poutine.condition(story, data=values)).get_trace()
    return trace.log_prob_sum() + jacobian


def _harmless(program):
    return {n: v[0] for n, v in program.constrain(torch.zeros(1, program.dim)).items()}


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_value_and_gradient_are_those_of_pyros_log_joint(story):
    program = Program(story)
    z = torch.randn(5, program.dim)
    value, gradient = program.value_and_grad(z)
    assert program.fallback is None
    for i in range(2):
        point = z[i].clone().requires_grad_()
        expected = pyro_log_density(story, program, point)
        (slope,) = torch.autograd.grad(expected, point)
        torch.testing.assert_close(value[i], expected.detach(), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(gradient[i], slope, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_parts_add_up_and_sites_go_back_and_forth(story):
    program = Program(story)
    z = torch.randn(2, 3, program.dim)
    density = program.log_density(z)
    assert density.shape == (2, 3)
    likelihood = sum(t.reshape(2, 3, -1).sum(-1) for t in program.log_likelihood(z).values())
    torch.testing.assert_close(program.log_prior(z) + likelihood, density)
    torch.testing.assert_close(program.unconstrain(program.constrain(z)), z, rtol=1e-6, atol=1e-6)
    without = program.value_and_grad(z, part="map")[0]
    jacobian = program.log_prior(z) - program.log_prior(z, jacobian=False)
    torch.testing.assert_close(without + jacobian, density)


def test_agrees_with_pyros_initialize_model():
    _, potential, _transforms, _ = initialize_model(eight_schools)
    program = Program(eight_schools)
    z = torch.randn(program.dim)
    named = {
        n: z[s.start : s.stop].reshape(s.unconstrained_shape)
        for n, s in program.anatomy.of_kind("latent").items()
    }
    torch.testing.assert_close(program.log_density(z), -potential(named))


def test_float32_points_and_data_are_raised_to_the_programs_dtype():
    program = Program(eight_schools, Y.float())
    assert program.dtype == torch.float64
    assert program.log_density(torch.zeros(4, program.dim, dtype=torch.float32)).dtype == (
        torch.float64
    )


def test_a_story_on_closed_over_float32_matrices_runs_in_float32():
    design, y = X.float(), Y.float()

    def story():
        slope = pyro.sample(
            "slope", dist.Normal(torch.zeros(3, dtype=torch.float32), 1).to_event(1)
        )
        pyro.sample("y", dist.Normal(design @ slope, 1.0).to_event(1), obs=y)

    program = Program(story)
    assert program.dtype == torch.float32
    assert program.log_density(torch.zeros(4, program.dim)).dtype == torch.float32


class Regression(PyroModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.scale = PyroParam(torch.tensor(1.0), constraint=constraints.positive)
        self.shift = nn.Parameter(torch.tensor(0.3))
        self.weight = PyroSample(dist.Normal(0.0, 1.0).expand([3]).to_event(1))

    def forward(self, x, y):
        mean = self.layer(x).squeeze(-1) + x @ self.weight + self.shift
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(mean, self.scale), obs=y)


def test_frozen_parameters_of_a_module_stay_frozen():
    """Pyro's store makes what it is given trainable."""
    story = Regression()
    story.shift.requires_grad_(False)
    program = Program(story, torch.randn(4, 3), torch.randn(4))
    program.value_and_grad(torch.zeros(2, program.dim))
    assert [name for name, p in story.named_parameters() if not p.requires_grad] == ["shift"]


def plain_module_story(net):
    def story(x, y):
        pyro.module("net", net)
        weight = pyro.sample("weight", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(net(x).squeeze(-1) + x @ weight, 1.0), obs=y)

    return story


def _direct_value(program, z):
    program.fallback = "asked for by a test"
    value = program.log_density(z)
    program.fallback = None
    return value


def test_an_optimizer_step_and_a_reassigned_parameter_are_seen_in_a_pyro_module():
    story = Regression()
    program = Program(story, X, Y)
    z = torch.randn(3, program.dim)
    before = program.log_density(z)
    optimizer = torch.optim.SGD(story.parameters(), lr=0.1)
    for parameter in story.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    stepped = program.log_density(z)
    assert not torch.allclose(before, stepped)
    torch.testing.assert_close(stepped, _direct_value(program, z))
    story.shift = nn.Parameter(torch.tensor(5.0))
    story.layer.weight = nn.Parameter(torch.ones(1, 3))
    reassigned = program.log_density(z)
    assert not torch.allclose(stepped, reassigned)
    torch.testing.assert_close(reassigned, _direct_value(program, z))
    assert program.fallback is None


def test_an_optimizer_step_and_a_reassigned_parameter_are_seen_in_a_plain_module():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    program = Program(plain_module_story(net), X, Y)
    z = torch.randn(3, program.dim)
    before = program.log_density(z)
    with torch.no_grad():
        net[0].weight.add_(1.0)
    stepped = program.log_density(z)
    net[2].weight = nn.Parameter(torch.ones(1, 4))
    reassigned = program.log_density(z)
    assert not torch.allclose(before, stepped)
    assert not torch.allclose(stepped, reassigned)
    torch.testing.assert_close(reassigned, _direct_value(program, z))


def test_a_pyro_param_that_was_learnt_is_used_and_its_steps_are_seen():
    def story():
        scale = pyro.param("scale", torch.tensor(2.0), constraint=constraints.positive)
        pyro.sample("x", dist.Normal(0.0, scale))

    pyro.param("scale", torch.tensor(3.0), constraint=constraints.positive)
    program = Program(story)
    z = torch.ones(2, 1)
    expected = dist.Normal(0.0, 3.0).log_prob(torch.ones(2))
    torch.testing.assert_close(program.log_density(z), expected)
    with torch.no_grad():
        pyro.get_param_store()._params["scale"].fill_(0.0)  # unconstrained: scale 1
    torch.testing.assert_close(program.log_density(z), dist.Normal(0.0, 1.0).log_prob(z[:, 0]))


def test_float32_modules_rule_the_dtype():
    program = Program(Regression().float(), X, Y)
    assert program.dtype == torch.float32
    assert program.log_density(torch.zeros(2, program.dim)).dtype == torch.float32


def test_changed_data_are_seen_and_other_data_share_the_recording():
    y = Y.clone()
    program = Program(eight_schools, y)
    z = torch.randn(4, program.dim)
    first = program.log_density(z)
    other = program.with_data(y + 1)
    shifted = other.log_density(z)
    assert not torch.allclose(first, shifted)
    assert other.seconds_recording == 0.0
    torch.testing.assert_close(shifted, _direct_value(other, z))
    torch.testing.assert_close(program.log_density(z), first)
    longer = Program(branches_on_data, Y).with_data(-Y)
    torch.testing.assert_close(longer.log_density(z[:, :1]), _direct_value(longer, z[:, :1]))


def test_data_written_in_place_in_a_closure_are_seen():
    y = Y.clone()

    def story():
        mu = pyro.sample("mu", dist.Normal(0, 1))
        pyro.sample("y", dist.Normal(mu, 1).expand([8]).to_event(1), obs=y)

    program = Program(story)
    z = torch.zeros(2, 1)
    before = program.log_density(z)
    y.add_(1.0)
    assert not torch.allclose(program.log_density(z), before)
    torch.testing.assert_close(program.log_density(z), _direct_value(program, z))


def branches_on_a_sample():
    x = pyro.sample("x", dist.Normal(0, 1))
    pyro.sample("y", dist.Normal(1.0 if x > 0 else -1.0, 1.0), obs=torch.tensor(0.5))


def test_a_branch_on_a_sample_is_evaluated_directly_after_one_warning():
    program = Program(branches_on_a_sample)
    z = torch.tensor([[1.0], [-1.0]])
    with pytest.warns(UserWarning, match=r"point by point.*a branch"):
        value, gradient = program.value_and_grad(z)
    program.value_and_grad(z)  # warnings are errors here: none is given again
    expected = dist.Normal(0.0, 1.0).log_prob(z[:, 0]) + dist.Normal(z.sign()[:, 0], 1.0).log_prob(
        torch.tensor(0.5)
    )
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, -z)


def test_noise_outside_sample_statements_is_refused():
    def story():
        x = pyro.sample("x", dist.Normal(0, 1))
        pyro.factor("noise", x * torch.randn(()))

    with pytest.raises(ValueError, match="random numbers outside"):
        Program(story).log_density(torch.zeros(2, 1))


# -- discrete sites ------------------------------------------------------------------------------


def mixture(y=Y):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("components", 3):
        locs = pyro.sample("locs", dist.Normal(0, 10))
    with pyro.plate("data", len(y)):
        which = pyro.sample("which", dist.Categorical(weights))
        pyro.sample("y", dist.Normal(locs[which], 2.0), obs=y)


def test_a_mixture_is_summed_out_and_its_likelihood_stays_pointwise():
    program = Program(mixture)
    z = torch.randn(4, program.dim)
    values = program.constrain(z)
    log_prob = dist.Normal(values["locs"].unsqueeze(1), 2.0).log_prob(Y[:, None])
    pointwise = torch.logsumexp(values["weights"].log().unsqueeze(1) + log_prob, -1)
    torch.testing.assert_close(program.log_likelihood(z)["y"], pointwise)
    assert program.fallback is None


def hidden_markov(y=Y[:6]):
    with pyro.plate("states", 2):
        move = pyro.sample("move", dist.Dirichlet(torch.ones(2)))
        loc = pyro.sample("loc", dist.Normal(0, 10))
    state = 0
    for t in pyro.markov(range(len(y))):
        state = pyro.sample(f"state_{t}", dist.Categorical(move[state]))
        pyro.sample(f"y_{t}", dist.Normal(loc[state], 5.0), obs=y[t])


@pytest.mark.slow
def test_a_hidden_markov_model_equals_the_forward_algorithm():
    program = Program(hidden_markov)
    z = torch.randn(3, program.dim)
    values = program.constrain(z)
    for i in range(3):
        move, loc = values["move"][i].log(), values["loc"][i]
        alpha = move[0] + dist.Normal(loc, 5.0).log_prob(Y[0])
        for y in Y[1:6]:
            alpha = torch.logsumexp(alpha[:, None] + move, 0) + dist.Normal(loc, 5.0).log_prob(y)
        expected = torch.logsumexp(alpha, 0) + program.log_prior(z[i])
        torch.testing.assert_close(program.log_density(z[i]), expected)
    value, gradient = program.value_and_grad(z)
    assert program.fallback is None
    assert torch.isfinite(gradient).all()
    step = 1e-5
    moved = program.log_density(z + step * torch.eye(program.dim)[0])
    torch.testing.assert_close((moved - value) / step, gradient[:, 0], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_long_chain_of_discrete_sites_costs_linear_time():
    nodes = []
    for length in (10, 20, 40):
        program = Program(hidden_markov, Y.repeat(8)[:length])
        program.log_density(torch.zeros(2, program.dim))
        nodes.append(next(iter(program._recordings.values())).nodes)
    assert nodes[2] - nodes[1] == pytest.approx(2 * (nodes[1] - nodes[0]), rel=0.2)


def plated_discrete(y=GRID):
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    rows = pyro.plate("rows", 3, dim=-2)
    columns = pyro.plate("columns", 4, dim=-1)
    with rows:
        a = pyro.sample("a", dist.Bernoulli(p))
        with columns:
            b = pyro.sample("b", dist.Bernoulli(0.3 + 0.4 * a))
            pyro.sample("y", dist.Normal(a + 2 * b, 3.0), obs=y)


def test_nested_discrete_sites_equal_brute_force():
    program = Program(plated_discrete)
    z = torch.randn(2, 1)
    p = program.constrain(z)["p"]
    y = GRID
    for i in range(2):
        total = program.log_prior(z[i])
        for row in y:
            per_a = []
            for a in (0.0, 1.0):
                inner = [
                    dist.Bernoulli(0.3 + 0.4 * a).log_prob(torch.tensor(b))
                    + dist.Normal(a + 2 * b, 3.0).log_prob(row)
                    for b in (0.0, 1.0)
                ]
                joint = torch.logsumexp(torch.stack(inner), 0).sum()
                per_a.append(dist.Bernoulli(p[i]).log_prob(torch.tensor(a)) + joint)
            total = total + torch.logsumexp(torch.stack(per_a), 0)
        torch.testing.assert_close(program.log_density(z[i]), total)


def test_a_discrete_site_used_outside_its_plate_is_refused():
    def story():
        with pyro.plate("data", 3):
            k = pyro.sample("k", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(k.sum(-1), 1.0), obs=torch.tensor(1.0))

    with pytest.raises(ValueError, match=r"'x'.*over a plate"):
        Program(story).log_density(torch.zeros(1, 0))


# -- refusals ------------------------------------------------------------------------------------


def subsampled():
    mu = pyro.sample("mu", dist.Normal(0, 1))
    with pyro.plate("data", 8, subsample_size=4) as index:
        pyro.sample("y", dist.Normal(mu, 1), obs=Y[index])


def on_the_sphere():
    pyro.sample("direction", dist.ProjectedNormal(torch.ones(3)))


def of_uniforms():
    ends = torch.tensor([1.0, 2.0])
    pyro.sample("u", dist.MixtureSameFamily(dist.Categorical(ends), dist.Uniform(-ends, ends)))


def counted():
    pyro.sample("count", dist.Poisson(3.0))


def several():
    pyro.sample("several", dist.Multinomial(9, torch.tensor([0.2, 0.3, 0.5])))


def machine():
    weights = 0.1 * torch.ones(3, 2)
    pyro.sample("h", RestrictedBoltzmann(weights, torch.zeros(3), torch.zeros(2)))


def twice():
    pyro.sample("x", dist.Normal(0, 1))
    pyro.sample("x", dist.Normal(0, 1))


def alike():
    with pyro.plate("school", 4):
        pyro.sample("school", dist.Normal(0, 1))


def alike_later():
    pyro.sample("school", dist.Normal(0, 1))
    with pyro.plate("school", 4):
        pyro.sample("pupil", dist.Normal(0, 1))


def missing_data():
    mu = pyro.sample("mu", dist.Normal(0, 1))
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Normal(mu, 1), obs=torch.tensor([0.0, math.nan, 1.0]))


@pytest.mark.parametrize(
    ("story", "says"),
    [
        (subsampled, r"plate 'data' is subsampled \(4 of 8\).*VI"),
        (on_the_sphere, r"site 'direction'.*[Ss]phere.*normal vector"),
        (of_uniforms, r"site 'u' \(MixtureSameFamily\).*no unconstrained view.*stretch"),
        (counted, r"site 'count' is Poisson.*infinitely many.*cut it off.*logits=Poisson\("),
        (several, r"site 'several' is Multinomial.*by hand$"),
        (machine, r"site 'h' is RestrictedBoltzmann.*use Gibbs\(\)"),
        (twice, r"site 'x' occurs twice"),
        (alike, r"'school' names a site and a plate"),
        (alike_later, r"'school' names a site and a plate"),
        (missing_data, r"observed site 'y' is nan at index \[1\]"),
    ],
)
def test_what_has_no_unconstrained_view_is_refused_by_name(story, says):
    with pytest.raises(ValueError, match=says):
        Program(story)


def test_bounds_that_a_discrete_site_chooses_are_refused_and_stretched_as_the_message_says():
    ends = torch.tensor([1.0, 2.0])

    def moving():
        end = ends[pyro.sample("k", dist.Categorical(torch.ones(2)))]
        pyro.sample("u", dist.Uniform(-end, end))

    with pytest.raises(ValueError, match=r"site 'u' has bounds that depend on a discrete site"):
        Program(moving).log_density(torch.zeros(1))

    def stretched():
        end = ends[pyro.sample("k", dist.Categorical(torch.ones(2)))]
        u = pyro.sample("u", dist.Uniform(0.0, 1.0))
        pyro.sample("y", dist.Normal(end * (2 * u - 1), 1.0), obs=torch.tensor(1.0))

    z = torch.zeros(1)  # u = 1/2: its density and slope are 1/4
    expected = dist.Normal(0.0, 1.0).log_prob(torch.tensor(1.0)) - math.log(4)
    assert Program(stretched).log_density(z) == pytest.approx(expected.item())


def test_a_count_that_is_cut_off_as_the_message_says_is_summed_out():
    values, y = torch.arange(100.0), torch.tensor([3.0, 5.0])

    def story():
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        law = dist.Poisson(5.0 * rate[..., None]).log_prob(values)
        count = pyro.sample("count", dist.Categorical(logits=law))
        with pyro.plate("data", 2):
            pyro.sample("y", dist.Normal(values[count], 1.0), obs=y)

    z = torch.tensor([[-0.5], [0.3]])
    rate = z.exp()  # (2, 1), beside the values
    each = dist.Normal(values[:, None], 1.0).log_prob(y).sum(-1)
    summed = (dist.Poisson(5.0 * rate).log_prob(values) + each).logsumexp(-1)
    expected = dist.Gamma(2.0, 1.0).log_prob(rate[:, 0]) + z[:, 0] + summed
    torch.testing.assert_close(Program(story).log_density(z), expected)


def test_making_and_using_a_program_takes_no_random_number_and_registers_nothing():
    story = Regression()
    state = torch.random.get_rng_state()
    program = Program(story, X, Y)
    program.log_density(torch.zeros(2, program.dim))
    assert torch.equal(state, torch.random.get_rng_state())
    assert not list(pyro.get_param_store().keys())


def test_starting_points_are_finite_and_dispersed():
    program = Program(eight_schools)
    z = program.initial(100)
    assert torch.isfinite(program.log_density(z)).all()
    assert (z.std(0) > 0.8).all()

    def hopeless():
        x = pyro.sample("x", dist.Normal(0, 1))
        pyro.factor("never", torch.log(x * 0))

    with pytest.raises(ValueError, match="no starting point"):
        Program(hopeless).initial(2)


def test_a_prior_that_leaves_the_domain_of_a_distribution_is_named():
    def negative_scale(y):
        s = pyro.sample("s", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(0.0, s).expand([3]).to_event(1), obs=y)

    def clamped_probability(y):  # its density is finite there, and wrong
        p = pyro.sample("p", dist.Normal(0.5, 1.0))
        pyro.sample("y", dist.Bernoulli(p).expand([3]).to_event(1), obs=y)

    y = torch.tensor([1.0, 0.0, 1.0])
    with pytest.warns(UserWarning, match=r"scale -\d.* at site 'y' \(Normal\)"):
        Program(negative_scale, y).initial(16)
    with pytest.warns(UserWarning, match=r"probs .* at site 'y' \(Bernoulli\)"):
        Program(clamped_probability, y).initial(16)


def test_a_vector_outside_the_domain_of_a_distribution_is_named():
    def cuts(y, ordered):
        c = pyro.sample("c", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        c = torch.stack([c[0], c[0] + c[1].exp()]) if ordered else c
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.OrderedLogistic(torch.zeros(len(y)), c), obs=y)

    def shares(y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        pyro.sample("y", dist.Dirichlet(a), obs=y)

    extremes = torch.tensor([0.0, 2.0, 2.0, 0.0])  # nothing between the two cuts holds them apart
    with pytest.warns(UserWarning, match=r"cutpoints \[.*, .*\] at site 'y' \(OrderedLogistic\)"):
        Program(cuts, extremes, ordered=False).initial(16)
    with pytest.warns(UserWarning, match=r"concentration -\d.* at site 'y' \(Dirichlet\)"):
        Program(shares, torch.tensor([0.2, 0.3, 0.5])).initial(16)
    Program(cuts, extremes, ordered=True).initial(16)  # a warning would be an error


def test_an_empty_batch_and_a_wrong_width():
    program = Program(eight_schools)
    assert program.log_density(torch.zeros(0, 10)).shape == (0,)
    with pytest.raises(ValueError, match="must end in 10"):
        program.log_density(torch.zeros(3, 9))


def test_values_outside_the_support_are_named():
    with pytest.raises(ValueError, match=r"'tau'.*outside its support"):
        Program(eight_schools).unconstrain(
            {"mu": torch.zeros(1), "tau": -torch.ones(1), "eta": torch.zeros(1, 8)}
        )
    with pytest.raises(ValueError, match=r"missing: \['eta'\]"):
        Program(eight_schools).unconstrain({"mu": torch.zeros(1), "tau": torch.ones(1)})


def counts_and_grids(y=BIG):
    """Integers become floats, and grids are made, inside the story."""
    rate = pyro.sample("rate", dist.Normal(0, 1))
    grid = torch.linspace(0.1, 0.7, 3)
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Poisson(torch.exp(rate * grid + torch.log(y + 1))), obs=y)


def test_integers_and_grids_keep_double_precision_whatever_the_default():
    y, z = BIG.clone(), torch.zeros(2, 1)
    expected = [Program(counts_and_grids, y + k).log_density(z) for k in (0, 1)]
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)  # where users live
    try:
        program = Program(counts_and_grids, y)
        value = [program.log_density(z)]
        slope = program.gradient_like(z)(z), program.value_and_grad(z)[1]
        y += 1  # what is known of the data is computed anew
        value.append(program.log_density(z))
    finally:
        torch.set_default_dtype(default)
    assert program.fallback is None
    # single precision would be off by 1e-2: lgamma(900,002) is 1.1e7
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    assert torch.equal(*slope)
    assert program.recorded_gradient(z).by_default


def test_a_pyro_param_that_nobody_has_trained_holds_what_it_starts_with():
    def story():
        loc = pyro.param("loc", lambda: torch.tensor(3.0))
        scale = pyro.param("scale", torch.tensor(2.0), constraint=constraints.positive)
        pyro.sample("x", dist.Normal(loc, scale))

    program = Program(story)
    value = program.log_density(torch.tensor([[3.0], [5.0]]))
    assert program.fallback is None
    top = -math.log(2.0 * math.sqrt(2 * math.pi))
    torch.testing.assert_close(value, torch.tensor([top, top - 0.5]))
    assert not list(pyro.get_param_store().keys())
    pyro.param("loc", torch.tensor(5.0))  # trained meanwhile
    torch.testing.assert_close(
        program.log_density(torch.tensor([[3.0], [5.0]])), torch.tensor([top - 0.5, top])
    )


def test_a_site_that_a_path_leaves_out_is_refused():
    def story():
        x = pyro.sample("x", dist.Normal(0, 1))
        if x > 0:
            pyro.sample("extra", dist.Normal(0, 1))

    program = Program(story)
    with pytest.raises(ValueError, match="'extra' appears only on some paths"):
        program.value_and_grad(torch.tensor([[-1.0, 0.0]] if program.dim == 2 else [[1.0]]))


def test_a_gradient_lost_in_plain_numbers_is_refused():
    def story():
        variance = pyro.sample("variance", dist.Exponential(1.0))
        pyro.sample("y", dist.Normal(0, math.sqrt(variance)), obs=torch.tensor(1.0))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about float() of a tensor with a gradient
        with pytest.raises(ValueError, match=r"plain numbers.*torch\.sqrt"):
            Program(story).value_and_grad(torch.tensor([[-1.0], [1.0]]))


def test_where_no_start_is_found_the_site_and_the_argument_are_named():
    def story(x):
        slope = pyro.sample("slope", dist.Normal(0, 1))
        with pyro.plate("data", 2):
            pyro.sample("y", dist.Normal(slope * x, 1), obs=torch.zeros(2))

    with pytest.raises(ValueError, match=r"'y' \(Normal\) is nan there; argument 'x' holds"):
        Program(story, torch.tensor([1.0, math.nan])).initial(4)


def test_an_argument_that_is_no_tensor_is_named_where_the_story_stumbles():
    def story(x, y):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(b * x, 1.0).to_event(1), obs=y)

    with pytest.raises(TypeError) as caught:
        Program(story, [1.0, 2.0], torch.ones(2))
    assert "argument 1 is a list" in caught.value.__notes__[0]


def test_a_site_without_any_influence_is_refused_by_name():
    def story():
        pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.poutine.mask(mask=False):
            pyro.sample("free", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="does not depend on site 'free'"):
        Program(story).initial(4)


def test_what_a_reparameterisation_replaces_is_deterministic():
    config = {"theta": LocScaleReparam(0.0)}

    def centred(y):
        with pyro.plate("schools", len(y)):
            theta = pyro.sample("theta", dist.Normal(1.0, 2.0))
            pyro.sample("y", dist.Normal(theta, 3.0), obs=y)

    program = Program(pyro.poutine.reparam(centred, config=config), Y)
    z = program.initial(4)
    assert list(program.anatomy.of_kind("observed")) == ["y"]
    values = program.constrain(z, deterministic=True)
    torch.testing.assert_close(values["theta"], 1 + 2 * values["theta_decentered"])
    assert program.replicate(program.constrain(z))["theta"].shape == (4, len(Y))


def test_values_that_obs_mask_leaves_out_have_their_prior():
    def story(y, seen):
        mu = pyro.sample("mu", dist.Normal(0, 1))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Normal(mu, 1), obs=y, obs_mask=seen)

    seen = torch.tensor([True, False, True])
    program = Program(story, torch.tensor([1.0, 0.0, 3.0]), seen)
    z = torch.tensor([[0.5, -1.0, 2.0, 0.0]])  # mu, then y_unobserved
    expected = (
        dist.Normal(0, 1).log_prob(torch.tensor(0.5))
        + dist.Normal(0.5, 1).log_prob(torch.tensor([1.0, 3.0, -1.0, 2.0, 0.0])).sum()
    )  # a flat dimension would have no normal term of its own
    torch.testing.assert_close(program.log_density(z), expected[None])


@pytest.mark.slow
def test_the_compiled_gradient_is_the_same():
    program = Program(eight_schools)
    z = torch.randn(16, program.dim)
    torch.testing.assert_close(program.value_and_grad(z, compile=True), program.value_and_grad(z))


def test_empty_data_are_an_error_that_names_the_argument():
    def story(x, y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(ValueError, match=r"plate .* no elements: argument 2 is empty"):
        Program(story, torch.zeros(3), torch.zeros(0))
    with pytest.raises(ZeroDivisionError, match=r"modulo|division"):
        Program(lambda: 1 // 0)


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_the_gradient_of_many_calls_is_that_of_each(story):
    program = Program(story)
    z = torch.randn(5, program.dim)
    gradient = program.gradient_like(z)
    for point in (z, z.flip(0)):
        assert torch.equal(gradient(point), program.gradient(point))
    if story is eight_schools:
        assert not program.recorded_gradient(z).by_default


def test_a_factorisation_does_not_depend_on_the_default_type():
    def story(y):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        covariance = scale * torch.eye(3, dtype=y.dtype) + 0.5
        pyro.sample("y", dist.MultivariateNormal(torch.zeros_like(y), covariance), obs=y)

    program, z = Program(story, torch.ones(3, dtype=torch.float64)), torch.zeros(2, 1)
    gradient = program.gradient_like(z.double())(z.double())
    recording = program.recorded_gradient(z)
    assert any("cholesky" in str(n.target) for n in recording.body.graph.nodes)
    assert not recording.by_default
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        assert torch.equal(program.gradient_like(z.double())(z.double()), gradient)
    finally:
        torch.set_default_dtype(default)


def test_the_gradient_of_many_calls_takes_other_data_where_it_is_asked_for_anew():
    def story(y):
        pyro.sample("y", dist.Normal(pyro.sample("mean", dist.Normal(0.0, 1.0)), 1.0), obs=y)

    y, z = torch.ones(()), torch.zeros(3, 1)
    program = Program(story, y)
    before = program.gradient_like(z)(z)
    y += 1
    assert torch.equal(program.gradient_like(z)(z), before + 1)
    single = program.gradient_like(z.float())  # another type goes the long way
    assert torch.equal(single(z.float()), before + 1)


def test_value_and_gradient_alone_are_those_of_the_pair_in_fewer_operations():
    def story(x, y):
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        s = pyro.sample("s", dist.HalfCauchy(1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(x @ b, s), obs=y)

    def branching(y):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(m.abs() if m > 0 else 2 * m, 1.0), obs=y)

    program = Program(story, torch.randn(20, 2), torch.randn(20))
    z = torch.randn(2, 3, program.dim)
    assert torch.equal(program.gradient(z), program.value_and_grad(z)[1])
    assert torch.equal(program.value(z), program.value_and_grad(z)[0])
    moved = program.with_data(torch.randn(20, 2), torch.randn(20))  # the recording is shared
    assert torch.equal(moved.gradient(z), moved.value_and_grad(z)[1])
    assert torch.equal(moved.value(z), moved.value_and_grad(z)[0])
    assert not torch.equal(moved.gradient(z), program.gradient(z))
    (recording,) = program._recordings.values()
    halves = [recording.alone(0), recording.alone(1)]
    assert all(len(h.graph.nodes) < len(recording.body.graph.nodes) for h in halves)
    z = torch.tensor([[1.0], [-1.0]])
    direct = Program(branching, torch.tensor(1.0))
    with pytest.warns(UserWarning, match="point by point"):
        slope = direct.gradient(z)
    torch.testing.assert_close(slope, torch.tensor([[-1.0], [7.0]]))
    torch.testing.assert_close(direct.value(z), torch.tensor([-0.5, -5.0]) - math.log(2 * math.pi))


def test_many_draws_are_constrained_in_pieces_that_fit_into_memory():
    def story(x, y):
        b = pyro.sample("b", dist.LogNormal(0.0, 1.0))
        mean = pyro.deterministic("mean", b * x)
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    program = Program(story, torch.arange(3.0), torch.randn(3))
    z = torch.randn(2, 301, 1, dtype=torch.float64)
    found = program.constrain(z, deterministic=True)
    torch.testing.assert_close(found["b"], z[..., 0].exp())
    torch.testing.assert_close(found["mean"], z.exp() * program.args[0])
    each = [program.log_likelihood(row[None])["y"][0] for row in z.reshape(-1, 1)]
    torch.testing.assert_close(program.log_likelihood(z)["y"].reshape(-1, 3), torch.stack(each))
    density, prior = program.log_density(z), program.log_prior(z)
    torch.testing.assert_close(density - prior, program.log_likelihood(z)["y"].sum(-1))
    assert density.shape == z.shape[:-1]
    # all 602 rows of data at once were too many
    assert all(shape[0] < 301 for _, shape, *_ in program._recordings)


def test_forks_share_recordings_and_count_them_each():
    def story(y):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(m, 1.0), obs=y)

    first = Program(story, torch.tensor(1.0))
    z = torch.randn(3, 1)
    made = first.value_and_grad(z)
    second = first.fork()
    truly, begin = time.perf_counter(), second.now()
    for _ in range(2):
        assert all(map(torch.equal, made, second.value_and_grad(z)))
    alone, spent = second.now() - begin, time.perf_counter() - truly
    assert len(first._recordings) == 1
    assert second.seconds_recording == first.seconds_recording > 0
    # it is slower by what the recording took, once
    assert 0 < alone - second.seconds_recording < spent
    second.log_density(z)
    assert second.seconds_recording > first.seconds_recording
    first.log_density(z)
    assert first.seconds_recording == second.seconds_recording
    other = first.with_data(torch.tensor(3.0))
    assert not torch.equal(other.value_and_grad(z)[0], made[0])
    assert other.seconds_recording == 0
