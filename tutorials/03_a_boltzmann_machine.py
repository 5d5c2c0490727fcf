# %% [markdown]
# # A Boltzmann machine from scratch
#
# **Result first.** A restricted Boltzmann machine (RBM) with 100 hidden units learns the 8x8
# handwritten digits that come with ppgen. A held-out digit gets 7 to 8 nats more log-likelihood
# from it than from independent pixels: it is about two thousand times more probable. That is not a
# score made up for the purpose but a log-likelihood, enclosed between two bounds, and this page
# shows where each part of it comes from: the energy, the constant $Z$ that nobody can compute, the
# gradient that needs $Z$, contrastive divergence, which does without it, and annealed importance
# sampling, which brings $Z$ back at the end.

# %%
import math
import os
import time

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO

import ppgen
from ppgen import plots
from ppgen.data import load
from ppgen.data.synthetic import bars_and_stripes
from ppgen.inference import ContrastiveDivergence
from ppgen.inference.annealed_importance_sampling import annealed_importance_sampling
from ppgen.models import RBM, BaseRate
from ppgen.plots import canvas, label, legend, styles
from ppgen.progress import quiet

FAST = os.environ.get("PPGEN_FAST") == "1"
torch.manual_seed(0)
torch.set_num_threads(1)  # matrices this small gain nothing from a second one

digits = load("digits", binarisation="threshold")  # a pixel is 1 where it is brighter than 0.5
held_out = load("digits", "test", binarisation="threshold")
base_rates = BaseRate(digits.x)  # what a model must beat: each pixel for itself

rbm = RBM.from_data(digits.x, hidden=100)
result = ppgen.train(
    rbm,
    digits,
    loss=ContrastiveDivergence(gibbs_steps=5, persistent=True),
    optimizer=torch.optim.SGD,
    learning_rate=0.5,
    schedule=lambda epoch: 1 - epoch / (16 if FAST else 200),
    epochs=16 if FAST else 200,
    averaging=0.99,
)
bounds = ppgen.log_likelihood(rbm, held_out.x, temperatures=200 if FAST else 1000, seed=1)
coins = ppgen.log_likelihood(base_rates, held_out.x)
print(held_out.describe())
print(f"RBM:        {bounds}")
print(f"base rates: {coins}")

samples = base_rates.sample(400)
for _ in range(100 if FAST else 1000):
    samples = rbm.sweep(samples)
plots.images(
    torch.cat([held_out.x[:20], samples[:20]]),
    (8, 8),
    columns=10,
    title="Digits and samples",
    subtitle="Rows 1 and 2: held-out digits. Rows 3 and 4: samples of the machine.",
)

# %% [markdown]
# *What to see: a pixel is on (white) or off. Most samples could be digits in a hurried hand, a few
# could not. They were drawn by 1000 Gibbs sweeps (all hidden units given the visible ones, then all
# visible given the hidden) that started from noise, so they show the machine and not its training
# data.*
#
# ## Energy
#
# An RBM has binary visible units $x$ and binary hidden units $h$, and an energy that ties each
# visible unit to each hidden one:
#
# $$
# E(x, h) = -a^\top x - b^\top h - x^\top W h, \qquad p(x, h) = \frac{e^{-E(x, h)}}{Z}, \qquad
# Z = \sum_{x, h} e^{-E(x, h)} .
# $$
#
# With three visible and two hidden units there are $2^{3+2} = 32$ states, so nothing needs to be
# taken on trust.
#
# What makes the machine *restricted*: no tie within a side. Given $x$, the hidden units are
# independent coins, and so are the visible units given $h$. The sum over $h$ therefore splits
# into a product, and the **free energy**, $F(x) = -\log \sum_h e^{-E(x, h)}$, is a formula:
#
# $$
# F(x) = -a^\top x - \sum_j \log\left(1 + e^{b_j + (W^\top x)_j}\right), \qquad
# p(h_j = 1 \mid x) = \sigma\left(b_j + (W^\top x)_j\right), \qquad p(x) = e^{-F(x)} / Z .
# $$
#
# By hand, for the machine of the next cell and $x = (1, 1, 0)$: $a^\top x = -0.5$; the hidden units
# hear $b + W^\top x = (-0.5 + 2 + 1.5,\ -1 - 1 + 0.5) = (3, -1.5)$; therefore
#
# $$
# F = 0.5 - \log(1 + e^{3}) - \log(1 + e^{-1.5}) = 0.5 - 3.049 - 0.201 = -2.750 \text{ nats},
# \qquad p(x) = e^{2.750} / 80.68 = 0.194 .
# $$
#
# By code: first by summing over all states, then by the formulas, then by `RBM`.

