# %% [markdown]
# # Gradients of expectations: reparameterisation against REINFORCE
#
# **Result first.** To fit $q_\phi$ one needs $\nabla_\phi E_{q_\phi}[f(z)]$, the gradient of a mean
# with respect to the law it is taken under. There are two ways to estimate it from draws: *move*
# them (reparameterisation) or *reweight* them (REINFORCE). Below, seven families, two estimators
# of the first kind, four of the second, and an exact gradient by quadrature to judge them. Where
# an estimator is unbiased it agrees with the quadrature; plain REINFORCE has 1.4 to 86 times the
# variance of reparameterisation; and in one family, the Pareto, every form of REINFORCE is wrong.

# %%
import os

import pyro.distributions as dist
import torch

from ppgen import plots
from ppgen.data import load
from ppgen.distributions import Rayleigh
from ppgen.inference import gradient_report
from ppgen.inference.gradient_estimators import (
    ESTIMATORS,
    implicit_reparameterisation,
    leave_one_out,
    moving_support,
    reinforce,
    reparameterisation,
)
from ppgen.inference.gradient_report import variance_against_dimension
from ppgen.plots import canvas, label, legend, styles

FAST = os.environ.get("PPGEN_FAST") == "1"
torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)

REPETITIONS = 2_000 if FAST else 20_000


def f(z):
    """What is averaged: smooth, and finite in the mean even under a Cauchy."""
    return torch.log1p(z.square())


families = {  # from parameters (..., P) to a law; the parameters; their names
    "Normal": (lambda p: dist.Normal(p[..., 0], p[..., 1]), [0.7, 1.3], ["mean", "sd"]),
    "Laplace": (lambda p: dist.Laplace(p[..., 0], p[..., 1]), [0.7, 1.3], ["loc", "scale"]),
    "Logistic": (lambda p: dist.Logistic(p[..., 0], p[..., 1]), [0.7, 0.8], ["loc", "scale"]),
    "Cauchy": (lambda p: dist.Cauchy(p[..., 0], p[..., 1]), [0.7, 1.3], ["loc", "scale"]),
    "Student-t": (
        lambda p: dist.StudentT(p[..., 2], p[..., 0], p[..., 1]),
        [0.7, 1.3, 4.0],
        ["loc", "scale", "df"],
    ),
    "Rayleigh": (lambda p: Rayleigh(p[..., 0]), [1.3], ["scale"]),
    "Pareto": (lambda p: dist.Pareto(p[..., 0], p[..., 1]), [1.5, 3.0], ["scale", "shape"]),
}
reports = {
    name: gradient_report(
        family, torch.tensor(values), f, names=names, draws=16, repetitions=REPETITIONS
    )
    for name, (family, values, names) in families.items()
}
print(f"{'':<16} exact    {'   '.join(ESTIMATORS)}: variance of one draw")
variances = {}
for name, report in reports.items():
    for k, parameter in enumerate(report.names):
        row = {e: float(m.variance[k]) for e, m in report.measured.items()}
        variances[name, parameter] = row
        cells = "  ".join(f"{row[e]:8.3f}" if e in row else "       -" for e in ESTIMATORS)
        print(f"{name:<9} {parameter:<6} {float(report.exact[k]):+.4f} {cells}")
    if report.biased:
        print(f"{name:<9} biased: {', '.join(report.biased)}")

shown = [key for key in variances if key[0] != "Pareto"]
figure, (ax,) = canvas(
    3.6, "Variance of one draw", "Six families, by parameter; smaller is better."
)
marks = dict(zip(ESTIMATORS, "os^vDx", strict=True))
for (name, mark), style in zip(marks.items(), styles(marks), strict=True):
    at = [i for i, key in enumerate(shown) if name in variances[key]]
    values = [variances[shown[i]][name] for i in at]
    ax.plot(values, at, mark, color=style["color"], markersize=5, label=name)
ax.set_xscale("log")
ax.set_yticks(range(len(shown)), [f"{family}: {parameter}" for family, parameter in shown])
ax.invert_yaxis()
label(ax, "variance of the gradient", "family: parameter")
legend(figure, *ax.get_legend_handles_labels())
figure

