# %% [markdown]
# # Normalizing flows
#
# **Result first.** 2,000 points from a bent density in the plane. The best normal is 1.1 nats away
# from it, in KL divergence. A flow of two layers, the same normal noise pushed through an
# invertible map that was learnt, is a few hundredths of a nat away; and it has what few flexible
# models have, an exact density, exact draws and an inverse.
#
# This page goes from $y = 2x + 1$ to the Jacobian in pictures, looks at single layers (planar,
# radial, spline, coupling), and then fits flows the other way round, without data, to the four
# energies of Rezende and Mohamed (2015), with an exact KL divergence for each.

# %%
import itertools
import math
import os

import torch
from torch.distributions import MultivariateNormal

import ppgen
from ppgen.data.synthetic import banana, banana_log_prob
from ppgen.distributions import RezendeMohamed
from ppgen.models import Flow
from ppgen.plots import canvas, label, legend, styles
from ppgen.progress import quiet
from ppgen.transforms.coupling import Coupling
from ppgen.transforms.planar import Planar
from ppgen.transforms.radial import Radial
from ppgen.transforms.rational_quadratic import RationalQuadratic
from ppgen.transforms.scalar import Affine
from ppgen.transforms.vector import VectorTransform

FAST = os.environ.get("PPGEN_FAST") == "1"
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)

x = banana(2000)
flow = Flow(2, layers=2, hidden=(32, 32))
with quiet():
    ppgen.train(flow, x, epochs=6 if FAST else 40, batch_size=200, learning_rate=5e-3)
normal = MultivariateNormal(x.mean(0), x.T.cov())

fine = 1 if FAST else 2
first, second = torch.linspace(-5, 5, 150 * fine + 1), torch.linspace(-4, 20, 240 * fine + 1)
grid = torch.stack(torch.meshgrid(first, second, indexing="ij"), -1)  # (301, 481, 2)
cell = float((first[1] - first[0]) * (second[1] - second[0]))
truth = banana_log_prob(grid)


@torch.no_grad()
def divergence(model):
    """KL(truth || model) and the model's mass on the grid, by adding up cells."""
    log_q = model.log_prob(grid.flatten(0, 1)).unflatten(0, grid.shape[:2])
    return float((truth.exp() * (truth - log_q)).sum() * cell), float(log_q.exp().sum() * cell)


kl = {"normal": divergence(normal), "flow": divergence(flow)}
for name, (value, mass) in kl.items():
    print(f"{name:<7} KL {value:.3f} nats; mass on the grid {mass:.4f}")

# %% [markdown]
# ## One dimension: $y = 2x + 1$
#
# Let $x$ have the density $p_X$, and $y = 2x + 1$. An interval of length $\delta$ becomes one of
# length $2\delta$ with the same probability in it, so its density is half as high:
#
# $$
# p_Y(y) = p_X\!\left(\frac{y - 1}{2}\right) \cdot \frac{1}{2} .
# $$
#
# For any increasing map the local stretch is the slope $T'$, and
# $\log p_Y(y) = \log p_X(x) - \log T'(x)$ with $x = T^{-1}(y)$. Without the last term the curve
# has the right shape and the wrong area.

# %%
line = torch.linspace(-12, 14, 2601)
step = float(line[1] - line[0])
standard = torch.distributions.Normal(0.0, 1.0)
before = standard.log_prob(line).exp()
after = standard.log_prob((line - 1) / 2).exp() / 2
forgotten = standard.log_prob((line - 1) / 2).exp()
area = {k: float(v.sum() * step) for k, v in {"after": after, "forgotten": forgotten}.items()}
print(f"area of y's density {area['after']:.4f}; without the slope {area['forgotten']:.4f}")

curves = {"x ~ N(0, 1)": before, "y = 2x + 1": after, "y, slope forgotten": forgotten}
figure, (ax,) = canvas(
    2.4, "Stretched, and so thinner", "The same probability over twice the length: half the height."
)
for (name, values), style in zip(curves.items(), styles(curves), strict=True):
    ax.plot(line, values, label=name, **style)
