# %% [markdown]
# # Your own story, three times
#
# **Result first.** Three questions, three stories of your own, each followed to an answer that is
# checked against something the fit has not seen:
#
# | question | story | checked against |
# |---|---|---|
# | How good are 18 batters, after 45 times at bat? | a hierarchy | the rest of the season |
# | What share of a catch is young fish? | a mixture | the process that made the data |
# | When did the Nile fall, and by how much? | a time series | the dam, and the residuals |
#
# The steps are the same each time: *question, story, prior predictive check, fit, diagnosis,
# variational inference (VI) against Hamiltonian Monte Carlo (HMC), answer, check*. Skipping one is
# how a wrong answer gets out.

# %%
import math
import os

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Predictive

import ppgen
from ppgen.inference import HMC, VI, Laplace
from ppgen.plots import canvas, label, legend
from ppgen.progress import quiet

FAST = os.environ.get("PPGEN_FAST") == "1"
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
hmc = HMC(chains=16, draws=40, warmup=60, max_draws=40) if FAST else HMC()
# a sum over 40 years at each step: fewer chains, as many effective draws as it takes
slow = HMC(chains=16, draws=150, warmup=400)
if FAST:
    slow = HMC(chains=8, draws=30, warmup=60, max_draws=30)
vi = Laplace(draws=500) if FAST else VI()  # fast: a stand-in that takes no steps


def both(story, *data, hmc=hmc):
    """VI against HMC, the diagnosis in one line each."""
    with quiet():
        found = ppgen.compare(story, *data, using={"HMC": hmc, "mean-field": vi}, reference="HMC")
    print(found["HMC"].summary().heading)
    print("mean-field:", found.verdicts["mean-field"])
    return found


def interval(draws, mass=0.9):
    """Central, over all draws."""
    tail = torch.tensor([(1 - mass) / 2, 0.5, (1 + mass) / 2])
    return torch.quantile(draws.flatten(), tail.to(draws)).tolist()


# %% [markdown]
# ## 1. A hierarchy: eighteen batters
#
# **Question.** In 1970 eighteen major-league batters had each been at bat 45 times (Efron and
# Morris, 1975). The best had hit 18 times, the worst 7. What will each of them do in the rest of
# the season? The numbers of the rest are known, and are put away until the end.

# %%
hits = torch.tensor([18, 17, 16, 15, 14, 14, 13, 12, 11, 11, 10, 10, 10, 10, 10, 9, 8, 7.0])
later_at_bat = torch.tensor(
    [367, 426, 521, 275, 418, 466, 586, 138, 510, 200, 277, 270, 435, 538, 186, 558, 408, 70.0]
)
later_hits = torch.tensor(
    [127, 127, 144, 61, 114, 126, 154, 29, 137, 46, 73, 69, 132, 142, 42, 159, 129, 14.0]
)


