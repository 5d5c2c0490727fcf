# %% [markdown]
# # The words of Bayes
#
# **Result first.** A coin falls heads 7 times in 10 tosses. Before, nothing was known about its
# bias $\theta$; now its posterior is $\mathrm{Beta}(8, 4)$, the next toss is heads with probability
# $8/12 = 0.667$ and not $0.7$, and the ten tosses had probability $1/1320$ under the story as a
# whole. Each of these numbers has a name. This page computes the things behind the names, prior,
# likelihood, joint, evidence, posterior and the two predictive distributions, by a formula and on a
# grid, and then asks nine inference engines for the same posterior.

# %%
import os

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Predictive

import ppgen
from ppgen.inference import (
    CAVI,
    DADVI,
    HMC,
    NUTS,
    VI,
    Exact,
    ForwardKL,
    Gibbs,
    Laplace,
    Pathfinder,
)
from ppgen.models import (
    BetaBernoulli,
    DirichletCategorical,
    GammaPoisson,
    NormalGamma,
    NormalNormal,
    beta_bernoulli,
    dirichlet_categorical,
    gamma_poisson,
    normal_gamma,
    normal_normal,
)
from ppgen.plots import canvas, grids, label, legend, styles
from ppgen.program import Program
from ppgen.progress import quiet

FAST = os.environ.get("PPGEN_FAST") == "1"
torch.manual_seed(0)
torch.set_default_dtype(torch.float64)

coin = BetaBernoulli(a=1.0, b=1.0)
x = beta_bernoulli.data()["x"]
posterior = coin.exact_posterior(x)["theta"]
print(f"tosses: {x.int().tolist()}")
print(f"posterior: Beta({posterior.concentration1:.0f}, {posterior.concentration0:.0f})")
print(f"next toss is heads with probability {coin.predictive(x).probs:.4f}")
print(f"evidence: 1 / {1 / coin.log_evidence(x).exp():.0f}")

# %% [markdown]
# ## Data and story
#
# The story says how tosses come about: first a bias, then tosses that are independent given it.
#
# $$
# \theta \sim \mathrm{Beta}(a, b), \qquad x_n \sim \mathrm{Bernoulli}(\theta), \quad n = 1 \ldots N
# $$
#
# As a Pyro program it is four lines (`models/beta_bernoulli.py`):
#
# ```python
# def model(self, x):
#     theta = pyro.sample("theta", dist.Beta(self.a, self.b))
#     with pyro.plate("data", len(x)):
#         pyro.sample("x", dist.Bernoulli(theta), obs=x)
# ```
#
# ## Objective: the words, and what they are
#
# | word | formula | a distribution of |
# |---|---|---|
# | prior | $p(\theta)$ | $\theta$ |
# | likelihood | $p(x \mid \theta)$, read as a function of $\theta$ | nothing |
# | joint | $p(x, \theta) = p(x \mid \theta)\,p(\theta)$ | $x$ and $\theta$ together |
# | evidence | $p(x) = \int p(x, \theta)\,d\theta$ | $x$, before it was seen |
# | posterior | $p(\theta \mid x) = p(x, \theta) / p(x)$ | $\theta$, now that $x$ was seen |
# | prior predictive | $\int p(x' \mid \theta)\,p(\theta)\,d\theta$ | data, before any |
# | posterior predictive | $\int p(x' \mid \theta)\,p(\theta \mid x)\,d\theta$ | new data $x'$ |
#
# The likelihood is a distribution of nothing: over $\theta$ it does not add up to 1. And there are
# seven rows but only six things: the evidence (also: marginal likelihood) *is* the prior
# predictive, evaluated at the data that came. Below each is computed on a grid of $\theta$, with
# nothing but products and sums.

# %%
theta = (torch.arange(2000) + 0.5) / 2000
step = 1 / 2000
prior = dist.Beta(coin.a, coin.b).log_prob(theta).exp()
likelihood = dist.Bernoulli(theta[:, None]).log_prob(x).sum(1).exp()
joint = prior * likelihood
evidence = joint.sum() * step
on_grid = joint / evidence
heads = torch.arange(11.0)
tosses = dist.Binomial(10, theta[:, None]).log_prob(heads).exp()  # (2000, 11)
before = (prior * step) @ tosses
after = (on_grid * step) @ tosses
print(f"integral of the likelihood over theta: {likelihood.sum() * step:.6f}, not 1")
print(f"evidence on the grid: {evidence:.6e}; by formula: {coin.log_evidence(x).exp():.6e}")

