# %% [markdown]
# # A variational autoencoder, line by line
#
# **Result first.** A variational autoencoder (VAE) with eight numbers for a code learns the 8x8
# digits in seconds. A held-out digit gets about 6 nats more log-likelihood from it than from
# independent pixels, codes drawn from a standard normal decode to digits, and a code of only two
# numbers lays all digits out on a map. The page goes through the algorithm line by line, follows
# one minibatch forwards and backwards, and breaks the model in the three usual ways.

# %%
import math
import os

import torch
from torch.distributions import Normal, kl_divergence

import ppgen
from ppgen import latent, plots
from ppgen.data import load
from ppgen.inference import ELBO, WarmUp
from ppgen.models import VAE, BaseRate
from ppgen.plots import canvas, label, legend, styles
from ppgen.progress import quiet

FAST = os.environ.get("PPGEN_FAST") == "1"
torch.manual_seed(0)
torch.set_num_threads(1)

digits = load("digits", binarisation="threshold")  # a pixel is 1 where it is brighter than 0.5
held_out = load("digits", "test", binarisation="threshold")
coins = ppgen.log_likelihood(BaseRate(digits.x), held_out.x).lower
EPOCHS = 10 if FAST else 60

vae = VAE(visible=64, latent=8, hidden=(200,))
track = {"training digits": [], "held-out digits": []}


@torch.no_grad()
def mean_elbo(story, x):
    """Nats per digit; one draw of the code for each."""
    return -ELBO().loss(story.model, story.guide, x) / len(x)


def watch(story, row):
    for x, values in zip((digits.x, held_out.x), track.values(), strict=True):
        values.append(mean_elbo(story, x))


with quiet():
    result = ppgen.train(
        vae, digits, loss=ELBO(), learning_rate=2e-3, epochs=EPOCHS, callbacks=[watch]
    )
score = ppgen.log_likelihood(vae, held_out.x, samples=500 if FAST else 5000, seed=1)
use = vae.latent_use(held_out.x)
print(score)
print(f"base rates: {coins:.2f} nats; VAE: ELBO {score.details['elbo']:.2f} nats")
print(use)

samples = vae.sample(30)
plots.images(
    torch.cat([held_out.x[:15], vae.reconstruct(held_out.x[:15]), samples]),
    (8, 8),
    columns=15,
    title="Digits, reconstructions, samples",
    subtitle="Row 1: held-out digits. Row 2: mean pixels of their codes. Rows 3 and 4: samples.",
)

# %% [markdown]
# *What to see: row 2 is the same digit as row 1, in softer strokes: grey is a pixel of which the
# decoder is not sure. Rows 3 and 4 start from codes that belong to no digit, drawn from the prior;
# most of them could be digits. Their pixels are black or white, as those of the data are, since
# each is drawn.*
#
# ## Data, story, objective
#
# 1,437 handwritten digits of 64 pixels, on or off, and 360 held out. The story: draw a code, decode
# it, toss a coin for each pixel.
#
# $$
# z \sim N(0, I), \qquad x \mid z \sim \mathrm{Bernoulli}(\sigma(f_\theta(z))) .
# $$
#
# The posterior of a code has no formula. The *encoder* approximates it for every $x$ at once,
# $q_\phi(z \mid x) = N(\mu_\phi(x), \operatorname{diag} \sigma^2_\phi(x))$, and both networks climb
# the evidence lower bound (ELBO) together:
#
# $$
# \log p(x) \ge \underbrace{E_{q}[\log p_\theta(x \mid z)]}_{\text{reconstruction}}
#  - \underbrace{\mathrm{KL}(q_\phi(z \mid x) \,\|\, N(0, I))}_{\text{cost of the code}}, \qquad
# \mathrm{KL} = \tfrac12 \sum_l \left(\mu_l^2 + \sigma_l^2 - 1 - \log \sigma_l^2\right) .
# $$
#
# ## The algorithm, line by line
#
# Algorithm 1 of Kingma and Welling (2014), beside the line below that runs it:
#
# | | pseudocode | in the cell |
# |---|---|---|
# | 1 | initialise $\theta, \phi$ | `VAE(...)` |
# | 2 | **repeat** | `for _ in range(...)` |
# | 3 | $X^M \leftarrow$ random minibatch of $M$ examples | `x = digits.x[torch.randint(...)]` |
# | 4 | $\epsilon \leftarrow$ random draws from $p(\epsilon)$ | `noise = torch.randn(...)` |
# | 5 | $z = \mu_\phi(x) + \sigma_\phi(x)\, \epsilon$ | `z = q.mean + q.stddev * noise` |
# | 6 | $g \leftarrow \nabla_{\theta, \phi} \tilde{L}(X^M, \epsilon)$ | `loss.backward()` |
# | 7 | $\theta, \phi \leftarrow$ update with $g$ (SGD, Adagrad, Adam) | `optimizer.step()` |
# | 8 | **until** convergence | |


