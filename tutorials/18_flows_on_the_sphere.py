# %% [markdown]
# # Flows on the sphere
#
# **Result first.** A density on the globe with four bumps, the benchmark of Rezende et al. (2020),
# known up to a constant. A flow of two layers, trained in seconds from the energy alone, comes
# within a tenth of a nat of it, and about 95% of its draws count as independent draws from the
# target. The paper reports a divergence of 0.05 nats and 90% for its best flow.
#
# Directions, orientations, places on the earth and phases live on spheres, and the density must be
# one *with respect to surface area*. This page shows what that costs (one term, the intrinsic
# log-determinant), what happens without it (the mass is not one), and ends with a week of
# earthquakes.

# %%
import math
import os

import numpy as np
import pyro.distributions as dist
import torch

import ppgen
from ppgen import data, plots
from ppgen.distributions import SphereUniform, VonMisesFisher
from ppgen.models import SphereFlow
from ppgen.plots import canvas, label, legend, styles
from ppgen.plots.sphere import mollweide
from ppgen.progress import quiet
from ppgen.transforms.autoregressive import Autoregressive
from ppgen.transforms.rational_quadratic import RationalQuadratic
from ppgen.transforms.scalar import Affine, Chain
from ppgen.transforms.sphere import ExponentialMap
from ppgen.transforms.stereographic import Stereographic

FAST = os.environ.get("PPGEN_FAST") == "1"
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)

kappa = 10.0
places = torch.tensor([(1.5, 0.7), (1.0, -1.0), (5.0, 0.6), (4.0, -0.7)])  # azimuth, latitude
centres = torch.stack(
    [places[:, 1].cos() * places[:, 0].cos(), places[:, 1].cos() * places[:, 0].sin(),
     places[:, 1].sin()], -1
)  # fmt: skip
log_Z = math.log(16 * math.pi * math.sinh(kappa) / kappa)


def log_target(x):
    """Unnormalised: four bumps of concentration 10, (*, 3) -> (*)."""
    return torch.logsumexp(kappa * x @ centres.T, -1)


def draw(layers, count):
    """Points and their log density, from the uniform law through the layers."""
    x = SphereUniform(2).sample((count,))
    log_q = SphereUniform(2).log_prob(x)
    for layer in layers:
        x, log_det = layer.forward_with_log_det(x)
        log_q = log_q - log_det
    return x, log_q