figure, axes = canvas(
    4.6,
    "The words as pictures",
    "Seven heads in ten tosses, uniform prior.",
    rows=2,
    columns=3,
)
curves = {
    "prior p(theta)": (prior, "density"),
    "likelihood p(x | theta)": (likelihood * 1e3, "probability x 1000"),
    "joint p(x, theta)": (joint * 1e3, "density x 1000"),
    "posterior p(theta | x)": (on_grid, "density"),
}
for ax, (name, (values, unit)) in zip(axes, curves.items(), strict=False):
    ax.plot(theta, values, color="#0072B2")
    ax.fill_between(theta, values, color="#0072B2", alpha=0.12)
    ax.set_ylim(0, None)
    label(ax, "theta", unit, name)
for ax, (name, values) in zip(
    axes[4:], {"prior predictive": before, "posterior predictive": after}.items(), strict=True
):
    ax.bar(heads, values, color="#D55E00", width=0.8)
    ax.set_ylim(0, 0.25)
    ax.set_xticks(range(0, 11, 2))
    label(ax, "heads in ten tosses", "probability", name)
figure

# %% [markdown]
# *What to see: with a uniform prior, likelihood, joint and posterior have one shape and three
# scales: only the last has area 1. The area under the joint is the evidence. The bars are
# distributions of data: before, each number of heads is equally probable, 1/11; after, seven is the
# most probable, and the bars are wider than those of a coin of known bias 0.7, because $\theta$ is
# not known.*
#
# The same by running the program. Forward, without conditioning, it generates the joint; with the
# draws of a posterior it generates the posterior predictive.

# %%
draws = 500 if FAST else 20_000
forward = Predictive(pyro.poutine.uncondition(coin.model), num_samples=draws)(x)
simulated_before = torch.bincount(forward["x"].sum(1).long(), minlength=11) / draws
fitted = ppgen.fit(coin.model, x, using=Exact(draws=draws))
again = fitted.predict(coin.model, x, draws=draws, seed=1)["x"]
simulated_after = torch.bincount(again.sum(1).long(), minlength=11) / draws
match = forward["theta"][(forward["x"].sum(1) == 7)].squeeze()
print(f"largest difference: prior predictive {(simulated_before - before).abs().max():.4f}, "
      f"posterior predictive {(simulated_after - after).abs().max():.4f}")  # fmt: skip
print(f"theta where the story made seven heads: mean {match.mean():.3f} ({len(match)} draws); "
      f"posterior mean {posterior.mean:.3f}")  # fmt: skip

# %% [markdown]
# The last line is Bayes' theorem without a formula: run the story often, keep the runs that made
# the data, and look at their $\theta$. It needs no density and wastes ten runs out of eleven; with
# real data it would waste all of them, which is why there are engines.
#
# ## Training: the engines on five conjugate pairs
#
# A prior is **conjugate** to a likelihood where the posterior is of the prior's own family. Then
# everything above has a formula, and an engine can be marked against it.
#
# | story | prior | likelihood | posterior | next datum | data |
# |---|---|---|---|---|---|
# | `BetaBernoulli` | beta | Bernoulli | beta | Bernoulli | ten tosses |
# | `NormalNormal` | normal | normal, known noise | normal | normal | five measurements |
# | `GammaPoisson` | gamma | Poisson | gamma | negative binomial | horse kicks |
# | `DirichletCategorical` | Dirichlet | categorical | Dirichlet | categorical | Mendel's 556 peas |
# | `NormalGamma` | normal-gamma | normal | normal-gamma | Student's t | Earth's density, 29 times |
#
# The normal-gamma prior of a mean and a precision $\tau$ is the **normal-inverse-gamma** prior of
# the mean and the variance $v = 1 / \tau$: the same law in other coordinates, and the next cell
# checks it.
#
# `HMC` and `NUTS` draw from the posterior by Markov chains. The others replace it by normals on the
# unconstrained scale: mean-field variational inference (`VI`) by that of highest ELBO; `DADVI` the
# same with fixed draws; `Pathfinder` by normals along the way up to the mode, weighted; `ForwardKL`
# by that with the posterior's own moments; `Laplace` by the one that fits at the mode. `Gibbs` and
# `CAVI` need conditionals in closed form, which of the five the normal-gamma declares. (`MAP` and
# `MLE` give one point: the next page.)