ax.set_xlim(-6, 9)
label(ax, "value of x or y", "density")
legend(ax, *ax.get_legend_handles_labels())
figure

# %% [markdown]
# *What to see: the density of $y$ is centred at 1, twice as wide and half as high. With the slope
# forgotten it is as high as before, and its area is 2.*
#
# ## Two dimensions: the Jacobian in pictures
#
# In $D$ dimensions the stretch is that of volume, the determinant of the Jacobian
# $J_T = \partial T / \partial x$:
#
# $$
# \log p_Y(y) = \log p_X(x) - \log \lvert \det J_T(x) \rvert, \qquad x = T^{-1}(y) .
# $$
#
# A map to look at: $T(x) = (x_1,\ x_2 e^{0.6 \sin 1.5 x_1} + 0.5 x_1^2)$. The first coordinate
# stays, the second is scaled and shifted by functions of the first; so $J_T$ is a triangle and
# its log-determinant is $0.6 \sin 1.5 x_1$, whatever the shift. Cells of a grid show it.


# %%
def bend(x):
    log_scale = 0.6 * torch.sin(1.5 * x[..., 0])
    moved = x[..., 1] * log_scale.exp() + 0.5 * x[..., 0] ** 2
    return torch.stack([x[..., 0], moved], -1), log_scale


def unbend(y):
    log_scale = 0.6 * torch.sin(1.5 * y[..., 0])
    return torch.stack([y[..., 0], (y[..., 1] - 0.5 * y[..., 0] ** 2) / log_scale.exp()], -1)


def lines(low, high, count=13):
    """Lines of a square grid, (2 count, 200, 2)."""
    along, places = torch.linspace(low, high, 200), torch.linspace(low, high, count)
    across = places[:, None].expand(-1, 200)
    along = along.expand(count, -1)
    return torch.cat([torch.stack([across, along], -1), torch.stack([along, across], -1)])


