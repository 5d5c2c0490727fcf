# %% [markdown]
# # The two directions of the KL divergence
#
# **Result first.** Two parameters with correlation 0.9, approximated by two independent normals.
# The best ones by $\mathrm{KL}(q \,\|\, p)$, which variational inference minimises, have 0.44 of
# the true standard deviations. The best ones by $\mathrm{KL}(p \,\|\, q)$ have exactly the true
# ones, and cover a region of the plane 2.3 times as large as $p$ does. Neither is a defect of an
# optimiser: both are formulas, and this page derives them, checks them, and looks at what the two
# directions do where there is more than one mode, or a bend.

# %%
import math
import os

import pyro
import pyro.distributions as dist
import torch

import ppgen
from ppgen.inference import VI, full_rank_guide
from ppgen.plots import canvas, label, legend, styles
from ppgen.progress import quiet

FAST = os.environ.get("PPGEN_FAST") == "1"
torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)

rho = 0.9
covariance = torch.tensor([[1.0, rho], [rho, 1.0]])
precision = covariance.inverse()
reverse_sd = precision.diagonal().rsqrt()  # closed forms, derived below
forward_sd = covariance.diagonal().sqrt()
area = float(forward_sd.prod() / covariance.det().sqrt())
print(
    f"reverse KL: sd ratio {reverse_sd[0]:.3f}; forward KL: {forward_sd[0]:.3f}, area x {area:.2f}"
)

# %% [markdown]
# ## Data: three targets
#
# No data here: the targets are densities on the plane, as posteriors are once the data are in. A
# correlated normal; two modes of unequal weight; a banana, $x_1 \sim N(0, 1)$ and
# $x_2 \mid x_1 \sim N(x_1^2, 0.5)$. All integrals are sums over a grid, so that nothing depends on
# samples.

# %%
side = 161 if FAST else 241
axis1, axis2 = torch.linspace(-6, 6, side), torch.linspace(-6, 18, side)
cell = float((axis1[1] - axis1[0]) * (axis2[1] - axis2[0]))
X = torch.stack(torch.meshgrid(axis1, axis2, indexing="ij"), -1)  # (side, side, 2)


def two_modes(x):
    left = dist.Normal(torch.tensor([-2.0, -1.0]), 0.7).log_prob(x).sum(-1) + math.log(0.6)
    right = dist.Normal(torch.tensor([2.0, 1.0]), 0.7).log_prob(x).sum(-1) + math.log(0.4)
    return torch.logaddexp(left, right)


def banana(x):
    across = dist.Normal(0.0, 1.0).log_prob(x[..., 0])
    return across + dist.Normal(x[..., 0].square(), 0.5).log_prob(x[..., 1])


targets = {
    "correlated": dist.MultivariateNormal(torch.zeros(2), covariance).log_prob(X),
    "two modes": two_modes(X),
    "banana": banana(X),
}
masses = {name: float(log_p.exp().sum() * cell) for name, log_p in targets.items()}
print("probability on the grid:", {name: f"{mass:.6f}" for name, mass in masses.items()})