# %% [markdown]
# *What to see: plain REINFORCE is the rightmost mark of every row. A baseline takes away a third of
# its variance at least, nine tenths at best. The two pathwise estimators lie on each other. They
# are not always leftmost: for a location in one dimension the optimal baseline scatters less than
# they do. (The Student-t has no distribution function in torch, hence no implicit mark of its own;
# its `rsample` is implicit inside.)*
#
# ## Objective: two identities
#
# **Reweight.** Since $\nabla q = q \nabla \log q$,
#
# $$
# \nabla_\phi E_{q_\phi}[f(z)] = E_{q_\phi}[f(z)\, \nabla_\phi \log q_\phi(z)] ,
# $$
#
# the *score function* estimator, or REINFORCE (Williams, 1992). Only values of $f$ are needed, so
# that $z$ may be discrete. Since $E[\nabla \log q] = 0$, any constant may be subtracted from $f$: a
# **baseline**. A moving average of $f$ is one; the other draws of the same batch give another
# (*leave one out*); the best has a formula, $E[f s^2] / E[s^2]$ with $s = \nabla \log q$.
#
# **Move.** If $z = g_\phi(\epsilon)$ with noise that does not depend on $\phi$,
#
# $$
# \nabla_\phi E_{q_\phi}[f(z)] = E_\epsilon\left[f'(z)\, \nabla_\phi g_\phi(\epsilon)\right] .
# $$
#
# | family | $g_\phi(\epsilon)$, with $u$ uniform on $(0, 1)$ |
# |---|---|
# | Normal | $\mu + \sigma \epsilon$, $\epsilon$ normal |
# | Laplace | $\mu - b \operatorname{sgn}(v) \log(1 - 2 \lvert v \rvert)$, $v = u - \tfrac12$ |
# | Logistic | $\mu + s \log \frac{u}{1 - u}$ |
# | Cauchy | $\mu + \gamma \tan(\pi (u - \tfrac12))$ |
# | Rayleigh | $\sigma \sqrt{-2 \log u}$ |
# | Pareto | $s\, u^{-1 / \alpha}$ |
# | Student-t | $\mu + \sigma \epsilon / \sqrt{v}$, $\nu v$ chi-square, $\nu$ degrees |
#
# In code the formulas are `rsample`. Here they are written out, and each gives the density that its
# family declares: the share of draws below the quartiles is right.

# %%
n = 100_000
u = torch.rand(n)
v = u - 0.5
by_formula = {
    "Normal": 0.7 + 1.3 * torch.randn(n),
    "Laplace": 0.7 - 1.3 * v.sign() * torch.log1p(-2 * v.abs()),
    "Logistic": 0.7 + 0.8 * torch.logit(u),
    "Cauchy": 0.7 + 1.3 * torch.tan(torch.pi * v),
    "Rayleigh": 1.3 * (-2 * u.log()).sqrt(),
    "Pareto": 1.5 * u ** (-1 / 3.0),
}
farthest = 0.0
for name, z in by_formula.items():
    family, values, _ = families[name]
    below = family(torch.tensor(values)).cdf(z)  # uniform, if the formula is right
    for level in (0.25, 0.5, 0.75):
        share = float((below < level).double().mean())
        farthest = max(farthest, abs(share - level) / (level * (1 - level) / n) ** 0.5)
print(
    f"{len(by_formula)} formulas, three quartiles each: at most {farthest:.1f} standard errors off"
)

# %% [markdown]
# ## The moving support of the Pareto
#
# The Pareto lives on $z \ge s$. When $s$ grows, mass near the edge does not become more or less
# likely: it *disappears*. The first identity exchanges gradient and integral and forgets the edge:
#
# $$
# \frac{\mathrm{d}}{\mathrm{d}s} \int_s^\infty q_s(z) f(z)\, \mathrm{d}z
#  = \int_s^\infty f(z) \frac{\partial q_s(z)}{\partial s}\, \mathrm{d}z - q_s(s) f(s),
#  \qquad q_s(s) = \frac{\alpha}{s} .
# $$
#
# So REINFORCE is off by $+\alpha f(s) / s$. Its score in $s$ is the constant $\alpha / s$, so that
# leave-one-out, which subtracts the mean, returns zero for *every* batch: no variance at all, and
# wrong.

# %%
family, values, _ = families["Pareto"]
parameters = torch.tensor(values)
s, alpha = values
report = reports["Pareto"]
off = alpha / s * float(f(torch.tensor(s)))
print(report)
print(f"the term at the edge: {off:.4f}")