def quad_area(corners):
    """Of a polygon, (K, 2), by the shoelace formula."""
    a, b = corners, corners.roll(-1, 0)
    return float((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum().abs() / 2)


tiny = 1e-3 * torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
areas = []
for place in torch.tensor([[-1.0, 0.5], [0.0, 0.0], [1.0, -0.5]]):
    ratio = quad_area(bend(place + tiny)[0]) / quad_area(place + tiny)
    areas.append((ratio, float(bend(place)[1].exp())))
    print(f"at {place.tolist()}: a cell grows {ratio:.4f} times, |det J| = {areas[-1][1]:.4f}")

plane = torch.linspace(-3.2, 5.2, 169)
Y = torch.stack(torch.meshgrid(plane, plane, indexing="xy"), -1)
base = torch.distributions.Normal(torch.zeros(2), 1.0)
base_density = base.log_prob(Y).sum(-1).exp()
pushed = (base.log_prob(unbend(Y)).sum(-1) - bend(unbend(Y))[1]).exp()
figure, axes = canvas(
    7.6,
    "A grid and a density, before and after",
    "Above: grid lines. Below: the density that the map carries along, one colour scale.",
    rows=2,
    columns=2,
)
for ax, some, title in zip(axes, (lines(-2, 2), bend(lines(-2, 2))[0]), ("x", "y"), strict=False):
    for k, one in enumerate(some):
        ax.plot(*one.T, color="#0072B2" if k < 13 else "#D55E00", linewidth=0.8)
    label(ax, f"{title}1", f"{title}2", "before" if title == "x" else "after")
for ax, density, name in zip(axes[2:], (base_density, pushed), ("x", "y"), strict=True):
    ax.pcolormesh(
        plane, plane, density, cmap="viridis", vmin=0, vmax=float(pushed.max()), rasterized=True
    )
    label(ax, f"{name}1", f"{name}2")
for ax in axes:
    ax.set(xlim=(-3.2, 3.2), ylim=(-3.2, 5.2))
    ax.set_aspect("equal")
    ax.grid(visible=False)
figure

# %% [markdown]
# *What to see: where cells get larger (right of the middle) the density gets paler than in a plain
# shift, where they get smaller (left) it gets brighter. The parabola by itself shifts columns and
# changes no area.*
#
# ## Single layers: planar and radial
#
# Rezende and Mohamed's layers push along one direction, or towards one point:
#
# $$
# \text{planar: } y = x + \hat u \tanh(w \cdot x + b), \qquad
# \text{radial: } y = x_0 + \frac{\sigma + r}{\alpha + r}(x - x_0), \ \ r = \lVert x - x_0 \rVert .
# $$
#
# Their determinants cost $O(D)$. They are invertible only under conditions, $w \cdot \hat u > -1$
# and $\alpha, \sigma > 0$, which ppgen builds in; and their inverse has no formula for $x$ but
# is one number: the root of a monotone equation in $w \cdot x$ (planar), or of a quadratic in
# $r$ (radial). So a fresh point can be scored, which the paper's layers cannot do and which
# training on data needs.

# %%
layers = {
    "planar, stretches": (Planar(2), torch.tensor([2.0, 1.0, 2.0, 1.0, 0.0])),  # w, u, b
    "planar, squeezes": (Planar(2), torch.tensor([2.0, 0.0, -0.5, 0.0, 0.0])),
    "radial, pushes away": (Radial(2), torch.tensor([0.5, 0.0, -0.5, 3.0])),  # x0, alpha, sigma
    "radial, pulls in": (Radial(2), torch.tensor([0.5, 0.0, 1.0, 0.0])),
}
figure, axes = canvas(
    6.8,
    "Four layers",
    "Density of N(0, I) after a single layer; white: the lines of a square grid.",
    rows=2,
    columns=2,
    sharex=True,
    sharey=True,
)
square = torch.linspace(-3, 3, 181)
Z = torch.stack(torch.meshgrid(square, square, indexing="xy"), -1)
worst = {"round trip": 0.0, "log-det": 0.0}
for k, (ax, (name, (layer, raw))) in enumerate(zip(axes, layers.items(), strict=True)):
    origin, log_det = layer.to_base(Z, raw)  # one call: where each pixel came from
    density = (base.log_prob(origin).sum(-1) + log_det).exp()
    ax.pcolormesh(square, square, density, cmap="viridis", rasterized=True)
    for one in lines(-3, 3, 15):
        ax.plot(*layer.to_data(one, raw)[0].T, color="white", linewidth=0.4, alpha=0.6)
    ax.set(xlim=(-3, 3), ylim=(-3, 3))
    ax.set_aspect("equal")
    ax.grid(visible=False)
    label(ax, "y1" if k > 1 else "", "" if k % 2 else "y2", name)
    start = torch.randn(200, 2)
    end, forward = layer.to_data(start, raw)
    apart = float((layer.to_base(end, raw)[0] - start).abs().max())
    worst["round trip"] = max(worst["round trip"], apart)
    for point, value in zip(start[:20], forward, strict=False):
        J = torch.autograd.functional.jacobian(lambda p, m=layer, r=raw: m.to_data(p, r)[0], point)
        worst["log-det"] = max(worst["log-det"], float((torch.linalg.slogdet(J)[1] - value).abs()))
print(", ".join(f"{name}: {value:.0e}" for name, value in worst.items()))
figure

# %% [markdown]
# *What to see: a planar layer tears the density apart along a line, or presses it onto one; a
# radial layer makes a hole around its point (it moves little far away), or a peak at it. Each is a
# simple change, and a flow is many of them.*
#
# ## Coupling and splines
#
# The map of the grid above is a **coupling layer**: some coordinates stay and choose, through a
# network, scalar maps of the others. Both directions cost one pass, and the log-determinant is the
# sum of log slopes, whatever the network. The scalar map may be a scale and a shift (real NVP), or
# a **monotone spline** of rational-quadratic pieces, which bends as one likes and still has a
# formula for its inverse.

# %%
spline = RationalQuadratic(6, 3.0)
raw = 0.8 * torch.randn(spline.parameters)
u = torch.linspace(-4, 4, 8001)
v, log_slope = spline.to_data(u, raw.expand(len(u), -1))
back, _ = spline.to_base(v, raw.expand(len(u), -1))
law = (standard.log_prob(back) - log_slope).exp()
figure, (left, right) = canvas(
    2.7, "A monotone spline", "Left: the map. Right: what it makes of a normal law.", columns=2
)
left.plot(u, v, color="#0072B2")
left.plot(u, u, ":", color="#5b6570", label="identity")
label(left, "x", "y = spline(x)")
legend(left, *left.get_legend_handles_labels())
right.plot(u, standard.log_prob(u).exp(), ":", color="#5b6570", label="x")
right.plot(v, law, color="#0072B2", label="y")
label(right, "value", "density")
legend(right, *right.get_legend_handles_labels())
print(f"inverse: {float((back - u).abs().max()):.0e}; area {float(torch.trapezoid(law, v)):.4f}")
figure

# %% [markdown]
# *What to see: where the map is flat the density piles up, where it is steep it thins out. Outside
# $[-3, 3]$ the spline is the identity.*
#
# ## Training on data: maximum likelihood
#
# With an inverse, $\log p(x)$ is exact, and training minimises its negative mean over the data: up
# to a constant the *forward* divergence $\mathrm{KL}(\text{data} \,\|\, \text{flow})$. That was the
# first cell, with autoregressive spline layers. Since the truth is known, so is the distance.

# %%
figure, axes = canvas(
    2.9, "Density estimation", "2,000 points of a bent density, and two models of it.", columns=3
)
panels = {"truth": truth, "normal": None, "flow": None}
with torch.no_grad():
    panels["normal"] = normal.log_prob(grid)
    panels["flow"] = flow.log_prob(grid.flatten(0, 1)).unflatten(0, grid.shape[:2])
for ax, (name, log_p) in zip(axes, panels.items(), strict=True):
    ax.pcolormesh(first, second, log_p.exp().T, cmap="viridis", vmin=0, vmax=0.32, rasterized=True)
    if name == "truth":
        ax.plot(*x[:400].T, ".", color="white", markersize=1.2, alpha=0.7)
    ax.set(xlim=(-3.2, 3.2), ylim=(-3, 8))
    ax.grid(visible=False)
    text = name if name == "truth" else f"{name}: KL {kl[name][0]:.2f}"
    label(ax, "x1", "x2" if name == "truth" else "", text)
figure

# %% [markdown]
# *What to see: the normal covers the inside of the bend, where there are no points (white, 400 of
# them); the flow follows the arms. Both integrate to one on the grid, up to the grid's error.*
#
# ## Training on an energy: reverse KL
#
# Rezende and Mohamed's test has no data: an energy $U(z)$ is given, $p(z) = e^{-U(z)} / Z$, and
# the flow minimises
#
# $$
# \mathrm{KL}(q \,\|\, p) = E_{z \sim q}[\log q(z) + U(z)] + \log Z .
# $$
#
# Only the forward map is needed. $\log Z$ does not matter for the gradient, but the four energies
# have known ones, so that the number below is the divergence itself and zero is perfect. The energy
# is tempered at first: with all of it from the start a flow may settle on a part of the target.


# %%
class Stack(torch.nn.Module):
    """Noise through layers, then a learnt shift and scale."""

    def __init__(self, layers, scale):
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)
        self.loc = torch.nn.Parameter(torch.zeros(2))
        self.log_scale = torch.nn.Parameter(torch.tensor(scale).log())

    def draw(self, count):
        z = torch.randn(count, 2)
        log_q = base.log_prob(z).sum(-1) - self.log_scale.sum()
        for layer in self.layers:
            z, log_det = layer.forward_with_log_det(z)
            log_q = log_q - log_det
        return self.loc + self.log_scale.exp() * z, log_q


