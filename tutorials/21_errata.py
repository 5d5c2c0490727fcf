# %% [markdown]
# # Errata
#
# **Result first.** Nine slips in the formulas of the lecture on explicit generative models. Each is
# a sign, an index or a factor, and none crashes a program; each can be told from the right formula
# by a number. Below stand the slip, the right formula, the reason, and a cell in which the right
# one holds and the wrong one does not.
#
# | | slip | right |
# |---|---|---|
# | 1 | $\log E[w] \le E[\log w]$ | $\log E[w] \ge E[\log w]$ |
# | 2 | $\mathrm{ELBO} = \log p(x) + \mathrm{KL}(q \,\Vert\, p(z \mid x))$ | minus |
# | 3 | ELBO $> 0$ | only KL $\ge 0$ |
# | 4 | CAVI: $q_j = E_{-j}[\log p]$ | $q_j \propto \exp E_{-j}[\log p]$ |
# | 5 | MLE $= \arg\max p(x \mid \theta)\,p(\theta)$ | without $p(\theta)$; that is MAP |
# | 6 | CD: $\Delta W \propto$ model less data | data less model |
# | 7 | $p(h_j \mid x) = \sigma(a_j + \ldots)$ | the bias of the unit itself, $b_j$ |
# | 8 | DBM: $E = +x^\top W_1 h_1 + h_1^\top W_1 h_2$ | $-x^\top W_1 h_1 - h_1^\top W_2 h_2$ |
# | 9 | DBN: $p(x, h) = p(x \mid h_1)\,p(h_1 \mid h_2)$ | times $p(h_2)$ of the top |

# %%
import math

import pyro.distributions as dist
import torch

import ppgen
from ppgen.inference import MAP, MLE
from ppgen.models import DBM, DBN, RBM, BetaBernoulli, NormalNormal
from ppgen.plots import canvas, label, legend, styles
from ppgen.progress import quiet

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)

bit = torch.tensor([0.0, 1.0])


def states(units):
    """All states of so many binary units, (2^units, units)."""
    return torch.cartesian_prod(*[bit] * units).reshape(-1, units)


# %% [markdown]
# ## Data, model and objective
#
# One small story with a formula for everything serves the first three: $\mu \sim N(0, 10)$,
# $x_n \sim N(\mu, 1)$, five data, and a guide $q = N(2, 0.9)$.

# %%
story = NormalNormal()
x = torch.tensor([2.1, 3.4, 1.7, 2.9, 2.4])
q = dist.Normal(torch.tensor(2.0), torch.tensor(0.9))
posterior, log_p = story.exact_posterior(x)["mu"], float(story.log_evidence(x))
grid = torch.linspace(-8.0, 12.0, 20_001)
step = 20 / 20_000
log_joint = dist.Normal(story.mean, story.scale).log_prob(grid)
log_joint = log_joint + dist.Normal(grid[:, None], story.noise).log_prob(x).sum(1)
log_w = log_joint - q.log_prob(grid)
mass = q.log_prob(grid).exp() * step

# %% [markdown]
# ## 1. The direction of Jensen's inequality
#
# The logarithm is **concave**: its graph lies above its chords, so the log of a mean is at least
# the mean of the logs, $\log E_q[w] \ge E_q[\log w]$. With $w = p(x, z) / q(z)$ the left side is
# $\log p(x)$ and the right side is the ELBO. Were it the other way round, the ELBO would be an
# *upper* bound, and maximising it would be pointless.

# %%
log_of_mean = float(torch.logsumexp(log_w + mass.log(), 0))
mean_of_log = float((mass * log_w).sum())
print(f"log E[w] = {log_of_mean:.4f} = log p(x) = {log_p:.4f}; E[log w] = {mean_of_log:.4f} nats")
assert abs(log_of_mean - log_p) < 1e-5
assert log_of_mean > mean_of_log + 1

w = torch.tensor([0.4, 4.0])
axis = torch.linspace(0.2, 5.0, 200)
figure, (ax,) = canvas(2.8, "Why the bound is a lower one", "Two weights of equal probability.")
curves = {"log w": None, "chord": None}
look = dict(zip(curves, styles(curves), strict=True))
ax.plot(axis, axis.log(), label="log w", **look["log w"])
ax.plot(w, w.log(), label="chord", **look["chord"])
ax.plot(w.mean(), w.mean().log(), "o", color="#0072B2", label="log of the mean")
ax.plot(w.mean(), w.log().mean(), "s", color="#D55E00", label="mean of the logs")
label(ax, "w", "log w (nats)")
legend(ax, *ax.get_legend_handles_labels(), loc="lower right")
figure

