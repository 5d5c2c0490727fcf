# %% [markdown]
# # Point estimates and the posterior
#
# **Result first.** Fit a normal law to five numbers by maximum likelihood and ask for the interval
# that holds the next number with probability 90%. It holds it 75 times in 100. With 500 numbers it
# does so 90 times in 100, and nobody can tell the point estimate from the posterior. This page
# measures where the one may stand for the other: it depends on how peaked the posterior is, and on
# what is asked of it.

# %%
import os

import pyro
import pyro.distributions as dist
import torch
from scipy.special import stdtr, stdtrit

import ppgen
from ppgen.inference import HMC, MAP, MLE, Exact
from ppgen.models import BetaBernoulli, NormalGamma, eight_schools, eight_schools_centred
from ppgen.models.eight_schools import data as schools
from ppgen.plots import canvas, label, legend, styles
from ppgen.progress import quiet

FAST = os.environ.get("PPGEN_FAST") == "1"
torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
hmc = HMC(chains=16, draws=60, warmup=60) if FAST else HMC()

sets = 2_000 if FAST else 20_000
normal = dist.Normal(torch.zeros(()), torch.ones(()))
reach = float(normal.icdf(torch.tensor(0.95)))  # 1.645 standard deviations
coverage_at = {}
for count in (5, 500):
    rows = torch.randn(sets // (1 if count == 5 else 10), count)  # many sets of so many numbers
    centre, sd = rows.mean(1), rows.std(1, correction=0)  # maximum likelihood
    inside = normal.cdf(centre + reach * sd) - normal.cdf(centre - reach * sd)
    coverage_at[count] = float(inside.mean())
    print(f"{count} numbers: the 90% interval holds the next one in {coverage_at[count]:.1%}")

# %% [markdown]
# ## Data and story
#
# Numbers from a normal law of unknown mean and unknown precision $\tau = 1 / \sigma^2$:
#
# $$
# \tau \sim \mathrm{Gamma}(a, b), \qquad \mu \mid \tau \sim N(m, 1 / \sqrt{\kappa \tau}), \qquad
# x_n \sim N(\mu, 1 / \sqrt{\tau}) .
# $$
#
# This is `NormalGamma`, whose posterior and predictive are formulas. The prior is worth one
# observation of the mean and six of the precision.

# %%
story = NormalGamma(mean=0.0, count=1.0, shape=3.0, rate=3.0)
few = torch.tensor([0.3, 1.9, 0.9, 1.4, 0.6])
generator = torch.Generator().manual_seed(1)
many = 1.0 + 0.6 * torch.randn(500, generator=generator)

# %% [markdown]
# ## Objective: three answers to one question
#
# | answer | definition | what it keeps |
# |---|---|---|
# | maximum likelihood, MLE | $\arg\max_\theta\, p(x \mid \theta)$ | one point; no prior |
# | maximum a posteriori, MAP | $\arg\max_\theta\, p(x \mid \theta)\,p(\theta)$ | one point |
# | posterior | $p(\theta \mid x)$ | all of it |
#
# To predict, the first two are plugged in, $p(x' \mid \hat\theta)$; the posterior is averaged over,
# $\int p(x' \mid \theta)\,p(\theta \mid x)\,d\theta$, here a Student's t.

# %%
table = {}
for name, x in {"5 numbers": few, "500 numbers": many}.items():
    with quiet():
        fits = {e.__class__.__name__: ppgen.fit(story.model, x, using=e) for e in (MLE(), MAP())}
        exact = ppgen.fit(story.model, x, using=Exact(draws=2_000 if FAST else 20_000))
    table[name] = {
        e: (float(f["mu"].squeeze()), float(f["tau"].squeeze())) for e, f in fits.items()
    }
    law = story.exact_posterior(x)["tau"]
    points = ", ".join(f"{e} {tau:.2f}" for e, (_, tau) in table[name].items())
    print(f"{name}: tau by {points}; posterior {law.mean:.2f} +- {law.stddev:.2f}")

figure, axes = canvas(
    2.7, "Precision: points and posterior", "The axis spans what the prior allows.", columns=2
)
grid = torch.linspace(0.01, 9.0, 900)
for ax, (name, x) in zip(axes, {"5 numbers": few, "500 numbers": many}.items(), strict=True):
    density = story.exact_posterior(x)["tau"].log_prob(grid).exp()
    ax.plot(grid, density, color="#1b1f24", linewidth=1.3, label="posterior")
    for (engine, (_, tau)), style in zip(table[name].items(), styles(table[name]), strict=True):
        ax.axvline(tau, label=engine, **style)
    label(ax, "precision tau", "density", name)
    ax.set_ylim(0, None)
legend(axes[0], *axes[0].get_legend_handles_labels())
figure

# %% [markdown]
# *What to see: with 500 numbers both points stand on one narrow peak. With five they are two
# numbers out of a wide and skew density, far from each other, and neither says so.*
#
# ## Training: the experiment
#
# Draw a truth $(\mu, \tau)$ from the prior, draw $N$ numbers from the truth, make the three
# predictions, and score each by how many nats of log density it loses on a new number against
# someone who knows the truth (its **regret**), and by how often its 90% interval holds that number.
# Repeat for thousands of truths. All is in formulas, so it takes seconds.
#
# For the MLE the regret is known: with $s^2$ the mean squared deviation, and $\psi$ the digamma
# function,
#
# $$
# R_N = \tfrac12\left[\psi\left(\tfrac{N-1}{2}\right) + \log \tfrac2N\right]
#       + \tfrac12 \cdot \frac{N + 1}{N - 3} - \tfrac12 ,
# $$
#
# which is *infinite* up to $N = 3$: now and then three numbers nearly coincide, and the next one is
# a catastrophe.


# %%
def updated(x):
    """Location, count, shape and rate of the posterior; x is (sets, N)."""
    n, gap = x.shape[1], x - story.mean
    count = story.count + n
    rate = story.rate + 0.5 * (gap.square().sum(1) - gap.sum(1) ** 2 / count)
    return story.mean + gap.sum(1) / count, count, story.shape + n / 2, rate


def predictions(x):
    """The law of the next number, by each answer."""
    loc, count, shape, rate = updated(x)
    precision = (shape - 0.5) / rate  # the mode of p(mu, tau | x); see below
    return {
        "MLE": dist.Normal(x.mean(1), x.std(1, correction=0)),
        "MAP": dist.Normal(loc, precision.rsqrt()),
        "posterior": dist.StudentT(2 * shape, loc, (rate * (1 + 1 / count) / shape).sqrt()),
    }


def regret_of_mle(n):
    n = torch.as_tensor(float(n))
    log_variance = torch.digamma((n - 1) / 2) + (2 / n).log()
    return float(0.5 * log_variance + 0.5 * (n + 1) / (n - 3) - 0.5)


sizes = (5, 7, 10, 20, 50, 100, 200)
regret = {"MLE": [], "MAP": [], "posterior": []}
error = {name: [] for name in regret}
coverage = {name: [] for name in regret}
for n in sizes:
    tau = dist.Gamma(story.shape, story.rate).sample((sets,))
    truth = dist.Normal(story.mean + torch.randn(sets) / (story.count * tau).sqrt(), tau.rsqrt())
    x = truth.sample((n,)).T
    new = truth.sample((10,))  # ten new numbers to a data set
    for name, law in predictions(x).items():
        lost = (truth.log_prob(new) - law.log_prob(new)).mean(0)
        regret[name].append(float(lost.mean()))
        error[name].append(float(lost.std()) / sets**0.5)
        half = (
            reach * law.scale
            if name != "posterior"
            else float(stdtrit(2 * story.shape + n, 0.95)) * law.scale
        )
        inside = truth.cdf(law.loc + half) - truth.cdf(law.loc - half)
        coverage[name].append(float(inside.mean()))
    row = ", ".join(f"{k} {v[-1]:.4f} +- {error[k][-1]:.4f}" for k, v in regret.items())
    print(f"N = {n:>3}: regret in nats: {row}")

figure, (left, right) = canvas(
    3.0, "Where a point may stand for the posterior", "Averages over truths from the prior.",
    columns=2,
)  # fmt: skip
for (name, values), style in zip(regret.items(), styles(regret), strict=True):
    left.errorbar(sizes, values, [2 * e for e in error[name]], label=name, **style)
    right.plot(sizes, coverage[name], label=name, **style)
left.plot(sizes, [1 / n for n in sizes], ":", color="#5b6570", linewidth=0.9, label="1 / N")
left.set_xscale("log")
left.set_yscale("log")
label(left, "observations N", "regret (nats per new number)")
legend(left, *left.get_legend_handles_labels())
right.axhline(0.9, color="#5b6570", linewidth=0.7)
right.set_xscale("log")
right.set_ylim(0.7, 0.95)
label(right, "observations N", "coverage of 90% intervals")
figure

# %% [markdown]
# *What to see. Left: averaging over the posterior loses least, which is a theorem where the truths
# come from the prior. All three lines run together towards $1/N$, half a nat for each of the two
# parameters, over $N$. Right: the posterior's intervals hold what they promise at every $N$; those
# of the plugged-in points are too short by what they do not know of $\mu$ and $\tau$.*
#
# ## MAP depends on how the story is written
#
# The prior can be put on the variance $v = 1 / \tau$ instead of the precision, as an inverse gamma:
# the same joint law of data and parameters, the same posterior, the same predictions. But a density
# is per unit of its variable, and changing the variable multiplies it by a Jacobian, the slope of
# the one in the other, which moves the mode. With posterior shape $a_N$ and rate $b_N$, the mode is
# at $\tau = (a_N - \tfrac12) / b_N$ as a density of $(\mu, \tau)$, at $(a_N + \tfrac12) / b_N$ as
# one of $(\mu, \log \tau)$, and at $(a_N + \tfrac32) / b_N$ as one of $(\mu, v)$. The likelihood is
# no density of parameters, so the MLE stays.


# %%
def by_variance(x):
    v = pyro.sample("v", dist.InverseGamma(story.shape, story.rate))
    mu = pyro.sample("mu", dist.Normal(story.mean, (v / story.count).sqrt()))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, v.sqrt()), obs=x)