# %%
W = torch.tensor([[2.0, -1.0], [1.5, 0.5], [-1.0, 2.0]], dtype=torch.float64)
a = torch.tensor([-0.5, 0.0, 0.5], dtype=torch.float64)
b = torch.tensor([-0.5, -1.0], dtype=torch.float64)

bit = torch.tensor([0.0, 1.0], dtype=torch.float64)
X = torch.cartesian_prod(bit, bit, bit)  # the 8 visible states, (8, 3)
H = torch.cartesian_prod(bit, bit)  # the 4 hidden states, (4, 2)


def energies(W, a, b):
    """E(x, h) of every state: (8, 4)."""
    return -(X @ a)[:, None] - H @ b - X @ W @ H.T


E = energies(W, a, b)
Z = torch.exp(-E).sum()
joint = torch.exp(-E) / Z  # p(x, h), (8, 4)
p = joint.sum(1)  # p(x), (8,)
print(f"Z = {Z:.3f}, log Z = {Z.log():.4f} nats, the probabilities add up to {joint.sum():.6f}")
for state, row, total in zip(X, joint, p, strict=True):
    cells = "  ".join(f"{value:.3f}" for value in row)
    print(f"x = {state.int().tolist()}   p(x, h): {cells}   p(x) = {total:.3f}")

F = -X @ a - torch.log1p(torch.exp(b + X @ W)).sum(1)
hidden_given_visible = torch.sigmoid(b + X @ W)  # (8, 2)
visible_given_hidden = torch.sigmoid(a + H @ W.T)  # (4, 3)

torch.testing.assert_close(F, -torch.exp(-E).sum(1).log())
torch.testing.assert_close(hidden_given_visible, (joint @ H) / p[:, None])
torch.testing.assert_close(visible_given_hidden, (joint.T @ X) / joint.sum(0)[:, None])
torch.testing.assert_close(p, torch.exp(-F) / Z)

same = RBM(3, 2).double()
with torch.no_grad():
    same.weight.copy_(W)
    same.visible_bias.copy_(a)
    same.hidden_bias.copy_(b)
    torch.testing.assert_close(same.free_energy(X), F)
    torch.testing.assert_close(same.marginal().log_prob(X), p.log())
print(f"F(1, 1, 0) = {F[6]:.3f} nats, p(1, 1, 0) = {p[6]:.3f}")
print("free energy and both conditionals: by the sums, the formulas and RBM, the same")

# %% [markdown]
# ## Why $Z$ is the trouble
#
# Summing out one side is free, but the other side remains: $2^n$ terms for its $n$ units. Each
# further unit doubles the work. `rbm.log_partition()` does the sum for small machines; here it is
# for 64 visible units and more and more hidden ones.

# %%
sizes = (8, 12, 16) if FAST else (8, 12, 16, 20)
for n in sizes:
    with torch.no_grad():
        start = time.perf_counter()
        RBM(64, n).log_partition()
        seconds = time.perf_counter() - start
    print(f"{n:3d} hidden units: {2**n:>9,} terms, {seconds:8.4f} s")
years = seconds * 2.0 ** (64 - sizes[-1]) / (365 * 24 * 3600)
print(f" 64 hidden units: {2**64:.1e} terms, {years:,.0f} years at this speed")