# %%
def minus_elbo(story, x, noise):
    """The estimate that line 6 differentiates, summed over the minibatch, nats."""
    q = story.encode(x)
    z = q.mean + q.stddev * noise
    reconstruction = story.decode(z).log_prob(x).sum()  # over pixels, then over examples
    cost = 0.5 * (q.mean**2 + q.variance - 1 - q.variance.log()).sum()
    return cost - reconstruction


torch.manual_seed(0)
by_hand = VAE(64, 8, (200,))
optimizer = torch.optim.Adam(by_hand.parameters(), lr=2e-3)
for _ in range(EPOCHS * 15):  # 15 minibatches are about one pass over the data
    x = digits.x[torch.randint(len(digits.x), (100,))]
    noise = torch.randn(100, 8)
    loss = minus_elbo(by_hand, x, noise) / len(x)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"by hand: {mean_elbo(by_hand, held_out.x):.2f} nats, ppgen.train: "
      f"{mean_elbo(vae, held_out.x):.2f} nats per held-out digit (ELBO, one draw)")  # fmt: skip

# the same estimate, term by term, from the Pyro pair: one seed gives both the same noise
x = digits.x[:100]
torch.manual_seed(3)
ours = minus_elbo(vae, x, torch.randn(100, 8))
vae.zero_grad()
ours.backward()
gradients = {name: p.grad.clone() for name, p in vae.named_parameters()}
vae.zero_grad()
torch.manual_seed(3)
theirs = ELBO().loss_and_grads(vae.model, vae.guide, x)
apart = max(float((p.grad - gradients[n]).abs().max()) for n, p in vae.named_parameters())
print(f"one minibatch: {ours.item():.4f} by hand, {theirs:.4f} from the pair; "
      f"largest difference of a gradient {apart:.1e}")  # fmt: skip

figure, (ax,) = canvas(2.8, "Training", "One draw of the code for each digit.")
for (name, values), style in zip(track.items(), styles(track), strict=True):
    ax.plot(range(1, len(values) + 1), values, **style, label=name)
ax.axhline(coins, color="#5b6570", linestyle=":", label="base rates")
ax.set_ylim(bottom=coins - 4)
label(ax, "epoch", "ELBO (nats per digit)")
legend(ax, *ax.get_legend_handles_labels(), loc="lower right")
figure

# %% [markdown]
# *What to see: within a few epochs the bound passes what independent pixels achieve. The two curves
# part slowly: the networks begin to know the training digits.*
#
# ## Forward and backward
#
# One digit on its way through. *Forward*: 64 pixels, 200 features, 8 means and 8 standard
# deviations, one draw, 200 features, 64 log-odds, one number. *Backward*: line 5 is what lets a
# gradient reach the encoder. Given the noise, $z$ is an ordinary function of $\mu$ and $\sigma$:
#
# $$
# \frac{\partial z}{\partial \mu} = 1, \qquad \frac{\partial z}{\partial \sigma} = \epsilon .
# $$
#
# A finite difference with the same noise finds the same slope. With the way through $z$ cut
# (`detach`), only the KL is left to teach the encoder, and it teaches it to forget $x$.