with quiet():
    modes = {
        "MAP, precision": ppgen.fit(story.model, few, using=MAP())["tau"],
        "MAP, log precision": ppgen.fit(story.model, few, using=MAP(scale="unconstrained"))["tau"],
        "MAP, variance": 1 / ppgen.fit(by_variance, few, using=MAP())["v"],
        "MLE, precision": ppgen.fit(story.model, few, using=MLE())["tau"],
        "MLE, variance": 1 / ppgen.fit(by_variance, few, using=MLE())["v"],
    }
    by_hmc = 1 / ppgen.fit(by_variance, few, using=hmc)["v"]
modes = {name: float(value.squeeze()) for name, value in modes.items()}
for name, value in modes.items():
    print(f"{name:<18} tau = {value:.3f}, sigma = {value**-0.5:.3f}")
of_tau = story.exact_posterior(few)["tau"]
print(
    f"posterior mean of tau: {by_hmc.mean():.3f} by HMC on the variance, {of_tau.mean:.3f} exactly"
)

# %% [markdown]
# ## Where a mode is of no use: the scale of a hierarchy
#
# Eight schools: effects $\theta_j \sim N(\mu, \tau)$ with estimates $y_j \sim N(\theta_j,
# \sigma_j)$. Summing out $\theta$ leaves a function of $\tau$ alone, which can be drawn. And in the
# centred form the joint density of all ten sites has no maximum: as $\tau \to 0$ with every
# $\theta_j = \mu$, it grows like $\tau^{-8}$, one factor for each school.