# %% [markdown]
# ## The gradient has two terms
#
# To learn is to raise the mean of $\log p(x) = -F(x) - \log Z$ over the data. Its gradient is
#
# $$
# \frac{\partial}{\partial W}\,\overline{\log p(x)}
#   = \underbrace{E_{\text{data}}\left[x\,E[h \mid x]^\top\right]}_{\text{positive phase}}
#   - \underbrace{E_{\text{machine}}\left[x\,E[h \mid x]^\top\right]}_{\text{negative phase}} .
# $$
#
# The first term lowers the energy of what was seen. The second is the gradient of $\log Z$: it
# raises the energy of what the machine itself would say. Where both agree, learning stops. On 32
# states both are exact, and autograd through the sum over all states finds the same.

# %%
data = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1], [1, 1, 1]], dtype=torch.float64)
seen = (X[None] == data[:, None]).all(-1).double().mean(0)  # the data as a distribution, (8,)

statistics = X[:, :, None] * hidden_given_visible[:, None, :]  # x E[h | x]^T of each x: (8, 3, 2)


def mean_under(q, statistics):
    return torch.einsum("s,sij->ij", q, statistics)


gradient = mean_under(seen, statistics) - mean_under(p, statistics)

learnable = W.clone().requires_grad_()
log_joint = -energies(learnable, a, b)
log_p = log_joint.logsumexp(1) - log_joint.flatten().logsumexp(0)
(by_autograd,) = torch.autograd.grad(seen @ log_p, learnable)
torch.testing.assert_close(gradient, by_autograd)
print("gradient of the mean log-likelihood with respect to W:")
print(gradient.numpy().round(4))

# %% [markdown]
# ## Contrastive divergence, and its bias
#
# The positive phase is cheap. The negative phase asks for draws from the machine, and a Gibbs
# chain gives them: draw $h$ given $x$, then $x$ given $h$, and so on, long enough. **CD-k** starts
# the chain at the data and stops after $k$ rounds (Hinton, 2002). How wrong is that? One round is a
# matrix over the 8 visible states,
#
# $$
# T(x' \mid x) = \sum_h p(h \mid x)\, p(x' \mid h),
# $$
#
# which leaves $p$ as it is. A chain that starts at the data $q$ has the distribution $q\,T^k$ after
# $k$ rounds. So the *expected* CD-k gradient, and its bias, can be computed without a single random
# number. Larger weights make the chain slower, so we take the same machine with its weights times
# 1, 2 and 3.


# %%
def conditional(logits, states):
    """Probability of each state under independent units: (n, units), (m, units) -> (n, m)."""
    on = torch.sigmoid(logits)[:, None]
    return torch.where(states > 0, on, 1 - on).prod(-1)


def transition(W, a, b):
    """T[x, x'], (8, 8): rows add up to one."""
    return conditional(b + X @ W, H) @ conditional(a + H @ W.T, X)


rounds = torch.arange(0, 41)
bias, rate = {}, {}
for scale in (1, 2, 3):
    V = scale * W
    T = transition(V, a, b)
    target = torch.softmax(-energies(V, a, b).flatten(), 0).view(8, 4).sum(1)
    torch.testing.assert_close(target @ T, target)  # Gibbs leaves the machine as it is
    statistics = X[:, :, None] * torch.sigmoid(b + X @ V)[:, None, :]
    exact = mean_under(seen - target, statistics)
    wrong = [mean_under(seen @ torch.matrix_power(T, int(k)) - target, statistics) for k in rounds]
    bias[f"weights x {scale}"] = torch.stack([w.norm() for w in wrong]) / exact.norm()
    rate[f"weights x {scale}"] = torch.linalg.eigvals(T).abs().sort().values[-2].item()

figure, (ax,) = canvas(3.0, "Bias of the expected CD-k gradient", "3 x 2 machine, no sampling.")
for (name, values), style in zip(bias.items(), styles(bias), strict=True):
    ax.semilogy(rounds, values, **style, label=f"{name}: second eigenvalue {rate[name]:.2f}")
ax.set_ylim(1e-6, 3)
label(ax, "Gibbs rounds k", "|bias| / |exact gradient|")
legend(figure, *ax.get_legend_handles_labels())
figure