# %% [markdown]
# ## Objective
#
# $$
# \underbrace{\mathrm{KL}(q \,\|\, p) = \int q \log \frac{q}{p}}_{\text{reverse, exclusive}} \qquad
# \underbrace{\mathrm{KL}(p \,\|\, q) = \int p \log \frac{p}{q}}_{\text{forward, inclusive}}
# $$
#
# Reverse asks at draws of $q$: it is infinite where $q > 0$ and $p = 0$, so $q$ **stays away** from
# where $p$ is small. Forward asks at draws of $p$: it is infinite where $p > 0$ and $q = 0$, so $q$
# **covers** everything. Reverse needs $p$ only up to a constant, and only draws from $q$; forward
# needs draws from $p$, which are what one does not have. That is why variational inference is
# reverse.
#
# **Closed form, normal target.** Let $p = N(0, \Sigma)$, $\Lambda = \Sigma^{-1}$,
# $q = \prod_i N(0, s_i^2)$. Then
#
# $$
# \mathrm{KL}(q \,\|\, p) = \tfrac12 \sum_i \left(\Lambda_{ii} s_i^2 - \log s_i^2\right) + c, \qquad
# \mathrm{KL}(p \,\|\, q) = \tfrac12 \sum_i \left(\Sigma_{ii} / s_i^2 + \log s_i^2\right) + c' ,
# $$
#
# with minima at $s_i^2 = 1 / \Lambda_{ii}$, the variance of $x_i$ *given* the others, and at $s_i^2
# = \Sigma_{ii}$, the variance of $x_i$ *whatever* the others. Since $1 / \Lambda_{ii} \le
# \Sigma_{ii}$, the first is too narrow unless $x_i$ is independent of the rest.
#
# **Closed form, forward.** Over normal laws $\mathrm{KL}(p \,\|\, q) = -E_p[\log q] + c$ is
# smallest where $q$ has the means and the variances of $p$: moments are matched. For the two modes
# that is mean $(-0.4, -0.2)$ and variance $0.49 + 4 \cdot 0.24 \cdot (4, 1)$, each mode's own and
# that between them; for the banana, mean $(0, 1)$ and variance $(1,\ 2 + 0.25)$.
#
# **Closed form, reverse.** Modes that hardly overlap: $q$ is one of them, and the divergence is
# $-\log$ of its share. The banana, with $q = N(0, r)\,N(m, s)$:
#
# $$
# \mathrm{KL}(q \,\|\, p) = -\log r - \log s + \tfrac12 r^2
#   + \frac{s^2 + (m - r^2)^2 + 2 r^4}{2 \cdot 0.5^2} + c ,
# $$
#
# since $x_1^2$ has mean $r^2$ and variance $2 r^4$ under $q$. So $m = r^2$, $s = 0.5$, the width
# *given* $x_1$, and $16 r^4 + r^2 = 1$, which gives $r = 0.470$ for a true standard deviation of 1.
#
# ## Model and training
#
# The family: independent normals, four parameters. Both divergences are sums over the grid,
# minimised by L-BFGS, which estimates curvature from the gradients and needs no learning rate, from
# several starts.


# %%
def guide(theta):
    return dist.Normal(theta[:2], theta[2:].exp())


def reverse_kl(theta, log_p):
    log_q = guide(theta).log_prob(X).sum(-1)
    return (log_q.exp() * (log_q - log_p)).sum() * cell


def forward_kl(theta, log_p):
    log_q = guide(theta).log_prob(X).sum(-1)
    return (log_p.exp() * (log_p - log_q)).sum() * cell


def minimise(objective, log_p, start):
    """The minimum from one start, and the values on the way."""
    theta = torch.tensor(start, requires_grad=True)
    optimizer = torch.optim.LBFGS([theta], max_iter=60, line_search_fn="strong_wolfe")
    path = []

    def closure():
        optimizer.zero_grad()
        value = objective(theta, log_p)
        value.backward()
        path.append(value.item())
        return value

    optimizer.step(closure)
    return theta.detach(), path


starts = [[-1.0, -0.5, -0.5, -0.5], [1.0, 0.5, -0.5, -0.5]]
fits, ends, paths = {}, {}, {}
for name, log_p in targets.items():
    for direction, objective in {"reverse": reverse_kl, "forward": forward_kl}.items():
        runs = [minimise(objective, log_p, start) for start in starts]
        ends[name, direction] = [(path[-1], theta) for theta, path in runs]
        value, fits[name, direction] = min(ends[name, direction], key=lambda end: end[0])
        paths[name, direction] = runs[0][1]
        mean, sd = fits[name, direction][:2], fits[name, direction][2:].exp()
        print(f"{name:>10}, {direction}: KL {value:.3f} nats, "
              f"mean ({mean[0]:+.2f}, {mean[1]:+.2f}), sd ({sd[0]:.2f}, {sd[1]:.2f})")  # fmt: skip

moments = {}
for name, log_p in targets.items():
    weight = (log_p.exp() * cell)[..., None]
    mean = (weight * X).sum((0, 1))
    moments[name] = mean, (weight * (X - mean) ** 2).sum((0, 1)).sqrt()