def fit(stack, target, steps, rate, share=0.05, warm=0.5):
    """Reverse KL, the energy counting for `share` at first and fully after `warm` of the steps."""
    optimizer = torch.optim.Adam(stack.parameters(), lr=rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        z, log_q = stack.draw(256)
        loss = (log_q + min(1.0, share + step / (warm * steps)) * target.energy(z)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(stack.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    return stack


@torch.no_grad()
def reverse_kl(stack, target, draws=50_000):
    """And its standard error, nats."""
    z, log_q = stack.draw(draws)
    gaps = log_q + target.energy(z) + target.log_z
    return float(gaps.mean()), float(gaps.std()) / draws**0.5


def planar(count):
    return Stack([VectorTransform(Planar(2)) for _ in range(count)], (4.0, 1.0))


def coupling():
    return Stack([Coupling(2, Affine(3.0), (32, 32), fixed=[i % 2]) for i in range(8)], (2.0, 2.0))


steps = 50 if FAST else 500
targets = {k: RezendeMohamed(k) for k in (1, 2, 3, 4)}
depths = (2, 8) if FAST else (2, 8, 32)
stacks, scores = {}, {}
for count in depths:
    torch.manual_seed(1)
    stacks[f"planar-{count}", 1] = fit(planar(count), targets[1], steps, 0.03)
for k, target in targets.items():
    torch.manual_seed(2)
    stacks["coupling-8", k] = fit(coupling(), target, steps, 0.005)
for (name, k), stack in stacks.items():
    scores[name, k] = reverse_kl(stack, targets[k])
    print(f"U{k}  {name:<10} KL {scores[name, k][0]:.3f} +- {scores[name, k][1]:.3f} nats")

# %%
names = [*((f"planar-{count}", 1) for count in depths), *(("coupling-8", k) for k in targets)]
shown = [("target", k) for k in targets] + [(n, k) for n, k in names if n == "coupling-8"]
figure, axes = canvas(
    3.9,
    "Four energies, and a coupling flow fitted to each",
    "Above: the density. Below: 4,000 draws of the flow, and KL(flow || target).",
    rows=2,
    columns=4,
    sharex=True,
    sharey=True,
)
wide = torch.linspace(-7, 7, 141)
W = torch.stack(torch.meshgrid(wide, wide, indexing="xy"), -1)
for i, (ax, (name, k)) in enumerate(zip(axes, shown, strict=True)):
    if name == "target":
        ax.pcolormesh(wide, wide, targets[k].log_prob(W).exp(), cmap="viridis", rasterized=True)
        title = f"U{k}"
    else:
        with torch.no_grad():
            ax.plot(*stacks[name, k].draw(4000)[0].T, ".", markersize=0.8, color="#0072B2")
        title = f"{scores[name, k][0]:.3f} nats"
    ax.set(xlim=(-7, 7), ylim=(-4.5, 4.5))
    ax.grid(visible=False)
    label(ax, "z1" if i > 3 else "", "z2" if i % 4 == 0 else "", title)
figure

# %% [markdown]
# *What to see: two moons, a wave, a wave that splits and closes again, a fork. The draws follow the
# first two; where the third splits they fill the hole, and of the fork they find the lower branch
# only far out. A continuous map can thin mass out but not cut it, and the divergence says how much
# that costs.* With `python benchmarks/energies.py`, longer and with more kinds of layers, the
# divergences fall further.
#
# ## What goes wrong
#
# - *Losing a mode.* The reverse KL does not punish what $q$ never visits. Started inside one of
#   U1's moons, without tempering, a flow stays there (exercise 1): the divergence is
#   $\log 2 = 0.69$ nats and looks, by itself, like a good fit.
# - *Dropping the log-determinant.* Then the objective has no entropy and everything runs to the
#   point of least energy (exercise 3).
# - *Scoring fresh points with layers that only remember.* A planar layer without an inverse can
#   score its own draws and nothing else.
# - *Too little data for the layers.* Training likelihood rises for ever; stop by held-out data
#   (`patience=` of `ppgen.train`).
#
# ## Exercises
#
# **1.** Fit U1 from a start inside the left moon, with no tempering. What is the divergence, and
# how much of the mass is on the right?

# %%
torch.manual_seed(0)
stuck = planar(8)
with torch.no_grad():
    stuck.loc[0] = -2.0
    stuck.log_scale.fill_(math.log(0.3))
stuck = fit(stuck, targets[1], steps, 0.01, share=1.0)
lost = reverse_kl(stuck, targets[1])
with torch.no_grad():
    right_moon = float((stuck.draw(20_000)[0][:, 0] > 0).double().mean())
print(f"KL {lost[0]:.3f} nats (log 2 = {math.log(2):.3f}), mass on the right {right_moon:.4f}")
assert right_moon < 0.01
assert math.log(2) - 0.05 < lost[0] < math.log(2) + 0.3

# %% [markdown]
# **2.** For $u$ uniform on $(0, 1)$, which law has $y = -\log(1 - u)$? Derive it by the slope, and
# check it by quadrature.

# %%
y = torch.linspace(0.01, 10, 1000)
at = 1 - (-y).exp()  # the inverse
density = 1 / (1 / (1 - at))  # density of u is 1; dy/du = 1 / (1 - u)
print(f"largest difference from exp(-y): {float((density - (-y).exp()).abs().max()):.0e}")
torch.testing.assert_close(density, torch.distributions.Exponential(1.0).log_prob(y).exp())

# %% [markdown]
# **3.** Minimise $E_q[U_1]$ alone, a scale and a shift of normal noise, without $\log q$. What
# becomes of the scale?

# %%
torch.manual_seed(0)
collapsed = Stack([], (1.0, 1.0))
optimizer = torch.optim.Adam(collapsed.parameters(), lr=0.05)
for _ in range(600):
    optimizer.zero_grad()
    targets[1].energy(collapsed.draw(64)[0]).mean().backward()
    optimizer.step()
scale = collapsed.log_scale.detach().exp()
print(f"scale {scale[0]:.4f}, {scale[1]:.4f}; centre {collapsed.loc.detach().numpy().round(2)}")
assert (scale < 0.2).all()  # and it goes on shrinking
assert abs(collapsed.loc.detach().norm() - 2) < 0.2  # the bottom of a moon

# %% [markdown]
# ## The numbers of this page, checked

# %%
assert 1.0 < kl["normal"][0] < 1.2
assert 0 < kl["flow"][0] < 0.12
assert abs(kl["flow"][1] - 1) < 5e-3
assert abs(kl["normal"][1] - 1) < 5e-3
assert abs(area["after"] - 1) < 1e-6
assert abs(area["forgotten"] - 2) < 1e-6
assert all(abs(found / exact - 1) < 1e-3 for found, exact in areas)
assert worst["round trip"] < 1e-8
assert worst["log-det"] < 1e-10
assert (back - u).abs().max() < 1e-8
assert abs(torch.trapezoid(law, v) - 1) < 0.01
assert all(value > -5 * error for value, error in scores.values())  # a divergence
for fewer, more in itertools.pairwise(depths):
    assert scores[f"planar-{more}", 1][0] < scores[f"planar-{fewer}", 1][0]
if not FAST:
    assert scores["planar-2", 1][0] > 0.4
    assert scores["planar-32", 1][0] < 0.2
    assert all(scores["coupling-8", k][0] < 0.6 for k in targets)
    assert scores["coupling-8", 2][0] < 0.1

# %% [markdown]
# ---
# About a minute in all on two cores of a laptop-class CPU. Your output should look like this
# page; the last digits depend on the machine.