# %% [markdown]
# *What to see: the chord between two points of the logarithm lies under it; the mean of the logs is
# on the chord, the log of the mean on the curve.*
#
# ## 2. Signs in the third form of the ELBO
#
# Put $p(x, z) = p(z \mid x)\,p(x)$ into $E_q[\log p(x, z) - \log q(z)]$:
#
# $$
# \mathrm{ELBO} = \log p(x) + E_q[\log p(z \mid x) - \log q(z)]
#               = \log p(x) - \mathrm{KL}(q \,\|\, p(z \mid x)) .
# $$

# %%
kl = float(torch.distributions.kl_divergence(q, posterior))
print(f"ELBO {mean_of_log:.4f}; log p - KL {log_p - kl:.4f}; log p + KL {log_p + kl:.4f}")
assert abs(mean_of_log - (log_p - kl)) < 1e-5
assert abs(mean_of_log - (log_p + kl)) > 2

# %% [markdown]
# ## 3. "ELBO > 0"
#
# A KL divergence is non-negative, $E_q[-\log(p/q)] \ge -\log E_q[p/q] = 0$. The ELBO is at most
# $\log p(x)$; where $x$ is discrete that is at most 0, and else its sign depends on the unit of
# $x$.

# %%
in_kilo = NormalNormal(scale=0.01, noise=0.001)
print(f"ELBO {mean_of_log:.2f} nats; log p(x) {log_p:.2f}, in another unit "
      f"{in_kilo.log_evidence(x / 1000):.2f}; KL {kl:.2f}")  # fmt: skip
assert mean_of_log < 0 < kl
assert in_kilo.log_evidence(x / 1000) > 0

# %% [markdown]
# ## 4. CAVI without the exponential and the normalisation
#
# With the other factors fixed, the ELBO as a functional of $q_j$ is
# $E_{q_j}[\log \tilde p_j] - E_{q_j}[\log q_j] + c$ with $\log \tilde p_j = E_{-j}[\log p(x, z)]$:
# minus a KL divergence from $\tilde p_j$, normalised. So it is highest at
# $q_j = \tilde p_j / \sum \tilde p_j$. The expected logarithm itself is mostly negative and adds up
# to anything.

# %%
table = torch.tensor([[0.30, 0.05, 0.10], [0.05, 0.20, 0.30]])  # p(z1, z2 | x), up to p(x)
q1, q2 = torch.tensor([0.5, 0.5]), torch.full((3,), 1 / 3)


def elbo(q1, q2):
    joint = q1[:, None] * q2
    return float((joint * (table.log() - joint.log())).sum())


values = [elbo(q1, q2)]
slip = table.log() @ q2
for _ in range(30):
    q1 = (table.log() @ q2).softmax(0)  # exponential, and normalised
    values.append(elbo(q1, q2))
    q2 = (q1 @ table.log()).softmax(0)
    values.append(elbo(q1, q2))
print(f"without the exponential: {slip.numpy().round(2)}, sum {slip.sum():.2f}")
print(f"with it: ELBO {values[0]:.4f} -> {values[-1]:.4f} nats, log p(x) = 0")
assert (slip < 0).all()  # no probabilities
assert (torch.tensor(values).diff() > -1e-12).all()
assert values[-1] < 0
angles = torch.linspace(0.001, 0.999, 999)
around = [elbo(torch.stack([t, 1 - t]), q2) for t in angles]
assert max(around) < values[-1] + 1e-6  # no other q1 does better

# %% [markdown]
# ## 5. Maximum likelihood with the prior
#
# $\arg\max_\theta p(x \mid \theta)\,p(\theta)$ is the maximum a posteriori, MAP. They agree where
# the prior is flat, in the variable in which it is flat.

# %%
tosses, coin = (torch.arange(10) < 7).double(), BetaBernoulli(a=5.0, b=5.0)
with quiet():
    mle = ppgen.fit(coin.model, tosses, using=MLE())["theta"].item()
    mode = ppgen.fit(coin.model, tosses, using=MAP())["theta"].item()
print(f"seven heads in ten, prior Beta(5, 5): MLE {mle:.4f}, MAP {mode:.4f}")
assert abs(mle - 7 / 10) < 1e-5
assert abs(mode - (7 + 4) / (10 + 8)) < 1e-5