# %%
figure, axes = canvas(
    2.9,
    "Best independent normals by the two directions",
    "Grey: the target. Lines: regions of one and two standard deviations.",
    columns=3,
)
for ax, (name, log_p) in zip(axes, targets.items(), strict=True):
    ax.contourf(axis1, axis2, log_p.exp().T, levels=6, cmap="Greys")
    for direction, style in zip(
        ("reverse", "forward"), styles(dict.fromkeys(("reverse", "forward"))), strict=True
    ):
        theta = fits[name, direction]
        log_q = guide(theta).log_prob(X).sum(-1)
        levels = [float(log_q.max() - 0.5 * r**2) for r in (2, 1)]
        ax.contour(axis1, axis2, log_q.T, levels=levels, colors=style["color"],
                   linestyles=[style["linestyle"]], linewidths=1.4)  # fmt: skip
        ax.plot([], [], label=direction, **style)
    ax.set_xlim(-5, 5)
    ax.set_ylim(-4, 6)
    ax.grid(False)
    label(ax, "x1", "x2", name)
legend(figure, *axes[0].get_legend_handles_labels())
figure

# %% [markdown]
# *What to see. Correlated: reverse sits inside the ridge, forward covers it and much empty plane.
# Two modes: reverse takes one, forward spans both and has its highest density between them, where
# the target has almost nothing. Banana: reverse sits in the bend, forward spreads over both arms.*
#
# Which over- and which underestimates? Measured by standard deviations, reverse is too narrow, and
# forward is right; measured by entropy, by how much of the plane is covered, reverse is too small
# and forward too large. For the normal target both errors are the same number, the mutual
# information $-\tfrac12 \log(1 - \rho^2)$, which is also the value of both divergences.

# %%
information = -0.5 * math.log(1 - rho**2)
entropy_p = float(dist.MultivariateNormal(torch.zeros(2), covariance).entropy())
entropy = {d: float(guide(fits["correlated", d]).entropy().sum()) for d in ("reverse", "forward")}
for direction, value in entropy.items():
    print(f"{direction}: entropy of q less that of p {value - entropy_p:+.4f} nats")
print(f"mutual information {information:.4f} nats")

rhos = torch.linspace(0.0, 0.98, 50)
some = (0.0, 0.5, 0.8, 0.9, 0.95)
by_optimiser = []
for r in some:
    law = dist.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, r], [r, 1.0]]))
    theta, _ = minimise(reverse_kl, law.log_prob(X), [0.3, 0.3, -0.5, -0.5])
    by_optimiser.append(float(theta[2].exp()))
figure, (left, right) = canvas(
    2.8, "What correlation and modes do", "Left: widths. Right: one normal, moved over two modes.",
    columns=2,
)  # fmt: skip
lines = {"reverse": (1 - rhos**2).sqrt(), "forward": torch.ones_like(rhos)}
for (name, values), style in zip(lines.items(), styles(lines), strict=True):
    left.plot(rhos, values, label=name, **style)
left.plot(some, by_optimiser, "o", color="#1b1f24", markersize=4, label="reverse, by the optimiser")
left.set_ylim(0, 1.1)
label(left, "correlation of the target", "sd of q / sd of p")
legend(left, *left.get_legend_handles_labels(), loc="lower left")
line = torch.linspace(-8, 8, 1601)
log_bimodal = torch.logaddexp(
    dist.Normal(-2.0, 0.7).log_prob(line) + math.log(0.6),
    dist.Normal(2.0, 0.7).log_prob(line) + math.log(0.4),
)
places = torch.linspace(-4, 4, 161)
log_q = dist.Normal(places[:, None], 0.7).log_prob(line)
profile = {
    "reverse": (log_q.exp() * (log_q - log_bimodal)).sum(1) * 0.01,
    "forward": (log_bimodal.exp() * (log_bimodal - log_q)).sum(1) * 0.01,
}
for (name, values), style in zip(profile.items(), styles(profile), strict=True):
    right.plot(places, values, label=name, **style)
right.set_ylim(0, 12)
label(right, "mean of q (sd 0.7)", "KL (nats)")
legend(right, *right.get_legend_handles_labels(), loc="upper right")
figure

# %% [markdown]
# *What to see. Left: forward keeps the width at any correlation; reverse loses it slowly at first
# and then quickly. Right: as $q$ moves over two modes, reverse has two valleys, one at each, so
# that the answer depends on the start; forward has a single one, at the mean, between the modes.*
#
# ## The same with the suite
#
# `VI()` minimises the reverse divergence, from the story alone. Here is the correlated normal as a
# story, with the default guide and with one that has correlations.


