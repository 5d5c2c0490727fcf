# %% [markdown]
# # Variational inference against MCMC: the report, read aloud
#
# **Result first.** The same straight line, the same twenty outcomes, and three places of the
# origin: mean-field variational inference (VI) is *right*, *repairable*, or *wrong*, according to
# where $x = 0$ was put. On a fourth story, eight schools, it is wrong in a way that a richer normal
# does not mend. In each case the optimiser converged and says so; only the comparison tells them
# apart.

# %%
import os

import arviz_plots
import arviz_stats
import pyro
import pyro.distributions as dist
import torch

import ppgen
from ppgen import diagnostics, plots
from ppgen.inference import HMC, VI, full_rank_guide
from ppgen.inference.compare import comparison
from ppgen.models import eight_schools, eight_schools_centred
from ppgen.models.eight_schools import data as schools
from ppgen.plots import canvas, label, legend, styles
from ppgen.program import Program
from ppgen.progress import quiet

FAST = os.environ.get("PPGEN_FAST") == "1"
hmc = HMC(draws=50, warmup=40) if FAST else HMC()
vi = {"tolerance": 1e-2} if FAST else {}  # when it stops


def line(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    intercept = pyro.sample("intercept", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(intercept + slope * x, 1.0), obs=y)


x = torch.linspace(-1.2, 1.2, 20)
y = 1.0 + 2.0 * x + torch.sin(7.0 * x)
origins = {"right": 0.0, "repairable": 0.4, "wrong": 6.0}  # how far the data lie from x = 0
cases = {}
with quiet():
    for name, offset in origins.items():
        engines = {"HMC": hmc, "mean-field": VI(draws=10_000, **vi)}
        if name == "wrong":
            engines["full-rank"] = VI(guide=full_rank_guide(), **vi)
        cases[name] = ppgen.compare(line, x + offset, y, using=engines, reference="HMC")
for name, case in cases.items():
    state = "converged" if case["mean-field"].converged else "not converged"
    print(f"{name}: the optimiser {state}; verdict: {case.verdicts['mean-field']}")

# %% [markdown]
# ## Data and objective
#
# $y_n \sim N(a + b\,x_n, 1)$ with wide priors. The posterior of slope and intercept is a normal
# whose correlation is $\rho = -\bar x / \sqrt{\overline{x^2}}$, up to the priors: zero where the
# data are centred. Independent normals have the width $\sqrt{1 - \rho^2}$ of the true one
# (`07_two_directions_of_kl`). And their importance weights $w = p / q$ have a Pareto tail of shape
# $\hat k = |\rho|$, since along the diagonal $p$ has $1 / (1 - |\rho|)$ times the variance of $q$.
# So all that the report says here can be predicted.

# %%
print("origin       rho   sd ratio: predicted, found   k-hat: predicted, found")
predicted, found = {}, {}
for name, offset in origins.items():
    shifted = x + offset
    rho = float(shifted.mean() / shifted.square().mean().sqrt())
    rows = {row.name: row for row in cases[name].marginals["mean-field"]}
    khat = cases[name]["mean-field"].diagnosis()["khat"]
    predicted[name], found[name] = (rho, (1 - rho**2) ** 0.5), (khat, rows["slope"].ratio)
    print(f"{name:<11} {-rho:>5.2f} {predicted[name][1]:>19.2f}, {rows['slope'].ratio:>5.2f} "
          f"{rho:>19.2f}, {khat:>5.2f}")  # fmt: skip

figure, axes = canvas(
    2.9, "One line, three origins", "Dots: HMC. Line: two standard deviations of mean-field VI.",
    columns=3,
)  # fmt: skip
angle = torch.linspace(0, 2 * torch.pi, 100)
for ax, (name, case) in zip(axes, cases.items(), strict=True):
    a, b = (case["HMC"][site].flatten()[:1500] for site in ("intercept", "slope"))
    ax.plot(a, b, ".", color="#9aa4af", markersize=2, alpha=0.6)
    q = [case["mean-field"][site].flatten() for site in ("intercept", "slope")]
    ax.plot(
        q[0].mean() + 2 * q[0].std() * angle.cos(),
        q[1].mean() + 2 * q[1].std() * angle.sin(),
        color="#0072B2",
        linewidth=1.8,
    )
    label(ax, "intercept", "slope", f"{name}: x around {origins[name]:g}")
figure

# %% [markdown]
# *What to see: the farther the data from $x = 0$, the thinner the ridge. The circle of independent
# normals has to fit inside it.*
#
# ## What the reference does: a chain by hand
#
# Why should HMC be believed where VI is not? It makes no assumption about the shape of the
# posterior. A **Markov chain** proposes a new point $\theta'$ near the old one and accepts it with
# probability $\min(1, p(\theta') / p(\theta))$, else stays (Metropolis et al., 1953). That leaves
# the posterior as it is, and needs only ratios of the joint density, never the evidence. But its
# steps must be as small as the ridge is thin, and it wanders: $n$ steps lead about $\sqrt n$ far.
#
# **Hamiltonian Monte Carlo** gives the point a push, a momentum $r \sim N(0, I)$, and lets it roll
# on the surface $-\log p$ for a while: half a kick by the gradient, a step, half a kick
# (*leapfrog*). The energy $-\log p(\theta) + \tfrac12 \lVert r \rVert^2$ changes little on the way,
# by $\Delta$, so that the far end of the path is mostly accepted: the probability is
# $\min(1, e^{-\Delta})$.
#
# Whether chains have arrived is asked by starting them far apart. With $n$ draws each, variance $W$
# within chains (mean over chains) and variance $B$ of the chains' means,
#
# $$
# \hat R = \sqrt{\frac{\frac{n-1}{n}\, W + B}{W}} ,
# $$
#
# which is 1 where the chains say the same. (The suite's is computed from ranks of half chains,
# after Vehtari et al., 2021, and sees more.) Below, both kinds of chain on the thinnest ridge, with
# as many evaluations of the density.

# %%
torch.manual_seed(0)
program = Program(line, x + origins["wrong"], y)  # log p and its gradient, for many points at once
design = torch.stack([x + origins["wrong"], torch.ones(20)], -1).double()
covariance = (design.T @ design + torch.eye(2) / 100).inverse()  # of (slope, intercept), exactly
mean = covariance @ design.T @ y.double()
LENGTH, TRANSITIONS, STEP = 40, 20 if FAST else 60, 0.05
start = mean + 2 * torch.randn(8, 2).double() @ torch.linalg.cholesky(covariance).T


def roll(z):
    """One transition of HMC for each row of z: where it ends, whether accepted, the path."""
    value, slope = program.value_and_grad(z)
    r = torch.randn_like(z)
    energy, path = 0.5 * r.square().sum(-1) - value, [z]
    for _ in range(LENGTH):
        r = r + 0.5 * STEP * slope
        path.append(path[-1] + STEP * r)
        value, slope = program.value_and_grad(path[-1])
        r = r + 0.5 * STEP * slope
    change = 0.5 * r.square().sum(-1) - value - energy
    accepted = torch.rand(len(z)) < (-change).exp()
    return torch.where(accepted[:, None], path[-1], z), accepted, torch.stack(path)


def wander(z):
    """One step of Metropolis for each row of z."""
    there = z + STEP * torch.randn_like(z)
    ratio = (program.log_density(there) - program.log_density(z)).exp()
    return torch.where((torch.rand(len(z)) < ratio)[:, None], there, z)


def r_hat(draws):
    """Of (chains, draws)."""
    n, within = draws.shape[1], draws.var(1).mean()
    return float((((n - 1) / n * within + draws.mean(1).var()) / within).sqrt())


rolled, taken, z = [], [], start
for _ in range(TRANSITIONS):
    z, accepted, path = roll(z)
    rolled.append(z)
    taken.append(accepted)
wandered, z = [], start
for _ in range(TRANSITIONS * LENGTH):
    z = wander(z)
    wandered.append(z)
chains = {"HMC": torch.stack(rolled, 1), "Metropolis": torch.stack(wandered, 1)}  # (8, n, 2)
accepted = float(torch.stack(taken).double().mean())
settled = {name: r_hat(draws[..., 1]) for name, draws in chains.items()}
print(f"HMC accepts {accepted:.0%}; R-hat of the intercept {settled['HMC']:.3f}, "
      f"of Metropolis {settled['Metropolis']:.3f}")  # fmt: skip
by_hand = chains["HMC"].flatten(0, 1)
print(f"intercept by HMC {by_hand[:, 1].mean():.2f} +- {by_hand[:, 1].std():.2f}, "
      f"exactly {mean[1]:.2f} +- {covariance[1, 1].sqrt():.2f}")  # fmt: skip

figure, (left, middle, right) = canvas(
    2.9, "Rolling and wandering along a ridge",
    "Left: eight times 40 evaluations, from one point. Then: four chains each, from far apart.",
    columns=3,
)  # fmt: skip
a, b = (cases["wrong"]["HMC"][site].flatten()[:1500] for site in ("intercept", "slope"))
left.plot(a, b, ".", color="#c3cad2", markersize=2)
paths = {"HMC": path.transpose(0, 1), "Metropolis": chains["Metropolis"][:, -LENGTH - 1 :]}
for (name, ways), style in zip(paths.items(), styles(paths), strict=True):
    ways = ways - ways[:, :1] + mean  # all from the middle
    left.plot(ways[..., 1].T, ways[..., 0].T, color=style["color"], linewidth=1.0)
    left.plot([], [], color=style["color"], label=name)
label(left, "intercept", "slope")
legend(left, *left.get_legend_handles_labels(), loc="lower left")
for ax, (name, draws) in zip((middle, right), chains.items(), strict=True):
    for one in draws[:4, :, 1]:
        ax.plot(one, linewidth=0.9)
    ax.set_ylim(float(mean[1]) - 12, float(mean[1]) + 12)
    label(ax, "transition", "intercept", f"{name}: R-hat {settled[name]:.2f}")
figure

# %% [markdown]
# *What to see. Left: forty evaluations take HMC along the ridge, and leave Metropolis where it was.
# Right: the chains of HMC forget at once where they began; those of Metropolis do not meet, and
# R-hat says so. A single one of them would have looked quiet.*
#
# The engine `HMC` adds what makes this work unattended: it chooses the step and the length, and
# stretches the space so that the ridge becomes a circle, all during a warm-up that is thrown away.
#
# ## Reading the report: right
#
# Top down. *The table*: is the reference converged, with R-hat at most 1.01, enough effective draws
# (ESS), no divergences? If not, stop. *The scalars*: `shift/sd`, how far the means are apart in
# standard deviations of the reference, and `z`, whether that is more than noise; `sd ratio`;
# `W1/sd`, the distance of the whole margins. *The verdict*, with its thresholds.

# %%
print(cases["right"])

# %% [markdown]
# Read aloud: "the reference may be believed; both means and both widths are those of HMC; use it".
#
# ## Reading the report: repairable

# %%
print(cases["repairable"].verdicts["mean-field"])
repair = cases["repairable"].repairs["mean-field"][0]
print(repair)
print(cases["wrong"].repairs["mean-field"][0])

# %% [markdown]
# Read aloud: "means right, intervals a little too narrow. But k-hat, the tail of the importance
# weights, is below its limit of 0.7: take each draw as often as its weight says, and what is left
# is as good as independent draws from the posterior". For the far origin the same is tried and
# refused: the weights have no finite variance, and a few draws would carry everything.
#
# ## Reading the report: wrong, and what mends it
#
# For the far origin the family is at fault, and a family with correlations is exact. Centring $x$
# would have been free.

# %%
print("mean-field:", cases["wrong"].verdicts["mean-field"])
print("full-rank: ", cases["wrong"].verdicts["full-rank"])

# %% [markdown]
# **Eight schools, centred form.** Its posterior is a funnel: the smaller $\tau$, the tighter the
# eight $\theta_j$. HMC in these coordinates does not converge either. So the reference is HMC on
# the non-centred form of the same model, which has no funnel, with the sites that both forms share.

# %%
normals = {"mean-field": None} | ({} if FAST else {"full-rank": full_rank_guide()})
with quiet():
    reference = ppgen.fit(eight_schools, **schools(), using=hmc)
    posteriors = {"HMC": reference.only("mu", "tau", "theta")}
    for name, guide in normals.items():
        using = VI(guide=guide, **vi)
        posteriors[name] = ppgen.fit(eight_schools_centred, **schools(), using=using)
funnel = comparison(posteriors, "HMC", "eight schools, centred")
for name in normals:
    print(f"{name}: {funnel.verdicts[name]}")
    print(f"  {funnel.repairs[name][0]}")

samples = {
    name: torch.stack([p["theta"][..., 0].flatten(), p["tau"].flatten().log()], -1)
    for name, p in posteriors.items()
}
plots.pair(samples, ["effect of school 1 (points)", "log tau"], reference="HMC")

# %% [markdown]
# *What to see: the draws of HMC reach far down into small $\tau$, where the effects are tied
# together. A normal, with or without correlations, cannot be wide above and narrow below; it
# settles above, so that $\tau$ is too large.* Here the cure is the other parametrisation.
#
# ## Good chains and bad ones, to look at
#
# R-hat is one number; two pictures say what is behind it. A **trace** shows the draws of a few
# chains in turn. A **rank plot** pools the draws of all chains, numbers them by size, and asks
# where each chain's numbers lie: if all chains draw from one law, every chain has its share of each
# tenth, up to chance. Three sets of chains: the engine `HMC` on the far line; Metropolis on the
# same, from above; and HMC on the centred schools, where the neck of the funnel is narrower than a
# step of the size that suits its mouth.

# %%
length = 40 if FAST else 150
short = HMC(chains=8, draws=length, max_draws=length, warmup=40 if FAST else 60, max_leapfrog=16)
with quiet():
    stuck = ppgen.fit(eight_schools_centred, **schools(), using=short)
gallery = {  # (chains, draws)
    "mixing": ("intercept", cases["wrong"]["HMC"]["intercept"]),
    "not meeting": ("intercept", chains["Metropolis"][..., 1]),
    "sticking": ("log tau", stuck["tau"].log()),
}
health = {}
for name, (_, draws) in gallery.items():
    health[name] = [float(f(draws)) for f in (diagnostics.rhat, diagnostics.ess_bulk)]
    print(f"{name:<12} R-hat {health[name][0]:.3f}, {health[name][1]:7.0f} effective draws of "
          f"{draws.numel():,}")  # fmt: skip

figure, axes = canvas(
    4.2, "Three sets of chains", "Above: traces. Below: ranks. Four chains of each.",
    rows=2, columns=3,
)  # fmt: skip
for above, below, (name, (what, draws)) in zip(axes[:3], axes[3:], gallery.items(), strict=True):
    ranks = draws.flatten().argsort().argsort().reshape(draws.shape) / draws.numel()
    step = max(1, draws.shape[1] // 150)  # draws that are shown
    for one, places in zip(draws[:4], ranks[:4], strict=True):
        above.plot(range(0, len(one), step), one[::step], linewidth=0.8)
        share = torch.histc(places.double(), 10, 0.0, 1.0) / len(places) * 10
        below.stairs(share.tolist(), torch.linspace(0, 100, 11).tolist(), baseline=None)
    below.axhline(1.0, color="#5b6570", linewidth=0.7)
    below.set_ylim(bottom=0)
    label(above, "draw", what, f"{name}: R-hat {health[name][0]:.2f}")
    label(below, "rank, percent", "share, even = 1" if below is axes[3] else "")
figure

# %% [markdown]
# *What to see (the scales differ). Left: traces that look alike and ranks near one, as they should.
# Middle: each chain keeps to a part of the range, so that its ranks pile up there. Right: level
# stretches, where a chain sits at small $\tau$ and its proposals are refused; and the lowest ranks,
# those of the neck, are too many in some chains and missing in others.* The middle chains are slow;
# those at the right need the other parametrisation, which the reference has.
#
# `plots.trace` and `plots.rank_histogram` draw these for any posterior.
#
# ## On to ArviZ
#
# ArviZ has many more summaries, comparisons and pictures, and other libraries read its format.
# `to_datatree` gives the draws and the sampler's statistics; with the story and its data also the
# log-likelihood of each datum, which leave-one-out cross-validation asks for, and replicated data.

# %%
ours = cases["wrong"]["HMC"]
tree = ours.to_datatree(line, x + origins["wrong"], y)
print("groups:", ", ".join(tree.children))
table = arviz_stats.summary(
    tree, var_names=["slope", "intercept"], round_to="none", ci_prob=0.9, ci_kind="eti"
)
print(table[["mean", "sd", "r_hat", "ess_bulk"]].round(3).to_string())
loo = arviz_stats.loo(tree)
print(f"leave-one-out: {loo.elpd:.2f} +- {loo.se:.2f} nats for {len(y)} outcomes; "
      f"largest k-hat {float(loo.pareto_k.max()):.2f}")  # fmt: skip

four = ours.to_datatree().isel(chain=slice(4))
drawn = arviz_plots.plot_rank(four, var_names=["intercept"], backend="matplotlib")
axis = drawn.viz["figure"].item().axes[0]
axis.set(xlabel="rank, as a share", ylabel="ECDF less even")
print(f"in the picture: four of {ours.chains} chains")

# %% [markdown]
# *What to see: ArviZ's rank plot of four of the chains. A line is the share of one chain's ranks
# below each place (ECDF, the cumulative distribution), less what even ranks have; inside the grey
# band nothing speaks against the chain.*
#
# ## What goes wrong
#
# - *Comparing with chains that did not converge.* The verdict is then `unknown`, by design.
# - *Taking k-hat alone.* It is free of scale: weights that hardly vary may have a large k-hat. Read
#   it with IS-ESS/S, the effective share of the draws; the verdict uses both.
# - *Comparing means only.* They are within 0.1 standard deviations in all three lines.
# - *Asking for a verdict on what you do not use.* For predictions at the centre of the data the
#   wrong fit is better than for its intercept (exercise 2).
#
# ## Exercises
#
# **1.** From which origin on are the intervals more than 25% too narrow, which the report calls a
# failure? Compute it from $\rho$.

# %%
spread = float(x.square().mean())
limit = (spread * (1 / 0.75**2 - 1)) ** 0.5  # sd ratio^2 = spread / (spread + offset^2)
print(f"data around {limit:.2f}")
assert origins["repairable"] < limit < origins["wrong"]

# %% [markdown]
# **2.** How wrong is the "wrong" mean-field fit about the value of the line at the centre of the
# data, and how wrong about the line at zero?

# %%
widths = {}
for place in (6.0, 0.0):
    sd = {
        name: float((case := cases["wrong"][name])["intercept"].add(case["slope"] * place).std())
        for name in ("HMC", "mean-field")
    }
    widths[place] = sd["mean-field"] / sd["HMC"]
    print(f"at x = {place:g}: sd {sd['mean-field']:.3f}, by HMC {sd['HMC']:.3f}")
assert widths[6.0] > 1.2  # too wide where the errors of the two should cancel
assert widths[0.0] < 0.3  # too narrow by itself

# %% [markdown]
# **3.** Repair by hand: resample the draws of the repairable case by $w = p / q$, and look at the
# correlation of slope and intercept.

# %%
fitted = cases["repairable"]["mean-field"]
weights = torch.as_tensor(fitted.log_weights).softmax(0)
with torch.random.fork_rng():
    torch.manual_seed(0)
    chosen = torch.multinomial(weights, 10_000, replacement=True)
both = torch.stack([fitted["intercept"].flatten(), fitted["slope"].flatten()])
before, after = both.corrcoef()[0, 1], both[:, chosen].corrcoef()[0, 1]
truth = -predicted["repairable"][0]
print(f"correlation before {before:+.2f}, after {after:+.2f}, truth {truth:+.2f}")
assert abs(before) < 0.05
assert abs(after - truth) < 0.1

# %% [markdown]
# ## The numbers of this page, checked

# %%
assert settled["HMC"] < 1.1 < 1.2 < settled["Metropolis"]
assert accepted > 0.6
tail = 5 / (8 * TRANSITIONS) ** 0.5  # five standard errors, of draws that are nearly independent
assert abs(by_hand[:, 1].mean() - mean[1]) < tail * covariance[1, 1].sqrt()
assert health["mixing"][0] < 1.01
assert health["mixing"][1] > 400
assert not stuck.converged
assert min(health["not meeting"][0], health["sticking"][0]) > 1.05
assert max(health["not meeting"][1], health["sticking"][1]) < 400
still = (stuck["tau"].diff(dim=1) == 0).double().mean()  # refused: the chain stays
print(f"{still:.0%} of the sticking chains' draws repeat the one before")
assert still > 0.02
summary = ours.summary()
for name in ("slope", "intercept"):  # ArviZ's numbers and ours
    row, theirs = summary[name], table.loc[name]
    assert abs(row.rhat - theirs["r_hat"]) < 1e-8
    assert abs(row.ess_bulk / theirs["ess_bulk"] - 1) < 1e-6
    assert abs(row.mean - theirs["mean"]) < 1e-8
assert {"posterior", "log_likelihood", "posterior_predictive"} <= set(tree.children)
assert float(loo.pareto_k.max()) < 0.7
levels = {name: case.verdicts["mean-field"].level for name, case in cases.items()}
assert all(case["HMC"].converged for case in cases.values())
assert all(case["mean-field"].converged for case in cases.values())
assert levels["right"] in ("pass", "warn")  # weights that hardly vary have any k-hat
assert levels["repairable"] in ("warn", "fail")
assert repair.verdict.level in ("pass", "warn")
assert min(row.ratio for row in repair.marginals) > 0.92
assert levels["wrong"] == "fail"
assert not cases["wrong"].repairs["mean-field"][0].marginals  # refused
assert cases["wrong"].verdicts["full-rank"].level in ("pass", "warn")
for name in origins:
    assert abs(found[name][1] - predicted[name][1]) < 0.05
    assert all(abs(row.shift) < 0.1 for row in cases[name].marginals["mean-field"])
for name in ("repairable", "wrong"):
    assert abs(found[name][0] - predicted[name][0]) < 0.3  # k-hat is noisy, and low near 1
assert all(funnel.verdicts[name].level == "fail" for name in normals)
assert posteriors["mean-field"]["tau"].mean() > posteriors["HMC"]["tau"].mean() + 0.5

# %% [markdown]
# ---
# About half a minute in all on two cores of a laptop-class CPU. Your output should look like this
# page; the last digits depend on the machine.