def batters(at_bat, hits=None, spread=0.5):
    mean = pyro.sample("mean", dist.Normal(-1.0, 0.5))  # log-odds: 0.27, between 0.12 and 0.50
    scale = pyro.sample("scale", dist.HalfNormal(spread))
    with pyro.plate("player", len(at_bat)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ability = pyro.deterministic("ability", torch.sigmoid(mean + scale * z))
        pyro.sample("hits", dist.Binomial(at_bat, ability), obs=hits)


# %% [markdown]
# **Story.** Each player has an ability, the chance of a hit. Abilities come from one population,
# whose mean and width are unknown too: $\mathrm{logit}\,\theta_j = m + s z_j$, $z_j \sim N(0, 1)$,
# hits $\sim \mathrm{Binomial}(45, \theta_j)$. If $s$ is small, all are the same player; if it is
# large, each stands for himself. The data choose.
#
# **Prior predictive check.** Before any data: what seasons does the story believe in? Nobody hits
# 0.8 of the time. A prior on $s$ that "lets the data speak" does believe in such players.

# %%
at_bat = torch.full((18,), 45.0)
share = {}
for spread in (0.5, 10.0):
    torch.manual_seed(0)
    drawn = Predictive(batters, num_samples=200 if FAST else 1000)(at_bat, spread=spread)["ability"]
    share[spread] = float(((drawn > 0.6) | (drawn < 0.05)).double().mean())
    print(f"s ~ HalfNormal({spread}): {share[spread]:.1%} of the abilities below 0.05 or above 0.6")

# %% [markdown]
# **Fit, diagnosis, VI against HMC.**

# %%
torch.manual_seed(0)
first = both(batters, at_bat, hits)
ability = first["HMC"]["ability"].flatten(0, 1)  # (draws, 18)

# %% [markdown]
# **Answer and check.** Three predictions of each player's average in the rest of the season: his
# own so far, the mean of all, and the story's.

# %%
rest = later_hits / later_at_bat
guesses = {
    "own average so far": hits / 45,
    "mean of all": (hits.sum() / (45 * 18)).expand(18),
    "hierarchy": ability.mean(0).to(hits),
}
rmse = {name: float((guess - rest).square().mean().sqrt()) for name, guess in guesses.items()}
for name, error in rmse.items():
    print(f"{name:<20} error {error:.4f}")
with torch.no_grad():
    torch.manual_seed(1)
    replayed = dist.Binomial(later_at_bat.to(ability), ability).sample() / later_at_bat
low, high = (torch.quantile(replayed, q, dim=0) for q in (0.05, 0.95))
covered = int(((rest >= low) & (rest <= high)).sum())
print(f"{covered} of 18 inside their 90% predictive interval")

figure, (ax,) = canvas(
    3.2, "Shrinkage", "Bars: 90% predictive intervals for the rest of the season."
)
place = torch.arange(18)
ax.vlines(place, low, high, color="#56B4E9", linewidth=4, alpha=0.6)
ax.plot(place, hits / 45, "o", color="#D55E00", markersize=4, label="first 45 times at bat")
ax.plot(place, guesses["hierarchy"], "_", color="#0072B2", markersize=9, label="hierarchy")
ax.plot(place, rest, "x", color="#1b1f24", markersize=5, label="rest of the season")
label(ax, "player, by his first 45", "batting average")
legend(ax, *ax.get_legend_handles_labels())
figure

# %% [markdown]
# *What to see: the points of the first 45 (orange) run from 0.40 to 0.16; the rest of the season
# (crosses) hardly follows them; the story's estimates (blue) are pulled towards the mean, and the
# bars cover nearly all crosses.* Four fifths of what looked like talent was luck.
#
# ## 2. A mixture: the young in a catch
#
# **Question.** Sixty fish, measured in cm, of two year classes. What share of them is young?
# The process is stated, so that the answer can be checked: with probability 0.35 a fish is young,
# $N(22, 2)$, else old, $N(29, 3)$. The obvious way, to count those below 25 cm, has no error bar.

# %%
torch.manual_seed(4)
young_truth = torch.rand(60) < 0.35
length = torch.where(young_truth, 22 + 2 * torch.randn(60), 29 + 3 * torch.randn(60))
print(f"{int(young_truth.sum())} young ones in the catch; {int((length < 25).sum())} below 25 cm")


def catch(count, length=None):
    share = pyro.sample("share", dist.Beta(2.0, 2.0))
    start = pyro.sample("start", dist.Normal(22.0, 3.0))  # mean length of the young
    gap = pyro.sample("gap", dist.LogNormal(math.log(6.0), 0.5))  # and how much longer the old are
    spread = pyro.sample("spread", dist.LogNormal(math.log(2.5), 0.4).expand([2]).to_event(1))
    with pyro.plate("fish", count):
        old = pyro.sample("old", dist.Bernoulli(1 - share), infer={"enumerate": "parallel"})
        scale = torch.where(old == 1, spread[1], spread[0])
        pyro.sample("length", dist.Normal(start + gap * old, scale), obs=length)


# %% [markdown]
# **Story.** Which class a fish belongs to is a latent with two values, and `ppgen` sums it out. The
# classes have an order, because `gap` is positive: without it the two could swap names, and every
# mean over the posterior would be a mean over both names.
#
# **Prior predictive check.** Lengths of fish from the prior: all positive, few beyond half a metre?

# %%
torch.manual_seed(0)
imagined = Predictive(catch, num_samples=200 if FAST else 1000)(60)["length"]
bounds = interval(imagined, 0.98)
print(f"98% of the imagined lengths lie between {bounds[0]:.0f} and {bounds[2]:.0f} cm")

# %% [markdown]
# **Fit, diagnosis, VI against HMC.**

# %%
torch.manual_seed(0)
second = both(catch, 60, length)
share_of_young = second["HMC"]["share"]
whole = interval(share_of_young)
print(f"share of the young: {whole[1]:.2f}, 90% from {whole[0]:.2f} to {whole[2]:.2f} (truth 0.35)")

# %% [markdown]
# **Answer and check.** Fish by fish: the probability that it is young, by Bayes' rule at each draw
# of the posterior, then averaged. (`posterior.predict` is no help here: it runs the story forward,
# so it draws new fish from the prior of `old`.)

# %%
post = second["HMC"]
start, gap, spread = (post[k].flatten(0, 1)[:, None] for k in ("start", "gap", "spread"))
weight = share_of_young.flatten()[:, None]
log_young = weight.log() + dist.Normal(start, spread[..., 0]).log_prob(length.to(weight))
log_old = (1 - weight).log() + dist.Normal(start + gap, spread[..., 1]).log_prob(length.to(weight))
is_young = torch.sigmoid(log_young - log_old).mean(0)  # (60)
told_right = int(((is_young > 0.5) == young_truth).sum())
expected_right = float(torch.maximum(is_young, 1 - is_young).sum())
print(f"{told_right} of 60 told right, {expected_right:.1f} expected by the story itself")

figure, (left, middle) = canvas(
    2.7, "A catch of two year classes", "Left: each fish. Right: the share of the young.", columns=2
)
for name, chosen, colour in (
    ("young", young_truth, "#0072B2"), ("old", ~young_truth, "#D55E00")
):  # fmt: skip
    left.plot(length[chosen], is_young[chosen], "o", color=colour, markersize=3.5, label=name)
label(left, "length, cm", "probability of being young")
legend(left, *left.get_legend_handles_labels())
for name, colour in (("HMC", "#1b1f24"), ("mean-field", "#0072B2")):
    draws = second[name]["share"].flatten()
    middle.hist(draws, bins=50, density=True, histtype="step", color=colour, label=name)
middle.axvline(0.35, color="#5b6570", linestyle=":", label="truth")
label(middle, "share of the young", "density")
legend(middle, *middle.get_legend_handles_labels())
figure

# %% [markdown]
# *What to see. Left: a fish of 20 cm is young, one above 30 is old, and between the two the story
# does not pretend to know. Right: the share is uncertain by almost two tenths either way, and
# mean-field VI is too sure of it: share, start, gap and spreads move together, which independent
# factors cannot say.*
#
# ## 3. A time series: the Nile
#
# **Question.** The yearly flow of the Nile at Aswan, 1871 to 1970, in units of $10^8$ m³ (Cobb,
# 1978). Was there a change, when, and by how much?

# %%
flow = torch.tensor([
    1120, 1160, 963, 1210, 1160, 1160, 813, 1230, 1370, 1140, 995, 935, 1110, 994, 1020, 960, 1180,
    799, 958, 1140, 1100, 1210, 1150, 1250, 1260, 1220, 1030, 1100, 774, 840, 874, 694, 940, 833,
    701, 916, 692, 1020, 1050, 969, 831, 726, 456, 824, 702, 1120, 1100, 832, 764, 821, 768, 845,
    864, 862, 698, 845, 744, 796, 1040, 759, 781, 865, 845, 944, 984, 897, 822, 1010, 771, 676, 649,
    846, 812, 742, 801, 1040, 860, 874, 848, 890, 744, 749, 838, 1050, 918, 986, 797, 923, 975, 815,
    1020, 906, 901, 1170, 912, 746, 919, 718, 714, 740.0
])  # fmt: skip
year = torch.arange(1871, 1971)
y = flow / 100
candidates = torch.arange(10, 50, 5 if FAST else 1)  # last year of the old level: 1881 to 1920


def nile(steps, y):
    before = pyro.sample("before", dist.Normal(9.0, 3.0))
    change = pyro.sample("change", dist.Normal(0.0, 3.0))
    noise = pyro.sample("noise", dist.LogNormal(0.0, 0.7))
    memory = pyro.sample("memory", dist.Uniform(-1.0, 1.0))
    odds = torch.ones(len(candidates), dtype=y.dtype)
    when = pyro.sample("when", dist.Categorical(odds), infer={"enumerate": "parallel"})
    later = torch.arange(steps) > candidates[when][..., None]  # where the new level holds
    off = y - (before + change * later)  # each year's distance from its level
    last = torch.nn.functional.pad(off[..., :-1], (1, 0))
    # the law of y given the year before, in one site
    pyro.sample("shock", dist.Normal(memory * last, noise).to_event(1), obs=off)


# %% [markdown]
# **Story.** One level before an unknown year, another after it; around its level the river has a
# memory of one year: $y_t = m_t + \phi\,(y_{t-1} - m_{t-1}) + \sigma\,\varepsilon_t$. The year of
# the change is a latent with 40 values, 1881 to 1920, summed out. $\phi$ matters: with a large one,
# a long run below the mean needs no change at all. (The site is the distance from the
# level, a shift of $y$ whose Jacobian is one, so its density is that of $y$.)
#
# **Prior predictive check.** A story whose observed site depends on the data cannot be run by
# `Predictive`; so by hand, in three lines.

# %%
torch.manual_seed(0)
count, worlds = 500, []
before, change = 9 + 3 * torch.randn(count), 3 * torch.randn(count)
noise, memory = (0.7 * torch.randn(count)).exp(), 2 * torch.rand(count) - 1
when, off = torch.randint(10, 50, (count,)), torch.zeros(count)
for t in range(100):
    off = memory * off + noise * torch.randn(count)
    worlds.append(before + change * (t > when) + off)
worlds = torch.stack(worlds, 1)  # (500, 100)
negative = float((worlds < 0).double().mean())
print(f"{negative:.1%} of the imagined years have a negative flow; median {worlds.median():.1f}")

# %% [markdown]
# A few per cent of impossible years: a normal law is not exact about rivers, and near the data, ten
# standard deviations of noise from zero, it does not matter.
#
# **Fit, diagnosis, VI against HMC.**

# %%
torch.manual_seed(0)
third = both(nile, 100, y, hmc=slow)
post = third["HMC"]
by = {name: interval(post[name]) for name in ("before", "change", "memory", "noise")}
for name, (a, b, c) in by.items():
    print(f"{name:<7} {b:6.2f}, 90% from {a:.2f} to {c:.2f}")

# %% [markdown]
# **Answer.** The year that was summed out comes back by Bayes' rule, at each draw of the other
# parameters: its 40 likelihoods, normalised, and then averaged. The size of the change, relative to
# the level before it.

# %%
theta = {name: post[name].flatten()[:, None, None] for name in by}  # (draws, 1, 1)
later = torch.arange(100) > candidates[:, None]  # (40, 100)
off = y - (theta["before"] + theta["change"] * later)
last = torch.nn.functional.pad(off[..., :-1], (1, 0))
log_p = dist.Normal(theta["memory"] * last, theta["noise"]).log_prob(off).sum(-1)  # (draws, 40)
mass = log_p.softmax(-1).mean(0)
best = int(mass.argmax())
mode = int(candidates[best])
near = float(mass[max(best - 2, 0) : best + 3].sum())
relative = interval(post["change"] / post["before"])
print(f"last year of the old level: {1871 + mode}; within two years of it: {near:.2f}")
print(f"change {relative[1]:+.0%}, 90% from {relative[0]:+.0%} to {relative[2]:+.0%}")

level = torch.where(torch.arange(100) > mode, by["before"][1] + by["change"][1], by["before"][1])
figure, (left, right) = canvas(
    2.7,
    "The Nile at Aswan",
    "Left: flow and fitted levels. Right: when the level changed.",
    columns=2,
)
left.plot(year, flow, color="#9aa4af", linewidth=1.0, label="flow")
left.plot(year, 100 * level, color="#0072B2", label="level")
label(left, "year", "flow, 10^8 cubic metres a year")
legend(left, *left.get_legend_handles_labels())
right.bar(1871 + candidates, mass, width=1.0, color="#0072B2")
right.set_xlim(1885, 1912)
label(right, "last year of the old level", "posterior probability")
figure

# %% [markdown]
# *What to see: one step down before 1900, and nothing else; nearly all of the probability is on a
# few years.*
#
# **Check.** Work on the first Aswan dam began in 1898. And the story's own claim, that what remains
# is noise without memory, is testable: the residuals' correlations with the years before should lie
# within $\pm 2 / \sqrt{100}$.

# %%
off = y - level
residual = off[1:] - by["memory"][1] * off[:-1]
standard = (residual - residual.mean()) / residual.std()
lags = [float((standard[k:] * standard[:-k]).mean()) for k in range(1, 6)]
print("residual correlation at lags 1 to 5:", ", ".join(f"{r:+.2f}" for r in lags))
print(f"largest residual: {float(standard.abs().max()):.1f} standard deviations")

# %% [markdown]
# ## What goes wrong
#
# - *No prior predictive check.* `HalfNormal(10)` looks modest and believes in players who never
#   miss.
# - *Labels that can swap.* A mixture without an order has two equal modes, and means over both are
#   the mean of nothing.
# - *Believing VI because its ELBO has settled.* Above it is too sure in at least one story; the
#   report says so, the optimiser does not.
# - *Checking against the data that were fitted.* Each check above uses something else: the rest of
#   the season, the known process, history and residuals.
#
# ## Exercises
#
# **1.** How many times at bat would make a player's own average worth as much as the hierarchy's
# mean? For a normal approximation, the weight of the own average is $n / (n + k)$ with
# $k = \mu(1-\mu) / \tau^2$, $\tau$ the population's standard deviation of abilities.

# %%
mu, tau = float(ability.mean()), float(ability.std(1).mean())
k = mu * (1 - mu) / tau**2
print(f"population sd {tau:.3f}: about {k:.0f} times at bat; weight of 45: {45 / (45 + k):.2f}")
shrink = guesses["hierarchy"] - mu
slope = float((shrink * (hits / 45 - mu)).sum() / (hits / 45 - mu).square().sum())
print(f"weight found by regression on the own averages: {slope:.2f}")
assert k > 45  # 45 times at bat are not yet worth as much as the population
assert 0.05 < slope < 0.5

# %% [markdown]
# **2.** Count the fish below 25 cm in catches of 60 from the same process. Is that an unbiased
# estimate of the share of the young?

# %%
torch.manual_seed(0)
young = torch.rand(4000, 60) < 0.35
many = torch.where(young, 22 + 2 * torch.randn(4000, 60), 29 + 3 * torch.randn(4000, 60))
counted = (many < 25).double().mean(1)
cut = torch.tensor(25.0)
below = 0.35 * dist.Normal(22.0, 2.0).cdf(cut) + 0.65 * dist.Normal(29.0, 3.0).cdf(cut)
print(f"mean {counted.mean():.3f}, by formula {below:.3f}, truth 0.350; sd {counted.std():.3f}")
assert abs(counted.mean() - below) < 5 * float(counted.std()) / 4000**0.5
assert abs(below - 0.35) > 0.01  # biased, and no larger catch mends it

# %% [markdown]
# **3.** What would the interval of the change be, if years had no memory? Use the draws of the
# posterior with $\phi$ near zero.

# %%
flat = {name: post[name].flatten() for name in ("memory", "change")}
forgetful = flat["change"][flat["memory"].abs() < 0.07]
ratio = float(forgetful.std() / flat["change"].std())
print(f"{len(forgetful)} draws; the interval of the change has {ratio:.2f} of the width")
if not FAST:
    assert ratio < 1  # years that resemble their neighbours count for less than so many

# %% [markdown]
# ## The numbers of this page, checked

# %%
assert FAST or all(found["HMC"].converged for found in (first, second, third))
assert share[0.5] < 0.1
assert share[10.0] > 0.5
assert rmse["hierarchy"] < 0.7 * rmse["own average so far"]
assert covered >= 14  # 16.2 expected; 13 or fewer of 18 has probability 0.03
assert bounds[0] > 0
assert bounds[2] < 60
assert whole[0] < 0.35 < whole[2]
assert 0.12 < (whole[2] - whole[0]) / 2 < 0.25  # almost two tenths either way
assert FAST or 0.1 < slope < 0.3  # four fifths were luck
assert abs(told_right - expected_right) < 8
assert negative < 0.1
assert 1893 <= 1871 + mode <= 1902
assert near > (0.6 if FAST else 0.9)
assert by["change"][2] < 0  # a fall, beyond doubt
assert -0.35 < relative[1] < -0.15
assert all(abs(r) < 0.25 for r in lags)
levels = [found.verdicts["mean-field"].level for found in (first, second, third)]
assert FAST or any(level != "pass" for level in levels)

# %% [markdown]
# ---
# About 50 seconds in all on two cores of a laptop-class CPU. Your output should look like this
# page; the last digits depend on the machine.