figure, (left, right) = canvas(
    2.8, "A support that moves", "Left: two Paretos. Right: estimates from 16 draws.", columns=2
)
grid = torch.linspace(1.2, 4.0, 1000)
for scale, style in zip((1.5, 1.8), styles({1: 0, 2: 0}), strict=True):
    density = torch.where(grid >= scale, alpha * scale**alpha / grid ** (alpha + 1), 0.0)
    left.plot(grid, density, **style, label=f"s = {scale}")
label(left, "z", "density")
legend(left, *left.get_legend_handles_labels(), loc="upper right")
for (name, estimator), style in zip(
    {"reparameterisation": reparameterisation, "REINFORCE": reinforce}.items(),
    styles({1: 0, 2: 0}),
    strict=True,
):
    estimates = estimator(family, parameters, f, 16, 2000).mean(1)[:, 0]
    heights, edges = torch.histogram(estimates, 60, range=(0.0, 5.0), density=True)
    right.stairs(heights.clamp(min=1e-3).numpy(), edges.numpy(), label=name, color=style["color"])
right.axvline(float(report.exact[0]), color="#1b1f24", linestyle="--", linewidth=1, label="exact")
right.set_yscale("log")
right.set_ylim(1e-3, 1e3)
label(right, "gradient in s", "density")
legend(right, *right.get_legend_handles_labels(), loc="upper right")
figure

# %% [markdown]
# *What to see. Left: between the two edges the first law has mass and the second has none. Right:
# estimates by reparameterisation stand around the exact gradient, those by REINFORCE around a wrong
# value, and no number of draws moves them.*
#
# ## Implicit reparameterisation
#
# A mixture of normals has no $g_\phi$ that autograd could follow: a draw jumps between components.
# But a draw keeps its rank when $\phi$ moves a little, $F_\phi(z) = u$ stays, and therefore
#
# $$
# \nabla_\phi z = - \frac{\nabla_\phi F_\phi(z)}{q_\phi(z)} .
# $$


# %%
def mixture(p):
    """Weights softmax(p0, 0), means p1 and p2, standard deviations 0.6 and 1."""
    logits = torch.stack([p[..., 0], torch.zeros_like(p[..., 0])], -1)
    parts = dist.Normal(p[..., 1:], torch.tensor([0.6, 1.0]).expand_as(p[..., 1:]))
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), parts)


at = torch.tensor([0.3, -1.0, 2.0])
mixed = gradient_report(
    mixture, at, f, names=["logit", "mean 1", "mean 2"], repetitions=REPETITIONS
)
print(mixed)
jumps = {e: float(m.variance[0]) for e, m in mixed.measured.items()}

# %% [markdown]
# All agree with the quadrature. For the logit of the weights REINFORCE scatters *less* than the
# implicit gradient, which has to carry a draw across the valley between the components, at great
# speed where the density is low. Which estimator is best depends on the parameter.
#
# ## Variance against dimension
#
# Why is nobody content with REINFORCE? In one dimension a baseline may even win. Let $f(z) =
# \sum_i z_i^2$ and $q = N(\mu, I)$ in $d$ dimensions. Each component of the reparameterised
# gradient is $2 z_i$, of variance 4, whatever $d$. REINFORCE multiplies the *whole* of $f$ by
# $z_i - \mu_i$: it has to find out by trial which of the $d$ coordinates made $f$ large, at a
# variance of $(d + 2)(d + 4)$; the optimal baseline brings that down to $2 (d + 2)$.

# %%
torch.manual_seed(1)
growth = variance_against_dimension(repetitions=500 if FAST else 3000)
print(growth)
plots.gradient_variance(growth.dimensions, growth.variance, growth.exponents)

# %% [markdown]
# *What to see: reparameterisation is flat. Baselines grow like $d$, plain REINFORCE like $d^2$ (the
# legend has the fitted powers). At $d = 128$ REINFORCE needs some 4,000 times as many draws for the
# same accuracy.*
#
# ## Model and training: 65 weights, three estimators
#
# A Bayesian logistic regression: is a digit an 8? Sixty-four pixels and an offset, weights
# $w \sim N(0, 1)$, and $q = N(\mu, \operatorname{diag} \sigma^2)$. To be minimised is $E_q[-\log
# p(y, w)] - H[q]$, whose entropy is a formula. Each step uses 16 draws; Adam and its rate are the
# same for all.

