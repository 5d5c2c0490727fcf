# %% [markdown]
# # Energies
#
# **Result first.** Four students, Alice, Bob, Charles and Debbie, sit at a round table; each talks
# to two neighbours, and each either has or has not understood something (the *misconception* of
# Koller and Friedman, 2009, section 4.1). Nobody says who is a cause of whom: there are only four
# tables of numbers that say how well neighbours go together. From them follow an energy, a
# probability for each of the 16 states, and the most probable one, with 69%: Bob and Charles are
# wrong, Alice and Debbie are right. The same four tables give the free energy, and minimising it
# over a family of distributions is variational inference.
#
# This page goes from potentials to an energy, to the Boltzmann distribution and its temperature, to
# the free energy; it measures what the constant $Z$ costs; and it shows that the evidence lower
# bound (ELBO) is a free energy with its sign reversed.

# %%
import itertools
import math
import os
import time

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO

from ppgen.models import RBM, NormalNormal
from ppgen.plots import canvas, label, legend, styles

FAST = os.environ.get("PPGEN_FAST") == "1"
torch.manual_seed(0)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)  # sums over many states: fifteen digits

NAMES = ("Alice", "Bob", "Charles", "Debbie")
potentials = {  # psi of two neighbours; 1 stands for "is wrong"
    (0, 1): torch.tensor([[30.0, 5.0], [1.0, 10.0]]),
    (1, 2): torch.tensor([[100.0, 1.0], [1.0, 100.0]]),
    (2, 3): torch.tensor([[1.0, 100.0], [100.0, 1.0]]),
    (3, 0): torch.tensor([[100.0, 1.0], [1.0, 100.0]]),
}
states = torch.tensor(list(itertools.product((0, 1), repeat=4)))  # (16, 4)
product = torch.stack([psi[states[:, i], states[:, j]] for (i, j), psi in potentials.items()])
weight = product.prod(0)  # of each state, unnormalised
p = weight / weight.sum()
best = int(p.argmax())
wrong = [name for name, bit in zip(NAMES, states[best].tolist(), strict=True) if bit]
print(f"Z = {weight.sum():,.0f}; {' and '.join(wrong)} are wrong with probability {p[best]:.3f}")

# %% [markdown]
# ## Data: potentials over cliques
#
# Who talks to whom is a graph: here a ring of four. A **clique** $c$ is a set of variables that are
# all joined to each other, here a pair of neighbours. A **potential** $\psi_c(x_c) > 0$ says how
# well their values go together; it need not add up to anything. The joint distribution is their
# product, normalised:
#
# $$
# p(x) = \frac{1}{Z} \prod_c \psi_c(x_c), \qquad Z = \sum_x \prod_c \psi_c(x_c) .
# $$
#
# No potential is a probability. That of Alice and Bob, 30 against 10 for agreement on "right",
# prefers that both are right; the marginal of the two under $p$ does not, since the others have a
# say.

# %%
pair = torch.zeros(2, 2)
for (i, j, *_), mass in zip(states.tolist(), p, strict=True):
    pair[i, j] += mass
table = potentials[0, 1] / potentials[0, 1].sum()
print(f"both right: {table[0, 0]:.2f} of the potential, {pair[0, 0]:.2f} of the probability")
print(f"Alice right and Bob wrong: {table[0, 1]:.2f} and {pair[0, 1]:.2f}")

# %% [markdown]
# ## Model: an energy and the Boltzmann distribution
#
# Sums are easier than products, so take logarithms: natural ones, whose unit is the **nat**. One
# nat more is a factor of $e = 2.7$ in probability. The **energy** is $E(x) = -\sum_c \log
# \psi_c(x_c)$, and
#
# $$
# p(x) = \frac{e^{-E(x)}}{Z} .
# $$
#
# Low energy is high probability. Energies differ from log-probabilities by one constant, $\log Z$,
# and a constant added to the energy changes nothing. At **temperature** $T$ the law is
# $p_T(x) = e^{-E(x)/T} / Z(T)$: the hotter, the more equal the states.


# %%
E = -product.log().sum(0)  # nats, (16)