# %% [markdown]
# *What to see: at $k = 0$ the two phases cancel and everything is missing. From then on the bias
# falls like $\lambda^k$, where $\lambda$ is the second largest eigenvalue of $T$. A machine with
# small weights forgets its start in a few rounds; the same machine with its weights tripled needs
# about five times as many. Weights grow during training, so a $k$ that was enough at first is not
# enough later.*
#
# ## Training, with the loop in sight
#
# **Persistent** contrastive divergence (PCD; Tieleman, 2008) does not start the chains anew at each
# update but lets them go on. The machine changes little from one update to the next, so they
# are never far from it.
#
# The data are the 14 patterns of bars and stripes on 3x3 pixels. Eight hidden units are few enough
# for an exact $Z$, so that we can watch the true log-likelihood, and even follow its exact
# gradient. No model can do better than minus the entropy of the data.

# %%
patterns = bars_and_stripes(3)
weight = patterns.log_prob.exp()
updates, pace = (250, 0.04) if FAST else (2000, 0.02)


def exact_log_likelihood(machine):
    """Expected log p(x) under the true distribution of the patterns, nats."""
    with torch.no_grad():
        return float(weight @ machine.marginal().log_prob(patterns.x))


def fit(loss, seed=0):
    """Train a 9 x 8 machine; `loss` None follows the exact gradient."""
    torch.manual_seed(seed)
    machine = RBM(9, 8, weight_scale=0.1)
    optimizer = torch.optim.Adam(machine.parameters(), lr=pace)
    slower = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=updates)
    likelihood, contrast = [], []
    for update in range(updates):
        x = patterns.sample(200)
        optimizer.zero_grad()
        if loss is None:
            (-machine.marginal().log_prob(x).mean()).backward()
        else:
            contrast.append(loss.loss_and_grads(machine.model, machine.guide, x))
        optimizer.step()
        slower.step()
        if update % 20 == 0:
            likelihood.append(exact_log_likelihood(machine))
    return machine, likelihood, contrast


fits = {
    "exact": fit(None),
    "CD-1": fit(ContrastiveDivergence(1)),
    "CD-25": fit(ContrastiveDivergence(25)),
    "PCD-5": fit(ContrastiveDivergence(5, persistent=True, chains=500)),
}
figure, (left, right) = canvas(
    3.2, "Bars and stripes", "Left: what was wanted. Right: what CD reports.", columns=2
)
for (name, (_, likelihood, contrast)), style in zip(
    fits.items(), styles(fits, "exact"), strict=True
):
    left.plot(range(0, updates, 20), likelihood, **style, label=name)
    if contrast:
        smooth = torch.tensor(contrast).unfold(0, 50, 10).mean(-1)
        right.plot(torch.arange(len(smooth)) * 10, smooth, **style)
left.axhline(-patterns.entropy, color="#5b6570", linestyle=":", label="best possible")
left.axhline(-9 * math.log(2), color="#5b6570", linestyle="--", linewidth=0.8, label="fair coins")
label(left, "update", "log-likelihood (nats)", "Exact log-likelihood")
label(right, "update", "F(data) - F(chains) (nats)", "Contrast")
legend(figure, *left.get_legend_handles_labels())
figure

# %% [markdown]
# *What to see: on the left the exact gradient, CD-25 and PCD-5 come close to the best possible.
# CD-1 rises at first and then falls below nine fair coins, which know nothing. On the right its
# contrast looks as quiet as the others': from it alone you would not have noticed.* That is no
# accident of one seed:

# %%
again = [
    exact_log_likelihood(fit(ContrastiveDivergence(1), seed)[0])
    for seed in ((1,) if FAST else (1, 2))
]
print("CD-1 with other seeds:", ", ".join(f"{value:.1f}" for value in again), "nats")

# %% [markdown]
#
# ## The loss of contrastive divergence is no likelihood
#
# What the loop returns is $F(\text{data}) - F(\text{chains})$, in nats. The constant $\log Z$ has
# cancelled, and with it all that makes a likelihood. It is near zero for an untrained machine, for
# a perfect one, and for one whose chains cannot leave the data. It is **negative** whenever
# the data are more probable than where the chains went, and that is no error either.
#
# Its gradient is what counts. *Is it Hinton's update?* Yes: with the end of the chain held fixed,
# the gradient of the contrast is the difference of two means of $x\,E[h \mid x]^\top$. ppgen
# computes that difference directly, by default in a centred form that trains better (Melchior et
# al., 2016); `centred=False` is the classic.