# %%
pairs = {
    "Beta-Bernoulli": (BetaBernoulli(), beta_bernoulli.data()),
    "Normal-Normal": (NormalNormal(), normal_normal.data()),
    "Gamma-Poisson": (GammaPoisson(), gamma_poisson.data()),
    "Dirichlet-categorical": (DirichletCategorical(), dirichlet_categorical.data()),
    "Normal-gamma": (NormalGamma(), normal_gamma.data()),
}
engines = {
    "HMC": HMC(chains=32, draws=40, warmup=80) if FAST else HMC(),
    **({} if FAST else {"NUTS": NUTS()}),
    "VI": VI(),
    "DADVI": DADVI(),
    "Pathfinder": Pathfinder(),
    "ForwardKL": ForwardKL(),
    "Laplace": Laplace(),
}
chosen = dict(list(pairs.items())[:2]) if FAST else pairs
shift = torch.zeros(len(chosen), len(engines))
width = torch.zeros(len(chosen), len(engines))
worth = {}
print("error of the mean, in posterior sd, and of the sd, as a share")
for i, (name, (story, data)) in enumerate(chosen.items()):
    laws = story.exact_posterior(**data)
    program = Program(story.model, **data)  # recorded once for all engines
    for j, (engine, using) in enumerate(engines.items()):
        with quiet():
            found = ppgen.fit(program, using=using)
        assert found.converged, found.headline()
        for site, law in laws.items():
            values = found[site].flatten(0, 1)
            shift[i, j] = max(shift[i, j], ((values.mean(0) - law.mean) / law.stddev).abs().max())
            width[i, j] = max(width[i, j], (values.std(0) / law.stddev - 1).abs().max())
        if engine in ("VI", "Laplace"):  # an ELBO each
            worth[name, engine] = found.diagnosis()["elbo"] - float(story.log_evidence(**data))
    row = ", ".join(
        f"{e} {s:.3f}/{w:.3f}" for e, s, w in zip(engines, shift[i], width[i], strict=True)
    )
    print(f"{name}: error of the mean in sd / of the sd: {row}")
grids(
    {"mean, in posterior sd": shift.numpy(), "sd, as a share": width.numpy()},
    list(chosen),
    list(engines),
    "Errors against the exact posterior",
    "The worst scalar of each story. White: up to 0.05, of the order of Monte Carlo noise.",
    kinds=("story", "engine"),
)

# %% [markdown]
# *What to see: both samplers are right everywhere, up to the noise of a finite number of draws, and
# so, up to little more than that noise, are the approximations on these five, but for one. Laplace
# is right where the posterior is normal, and off where it is skew: with ten tosses by a tenth of a
# standard deviation, and for the precision of the 29 measurements (Cavendish, 1798) by a quarter. A
# mode knows nothing of the long side of a skew density; an average over it, as in the ELBO, does.*

# %%
story, measured = pairs["Normal-gamma"]
laws = story.exact_posterior(**measured)
for name, using in {"Gibbs": Gibbs(draws=300 if FAST else 1000), "CAVI": CAVI()}.items():
    with quiet():
        found = ppgen.fit(story.model, **measured, using=using)
    errors = [(found[s].mean() - law.mean).abs() / law.stddev for s, law in laws.items()]
    widths = [found[s].std() / law.stddev for s, law in laws.items()]
    print(f"{name:<5} on the normal-gamma: means off by at most {max(errors):.3f} sd, "
          f"sd ratios {min(widths):.3f} to {max(widths):.3f}")  # fmt: skip
    assert max(errors) < 0.15
    assert 0.9 < min(widths) <= max(widths) < 1.1