# %%
def story():
    pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), covariance))


with quiet():
    by_vi = ppgen.fit(story, using=VI(draws=20_000))["x"][0]
    by_full = ppgen.fit(story, using=VI(draws=20_000, guide=full_rank_guide()))["x"][0]
print(f"mean-field: sd {by_vi.std(0).numpy().round(3)}, closed form {reverse_sd[0]:.3f}")
print(
    f"full-rank: sd {by_full.std(0).numpy().round(3)}, correlation {by_full.T.corrcoef()[0, 1]:.3f}"
)

# %% [markdown]
# ## What goes wrong
#
# - *Reading VI's intervals as posterior intervals.* They are those of each parameter with the
#   others held fixed. With correlation 0.9 they hold 53% where they say 90%.
# - *Believing that the ELBO would show it.* The best $q$ of the family has a maximal ELBO and is as
#   wrong as the family is.
# - *Missing a mode.* Nothing that looks only at draws of $q$ can see a mode that $q$ has not
#   visited. The loss is merely $-\log$ of the share that it did find, here $-\log 0.6 = 0.51$ nats.
# - *Wishing for the other direction.* Forward KL is right on marginal moments and wrong on where
#   the draws are: two in five draws of the fit to two modes lie where there is nothing. And it
#   needs draws from $p$, or weights, which fail in high dimensions.

# %%
coverage = float(2 * dist.Normal(0.0, 1.0).cdf(1.6449 * reverse_sd[0]) - 1)
level = float(targets["two modes"].max()) - 4.0  # four nats below the top
draws = guide(fits["two modes", "forward"]).sample((20_000,))
in_gap = float((two_modes(draws) < level).double().mean())
of_p = float((targets["two modes"].exp() * (targets["two modes"] < level)).sum() * cell)
print(f"a 90% interval of the reverse fit holds {coverage:.1%}")
print(f"where p is 4 nats below its top: {in_gap:.0%} of the forward fit, {of_p:.1%} of p")

# %% [markdown]
# ## Exercises
#
# **1.** Check $1 / \Lambda_{ii}$ and $\Sigma_{ii}$ in five dimensions, with a random covariance. Is
# the reverse one always the smaller?

# %%
root = torch.randn(5, 5)
sigma = root @ root.T + 0.1 * torch.eye(5)
big = dist.MultivariateNormal(torch.zeros(5), sigma)
found = {}
for direction in ("reverse", "forward"):
    log_sd = torch.zeros(5, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_sd], max_iter=200, line_search_fn="strong_wolfe")

    def closure(direction=direction, log_sd=log_sd, optimizer=optimizer):
        optimizer.zero_grad()
        q = dist.MultivariateNormal(torch.zeros(5), scale_tril=log_sd.exp().diag())
        pair = (q, big) if direction == "reverse" else (big, q)
        kl = torch.distributions.kl_divergence(*pair)
        kl.backward()
        return kl

    optimizer.step(closure)
    found[direction] = (2 * log_sd.detach()).exp()
torch.testing.assert_close(found["reverse"], 1 / sigma.inverse().diagonal(), rtol=1e-3, atol=0)
torch.testing.assert_close(found["forward"], sigma.diagonal(), rtol=1e-3, atol=0)
print("variances, reverse / forward:", (found["reverse"] / found["forward"]).numpy().round(3))
assert (found["reverse"] < found["forward"]).all()

# %% [markdown]
# **2.** One normal with an arbitrary covariance, by forward KL, on the banana: what covariance does
# it have, and why is the correlation zero although the two are anything but independent?

# %%
weight = (targets["banana"].exp() * cell)[..., None, None]
gap = X - moments["banana"][0]
second = (weight * gap[..., :, None] * gap[..., None, :]).sum((0, 1))
print(f"covariance by moments:\n{second.numpy().round(3)}")
assert abs(second[0, 1]) < 1e-3  # E[x1 x1^2] = 0: odd moments of a symmetric law vanish
assert abs(second[1, 1] - 2.25) < 0.02  # var(x1^2) + 0.5^2 = 2 + 0.25, and the grid cuts off little