# %%
machine = RBM(9, 8, weight_scale=1.0)
batch = patterns.sample(100)
with torch.random.fork_rng():
    torch.manual_seed(1)
    end = machine.sweep(batch)  # one round of Gibbs from the data
    torch.manual_seed(1)  # and the same one inside the loss
    reported = ContrastiveDivergence(1, centred=False).loss_and_grads(
        machine.model, machine.guide, batch
    )
with torch.no_grad():
    positive = batch.T @ torch.sigmoid(machine.hidden_logits(batch)) / len(batch)
    negative = end.T @ torch.sigmoid(machine.hidden_logits(end)) / len(end)
contrast = machine.free_energy(batch).mean() - machine.free_energy(end).mean()
(by_autograd,) = torch.autograd.grad(contrast, machine.weight)
torch.testing.assert_close(machine.weight.grad, negative - positive)
torch.testing.assert_close(machine.weight.grad, by_autograd)
print(f"contrast {reported:.3f} nats; three ways to the same gradient")

# %% [markdown]
# ## The same machine in Pyro
#
# `rbm.model` and `rbm.guide` are an ordinary Pyro pair: the model says $p(x)\,p(h \mid x)$, and the
# guide is the exact $p(h \mid x)$. Hence the ELBO has no gap: where $Z$ can be summed, it *is* the
# log-likelihood, for every draw of $h$, and `Trace_ELBO` works. Where $Z$ cannot be summed, the log
# density raises instead of leaving it away, for an ELBO without $\log Z$ improves for ever while
# the likelihood gets worse (exercise 2). Then contrastive divergence is the loss for `SVI`, Pyro's
# loop of gradient steps on a model and its guide. The `scope()` keeps the parameters of this fit
# apart from those of any other.

# %%
with torch.no_grad():
    log_p = float(machine.marginal().log_prob(batch).sum())
elbo = -Trace_ELBO().loss(machine.model, machine.guide, batch)
print(f"9 x 8:    ELBO {elbo:.4f} nats, log p {log_p:.4f} nats")

try:
    Trace_ELBO().loss(rbm.model, rbm.guide, held_out.x)
except ValueError as error:
    complaint = str(error.__cause__)  # without Pyro's table of shapes
print(f"64 x 100: {complaint}")

torch.manual_seed(0)
with pyro.get_param_store().scope():
    by_pyro = RBM(9, 8, weight_scale=0.1)
    loss = ContrastiveDivergence(5, persistent=True, chains=500)
    svi = SVI(by_pyro.model, by_pyro.guide, pyro.optim.Adam({"lr": 0.01}), loss=loss)
    for _ in range(updates):
        svi.step(patterns.sample(100))
print(f"SVI with PCD-5: {exact_log_likelihood(by_pyro):.2f} nats")

# %% [markdown]
# ## The digits again
#
# Now read the first cell once more. `RBM.from_data` sets the visible biases to the log-odds of the
# base rates, so that the weights need not learn which pixels are mostly black. `ppgen.train` is
# the loop from above with minibatches, a schedule, an average of the parameters over the last
# updates, and checkpoints when it is given `out=`. What has a hidden unit learnt?

# %%
with torch.no_grad():
    strongest = rbm.weight.norm(dim=0).argsort(descending=True)[:32]
    strokes = rbm.weight[:, strongest].T
plots.filters(strokes, (8, 8), columns=16, title="Weights of the 32 strongest hidden units")

# %% [markdown]
# *What to see: each square is a column of $W$: what the unit, when it is on, adds to the log-odds
# of each pixel. Red beside blue is a piece of a stroke with its edge, at one place of the picture.
# The outer columns are pale, since nothing happens there.*
#
# How long does the chain need from noise to digit? Here are six chains.

# %%
shown = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
with torch.random.fork_rng():
    torch.manual_seed(5)
    x = torch.bernoulli(torch.full((6, 64), 0.5))
    frames = []
    for sweep in range(shown[-1] + 1):
        if sweep in shown:
            frames.append(x)
        x = rbm.sweep(x)