# %%
torch.manual_seed(4)
one, noise = digits.x[:1].double(), torch.randn(1, 8).double()
check = VAE(64, 8, (200,)).double()
check.load_state_dict(vae.state_dict())
q = check.encode(one)
q_mean, q_sd = q.mean.detach().requires_grad_(), q.stddev.detach().requires_grad_()
z = q_mean + q_sd * noise
z.retain_grad()
log_odds = check.decoder(z)
(-check.decode(z).log_prob(one)).backward()
for name, tensor in {"x": one, "mu": q_mean, "sigma": q_sd, "z": z, "log-odds": log_odds}.items():
    print(f"{name:<9} {tuple(tensor.shape)!s:<8} first entries "
          f"{[round(v, 2) for v in tensor.flatten()[:4].tolist()]}")  # fmt: skip
torch.testing.assert_close(q_mean.grad, z.grad)
torch.testing.assert_close(q_sd.grad, z.grad * noise)

check.zero_grad()
minus_elbo(check, one, noise).backward()
weight = next(check.encoder.parameters())  # of the first layer
largest = int(weight.grad.abs().argmax())
slope = float(weight.grad.flatten()[largest])
with torch.no_grad():
    ends = []
    for shift in (1e-5, -2e-5):
        weight.view(-1)[largest] += shift
        ends.append(float(minus_elbo(check, one, noise)))
    weight.view(-1)[largest] += 1e-5
difference = (ends[0] - ends[1]) / 2e-5
print(f"an encoder weight: backward {slope:.6f}, finite difference {difference:.6f}")

# %% [markdown]
# ## How good is it?
#
# The ELBO is below $\log p(x)$ by $\mathrm{KL}(q \,\|\, p(z \mid x))$. The **importance-weighted
# bound** averages $K$ weights before the logarithm and rises to $\log p(x)$ with $K$ (tutorial 08):
#
# $$
# \log p(x) \ge E \log \frac1K \sum_{k=1}^K \frac{p(x, z_k)}{q(z_k \mid x)}, \qquad z_k \sim q .
# $$
#
# A unit of the code is **active** where its mean varies with $x$: variance over the data above
# 0.01.

# %%
ladder, climbed = (1, 10, 100, 1000), []
with torch.no_grad():
    torch.manual_seed(5)
    log_w = vae.log_weights(held_out.x, 1000)
    for K in ladder:
        sets = log_w.unfold(0, K, K)  # (1000 / K, N, K)
        climbed.append(float((torch.logsumexp(sets, -1) - math.log(K)).mean()))
        print(f"K = {K:>4}: {climbed[-1]:.2f} nats")
gap = score.lower - score.details["elbo"]
print(f"between the ELBO and K = {score.details['samples']}: {gap:.2f} nats")

# %% [markdown]
# ## A map of the digits
#
# With two numbers for a code, the whole latent space fits on a page. The grid below cuts the prior
# into cells of equal probability and decodes the middle of each.

# %%
torch.manual_seed(0)
flat = VAE(64, latent=2, hidden=(200,))
with quiet():
    ppgen.train(flat, digits, learning_rate=2e-3, epochs=9 if FAST else 120)
flat_score = ppgen.log_likelihood(flat, held_out.x, samples=500, seed=1)
print(f"two numbers: >= {flat_score.lower:.2f} nats; eight numbers: >= {score.lower:.2f} nats")
with torch.no_grad():
    page = flat.decode(latent.manifold(16)).mean
plots.manifold(page, (8, 8), title="Every code of two numbers")

# %% [markdown]
# *What to see: neighbours look alike, and between two kinds of digit there are mixtures of both:
# the decoder is continuous, and the prior leaves no room between the kinds. Two numbers are too few
# to tell all ten digits apart, and the bound says what that costs.* A VAE with convolutions and
# 28x28 pixels, trained on MNIST, comes with the repository: `ppgen sample
# pretrained/vae-mnist-conv`.

# %%
codes = flat.code(held_out.x)
figure, (ax,) = canvas(3.6, "Where the held-out digits lie", "Mean codes; no label was used.")
for digit in range(10):
    chosen = codes[held_out.labels == digit]
    colour = f"C{digit}"
    ax.plot(chosen[:, 0], chosen[:, 1], ".", color=colour, markersize=4)
    middle = chosen.median(0).values.tolist()
    box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
    ax.annotate(str(digit), middle, color=colour, fontsize=13, weight="bold", bbox=box,
                ha="center", va="center")  # fmt: skip