# %% [markdown]
# **3.** A Student's t with 3 degrees of freedom, on a line. What width does each direction give?

# %%
wide = torch.linspace(-300, 300, 60_001)
log_t = dist.StudentT(3.0).log_prob(wide)
sds = torch.linspace(0.5, 2.5, 201)
best = {}
for direction in ("reverse", "forward"):
    values = []
    for sd in sds:
        log_q = dist.Normal(0.0, sd).log_prob(wide)
        pair = (log_q, log_t) if direction == "reverse" else (log_t, log_q)
        values.append(float((pair[0].exp() * (pair[0] - pair[1])).sum() * 0.01))
    best[direction] = float(sds[torch.tensor(values).argmin()])
print(f"sd by reverse {best['reverse']:.2f}, by forward {best['forward']:.2f}; true {3**0.5:.2f}")
assert best["reverse"] < 1.4
assert abs(best["forward"] - 3**0.5) < 0.03

# %% [markdown]
# ## The numbers of this page, checked

# %%
assert abs(reverse_sd[0] - (1 - rho**2) ** 0.5) < 1e-12
assert 2.2 < area < 2.4
assert all(abs(mass - 1) < 2e-3 for mass in masses.values())
for name in targets:
    mean, sd = moments[name]
    theta = fits[name, "forward"]
    torch.testing.assert_close(theta[:2], mean, rtol=0, atol=2e-3)  # moments are matched
    torch.testing.assert_close(theta[2:].exp(), sd, rtol=2e-3, atol=0)
    assert (fits[name, "reverse"][2:].exp() < sd).all()
torch.testing.assert_close(fits["correlated", "reverse"][2:].exp(), reverse_sd, rtol=1e-3, atol=0)
r = (((1 + 4 * 16) ** 0.5 - 1) / 32) ** 0.5  # of 16 r^4 + r^2 = 1
assert abs(r - 0.470) < 5e-4
by_formula = {
    ("banana", "reverse"): ((0.0, r**2), (r, 0.5)),
    ("banana", "forward"): ((0.0, 1.0), (1.0, 2.25**0.5)),
    ("two modes", "forward"): ((-0.4, -0.2), ((0.49 + 3.84) ** 0.5, (0.49 + 0.96) ** 0.5)),
    ("two modes", "reverse"): ((-2.0, -1.0), (0.7, 0.7)),  # up to the overlap
}
for key, (mean, sd) in by_formula.items():
    torch.testing.assert_close(fits[key][:2], torch.tensor(mean), rtol=0, atol=0.01)
    torch.testing.assert_close(fits[key][2:].exp(), torch.tensor(sd), rtol=0.02, atol=0)
for direction, sign in {"reverse": -1, "forward": 1}.items():
    assert abs(entropy[direction] - entropy_p - sign * information) < 2e-3
    assert abs(min(value for value, _ in ends["correlated", direction]) - information) < 2e-3
values = sorted(value for value, _ in ends["two modes", "reverse"])
assert abs(values[0] + math.log(0.6)) < 0.02  # -log of the share of the mode
assert abs(values[1] + math.log(0.4)) < 0.02  # another start, the other mode
both = ends["two modes", "forward"]
torch.testing.assert_close(both[0][1], both[1][1], rtol=0, atol=5e-3)  # one minimum
for r, sd in zip(some, by_optimiser, strict=True):
    assert abs(sd - (1 - r**2) ** 0.5) < 5e-3
valleys = {k: int(((v[1:-1] < v[:-2]) & (v[1:-1] < v[2:])).sum()) for k, v in profile.items()}
assert valleys == {"reverse": 2, "forward": 1}
assert abs(by_vi.std(0) / reverse_sd - 1).max() < 0.05
assert abs(by_full.std(0) - 1).max() < 0.05
assert abs(by_full.T.corrcoef()[0, 1] - rho) < 0.02
assert 0.5 < coverage < 0.55
assert 0.35 < in_gap < 0.45
assert of_p < 0.06

# %% [markdown]
# ---
# About 10 seconds in all on two cores of a laptop-class CPU. Your output should look like this
# page; the last digits depend on the machine.