plots.images(
    torch.stack(frames, 1),
    (8, 8),
    columns=len(shown),
    title="Along the chain",
    subtitle=f"A row is a chain. Columns: after {', '.join(map(str, shown))} sweeps.",
)

# %% [markdown]
# *What to see: fair coins turn into strokes within a few sweeps; from then on a chain wanders from
# shape to shape. A row that showed one digit for ever would be a chain that does not mix, and then
# neither the samples nor the likelihood below could be trusted.*
#
# ## Log-likelihood from both sides
#
# $64$ and $100$ units are too many for a sum, so $\log Z$ is estimated. **Annealed importance
# sampling** (Neal, 2001) leads chains from independent pixels, whose $Z$ is known, to the machine,
# over many small steps of temperature. The estimate of $Z$ is unbiased, so the estimate of
# $\log Z$ is too *low* on average, and the likelihood that follows from it is too *good*. Going
# backwards, from samples of the machine to independent pixels, the error has the other sign. The
# truth lies between them, up to their standard errors. First a trial on the machine of bars and
# stripes, where $\log Z$ is known; then the digits, with more and more temperatures.

# %%
small = fits["PCD-5"][0]
with torch.no_grad():
    truth = small.log_partition().item()
trial = annealed_importance_sampling(small, seed=3)
print(f"9 x 8, exact: log Z = {truth:.2f} nats")
print(f"9 x 8, AIS:   {trial}")

ladder = (3, 10, 30) if FAST else (3, 10, 30, 100, 300, 1000)
effort = {"chains": 200 if FAST else 1000, "burn_in": 200, "seed": 2}
starts = {"from base rates": None, "from fair coins": torch.zeros(64)}
with quiet():
    brackets = {
        name: [
            ppgen.log_likelihood(rbm, held_out.x, temperatures=k, base=base, **effort)
            for k in ladder
        ]
        for name, base in starts.items()
    }
figure, (ax,) = canvas(
    3.1,
    "Held-out log-likelihood of one machine",
    "Lower and upper bounds, two standard errors.",
)
for (name, row), style in zip(brackets.items(), styles(brackets), strict=True):
    low, high = [r.lower for r in row], [r.upper for r in row]
    low_error, high_error = [2 * r.lower_error for r in row], [2 * r.upper_error for r in row]
    ax.errorbar(ladder, low, low_error, **style, marker="^", markersize=4, elinewidth=0.8)
    ax.errorbar(
        ladder, high, high_error, **style, marker="v", markersize=4, elinewidth=0.8, label=name
    )
    ax.fill_between(ladder, low, high, color=style["color"], alpha=0.12)
ax.set_xscale("log")
label(ax, "temperatures", "nats per example")
legend(figure, *ax.get_legend_handles_labels())
figure

# %% [markdown]
# *What to see: with few temperatures the bounds are far apart, and the upper one alone would look
# like a fine result. With more they close, from either start, and the base rates of the data are
# the better start by far.* At the right they are closer than their standard errors and may even
# cross: what is left is noise. The backward pass begins with samples from long chains, not with
# exact draws, and is only as good as these chains; the output says `nominal`.
#
# **A check that costs nothing.** The probabilities of different pictures add up to at most one, so
# $\log Z \ge \log \sum_x e^{-F(x)}$ over any set of different pictures, such as all digits that we
# have. Both bounds of AIS can fail together, when no chain has ever seen a mode of the machine; but
# a $\log Z$ below this sum is wrong for certain.
#
# Without any $Z$, free energies of one machine can be compared with one another.

# %%
pictures = torch.cat([digits.x, held_out.x]).unique(dim=0)


def least_log_partition(machine):
    """Certain lower bound of log Z, nats."""
    with torch.no_grad():
        return torch.logsumexp(-machine.free_energy(pictures).double(), 0).item()


log_partition = bounds.details["log_partition"]
share = math.exp(least_log_partition(rbm) - log_partition.lower)
print(f"AIS: log Z = {log_partition.lower:.2f} to {log_partition.upper:.2f} nats")
print(f"{len(pictures):,} pictures alone: at least {least_log_partition(rbm):.2f} nats")
print(f"so the machine spends {share:.1%} of its probability on them")