v = torch.linspace(0.02, 0.2, 50)  # the variance; its density has the Jacobian 1 / v^2
of_variance = dist.InverseGamma(laws["tau"].concentration, laws["tau"].rate).log_prob(v)
torch.testing.assert_close(laws["tau"].log_prob(1 / v) - 2 * v.log(), of_variance)
print("normal-gamma in precision, normal-inverse-gamma in variance: one law")

# %% [markdown]
# ## Sequential updating
#
# Yesterday's posterior is today's prior. Data may come one by one, in blocks, or at once, and in
# any order: the posterior is the same. And the evidence is a product of predictions, each made
# before the datum that it predicts:
#
# $$
# \log p(x_{1:N}) = \sum_n \log p(x_n \mid x_{1:n-1}) .
# $$

# %%
belief, total = coin, torch.zeros(())
for toss in x:
    total = total + belief.predictive(x[:0]).log_prob(toss)
    law = belief.exact_posterior(toss[None])["theta"]
    belief = BetaBernoulli(a=float(law.concentration1), b=float(law.concentration0))
backwards = coin
for toss in x.flip(0):
    law = backwards.exact_posterior(toss[None])["theta"]
    backwards = BetaBernoulli(a=float(law.concentration1), b=float(law.concentration0))
print(f"one by one: {belief}; in reverse: {backwards}")
print(f"sum of log predictions {total:.6f}, log evidence {coin.log_evidence(x):.6f} nats")

long = dist.Bernoulli(torch.tensor(0.7)).sample((1000,))
sizes = {f"{n} tosses": n for n in (0, 1, 5, 20, 100, 1000)}
figure, (ax,) = canvas(
    3.0, "A belief that sharpens", "Posterior of a coin of bias 0.7 (line) as tosses come in."
)
for (name, n), style in zip(sizes.items(), styles(sizes), strict=True):
    law = coin.exact_posterior(long[:n])["theta"]
    density = law.log_prob(theta).exp()
    ax.plot(theta, density, label=name, **style)
ax.axvline(0.7, color="#5b6570", linewidth=0.7)
ax.set_ylim(0, 14)
label(ax, "theta", "posterior density")
legend(ax, *ax.get_legend_handles_labels(), loc="upper left")
figure

# %% [markdown]
# *What to see: after one toss the posterior leans, after twenty it has a place, and from then on
# its width falls with the root of the number of tosses. The curve of 1000 tosses is cut off: it is
# about 28 high.*
#
# ## What goes wrong
#
# - *Reading the likelihood as a distribution of $\theta$.* Its area is $1/1320$, and with another
#   parametrisation its area would be another. Only times a prior does it become one.
# - *Forgetting the evidence.* For one story it is a constant and samplers do without it; between
#   stories it is the whole comparison (exercise 2).
# - *Predicting with the best $\theta$.* Posterior predictions are wider than the likelihood at any
#   one $\theta$ (exercise 3, and the next page).
# - *Counting data twice.* Updating the posterior again on the same tosses gives a sharper belief
#   that is wrong: sequential updating is for data that are new given $\theta$.
# - *Calling the fitted model forward with the data.* `Predictive(coin.model)(x)` returns `x`
#   itself, since the site is observed; `pyro.poutine.uncondition` or `posterior.predict` draw it
#   anew.
#
# ## Exercises
#
# **1.** Show that the posterior mean is a weighted mean of the prior's and the data's, and find the
# weights for $\mathrm{Beta}(20, 20)$.

# %%
stubborn = BetaBernoulli(a=20.0, b=20.0)
weight = 40 / (40 + len(x))  # a + b is the number of tosses that the prior is worth
by_hand = weight * 0.5 + (1 - weight) * x.mean()
torch.testing.assert_close(stubborn.exact_posterior(x)["theta"].mean, by_hand)
print(f"weight of the prior {weight}, posterior mean {by_hand:.3f}")

# %% [markdown]
# **2.** Is the coin fair? Compare the evidence of "$\theta = 1/2$" with that of "$\theta$ unknown"
# for 7 heads in 10, and for 70 in 100.