def boltzmann(energy, temperature=1.0):
    """Probabilities of the states, and the log of their constant."""
    log_Z = torch.logsumexp(-energy / temperature, 0)
    return torch.exp(-energy / temperature - log_Z), log_Z


torch.testing.assert_close(boltzmann(E)[0], p)
temperatures = torch.logspace(-1, 2.5, 60)
laws = torch.stack([boltzmann(E, T)[0] for T in temperatures])  # (60, 16)
mean_energy = laws @ E
entropy = torch.special.entr(laws).sum(1)
free_energy = torch.stack([-T * boltzmann(E, T)[1] for T in temperatures])

figure, (left, right) = canvas(
    2.9,
    "One energy at all temperatures",
    "Left: each state. Right: mean energy and entropy, which together make the free energy.",
    columns=2,
)
for k in range(16):
    left.plot(temperatures, laws[:, k], color="#c3cad2", linewidth=0.9)
named = {"0110": best, "1001": 9, "0000, 0001, 0010": 0}
for (name, k), style in zip(named.items(), styles(named), strict=True):
    left.plot(temperatures, laws[:, k], label=name, **style)
left.set_xscale("log")
left.axvline(1.0, color="#5b6570", linewidth=0.7)
label(left, "temperature T", "probability of a state")
legend(left, *left.get_legend_handles_labels())
lines = {"mean energy (nats)": mean_energy, "T x entropy (nats)": temperatures * entropy}
lines["free energy (nats)"] = free_energy
for (name, values), style in zip(lines.items(), styles(lines), strict=True):
    right.plot(temperatures, values, label=name, **style)
right.set_xscale("log")
right.set_ylim(-60, 60)
label(right, "temperature T", "nats")
legend(right, *right.get_legend_handles_labels())
figure

# %% [markdown]
# *What to see. Left: a state is written as Alice, Bob, Charles, Debbie, 1 for wrong; grey, the
# other eleven. Cold, all
# probability is in the state of lowest energy, 0110; hot, each of the 16 states has 1/16; the line
# at $T = 1$ is the law of the first cell. Right: the free energy is the mean energy less $T$ times
# the entropy, and falls as the temperature rises.*
#
# ## Free energy: summing out
#
# The **free energy** of a distribution $q$ is
#
# $$
# \mathcal F[q] = E_q[E(x)] - T\,H[q], \qquad H[q] = -E_q[\log q(x)],
# $$
#
# and its minimum over all $q$ is reached by $p_T$, with the value $-T \log Z(T)$: energy pulls
# towards one state, entropy towards all. From here on $T = 1$.
#
# Part of the variables may be fixed: the free energy of Bob's state $b$ is
# $F(b) = -\log \sum_{a, c, d} e^{-E(a, b, c, d)}$, and $p(b) = e^{-F(b)} / Z$. So a free energy is
# the energy of a variable once the others are summed out. In a Boltzmann machine the hidden units
# are summed out like this, and training it is about the free energy of the pictures.

# %%
_, log_Z = boltzmann(E)
F_bob = torch.stack([-torch.logsumexp(-E[states[:, 1] == b], 0) for b in (0, 1)])
bob = torch.exp(-F_bob - log_Z)
print(f"free energy of Bob: right {F_bob[0]:.3f}, wrong {F_bob[1]:.3f} nats; log Z = {log_Z:.3f}")
print(f"Bob is wrong with probability {bob[1]:.4f}")

# %% [markdown]
# ## What Z costs
#
# With $d$ binary variables, $Z$ has $2^d$ terms. Count them and take the time: a table of couplings
# $J$ between all pairs of $d$ variables, $E(x) = -\tfrac12 x^\top J x$.