with torch.no_grad():
    free = {
        "training": rbm.free_energy(digits.x),
        "held out": rbm.free_energy(held_out.x),
        "samples": rbm.free_energy(samples),
        "base-rate noise": rbm.free_energy(base_rates.sample(400)),
    }
plots.free_energies(free)

# %% [markdown]
# *What to see: noise lies far above everything else. Training digits lie a little below held-out
# ones, which is overfitting, seen without AIS: one or two nats after 200 epochs. But the height of
# the curves says nothing: a constant added to the energy moves them all and changes no
# probability.*
#
# ## What goes wrong
#
# **Samples or probabilities, and in which phase?**
#
# | where | use | why |
# |---|---|---|
# | positive phase | $p(h \mid x)$ | same mean as samples, less noise |
# | inside the chain | samples | a chain of means is another chain |
# | end of the chain, last $h$ | $p(h \mid x)$ | same mean, less noise |
# | end of the chain, last $x$ | samples | means of $x$ shrink $x\,h^\top$ where likelihood counts |
#
# The second row is the one that is got wrong, because nothing crashes. Below, on the 32 states:
# does a round that passes on $p(h \mid x)$ instead of a sample leave $p$ invariant?
#
# **Black samples.** Three causes. The data were divided by 255 twice, so that a pixel is hardly
# ever on: look at them first (`log_likelihood` refuses what is not 0 or 1). The chain started at an
# empty picture and has not yet left it: start from base rates or data, and look along the chain. Or
# the learning rate is so large that every hidden unit is stuck.
#
# **The learning rate.** Chains must keep up with the machine that they sample. Below, with Adam at
# a hundred times a careful rate, they do not, and nothing raises.
#
# **A bound read as a value.** The upper bound of a hasty AIS flatters; print both, with the number
# of effective chains, and compare with the sum over the pictures that you have.

# %%
T = transition(W, a, b)
means_passed_on = conditional(a + torch.sigmoid(b + X @ W) @ W.T, X)  # x' given E[h | x]
sound = (p @ T - p).abs().sum() / 2
broken = (p @ means_passed_on - p).abs().sum() / 2
print(f"total variation from p after one round: samples {sound:.1e}, probabilities {broken:.3f}")

torch.manual_seed(0)
hasty = RBM.from_data(digits.x, hidden=100)
pcd = ContrastiveDivergence(persistent=True)
ppgen.train(hasty, digits, loss=pcd, learning_rate=0.5, epochs=20)
with torch.no_grad():
    at_most = -float(hasty.free_energy(held_out.x).mean()) - least_log_partition(hasty)
print(f"in haste: at most {at_most:.0f} nats per held-out digit; base rates {coins.lower:.2f} nats")

# %% [markdown]
# ## Exercises
#
# **1.** Without weights the units are independent. What is $\log Z$ then? Check your formula.

# %%
free_units = RBM(5, 3, weight_scale=0.0)
with torch.no_grad():
    free_units.visible_bias.copy_(torch.randn(5))
    free_units.hidden_bias.copy_(torch.randn(3))
    biases = torch.cat([free_units.visible_bias, free_units.hidden_bias])
    by_hand = torch.log1p(biases.exp()).sum()  # the sum over each unit is 1 + exp(bias)
    torch.testing.assert_close(free_units.log_partition(), by_hand)
print(f"log Z = {by_hand:.4f} nats, both ways")

# %% [markdown]
# **2.** Leave $\log Z$ away on purpose: maximise $-F(x)$ with `pyro.factor` and `Trace_ELBO`. What
# happens to the loss, and what to the exact log-likelihood?

# %%
torch.manual_seed(0)
naive = RBM(9, 8, weight_scale=0.1)


def unnormalised(x):
    pyro.module("naive", naive)
    with pyro.plate("data", len(x)):
        pyro.factor("minus_free_energy", -naive.free_energy(x))