def fit(layers, steps, rate):
    """Reverse KL by gradient descent."""
    optimizer = torch.optim.Adam([p for layer in layers for p in layer.parameters()], rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x, log_q = draw(layers, 256)
        loss = (log_q - log_target(x)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def judge(layers, count=20_000):
    """KL(flow || target), its standard error, and the share of effective draws."""
    x, log_q = draw(layers, count)
    log_w = log_target(x) - log_q
    w = log_w.softmax(0)
    kl = log_Z - float(log_w.mean())
    return kl, float(log_w.std()) / count**0.5, float(1 / w.square().sum() / count)


torch.manual_seed(0)
flow = SphereFlow(2, bins=8, hidden=(32, 32), waves=2)
fit(flow.transforms, 20 if FAST else 600, 5e-3)
results = {"recursive, 2 layers": judge(flow.transforms)}
kl, error, share = results["recursive, 2 layers"]
print(f"KL {kl:.3f} +- {error:.3f} nats, effective share {share:.0%}")

# %% [markdown]
# ## What a density on a sphere is
#
# A point $x$ with $\lVert x \rVert = 1$ has three numbers and two degrees of freedom. Its density
# counts probability per unit of surface; the whole surface of $S^2$ is $4\pi$, so the uniform law
# has density $1 / 4\pi$, that is $-2.53$ nats. Longitude and latitude are no harmless coordinates:
# a square degree near a pole is small. Heights are: slices of equal height have equal surface
# (Archimedes), so an integral over the sphere is one over height and longitude, which gives an
# exact check of everything on this page.

# %%
rows, columns = (100, 200) if FAST else (400, 800)
heights = (torch.arange(rows) + 0.5) / rows * 2 - 1
longitudes = (torch.arange(columns) + 0.5) / columns * 2 * math.pi - math.pi
h, lam = torch.meshgrid(heights, longitudes, indexing="ij")
across = (1 - h**2).sqrt()
surface = torch.stack([across * lam.cos(), across * lam.sin(), h], -1)  # (400, 800, 3)
patch = 4 * math.pi / (rows * columns)  # the same everywhere


@torch.no_grad()
def mass(log_density):
    """Integral over the sphere of the exponential."""
    return float(log_density(surface.flatten(0, 1)).exp().sum() * patch)


by_sum = math.log(mass(log_target))
masses = {"uniform": mass(SphereUniform(2).log_prob), "flow": mass(flow.log_prob)}
print(f"log Z by summing over the surface {by_sum:.5f}, by formula {log_Z:.5f}")
print(f"mass of the uniform law {masses['uniform']:.6f}, of the flow {masses['flow']:.4f}")

edges = torch.linspace(-90, 90, 121)
meridians = torch.linspace(-180, 180, 241)
corners = [torch.as_tensor(v) for v in mollweide(*np.meshgrid(meridians, edges))]
lat, lon = ((v[1:] + v[:-1]) / 2 * math.pi / 180 for v in (edges, meridians))
pixels = torch.stack(
    [lat.cos()[:, None] * lon.cos(), lat.cos()[:, None] * lon.sin(),
     lat.sin()[:, None].expand(-1, len(lon))], -1
)  # fmt: skip


@torch.no_grad()
def globe(ax, log_density, title, top=None):
    """A density in Mollweide's projection, which keeps areas."""
    values = log_density(pixels.flatten(0, 1)).exp().reshape(pixels.shape[:2])
    ax.pcolormesh(*corners, values, cmap="viridis", vmin=0, vmax=top, rasterized=True)
    ax.set_aspect("equal")
    ax.grid(visible=False)
    ticks = torch.tensor([-60.0, 0.0, 60.0])
    ax.set_yticks(mollweide(np.zeros(3), ticks.numpy())[1], ["-60°", "0°", "60°"])
    ax.set_xticks(mollweide(np.array([-120.0, 0, 120]), np.zeros(3))[0], ["-120°", "0°", "120°"])
    label(ax, "longitude", "latitude", title)


figure, axes = canvas(
    2.4, "Four bumps on the globe", "Density per unit of surface, one colour scale.", columns=2
)
globe(axes[0], lambda x: log_target(x) - log_Z, "target", top=0.4)
globe(axes[1], flow.log_prob, f"flow: KL {kl:.3f} nats", top=0.4)
figure

# %% [markdown]
# *What to see: the same four bumps, of about the same shape and height. What is left of the
# divergence shows as edges in places: a spline of the longitude that changes quickly with the
# height.*
#
# ## The first idea: a flow in the plane, and a projection
#
# Gemici, Rezende and Mohamed (2016) put the plane on the sphere by **stereographic projection**,
# and let any flow of the plane do the rest:
#
# $$
# x = \frac{(2u,\ \lVert u \rVert^2 - 1)}{1 + \lVert u \rVert^2}, \qquad
# \log p(x) = \log q(u) - n \log \frac{2}{1 + \lVert u \rVert^2} .
# $$
#
# $x$ has one coordinate more than $u$, so the Jacobian is not square; the volume it stretches by is
# $\sqrt{\det J^\top J}$, and since the projection keeps angles that is the $n$-th power of one
# number, $2 / (1 + \lVert u \rVert^2)$. Drop it, as if the plane were the sphere, and the "density"
# does not integrate to one; nor to any constant, which one might forgive.

# %%
chart = Stereographic()
plane = dist.Normal(torch.zeros(2), 1.0).to_event(1)


def kept(x, spread=0.5):
    u = chart.inv(x)
    return dropped(x, spread) - chart.log_abs_det_jacobian(u, x)


def dropped(x, spread=0.5):
    return dist.Normal(torch.zeros(2), spread).to_event(1).log_prob(chart.inv(x))


s = torch.linspace(0, 400, 2_000_001)  # |u|^2 is exponential, with mean 2 spread^2
without = {}
for spread in (0.5, 1.0, 2.0):
    masses[f"kept {spread}"] = mass(lambda x, sd=spread: kept(x, sd))
    rate = 1 / (2 * spread**2)
    expected = float(torch.trapezoid(4 / (1 + s) ** 2 * rate * torch.exp(-rate * s), s))
    without[spread] = mass(lambda x, sd=spread: dropped(x, sd)), expected
    print(f"u ~ N(0, {spread}^2 I): mass {masses[f'kept {spread}']:.4f} with the term, "
          f"{without[spread][0]:.4f} without (E[4 / (1 + |u|^2)^2] = {expected:.4f})")  # fmt: skip

probe = torch.tensor([0.4, -0.8])
J = torch.autograd.functional.jacobian(chart, probe)
by_jacobian = 0.5 * torch.linalg.slogdet(J.T @ J)[1]
by_formula = chart.log_abs_det_jacobian(probe, chart(probe))
print(f"half log det of J'J {by_jacobian:.12f}, by formula {by_formula:.12f}")

figure, (left, right) = canvas(
    2.6, "A normal law of the plane, on the sphere",
    "Left: densities. Right: what a small square of the plane becomes.", columns=2,
)  # fmt: skip
profile = torch.stack([(1 - heights**2).sqrt(), 0 * heights, heights], -1)
uniform = torch.full_like(heights, 1 / (4 * math.pi))
lines = {"kept": kept(profile).exp(), "dropped": dropped(profile).exp(), "uniform": uniform}
for (name, values), style in zip(lines.items(), styles(lines), strict=True):
    left.plot(heights, values, label=name, **style)
label(left, "height (-1: south pole, u = 0)", "density per unit of surface")
legend(left, *left.get_legend_handles_labels())
radius = torch.linspace(0, 6, 200)
right.plot(radius, (2 / (1 + radius**2)) ** 2, color="#0072B2")
right.axhline(1.0, color="#5b6570", linewidth=0.8, linestyle=":")
label(right, "distance |u| from the origin of the plane", "surface per area of the plane")
figure

# %% [markdown]
# *What to see. Left: a normal law with standard deviation 0.5 sits around the south pole. Each
# height has the same surface, so the area under a curve, times $2\pi$, is the mass; without the
# term it is more than twice what it should be. Right: near the origin the plane is stretched four
# times in area, beyond $\lVert u \rVert = 1$ it shrinks. (With standard deviation 1 the two effects
# nearly cancel: a check at one setting proves little.)*
#
# ## Training with the wrong density
#
# It is not a constant that one may forget: it depends on $u$, so a flow trained without it goes to
# the wrong place. The target is one bump (a von Mises-Fisher law) half way up the northern half. A
# divergence cannot be negative; the objective without the term can.

# %%
bump = VonMisesFisher(torch.tensor([0.0, 0.6, 0.8]), torch.tensor(kappa))
exact = float(bump.mean_length)


def projected(keep, steps):
    torch.manual_seed(0)
    layers = torch.nn.ModuleList(
        Autoregressive(2, Chain([RationalQuadratic(8, 6.0), Affine()]), (32,), order=order)
        for order in ((0, 1), (1, 0))
    )
    optimizer = torch.optim.Adam(layers.parameters(), 1e-2)

    def sample(count):
        u = plane.sample((count,))
        log_q = plane.log_prob(u)
        for layer in layers:
            before, u = u, layer(u)
            log_q = log_q - layer.log_abs_det_jacobian(before, u)
        x = chart(u)
        return x, log_q, log_q - chart.log_abs_det_jacobian(u, x)

    for _ in range(steps):
        x, flat, true = sample(256)
        optimizer.zero_grad()
        ((true if keep else flat) - bump.log_prob(x)).mean().backward()
        optimizer.step()
    with torch.no_grad():
        x, flat, true = sample(20_000)
    log_p = bump.log_prob(x)
    height = float((x @ bump.mean_direction).mean())
    return float(((true if keep else flat) - log_p).mean()), float((true - log_p).mean()), height


trained = {name: projected(name == "kept", 40 if FAST else 400) for name in ("kept", "dropped")}
print(f"log-determinant  objective   true KL   mean of mu.x (exact {exact:.3f})")
for name, (objective, true_kl, height) in trained.items():
    print(f"{name:<15} {objective:>10.3f} {true_kl:>9.3f} {height:>14.3f}")

# %% [markdown]
# Without the term the objective is negative, and the true divergence is many times larger: the flow
# moves far out, to where a plane's area is a speck of the sphere, since there the forgotten term
# pays.
#
# ## Layers that never leave the sphere
#
# - **Recursive** (the first cell): a spline of the height, then a spline of the longitude given the
#   height. The surface element is $dh\,d\lambda$, so the log-determinant is the sum of two log
#   slopes; a rotation between layers moves the poles.
# - **Exponential map**: each point walks along the gradient of a potential with a few centres,
#   $x \mapsto \exp_x \nabla \phi(x)$. No poles, any dimension; the determinant is one of a tangent
#   matrix.

# %%
torch.manual_seed(0)
walks = [ExponentialMap(2, 5) for _ in range(6)]
fit(walks, 20 if FAST else 600, 5e-2)
results["exponential map, N=6, K=5"] = judge(walks)
published = {"recursive, 2 layers": "", "exponential map, N=6, K=5": "published: 0.19, 75%"}
for name, (value, error, effective) in results.items():
    print(f"{name:<26} KL {value:.3f} +- {error:.3f}   ESS {effective:.0%}   {published[name]}")
start = SphereUniform(2).sample((200,))
with torch.no_grad():
    end, log_det = walks[0].forward_with_log_det(start)
    again, back_det = walks[0].inverse_with_log_det(end)
round_trip = float((again - start).abs().max())
cancels = float((log_det + back_det).abs().max())
print(f"round trip {round_trip:.0e}, log-dets cancel to {cancels:.0e}")

# %% [markdown]
# (Published: 20,000 steps of Adam; here 600.)
#
# ## Data: a week of earthquakes
#
# 1,707 seismic events, of which 341 are held out. Training is by maximum likelihood, as for any
# flow. The rivals are the uniform law and mixtures of von Mises-Fisher laws by the EM algorithm,
# $p(x) = \sum_k \pi_k\, C(\kappa_k)\, e^{\kappa_k \mu_k \cdot x}$. The unit of the score is nats
# per event, with respect to surface area.

# %%
train, test = data.load("earthquakes"), data.load("earthquakes", "test").x
rest, held = train.hold_out(273)


def mixture_by_em(x, components, sweeps):
    torch.manual_seed(0)
    mu = x[torch.randperm(len(x))[:components]]
    concentration = torch.full((components,), 20.0)
    weight = torch.full((components,), 1 / components)
    for _ in range(sweeps):
        joint = weight.log() + VonMisesFisher(mu, concentration).log_prob(x[:, None])
        share = joint.softmax(-1)  # E: which component each event belongs to
        count = share.sum(0) + 1e-6
        total = share.T @ x
        length = total.norm(dim=-1)
        mu, weight = total / length[:, None], count / count.sum()  # M: moments
        r = (length / count).clamp(1e-6, 1 - 1e-5)
        concentration = (r * (3 - r**2) / (1 - r**2)).clamp(max=2e4)  # Banerjee et al. (2005)
    return dist.MixtureSameFamily(dist.Categorical(weight), VonMisesFisher(mu, concentration))


torch.manual_seed(0)
quakes = SphereFlow(2, layers=2, bins=32)
with quiet():
    ppgen.train(
        quakes, rest.x, epochs=4 if FAST else 120, batch_size=128, learning_rate=3e-3,
        validation=held.x, patience=25,
    )  # fmt: skip
models = {"uniform": SphereUniform(2), "flow": quakes}
for components in (5, 20, 80):
    models[f"mixture of {components}"] = mixture_by_em(rest.x, components, 8 if FAST else 100)
scores = {}
for name, model in models.items():
    with torch.no_grad():
        each = model.log_prob(test)
    scores[name] = float(each.mean()), float(each.std()) / len(each) ** 0.5
    print(f"{name:<14} {scores[name][0]:>7.3f} +- {scores[name][1]:.3f} nats per held-out event")

plots.globe(
    quakes.log_prob, test, "A flow fitted to a week of earthquakes", "Points: 341 held-out events."
)

# %% [markdown]
# *What to see: nearly all mass, and nearly all held-out events (orange), are at a few places:
# California, Alaska, Hawaii, Puerto Rico, whose networks report small events too; elsewhere only
# large ones are listed. Away from them the density is thin, and has seams along latitudes and
# longitudes of the two sets of poles of the layers.* The flow gains five nats over the uniform law,
# that is a factor of 150 in density at a typical event, and one nat over a mixture of five bumps.
# **The mixtures of 20 and of 80 bumps win**: events of a week come in narrow clusters, which bumps
# fit with a handful of numbers each and this flow with bent bands. A flow is not better for being
# a flow.
#
# ## What goes wrong
#
# - *Forgetting the intrinsic log-determinant.* Above. Integrate: it is one line.
# - *A normal base in the chart.* It leaves a hole at the pole from which one projects (left panel
#   above). A Student t with $\nu = n$ does not (exercise 2).
# - *Nats of different units.* The same law scores otherwise per square degree, or per radian of
#   longitude and latitude, than per surface (exercise 1).
# - *Few, and clustered data.* The standard errors above are for independent events; aftershocks
#   are not.
# - *Poles of a recursive layer.* At them the density need not be continuous.
#
# ## Exercises
#
# **1.** What is the uniform law's density in latitude and longitude, in radians? Check that it
# integrates to one, and that its mean score differs from $-\log 4\pi$.

# %%
phi = torch.linspace(-math.pi / 2, math.pi / 2, 20_001)
per_radian = phi.cos() / (4 * math.pi)  # the surface element is cos(latitude)
total = float(torch.trapezoid(per_radian, phi)) * 2 * math.pi
with torch.no_grad():
    latitude = SphereUniform(2).sample((20_000,))[:, 2].asin()
score = float((latitude.cos() / (4 * math.pi)).log().mean())
print(f"integral {total:.6f}; mean score {score:.3f}, against {-math.log(4 * math.pi):.3f} nats")
assert abs(total - 1) < 1e-6
# E[log cos latitude] = log 2 - 1, over uniform heights; its sd is 1/2 or so
assert abs(score + math.log(4 * math.pi) - (math.log(2) - 1)) < 5 * 0.5 / 20_000**0.5

# %% [markdown]
# **2.** Which law of $u$ becomes the uniform law on $S^2$? Check that a bivariate t with 2 degrees
# of freedom and scale $1/\sqrt 2$ does it.

# %%
u = chart.inv(SphereUniform(2).sample((1000,)))
log_t = -math.log(math.pi) - 2 * torch.log1p(u.square().sum(-1))  # (1/pi) (1 + |u|^2)^-2
library = dist.MultivariateStudentT(2.0, torch.zeros(2), torch.eye(2) / 2**0.5).log_prob(u)
torch.testing.assert_close(log_t, library)
on_sphere = log_t - chart.log_abs_det_jacobian(u, chart(u))
print(f"log density on the sphere: {on_sphere.min():.6f} to {on_sphere.max():.6f} nats")
torch.testing.assert_close(on_sphere, torch.full((1000,), -math.log(4 * math.pi)))

# %% [markdown]
# **3.** Under a von Mises-Fisher law on $S^2$ the mean of $\mu \cdot x$ is
# $\coth \kappa - 1/\kappa$. Derive it from $\log Z(\kappa)$, and check it by summing over
# the surface and by draws.

# %%
k = torch.tensor(kappa, requires_grad=True)
log_z_one = torch.log(4 * math.pi * torch.sinh(k) / k)
(slope,) = torch.autograd.grad(log_z_one, k)  # d log Z / d kappa is the mean of mu.x
formula = 1 / math.tanh(kappa) - 1 / kappa
law = bump.log_prob(surface).exp() * (surface @ bump.mean_direction)
drawn = float((bump.sample((20_000,)) @ bump.mean_direction).mean())
print(f"{formula:.6f}, slope {slope:.6f}, surface {law.sum() * patch:.6f}, draws {drawn:.4f}")
assert abs(slope - formula) < 1e-9
assert abs(law.sum() * patch - formula) < 1e-3
assert abs(drawn - formula) < 5 * 0.1 / 20_000**0.5  # the sd of mu.x is about 1 / kappa

# %% [markdown]
# ## The numbers of this page, checked

# %%
assert abs(by_sum - log_Z) < 1e-3
assert abs(log_Z - 10.921586) < 1e-6
assert abs(masses["uniform"] - 1) < 1e-9
assert abs(masses["flow"] - 1) < 0.01
assert all(abs(masses[f"kept {spread}"] - 1) < 1e-3 for spread in without)
assert all(abs(found - expected) < 1e-3 for found, expected in without.values())
assert without[0.5][0] > 1.8
assert without[2.0][0] < 0.6
assert abs(by_jacobian - by_formula) < 1e-12
assert round_trip < 1e-9
assert abs(exact - formula) < 1e-9
assert all(value > -5 * error for value, error, _ in results.values())  # a divergence
assert abs(trained["kept"][0] - trained["kept"][1]) < 1e-9
assert trained["dropped"][1] > trained["kept"][1] + 0.1
assert trained["dropped"][0] < 0
assert trained["dropped"][2] > trained["kept"][2] or trained["dropped"][2] < exact - 0.05
assert abs(scores["uniform"][0] + math.log(4 * math.pi)) < 1e-9
assert scores["flow"][0] > scores["uniform"][0] + 1
if not FAST:
    assert results["recursive, 2 layers"][0] < 0.1
    assert results["recursive, 2 layers"][2] > 0.8
    assert results["exponential map, N=6, K=5"][0] < 0.35
    assert trained["kept"][1] < 0.2
    assert abs(trained["kept"][2] - exact) < 0.04
    assert scores["mixture of 80"][0] > scores["mixture of 5"][0]
    assert scores["mixture of 80"][0] > scores["flow"][0] > scores["mixture of 5"][0]
    assert abs(scores["flow"][0] - scores["uniform"][0] - 5) < 0.5  # five nats: a factor of 150
    assert abs(scores["flow"][0] - scores["mixture of 5"][0] - 1) < 0.4

# %% [markdown]
# ---
# About 45 seconds in all on two cores of a laptop-class CPU. Your output should look like this
# page; the last digits depend on the machine.