# %%
def log_partition(J):
    """Over all 2^d states, 65,536 at a time; also the number of terms."""
    d, total, count = len(J), -torch.inf, 0
    powers = 2 ** torch.arange(d)
    for block in torch.arange(2**d).split(2**16):
        x = (block[:, None] // powers % 2).to(J)
        values = 0.5 * ((x @ J) * x).sum(1)
        total = torch.logaddexp(torch.as_tensor(total).to(J), torch.logsumexp(values, 0))
        count += len(x)
    return total, count


sizes = list(range(8, 17 if FAST else 21, 2))
seconds, counts = [], []
for d in sizes:
    J = torch.randn(d, d) / d**0.5
    start = time.perf_counter()
    _, count = log_partition(J + J.T)
    seconds.append(time.perf_counter() - start)
    counts.append(count)
    print(f"d = {d}: {count:>9,} terms, {1e3 * seconds[-1]:8.1f} ms")
each = seconds[-1] / counts[-1]
digits = math.log10(2) * 784 + math.log10(each / 3.15e7)
print(f"a 28x28 picture at this pace: 10^{digits:.0f} years")

# %% [markdown]
# Two ways out are exact. On a **ring** each variable touches two others, so the sum can be done one
# variable at a time: $Z = \mathrm{tr} \prod_i \Psi_i$, a product of 2x2 matrices, whose cost is
# linear in $d$. What counts is not the number of variables but how many of them hang together at
# once. And in a **restricted** Boltzmann machine (RBM) all hidden units can be summed out by a
# formula, so that only the $2^{\min(D, H)}$ states of its smaller side remain.


# %%
def log_partition_of_ring(tables):
    """Transfer matrices, rescaled on the way so that nothing overflows."""
    message, scale = torch.eye(2), 0.0
    for psi in tables:
        message = message @ psi
        scale = scale + message.sum().log()
        message = message / message.sum()
    return scale + message.trace().log()


ring = [potentials[i, (i + 1) % 4] for i in range(4)]
ring_of_students = log_partition_of_ring(ring)
start = time.perf_counter()
log_partition_of_ring(ring * 250)
linear = time.perf_counter() - start
rbm = RBM(60, 8, weight_scale=0.5)
start = time.perf_counter()
with torch.no_grad():
    log_Z_rbm = rbm.log_partition()
print(f"ring of 4: log Z = {ring_of_students:.6f}, by enumeration {log_Z:.6f}")
print(f"ring of 1,000 variables: {1e3 * linear:.0f} ms")
print(f"RBM of 60 + 8 units: {1e3 * (time.perf_counter() - start):.0f} ms for 2^68 states")

figure, (ax,) = canvas(
    3.0, "The price of Z", "Seconds to sum over all states of d binary variables, one core."
)
ax.semilogy(sizes, seconds, "o-", color="#0072B2", label="all pairs coupled: enumeration")
reference = [each * 2**d for d in range(8, 41)]
ax.semilogy(range(8, 41), reference, ":", color="#5b6570", label="doubling with each variable")
ax.axhline(linear, color="#D55E00", linestyle="--", label="ring of 1,000: transfer matrices")
for height, name in ((60.0, "a minute"), (86400.0, "a day")):
    ax.text(8, height, name, fontsize=8, color="#5b6570", va="center")
label(ax, "variables d", "seconds")
legend(ax, *ax.get_legend_handles_labels(), loc="lower right")
figure

# %% [markdown]
# *What to see: the vertical axis is logarithmic, and the measured points follow the line that
# doubles with each variable once the fixed cost of a call (left) no longer matters. Twenty
# variables take a fraction of a second, forty are beyond a day, and a picture has hundreds.*
#
# ## Training: minimise the free energy over a family
#
# Where $Z$ is out of reach, restrict $q$ to a family in which energy and entropy are easy. The
# plainest is **mean field**, four independent coins. How far is $q$ from $p$? The
# **Kullback-Leibler (KL) divergence**, $\mathrm{KL}(q \,\|\, p) = E_q[\log q - \log p]$, is never
# negative and zero only where both are the same. For every $q$
#
# $$
# \mathcal F[q] = -\log Z + \mathrm{KL}(q \,\|\, p) \;\ge\; -\log Z ,
# $$
#
# so minimising the free energy brings $q$ as near to $p$ as the family allows and gives a bound on
# $\log Z$. Here both terms are computed at each step, and their difference should be the KL
# divergence.


# %%
def coins(logits):
    """Probability of each of the 16 states under independent coins."""
    bits = states.to(logits)
    return torch.exp(dist.Bernoulli(logits=logits).log_prob(bits).sum(-1))


def variational_free_energy(q, energy):
    return q @ energy - torch.special.entr(q).sum()


logits = torch.zeros(4, requires_grad=True)
optimizer = torch.optim.Adam([logits], lr=0.1)
path, errors = [], []
for _ in range(200):
    optimizer.zero_grad()
    q = coins(logits)
    loss = variational_free_energy(q, E)
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        kl = (q * (q / p).log()).sum()
        errors.append(float((loss + log_Z - kl).abs()))
        path.append(float(loss))
found = coins(logits).detach()
print(f"free energy {path[0]:.3f} -> {path[-1]:.3f} nats; -log Z = {-log_Z:.3f}")
print(f"F[q] + log Z - KL(q || p): at most {max(errors):.1e} over the whole run")
print(f"probability of 0110: p {p[best]:.3f}, q {found[best]:.3f}")

figure, (ax,) = canvas(
    2.6, "Mean field on the ring", "Free energy of four independent coins during the descent."
)
ax.plot(path, color="#0072B2", label="free energy of q")
ax.axhline(-float(log_Z), color="#1b1f24", linewidth=1.2, linestyle="--", label="-log Z")
label(ax, "step", "nats")
legend(ax, *ax.get_legend_handles_labels())
figure

# %% [markdown]
# *What to see: the free energy falls and stops above $-\log Z$. The distance that remains is the KL
# divergence of the best four coins from $p$: they put nearly everything on one state, because
# independent coins cannot say that Bob and Charles tend to be wrong together.*
#
# ## The bridge: the negative ELBO is a variational free energy
#
# Take a Bayesian story with latent $z$ and data $x$, and call $E(z) = -\log p(x, z)$ an energy. Its
# constant is the evidence, $Z = \int p(x, z)\,dz = p(x)$; its Boltzmann distribution is the
# posterior; and
#
# $$
# \mathcal F[q] = E_q[-\log p(x, z)] - H[q] = -\mathrm{ELBO}[q] .
# $$
#
# Everything above holds again under new names: $-\log Z$ is $-\log p(x)$, and the bound on the
# free energy is the bound that gave the ELBO its name. Below, the mean of five measurements with
# a normal prior: $Z$ by adding up $e^{-E}$ on a grid, the free energy of a $q$ on the same grid,
# and the ELBO by Pyro.

# %%
story = NormalNormal(mean=0.0, scale=10.0, noise=1.0)
x = torch.tensor([2.1, 3.4, 1.7, 2.9, 2.4])
grid = torch.linspace(-20.0, 25.0, 45_001)
step = grid[1] - grid[0]
log_joint = dist.Normal(story.mean, story.scale).log_prob(grid)
log_joint = log_joint + dist.Normal(grid[:, None], story.noise).log_prob(x).sum(1)
evidence = torch.logsumexp(log_joint, 0) + step.log()

q = dist.Normal(torch.tensor(2.0), torch.tensor(0.7))
density = q.log_prob(grid).exp()
by_grid = (density * -log_joint).sum() * step - torch.special.entr(density).sum() * step


def guide(x):
    pyro.sample("mu", q)


particles = 2_000 if FAST else 20_000
with torch.no_grad(), pyro.get_param_store().scope():
    loss = Trace_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=1).loss(
        story.model, guide, x
    )
    exact = Trace_ELBO().loss(story.model, story.guide, x)