# %%
def log_bayes_factor(heads, count):
    """Evidence for an unknown bias over that for a fair coin, nats."""
    tosses = (torch.arange(count) < heads).double()
    return float(coin.log_evidence(tosses) - count * torch.tensor(0.5).log())


ten, hundred = log_bayes_factor(7, 10), log_bayes_factor(70, 100)
print(f"log Bayes factor: {ten:.2f} nats for 7 in 10, {hundred:.2f} nats for 70 in 100")
assert -0.3 < ten < -0.2  # the fair coin is the better prediction: 1.3 to 1
assert hundred > 5  # more than 100 to 1 against it

# %% [markdown]
# **3.** How much wider is the posterior predictive than a Poisson law at the posterior mean? Use
# the first five reports of horse kicks only, then all 200.

# %%
kicks = gamma_poisson.data()["x"]
few = kicks[torch.tensor([0, 40, 80, 120, 180])]
for data in (few, kicks):
    law = GammaPoisson().predictive(data)
    excess = float(law.variance / law.mean)  # a Poisson law has 1
    print(f"{len(data)} reports: variance / mean = {excess:.3f}")
    assert abs(excess - (1 + 1 / (1 + len(data)))) < 1e-9  # 1 + 1 / (rate + N)

# %% [markdown]
# ## The numbers of this page, checked

# %%
assert (float(posterior.concentration1), float(posterior.concentration0)) == (8.0, 4.0)
torch.testing.assert_close(1 / coin.log_evidence(x).exp(), torch.tensor(1320.0))
torch.testing.assert_close(coin.predictive(x).probs, torch.tensor(8 / 12))
assert abs(evidence * 1320 - 1) < 1e-5  # midpoints of 2000 cells
assert abs(likelihood.sum() * step - evidence) < 1e-12  # a uniform prior changes nothing
torch.testing.assert_close(on_grid, posterior.log_prob(theta).exp(), rtol=1e-5, atol=1e-8)
torch.testing.assert_close(before, torch.full((11,), 1 / 11), rtol=1e-5, atol=0)
assert after.argmax() == 7
assert (after * (heads - 7) ** 2).sum() > 10 * 0.7 * 0.3  # wider than a coin of known bias
noise = 4.5 * (0.25 / draws) ** 0.5  # 4.5 standard errors of a share
assert (simulated_before - before).abs().max() < noise
assert (simulated_after - after).abs().max() < noise
assert abs(len(match) / draws - 1 / 11) < noise  # one run out of eleven
assert abs(match.mean() - posterior.mean) < 4.5 * posterior.stddev / len(match) ** 0.5
assert shift[:, :2].max() < 0.15  # at least 400 effective draws: three standard errors
assert width[:, :2].max() < 0.15
normal = list(chosen).index("Normal-Normal")
assert shift[normal].max() < 0.15
assert width[normal].max() < 0.15
laplace = list(engines).index("Laplace")
assert 0.05 < shift[0, laplace] < 0.16  # a tenth
assert shift[:, 2:laplace].max() < 0.15  # VI, DADVI, Pathfinder, ForwardKL
assert width[:, 2:laplace].max() < 0.15
assert FAST or 0.2 < shift[list(chosen).index("Normal-gamma"), laplace] < 0.35
assert all(gap < 1e-3 for gap in worth.values())  # an ELBO is at most the log evidence
assert abs(worth["Normal-Normal", "VI"]) < 1e-3  # and reaches it where q is the posterior
torch.testing.assert_close(total, coin.log_evidence(x))
assert belief == backwards == BetaBernoulli(a=8.0, b=4.0)
spread = [float(coin.exact_posterior(long[:n])["theta"].stddev) for n in (100, 1000)]
assert 2.5 < spread[0] / spread[1] < 4.0  # root 10
peak = coin.exact_posterior(long)["theta"].log_prob(theta).exp().max()
assert 25 < peak < 31

# %% [markdown]
# ---
# About 50 seconds in all on two cores of a laptop-class CPU. Your output should look like this
# page; the last digits depend on the machine.