# %%
digits = load("digits", binarisation="threshold")
pixels = torch.cat([digits.x[:400].double(), torch.ones(400, 1)], 1)
eight = (digits.labels[:400] == 8).double()


def minus_log_joint(w):
    """(*, 65) to (*), nats, without constants."""
    logits = w @ pixels.T
    fit = eight * logits - torch.nn.functional.softplus(logits)
    return 0.5 * w.square().sum(-1) - fit.sum(-1)


def guide(p):
    return dist.Normal(p[..., :65], p[..., 65:].exp()).to_event(1)


steps = 150 if FAST else 600
torch.manual_seed(2)
probe = torch.randn(500, 65)  # the same noise judges all
runs = {"reparameterisation": reparameterisation, "leave one out": leave_one_out}
runs["REINFORCE"] = reinforce
climbs = {}
for name, estimator in runs.items():
    torch.manual_seed(3)
    p = torch.cat([torch.zeros(65), torch.full((65,), -1.0)])
    moments = torch.optim.Adam([p], lr=0.03)
    values = []
    for step in range(steps):
        p.grad = estimator(guide, p, minus_log_joint, 16)[0].mean(0)
        p.grad[65:] -= 1  # of the entropy, which is the sum of log sigma
        moments.step()
        if step % 10 == 9:
            w = p[:65] + p[65:].exp() * probe
            values.append(float(p[65:].sum() - minus_log_joint(w).mean()))
    climbs[name] = values
    print(f"{name:<19} ELBO after {steps} steps: {values[-1]:9.1f} nats (up to a constant)")

figure, (ax,) = canvas(2.8, "The same model, three gradients", "16 draws a step.")
for (name, values), style in zip(climbs.items(), styles(climbs), strict=True):
    ax.plot(range(10, steps + 1, 10), values, **style, label=name)
best = max(climbs["reparameterisation"])
ax.set_ylim(best - 200, best + 10)
label(ax, "step", "ELBO up to a constant (nats)")
legend(ax, *ax.get_legend_handles_labels(), loc="lower right")
figure

# %% [markdown]
# *What to see: reparameterisation has arrived when leave-one-out is still on the way, and plain
# REINFORCE is far below both to the end. With 130 parameters that is the picture above, paid in
# steps.*
#
# ## What goes wrong
#
# - *A support that depends on the parameters* (Pareto, uniform): the score function is biased and
#   nothing crashes. `moving_support` asks the family.
# - *A baseline from the same draw.* A baseline may depend on the other draws, not on its own:
#   exercise 1 has the factor that this costs.
# - *Pyro picks for you.* `Trace_ELBO` reparameterises the sites that can, and uses the score
#   function for the rest, without a word. `TraceGraph_ELBO` has baselines.
# - *$f$ with a jump.* Pathwise estimators see $f'$, which does not know of a jump: for $f(z) = [z >
#   1]$ it is zero everywhere. The cell below shows it; there it is REINFORCE that is right.


# %%
def jump(z):
    """[z > 1], with a derivative that autograd believes to be zero."""
    return (z > 1).to(z.dtype) + 0 * z


normal, at_zero = families["Normal"][0], torch.tensor([0.0, 1.0])
true_slope = float(dist.Normal(0.0, 1.0).log_prob(torch.tensor(1.0)).exp())  # d P(z > 1) / d mu
moved = reparameterisation(normal, at_zero, jump, 16, 2000).mean((0, 1))[0]
weighed = leave_one_out(normal, at_zero, jump, 16, 2000).mean((0, 1))[0]
print(f"slope of P(z > 1) in the mean: exact {true_slope:.4f}, "
      f"moved {float(moved):.4f}, reweighted {float(weighed):.4f}")  # fmt: skip

# %% [markdown]
# ## Exercises
#
# **1.** Subtract the mean over *all* $K$ draws, each draw's own included, instead of leaving it
# out. By which factor is the estimate wrong?

# %%
torch.manual_seed(4)
K = 4
normal_report = reports["Normal"]
half = leave_one_out(normal, torch.tensor([0.7, 1.3]), f, K, REPETITIONS) * (K - 1) / K
estimates = half.mean(1)
error = estimates.std(0) / REPETITIONS**0.5
ratio = estimates.mean(0) / normal_report.exact
print(f"ratio to the exact gradient: {ratio.numpy().round(3)}, (K - 1) / K = {(K - 1) / K}")
assert (estimates.mean(0) - (K - 1) / K * normal_report.exact).abs().max() < 5 * error.max()