print(f"log Z by the grid {evidence:.6f}, log evidence by formula {story.log_evidence(x):.6f} nats")
print(f"free energy of q by the grid {by_grid:.3f}, negative ELBO by Pyro {loss:.3f} nats")
print(f"with the posterior as q, negative ELBO {exact:.6f}: the minimum, -log p(x)")

# %% [markdown]
# ## What goes wrong
#
# - *Reading a potential as a probability.* Alice and Bob's table prefers that both are right; their
#   marginal does not (second cell). Potentials are learnt together or not at all.
# - *Comparing energies of two models.* Each has a $Z$ of its own; without it, a lower energy says
#   nothing. Exercise 1 moves the energy of every state and leaves every probability.
# - *Letting the free energy fall without $Z$.* For a fixed energy, minimise over $q$. Lowering
#   $E$ of the data over the parameters of $E$ without $\log Z$ lowers the energy of everything else
#   as well: `03_a_boltzmann_machine` shows the loss fall while the likelihood gets worse.
# - *Believing mean field's probabilities.* The bound on $\log Z$ is sound, but $q$ puts too much on
#   one state (here 0.92 instead of 0.69): it is too sure.
#
# ## Exercises
#
# **1.** Multiply one potential by 7. What happens to $Z$, to the energies, and to $p$?