label(ax, "first number of the code", "second number")
figure

# %% [markdown]
# *What to see: each colour is a digit, its number written at the median. Most kinds keep together
# although nobody named them; some overlap, and there the map shows mixtures.*
#
# ## What goes wrong
#
# **Grey values under a Bernoulli.** A Bernoulli has a probability for 0 and for 1 and none between.
# The formula $g \log p + (1 - g) \log(1 - p)$ accepts a grey $g$ all the same, but over $[0, 1]$ it
# integrates to $(2 p - 1) / \operatorname{logit} p$ and not to 1: it is a loss, and no
# log-likelihood. ppgen refuses and names the pixel.
#
# **A mean over pixels instead of a sum.** Dividing the reconstruction by 64 makes the KL 64 times
# as dear. Nothing crashes and the loss is small.
#
# **Posterior collapse.** That, a strong decoder, or an impatient start drives $q(z \mid x)$ to the
# prior: no unit is active, and the decoder draws the mean digit whatever the code. Look at active
# units and KL, never at the loss alone. Raising the weight of the KL slowly (`WarmUp`), or leaving
# it some nats for nothing (`free_bits`), is for a start that is to blame; neither mends a wrong
# objective.

# %%
grey = load("digits", binarisation="none")
refusals = []
for story in (vae,):
    try:
        ELBO().loss(story.model, story.guide, grey.x[:10])
    except ValueError as error:
        refusals.append(str(error.__cause__ or error).splitlines()[0])
        print(refusals[-1])
p = torch.tensor([0.5, 0.9, 0.99], dtype=torch.float64)
g = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
area = torch.stack([(g * a.log() + (1 - g) * (1 - a).log()).exp().mean() for a in p])
for a, v in zip(p, area, strict=True):
    print(f"p = {a:.2f}: area {v:.3f} under the 'density' of a grey pixel")

recipes = {
    "sum over pixels": ELBO(),
    "mean over pixels": ELBO(beta=64.0),
    "no way through z": None,
    "free bits": ELBO(free_bits=0.2),
    "warm-up": ELBO(beta=WarmUp(150)),
}
outcome = {}
for name, loss in recipes.items():
    torch.manual_seed(0)
    story = VAE(64, 8, (200,))
    if loss is not None:
        with quiet():
            ppgen.train(story, digits, loss=loss, learning_rate=2e-3, epochs=EPOCHS)
    else:
        optimizer = torch.optim.Adam(story.parameters(), lr=2e-3)
        for _ in range(EPOCHS * 15):
            x = digits.x[torch.randint(len(digits.x), (100,))]
            q = story.encode(x)
            z = q.sample()  # no gradient: the encoder never learns what its code did
            minus = kl_divergence(q, story.prior()).sum() - story.decode(z).log_prob(x).sum()
            optimizer.zero_grad()
            (minus / len(x)).backward()
            optimizer.step()
    found = story.latent_use(held_out.x)
    bound = ppgen.log_likelihood(story, held_out.x, samples=100, seed=1)
    outcome[name] = story, found, bound
    print(f"{name:<17} {int(found.active.sum())} active units, KL {found.divergence:5.2f} nats, "
          f"ELBO {bound.details['elbo']:7.2f} nats")  # fmt: skip

rows = [held_out.x[:15]] + [story.reconstruct(held_out.x[:15]) for story, *_ in outcome.values()]
plots.images(
    torch.cat(rows[:4]),
    (8, 8),
    columns=15,
    title="Three objectives",
    subtitle="Row 1: data. Rows 2 to 4: pixels summed, pixels averaged, no way through z.",
)

# %% [markdown]
# *What to see: rows 3 and 4 are the same grey blot fifteen times, the mean of all digits. The code
# says nothing.*
#
# ## Exercises
#
# **1.** Derive the KL of one unit between $N(\mu, \sigma^2)$ and $N(0, 1)$, and check it by
# averaging $\log q - \log p$ over draws.