# %% [markdown]
# **2.** A coin has no path: $z \in \{0, 1\}$. Compute $\nabla_\theta E[(z - 0.45)^2]$ for
# $p(z = 1) = \sigma(\theta)$ by the sum over both faces, and compare.

# %%
torch.manual_seed(5)
theta = torch.tensor([0.4])
share = torch.sigmoid(theta)
by_sum = share * (1 - share) * (0.55**2 - 0.45**2)
coin = gradient_report(
    lambda p: dist.Bernoulli(logits=p[..., 0]),
    theta,
    lambda z: (z - 0.45).square(),
    exact=by_sum,
    repetitions=REPETITIONS,
)
print(coin)
assert not coin.biased
assert set(coin.refused) == {"reparameterisation", "implicit"}

# %% [markdown]
# **3.** Derive the variance 4 and the variance $(d + 2)(d + 4)$ of the section on dimension, and
# check both at $d = 5$.

# %%
torch.manual_seed(6)
d = 5
z = torch.randn(400_000, d)
pathwise, score = 2 * z[:, 0], z.square().sum(1) * z[:, 0]
print(f"pathwise {float(pathwise.var()):.3f} (4), score {float(score.var()):.2f} "
      f"({(d + 2) * (d + 4)})")  # fmt: skip
# E[f^2 z_1^2] = E[f^2 f] / d by symmetry, and E[f^3] = d (d + 2) (d + 4) for chi-square
assert abs(float(pathwise.var()) - 4) < 0.1
assert abs(float(score.var()) / ((d + 2) * (d + 4)) - 1) < 0.1

# %% [markdown]
# ## The numbers of this page, checked

# %%
for name, report in reports.items():
    if name != "Pareto":
        assert not report.biased, (name, report.biased)
        assert not report.moving
assert set(reports["Pareto"].biased) == set(ESTIMATORS) - {"reparameterisation", "implicit"}
assert moving_support(family, parameters)
assert (
    abs(float(reports["Pareto"].measured["REINFORCE"].bias(reports["Pareto"].exact)[0]) - off) < 0.1
)
assert leave_one_out(family, parameters, f, 16, 100).mean(1)[:, 0].abs().max() < 1e-12
ratios = [
    row["REINFORCE"] / row["reparameterisation"] for k, row in variances.items() if k in shown
]
print(f"REINFORCE scatters {min(ratios):.1f} to {max(ratios):.0f} times as much")
assert 1.3 < min(ratios) < 3
assert 50 < max(ratios) < 120
for key in shown:
    row = variances[key]
    assert row["REINFORCE"] == max(row.values())
    helped = min(row[e] for e in ("moving average", "leave one out", "optimal baseline"))
    assert 0.05 < helped / row["REINFORCE"] < 0.5
    worst = max(row[e] for e in ("moving average", "leave one out", "optimal baseline"))
    assert worst / row["REINFORCE"] < (0.75 if FAST else 0.67)  # a third at least
    if "implicit" in row:
        assert abs(row["implicit"] / row["reparameterisation"] - 1) < (0.4 if FAST else 0.15)
assert variances["Normal", "mean"]["optimal baseline"] < variances["Normal", "mean"]["implicit"]
assert farthest < 4.6  # 18 shares
assert "reparameterisation" in mixed.refused
assert not mixed.biased
assert torch.isfinite(implicit_reparameterisation(mixture, at, f, 10)).all()
assert jumps["REINFORCE"] < jumps["implicit"]
powers = growth.exponents
assert abs(powers["reparameterisation"]) < 0.1
assert 0.8 < powers["leave one out"] < 1.1
assert 1.7 < powers["REINFORCE"] < 2.1
last = {name: row[-1] for name, row in growth.variance.items()}
assert 3000 < last["REINFORCE"] / last["reparameterisation"] < 6000
finals = {name: values[-1] for name, values in climbs.items()}
assert finals["reparameterisation"] > finals["leave one out"] > finals["REINFORCE"] + 10
assert float(moved) == 0
assert abs(float(weighed) - true_slope) < 0.05

# %% [markdown]
# ---
# About 15 seconds in all on two cores of a laptop-class CPU. Your output should look like this
# page; the last digits depend on the machine.