before = exact_log_likelihood(naive)
with pyro.get_param_store().scope():
    svi = SVI(unnormalised, lambda x: None, pyro.optim.Adam({"lr": 0.01}), loss=Trace_ELBO())
    losses = [svi.step(patterns.sample(100)) / 100 for _ in range(200)]
after = exact_log_likelihood(naive)
print(f"loss {losses[0]:.1f} -> {losses[-1]:.1f}, log-likelihood {before:.2f} -> {after:.2f} nats")
assert losses[-1] < losses[0] - 5
assert after < before

# %% [markdown]
# **3.** Complete a digit: clamp the upper half of the held-out digits and let Gibbs sampling fill
# in the lower one. How often is the likelier value of a pixel the right one, against base rates?

# %%
known = torch.arange(64) < 32
x = torch.where(known, held_out.x, base_rates.sample(len(held_out)))
lower_half = torch.zeros(len(held_out), 64)
for sweep in range(200):
    x = torch.where(known, held_out.x, rbm.sweep(x))
    if sweep >= 100:
        lower_half += x / 100
right = ((lower_half > 0.5) == (held_out.x > 0.5))[:, ~known].double().mean()
right_by_rates = ((base_rates.rates > 0.5) == (held_out.x > 0.5))[:, ~known].double().mean()
print(f"right pixels in the lower half: RBM {right:.3f}, base rates {right_by_rates:.3f}")
assert right > right_by_rates + 0.02
plots.images(
    torch.cat([held_out.x[:10], torch.where(known, held_out.x, lower_half)[:10]]),
    (8, 8),
    columns=10,
    title="Completed digits",
    subtitle="Above: held-out digits. Below: upper half given, lower half the machine's mean.",
)

# %% [markdown]
# *What to see: where the upper half decides the digit, the lower half is sharp; where it does not,
# it is grey, as it should be.*
#
# ## The numbers of this page, checked

# %%
assert result.stopped == "finished"
assert bounds.kind == "bounds"
assert bounds.lower > coins.lower + (4.0 if FAST else 7.0)
assert bounds.upper < coins.lower + 8.0
assert log_partition.lower > least_log_partition(rbm)
assert abs(bounds.upper - bounds.lower) < 0.15
assert samples.unique().tolist() == [0.0, 1.0]  # samples all along, not probabilities
assert abs(bounds.lower - coins.lower - 7.5) < 0.5 or FAST  # a factor of about two thousand
assert torch.allclose(joint.sum(), torch.ones_like(Z))
assert abs(F[6] + 2.750) < 5e-4
assert abs(p[6] - 0.194) < 5e-4
assert abs(Z - 80.68) < 5e-3
for name, values in bias.items():  # the bias ends up falling at the rate of the second eigenvalue
    assert abs((values[12] / values[8]) ** 0.25 - rate[name]) < 0.02
assert 4 < math.log(rate["weights x 1"]) / math.log(rate["weights x 3"]) < 6  # about five times
exact, cd_1, cd_25, pcd_5 = (exact_log_likelihood(machine) for machine, *_ in fits.values())
assert min(exact, cd_25, pcd_5) > (-4.5 if FAST else -3.0)
assert cd_1 < min(exact, cd_25, pcd_5) - 1
assert max(again) < min(exact, cd_25, pcd_5) - 1
if not FAST:
    assert cd_1 < -9 * math.log(2)  # below nine fair coins
    assert 0.5 < free["held out"].mean() - free["training"].mean() < 2.5
assert min(fits["CD-1"][2]) < 0  # the contrast of CD may be negative
assert "ContrastiveDivergence" in complaint
assert math.isclose(elbo, log_p, rel_tol=1e-4)
assert abs(trial.lower - truth) < 5 * trial.lower_error
assert abs(trial.upper - truth) < 5 * trial.upper_error
assert brackets["from fair coins"][0].upper > bounds.upper + 1  # too good, at 3 temperatures
assert free["base-rate noise"].mean() > free["held out"].mean() + 4
assert sound < 1e-12 < 0.01 < broken
assert at_most < coins.lower

# %% [markdown]
# ---
# About 50 seconds in all on two cores of a laptop-class CPU. Your output should look like this
# page; the last digits depend on the machine.