# %%
data = {name: value.double() for name, value in schools().items()}
taus = torch.linspace(0.0, 20.0, 401)
covariance = torch.diag_embed(taus[:, None] ** 2 + data["sigma"] ** 2) + 25.0  # mu ~ N(0, 5)
marginal = dist.MultivariateNormal(torch.zeros(8), covariance).log_prob(data["y"])
log_post = marginal + dist.HalfCauchy(5.0).log_prob(taus)
density = (log_post - torch.logsumexp(log_post, 0)).exp() / (taus[1] - taus[0])
mass_above_3 = float(density[taus > 3].sum() / density.sum())
with quiet():
    nuts = ppgen.fit(eight_schools, **data, using=hmc)
    try:
        complaint = ppgen.fit(eight_schools_centred, **data, using=MAP()).headline()
    except ValueError as error_:
        complaint = str(error_)
at_pole = []
for tau in (1e-3, 1e-6):
    values = {"mu": torch.tensor(5.0), "tau": torch.tensor(tau), "theta": torch.full((8,), 5.0)}
    trace = pyro.poutine.trace(pyro.condition(eight_schools_centred, values)).get_trace(**data)
    at_pole.append(float(trace.log_prob_sum()))
power = (at_pole[1] - at_pole[0]) / torch.tensor(1e-6 / 1e-3).log().item()
print(f"towards the pole the joint density grows like tau^{power:.3f}")
print(f"likelihood of tau is highest at {taus[marginal.argmax()]:.1f}, where all schools are equal")
print(f"probability of tau > 3: {mass_above_3:.2f}; posterior mean {nuts['tau'].mean():.2f} by HMC")
print(f"MAP of the centred form: {complaint}")