# %%
torch.manual_seed(0)
unit, standard = Normal(torch.tensor(0.8), torch.tensor(0.5)), Normal(0.0, 1.0)
draws = unit.sample((100_000,))
ratio = unit.log_prob(draws) - standard.log_prob(draws)
formula = 0.5 * (0.8**2 + 0.5**2 - 1 - math.log(0.5**2))
error = float(ratio.std()) / len(draws) ** 0.5
print(f"{float(ratio.mean()):.4f} +- {error:.4f} by draws, {formula:.4f} by formula")
assert abs(float(ratio.mean()) - formula) < 5 * error

# %% [markdown]
# **2.** What is the best ELBO of a VAE that ignores its code, and what is its decoder? Compare with
# the collapsed run above.

# %%
collapsed = outcome["mean over pixels"][2].details["elbo"]
print(f"independent pixels {coins:.2f} nats, collapsed {collapsed:.2f} nats")
# with KL 0 the decoder is one Bernoulli a pixel, and the best of these has the base rates
assert abs(collapsed - coins) < (1.0 if FAST else 0.3)

# %% [markdown]
# **3.** How many nats does the code tell about *which* digit it belongs to? Estimate
# $I = E[\log q(z \mid x_n) - \log \frac1N \sum_m q(z \mid x_m)]$ over the $N$ held-out digits, and
# explain why it is below both the mean KL and $\log N$.

# %%
with torch.no_grad():
    torch.manual_seed(6)
    q = vae.encode(held_out.x)
    z = q.sample()
    each = q.base_dist.log_prob(z[:, None]).sum(-1)  # log q(z_n | x_m), (N, N)
    N = len(z)
    told = float((each.diagonal() - torch.logsumexp(each, 1) + math.log(N)).mean())
print(f"I = {told:.2f} nats, mean KL {use.divergence:.2f}, log N {math.log(N):.2f} nats")
# mean KL = I + KL(q(z) || p(z)), with q(z) the mean of all q(z | x); and N names need log N nats
assert told < use.divergence
assert told <= math.log(N)

# %% [markdown]
# ## The numbers of this page, checked

# %%
assert result.stopped == "finished"
assert score.kind == "lower"
assert score.details["elbo"] < score.lower < 0
assert score.lower > coins + (3 if FAST else 6)
assert use.active.all()
assert 3 < use.divergence < 9
assert samples.unique().tolist() == [0.0, 1.0]
assert len(samples.unique(dim=0)) == 30
agree = ((vae.reconstruct(held_out.x) > 0.5) == held_out.x.bool()).double().mean()
print(f"{agree:.1%} of held-out pixels are reconstructed")
assert agree > 0.85
assert abs(ours.item() - theirs) < 1e-4 * abs(theirs)
assert apart < 1e-3
assert abs(slope - difference) < 1e-5 * max(1, abs(slope))
assert abs(mean_elbo(by_hand, held_out.x) - mean_elbo(vae, held_out.x)) < 1.0
assert track["held-out digits"][-1] > coins + 2
assert (torch.tensor(climbed).diff() > 0).all()
if not FAST:
    assert track["training digits"][-1] > track["held-out digits"][-1]
    assert 0.4 < gap < 2
assert coins < flat_score.lower < score.lower - 0.5
near = latent.nearest(codes, codes, count=2).rows[:, 1]
together = (held_out.labels[near] == held_out.labels).double().mean()
print(f"on the map the nearest neighbour of {together:.0%} is the same digit")
assert together > (0.35 if FAST else 0.45)  # 10 % by chance
assert refusals
torch.testing.assert_close(area[1:], (2 * p[1:] - 1) / torch.logit(p[1:]), rtol=1e-6, atol=0)
assert (area[1:] < 0.5).all()
for name in ("mean over pixels", "no way through z"):
    assert outcome[name][1].collapsed
    assert outcome[name][1].divergence < 0.3
for name in ("sum over pixels", "free bits", "warm-up"):
    assert outcome[name][1].active.sum() >= 7
    assert outcome[name][2].details["elbo"] > collapsed + 1

# %% [markdown]
# ---
# About half a minute in all on two cores of a laptop-class CPU. Your output should look like this
# page; the last digits depend on the machine.