# %%
scaled, log_Z_scaled = boltzmann(E - math.log(7.0))
print(
    f"log Z rises by {log_Z_scaled - log_Z:.4f} = log 7; p moves by {(scaled - p).abs().max():.0e}"
)
torch.testing.assert_close(log_Z_scaled - log_Z, torch.tensor(math.log(7.0)))
torch.testing.assert_close(scaled, p)

# %% [markdown]
# **2.** How does $\log Z(T)$ know the mean energy and the entropy? Differentiate
# $-T \log Z(T)$ by $T$, and check against the sums.

# %%
T = torch.tensor(1.7, requires_grad=True)
free = -T * boltzmann(E, T)[1]
(slope,) = torch.autograd.grad(free, T)
law = boltzmann(E, T.detach())[0]
torch.testing.assert_close(-slope, torch.special.entr(law).sum())  # dF/dT = -entropy
torch.testing.assert_close((free - T * slope).detach(), law @ E)  # F + T S = mean energy
print(f"entropy {-slope:.4f} nats, mean energy {law @ E:.4f} nats, both from log Z alone")

# %% [markdown]
# **3.** Two coins that want to agree strongly: $\psi = 100$ if equal, else 1. What does mean field
# find, and by how much does it miss $\log Z$?

# %%
agree = -torch.tensor([100.0, 1.0, 1.0, 100.0]).log()
two = torch.tensor([0.3, 0.2], requires_grad=True)
optimizer = torch.optim.Adam([two], lr=0.1)
for _ in range(500):
    optimizer.zero_grad()
    up = two.sigmoid()
    q2 = torch.stack([1 - up[0], up[0]])[:, None] * torch.stack([1 - up[1], up[1]])
    gap = variational_free_energy(q2.reshape(-1), agree) + boltzmann(agree)[1]
    gap.backward()
    optimizer.step()
q2 = q2.detach().reshape(-1)
print(f"p = {boltzmann(agree)[0].numpy().round(3)}, q = {q2.numpy().round(3)}; gap {gap:.3f} nats")
assert q2[3] > 0.9  # one of the two modes; which one depends on the start
assert 0.6 < gap < math.log(2)  # just below log 2: half of the probability is missing

# %% [markdown]
# ## The numbers of this page, checked

# %%
assert weight.sum() == 7_201_840
assert wrong == ["Bob", "Charles"]
assert 0.69 < p[best] < 0.70
assert table[0, 0] > table[0, 1]
assert pair[0, 0] < pair[0, 1]
torch.testing.assert_close(laws[:, 0], laws[:, 1])  # one line for three states
torch.testing.assert_close(laws[:, 0], laws[:, 2])
torch.testing.assert_close(free_energy, mean_energy - temperatures * entropy)
assert laws[0, best] > 0.99
assert (laws[-1] - 1 / 16).abs().max() < 0.01
assert (free_energy.diff() < 0).all()
torch.testing.assert_close(bob[1], p[states[:, 1] == 1].sum())
assert counts == [2**d for d in sizes]
assert seconds[-1] > 4 * seconds[sizes.index(sizes[-1] - 4)]  # 16 times, on a quiet machine
assert seconds[-1] < 5  # a fraction of a second, on a quiet machine
assert each * 2**40 > 86_400
assert digits > 200
torch.testing.assert_close(ring_of_students, log_Z)
assert max(errors) < 1e-9
assert min(path) > -log_Z
assert path[-1] < path[0] - 3
assert 0.9 < found[best] < 0.95
torch.testing.assert_close(evidence, story.log_evidence(x))
mcse = 5 * 5.0 / particles**0.5  # five standard errors; log p - log q has an sd below 5 nats
assert abs(loss - by_grid) < mcse
assert math.isclose(exact, -story.log_evidence(x), abs_tol=1e-9)
assert by_grid > exact

# %% [markdown]
# ---
# A few seconds on two cores of a laptop-class CPU. Your output should look like this page; the
# seconds depend on the machine.