figure, (ax,) = canvas(2.8, "Scale of eight schools", "Effects integrated out; draws of HMC.")
ax.plot(taus, density, color="#1b1f24", linewidth=1.3, label="posterior of tau")
ax.plot(taus, density.max() * (marginal - marginal.max()).exp(), "--", color="#0072B2",
        label="likelihood of tau (height scaled)")  # fmt: skip
ax.hist(nuts["tau"].flatten().numpy(), bins=80, range=(0, 20), density=True, color="#d8dde3")
label(ax, "tau (points of the test)", "density")
legend(ax, *ax.get_legend_handles_labels())
figure

# %% [markdown]
# *What to see: the highest point is at zero, where eight schools would have one and the same
# effect, and most of the probability is elsewhere. No single $\tau$ stands for this curve. The
# histogram, of draws, follows it.*
#
# ## What goes wrong
#
# - *Trusting a MAP because it "has a prior".* It is one point of a density and moves with the
#   variable; the posterior does not.
# - *Plugging in at small N.* The intervals leave out what is not known of the parameters.
# - *The MLE at the edge.* Three heads in three tosses give $\hat\theta = 1$: tails are impossible
#   (exercise 1). Three numbers that nearly coincide give a needle.
# - *A mode of a hierarchy.* Either there is none, or it lies where nothing varies. Integrate.
# - *High dimensions.* The draws of a normal law in $d$ dimensions lie at distance $\sqrt d$ from
#   its mode, where the density is highest and almost no probability is.
#
# ## Exercises
#
# **1.** After three heads in three tosses: what do the MLE and the posterior predictive say about
# tails, and what does one tail cost each in nats?

# %%
coin, heads = BetaBernoulli(), torch.ones(3)
tails = {"MLE": 1 - heads.mean(), "posterior": 1 - coin.predictive(heads).probs}
for name, p in tails.items():
    print(f"{name}: p(tails) = {p:.2f}, a tail costs {-p.log():.2f} nats")
assert tails["MLE"] == 0
assert abs(tails["posterior"] - 1 / 5) < 1e-12  # Laplace: (0 + 1) / (3 + 2)

# %% [markdown]
# **2.** For seven heads in ten and a uniform prior, in which variable is the MAP equal to the
# posterior mean?

# %%
tosses = (torch.arange(10) < 7).double()
with quiet():
    on_theta = ppgen.fit(coin.model, tosses, using=MAP())["theta"].item()
    on_log_odds = ppgen.fit(coin.model, tosses, using=MAP(scale="unconstrained"))["theta"].item()
print(f"mode in theta {on_theta:.4f}, in log-odds {on_log_odds:.4f}, posterior mean {8 / 12:.4f}")
assert abs(on_theta - 0.7) < 1e-5
assert abs(on_log_odds - 8 / 12) < 1e-5  # theta^8 (1 - theta)^4, with the Jacobian