# %% [markdown]
# ## 6. The sign in the gradient of contrastive divergence
#
# $\log p(x) = -F(x) - \log Z$ and $-\partial F / \partial W = x\,E[h \mid x]^\top$, so
#
# $$
# \frac{\partial \log p(x)}{\partial W} = \langle x h^\top \rangle_\text{data}
#                                       - \langle x h^\top \rangle_\text{model} :
# $$
#
# raise the probability of the data, lower that of what the machine dreams. Contrastive divergence
# puts a short chain for the model; the sign stays. As a *loss* to be minimised it is the reverse,
# and that is where the slip comes from.

# %%
rbm = RBM(4, 3, weight_scale=0.5).double()
with torch.no_grad():
    rbm.visible_bias.copy_(torch.randn(4))
    rbm.hidden_bias.copy_(torch.randn(3))
seen = states(4)[torch.tensor([3, 5, 12])]
all_x, all_h = states(4), states(3)


def log_likelihood(machine):
    return (-machine.free_energy(seen)).mean() - torch.logsumexp(-machine.free_energy(all_x), 0)


(gradient,) = torch.autograd.grad(log_likelihood(rbm), rbm.weight)
with torch.no_grad():
    p_x = (-rbm.free_energy(all_x)).softmax(0)
    data_phase = seen.T @ rbm.hidden_logits(seen).sigmoid() / len(seen)
    model_phase = (p_x[:, None] * all_x).T @ rbm.hidden_logits(all_x).sigmoid()
    before = float(log_likelihood(rbm))
    rbm.weight += 0.05 * (data_phase - model_phase)
    uphill = float(log_likelihood(rbm))
    rbm.weight -= 0.10 * (data_phase - model_phase)
    downhill = float(log_likelihood(rbm))
    rbm.weight += 0.05 * (data_phase - model_phase)
print(f"log-likelihood {before:.4f}; data less model {uphill:.4f}, model less data {downhill:.4f}")
torch.testing.assert_close(gradient, data_phase - model_phase)
assert downhill < before < uphill

# %% [markdown]
# ## 7. The biases of an RBM in its conditionals
#
# In $E = -a^\top x - b^\top h - x^\top W h$ collect what multiplies $h_j$: $b_j + (W^\top x)_j$. A
# unit keeps its own bias, and the other side comes through the weights: $p(h_j = 1 \mid x) =
# \sigma(b_j + (W^\top x)_j)$, $p(x_i = 1 \mid h) = \sigma(a_i + (W h)_i)$. With as many visible as
# hidden units, swapped biases do not even raise an error of shape.

# %%
square = RBM(3, 3, weight_scale=1.0).double()
with torch.no_grad():
    square.visible_bias.copy_(torch.randn(3))
    square.hidden_bias.copy_(torch.randn(3))
    X, H, W = states(3), states(3), square.weight
    a, b = square.visible_bias, square.hidden_bias
    joint = torch.exp((X @ a)[:, None] + H @ b + X @ W @ H.T)
    enumerated = joint @ H / joint.sum(1, keepdim=True)  # E[h | x] by the sum over all h
    swapped = (a + X @ W).sigmoid()
    own = square.hidden_given_visible(X).mean
print(f"own bias: off by {(own - enumerated).abs().max():.1e}; "
      f"swapped: off by {(swapped - enumerated).abs().max():.2f}")  # fmt: skip
torch.testing.assert_close(own, enumerated)
torch.testing.assert_close((b + X @ W).sigmoid(), enumerated)
assert (swapped - enumerated).abs().max() > 0.05

# %% [markdown]
# ## 8. The energy of a deep Boltzmann machine
#
# $$
# E(x, h_1, h_2) = -a^\top x - b_1^\top h_1 - b_2^\top h_2 - x^\top W_1 h_1 - h_1^\top W_2 h_2 .
# $$
#
# With $p \propto e^{-E}$ the minus makes agreement through a positive weight *probable*; and each
# pair of layers has weights of its own, since $W_1$ and $W_2$ need not even have one shape.

# %%
dbm = DBM(3, (2, 4), weight_scale=1.0).double()
with torch.no_grad():
    for bias in dbm.biases:
        bias.copy_(torch.randn(len(bias)))
    X, H1, H2 = states(3), states(2), states(4)
    (a, b1, b2), (W1, W2) = dbm.biases, dbm.weights
    lower, upper = X @ W1 @ H1.T, H1 @ W2 @ H2.T
    alone = (X @ a)[:, None, None] + (H1 @ b1)[:, None] + H2 @ b2
    right = torch.logsumexp((alone + lower[:, :, None] + upper).flatten(1), 1)
    slip = torch.logsumexp((alone - lower[:, :, None] - upper).flatten(1), 1)
    by_ppgen = dbm.log_unnormalised(X)
print(f"largest error of log p(x) + log Z: minus in E {(right - by_ppgen).abs().max():.1e}, "
      f"plus in E {(slip - by_ppgen).abs().max():.2f} nats")  # fmt: skip
torch.testing.assert_close(right, by_ppgen)
assert (slip - by_ppgen).abs().max() > 0.1
assert W1.shape != W2.shape

# %% [markdown]
# ## 9. A deep belief network without its top
#
# $$
# p(x, h_1, h_2) = p(x \mid h_1)\; p(h_1, h_2), \qquad p(h_1, h_2) = e^{-E(h_1, h_2)} / Z :
# $$
#
# the two highest layers are an RBM, *not* one more directed layer, and without its law the product
# is no distribution: $\sum_{x, h} p(x \mid h_1)\,p(h_1 \mid h_2)$ is the number of states of $h_2$.

# %%
dbn = DBN(3, (2, 4), weight_scale=1.0).double()
with torch.no_grad():
    dbn.bias_0.copy_(torch.randn(3))
    dbn.top.visible_bias.copy_(torch.randn(2))
    dbn.top.hidden_bias.copy_(torch.randn(4))
    x_given_h1 = torch.stack([dbn.log_generative([X, h.expand(len(X), -1)]) for h in H1], 1).exp()
    h1_given_h2 = torch.stack(
        [dist.Bernoulli(logits=dbn.top.visible_logits(h)).log_prob(H1).sum(1) for h in H2], 1
    ).exp()
    without_top = float((x_given_h1 @ h1_given_h2).sum())
    law_of_h1 = (-dbn.top.free_energy(H1)).softmax(0)
    with_top = x_given_h1 @ law_of_h1
    torch.manual_seed(1)
    drawn = dbn.model(examples=40_000)  # exact draws: the machine on top is small
    index = (drawn @ torch.tensor([4.0, 2.0, 1.0])).long()
    frequency = torch.bincount(index, minlength=8) / len(drawn)
print(f"sum without the top: {without_top:.4f} = 2^4; with it: {with_top.sum():.4f}")
print(f"frequencies of the story's draws: off by {(frequency - with_top).abs().max():.4f}")
assert abs(without_top - 16) < 1e-9
assert abs(with_top.sum() - 1) < 1e-9
assert (frequency - with_top).abs().max() < 5 * (0.25 / 40_000) ** 0.5

# %% [markdown]
# ## What goes wrong, in general
#
# None of these slips stops a program, and most of them lower *something*. What tells them apart is
# a case small enough to be summed: 8 states of $x$, a grid of $\mu$, a table of $2 \times 3$.
# Before you train, sum one.
#
# ## Exercises
#
# **1.** For which $w$ is Jensen's inequality an equality? What does that say of $q$?

# %%
exact = log_joint - posterior.log_prob(grid)
inside = (grid - posterior.mean).abs() < 5 * posterior.stddev
print(f"log w under the posterior: {exact[inside].min():.6f} to {exact[inside].max():.6f} nats")
assert exact[inside].max() - exact[inside].min() < 1e-9  # constant: q is the posterior

# %% [markdown]
# **2.** Derive the gradient of the log-likelihood by the hidden bias $b$, in the form of slip 6,
# and check its sign.

# %%
(by_autograd,) = torch.autograd.grad(log_likelihood(rbm), rbm.hidden_bias)
with torch.no_grad():
    hidden = rbm.hidden_logits(seen).sigmoid().mean(0)
    dreamt = (-rbm.free_energy(all_x)).softmax(0) @ rbm.hidden_logits(all_x).sigmoid()
torch.testing.assert_close(by_autograd, hidden - dreamt)
print(f"data less model: {(hidden - dreamt).numpy().round(4)}")

# %% [markdown]
# **3.** In slip 4, normalise the expected logarithms without the exponential, $q_j = l_j / \sum l$.
# Is the ELBO lower than after the right update?

# %%
flat = torch.full((3,), 1 / 3)
logs = table.log() @ flat
right_q, wrong_q = logs.softmax(0), logs / logs.sum()
print(f"ELBO: right update {elbo(right_q, flat):.4f}, wrong {elbo(wrong_q, flat):.4f} nats")
assert elbo(wrong_q, flat) < elbo(right_q, flat)  # and the likelier state got the smaller share
assert (right_q.argmax() != wrong_q.argmax()).item()
assert math.isclose(float(wrong_q.sum()), 1.0)

# %% [markdown]
# ---
# A few seconds in all on two cores of a laptop-class CPU. Your output should look like this page;
# the last digits depend on the machine.