# %% [markdown]
# **3.** Which estimate of $\theta$ has the smallest squared error on average over a uniform prior,
# from three tosses? Sum over all data; no simulation is needed.

# %%
thetas = (torch.arange(4000) + 0.5) / 4000
k = torch.arange(4.0)
p_k = dist.Binomial(3, thetas[:, None]).log_prob(k).exp()
risk = {
    name: float((p_k * (guess - thetas[:, None]) ** 2).sum(1).mean())
    for name, guess in {"MLE = MAP": k / 3, "posterior mean": (k + 1) / 5}.items()
}
print(", ".join(f"{name}: {value:.4f}" for name, value in risk.items()))
assert abs(risk["MLE = MAP"] - 1 / 18) < 1e-6  # E theta (1 - theta) / 3
assert abs(risk["posterior mean"] - 1 / 30) < 1e-6  # the mean posterior variance

# %% [markdown]
# ## The numbers of this page, checked

# %%
by_t = {n: 2 * stdtr(n - 1, reach * ((n - 1) / (n + 1)) ** 0.5) - 1 for n in (5, 500)}
assert abs(by_t[5] - 0.75) < 0.001
assert abs(by_t[500] - 0.90) < 0.002
assert abs(coverage_at[5] - by_t[5]) < 4.5 * 0.2 / sets**0.5  # its sd over sets is below 0.2
assert abs(coverage_at[500] - by_t[500]) < 4.5 * 0.02 / (sets / 10) ** 0.5
assert (table["5 numbers"]["MLE"][1] - 1 / few.var(correction=0)).abs() < 1e-4
loc, count, shape, rate = (torch.as_tensor(v).squeeze() for v in updated(few[None]))
assert abs(modes["MAP, precision"] - (shape - 0.5) / rate) < 1e-4
assert abs(modes["MAP, log precision"] - (shape + 0.5) / rate) < 1e-4
assert abs(modes["MAP, variance"] - (shape + 1.5) / rate) < 1e-4
assert abs(modes["MLE, precision"] / modes["MLE, variance"] - 1) < 1e-4
assert abs(by_hmc.mean() - of_tau.mean) < 0.1 * of_tau.stddev  # the posterior does not move
batched, single = predictions(few[None])["posterior"], story.predictive(few)
torch.testing.assert_close(batched.mean.squeeze(), single.mean)
torch.testing.assert_close(batched.scale.squeeze(), single.scale)
spread = [float(story.exact_posterior(x)["tau"].stddev) for x in (few, many)]
gap = [abs(t["MLE"][1] - t["MAP"][1]) for t in table.values()]
assert gap[0] > 0.5 * spread[0]
assert gap[1] < 0.5 * spread[1]
for i, n in enumerate(sizes):
    if n >= 10:  # before, the variance of the estimate is infinite
        assert abs(regret["MLE"][i] - regret_of_mle(n)) < 5 * error["MLE"][i]
    assert regret["posterior"][i] < regret["MLE"][i]
    assert regret["posterior"][i] < regret["MAP"][i]
    assert abs(coverage["posterior"][i] - 0.9) < 0.01
    assert coverage["MLE"][i] < 0.9
assert regret["MLE"][0] > 4 * regret["posterior"][0]
assert abs(regret["posterior"][-1] * sizes[-1] - 1) < 0.2  # 1 / N
assert abs(regret["MLE"][-1] * sizes[-1] - 1) < 0.2
assert abs(power + 8) < 1e-3
assert marginal.argmax() == 0
assert 0.4 < mass_above_3 < 0.6
by_grid = float((taus * density).sum() / density.sum())
assert abs(nuts["tau"].mean() - by_grid) < 0.3  # the grid ends at 20
assert "NOT CONVERGED" in complaint or "mode" in complaint

far = torch.randn(1000, 100).norm(dim=1)
assert far.quantile(0.01) > 8.0  # distance from the mode, in 100 dimensions
assert far.quantile(0.99) < 12

# %% [markdown]
# ---
# About 15 seconds in all on two cores of a laptop-class CPU. Your output should look like this
# page; the last digits depend on the machine.
