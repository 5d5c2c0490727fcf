# %% [markdown]
# # Walks in a latent space
#
# **Result first.** The codes of a variational autoencoder (VAE) can be averaged, added and climbed
# in, and here each walk is measured. Half way between two digits on a straight line the decoder
# draws pictures that the model itself finds about 4 nats less probable than their ends; on a great
# circle it is about 2. A step of strength 1 along the direction from 0 to 6 turns nearly every 0
# into a 6, and about half of them are still recognisably the *same* handwriting. And a search
# for more ink gains some six pixels without leaving the region of the prior.

# %%
import os

import torch

import ppgen
from ppgen import latent, plots
from ppgen.data import load
from ppgen.models import VAE
from ppgen.plots import canvas, label, legend, styles
from ppgen.progress import quiet

FAST = os.environ.get("PPGEN_FAST") == "1"
torch.manual_seed(0)
torch.set_num_threads(1)

digits = load("digits", binarisation="threshold")
held_out = load("digits", "test", binarisation="threshold")
vae = VAE(visible=64, latent=8, hidden=(200,))
with quiet():
    ppgen.train(vae, digits, learning_rate=2e-3, epochs=30 if FAST else 60)
z, known = latent.codes(vae, held_out.x), latent.codes(vae, digits.x)
print(f"{len(z)} held-out codes, mean length {float(z.norm(dim=1).mean()):.2f}")

pairs = [(int((held_out.labels == a).nonzero()[0]), int((held_out.labels == b).nonzero()[0]))
         for a, b in ((0, 6), (1, 7), (3, 8), (4, 9))]  # fmt: skip
ends = [torch.tensor(rows) for rows in zip(*pairs, strict=True)]
with torch.no_grad():
    ways = latent.spherical(z[ends[0]], z[ends[1]], 11)  # (11, 4, 8)
    pictures = vae.decode(ways).mean.transpose(0, 1)  # (4, 11, 64)
plots.interpolations(pictures, (8, 8), path="spherical")

# %% [markdown]
# *What to see: each row leads from one digit to another without a jump. Grey pixels are those of
# which the decoder is not sure, and there are most of them half way.*
#
# ## Data, model, objective
#
# The VAE and the digits are those of `09_vae`: $z \sim N(0, I)$ in eight dimensions, an encoder
# $q(z \mid x)$, a decoder $p(x \mid z)$, trained on the evidence lower bound. The *code* of a digit
# is the mean of $q(z \mid x)$. Nothing in the objective asks that walks between codes make sense;
# that they do follows from the prior, which leaves no empty room.
#
# ## Straight or round?
#
# Draws of the prior have length about $\sqrt L$. The middle of a straight line between two of them
# is shorter by $\sqrt 2$, and the prior hardly ever puts a code there. The great circle,
#
# $$
# z(t) = \frac{\sin((1 - t)\, \omega)}{\sin \omega}\, a + \frac{\sin(t\, \omega)}{\sin \omega}\, b,
# \qquad \cos \omega = \frac{a^\top b}{\lVert a \rVert \lVert b \rVert},
# $$
#
# keeps the length. To measure: decode ends and middle, *draw* a picture at each, and ask the model
# for its log-likelihood.

# %%
half = len(z) // 2
differ = held_out.labels[:half] != held_out.labels[half:]
a, b = held_out.x[:half][differ], held_out.x[half:][differ]
lost, length = {}, {}
for name, path in {"linear": latent.linear, "spherical": latent.spherical}.items():
    torch.manual_seed(1)
    found = latent.midpoint_likelihood(vae, a, b, path=path, samples=100)
    lost[name] = found.lost
    length[name] = path(z[:half][differ], z[half:][differ], 11).norm(dim=-1).mean(1)
    error = float(found.lost.std()) / len(found.lost) ** 0.5
    print(
        f"{name:<10} the middle is {float(found.lost.mean()):.2f} +- {error:.2f} nats less probable"
    )

figure, (left, right) = canvas(
    2.8, "Two ways from code to code", "Left: length of the codes. Right: one pair each.", columns=2
)
for (name, values), style in zip(length.items(), styles(length), strict=True):
    left.plot(torch.linspace(0, 1, 11), values, **style, label=name)
    heights, edges = torch.histogram(lost[name], 25, range=(-10.0, 15.0), density=True)
    right.plot((edges[1:] + edges[:-1]) / 2, heights, **style)
label(left, "share of the way", "mean length of the code")
label(right, "nats lost in the middle", "density")
legend(figure, *left.get_legend_handles_labels())
figure

# %% [markdown]
# *What to see. Left: the straight line cuts the corner. Right: single pairs differ widely, since
# the pictures are draws; the straight way loses more on average.*
#
# ## An attribute: from 0 to 6
#
# The difference of the mean codes of two kinds is a direction. A coordinate along it is about
# $-\tfrac12$ for one kind and $+\tfrac12$ for the other, so that *strength* 1 leads from mean to
# mean. `logistic_direction` takes instead the normal of the plane that separates the two, and
# leaves out what merely varies along. To judge: a linear classifier on pixels decides what the
# result *is*, and the nearest code, with the attribute projected out, decides *whose* it is.


# %%
def only(data):
    return (data.labels == 0) | (data.labels == 6)


train_x, test_x = digits.x[only(digits)], held_out.x[only(held_out)]
train_six, test_six = digits.labels[only(digits)] == 6, held_out.labels[only(held_out)] == 6
design = torch.cat([train_x, torch.ones(len(train_x), 1)], 1)
ridge = design.T @ design + 5 * torch.eye(65)
weights = torch.linalg.solve(ridge, design.T @ (2.0 * train_six - 1))


def is_six(x):
    return x @ weights[:64] + weights[64] > 0


right_class = float((is_six(test_x) == test_six).double().mean())
print(f"the classifier is right on {right_class:.0%} of {len(test_x)} held-out digits")
strengths = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
found, directions = {}, {}
for name, make in {
    "difference of means": latent.difference_of_means,
    "logistic": latent.logistic_direction,
}.items():
    directions[name] = make(latent.codes(vae, train_x), train_six)
    found[name] = [
        latent.attribute_effect(vae, test_x, test_six, directions[name], is_six, strength=s)
        for s in strengths
    ]
    print(f"{name}, strength 1: {found[name][3]}")

figure, (ax,) = canvas(2.9, "From 0 to 6", "Share of held-out digits; bars: one standard error.")
for (name, row), style in zip(found.items(), styles(found), strict=True):
    ax.errorbar([e.kept for e in row], [e.flipped for e in row],
                [e.flipped_error for e in row], [e.kept_error for e in row],
                **style, marker="o", markersize=4, elinewidth=0.7, label=name)  # fmt: skip
label(ax, "identity kept", "class changed")
legend(ax, *ax.get_legend_handles_labels(), loc="lower left")
figure

# %% [markdown]
# *What to see: each line goes from strength 0.25 (right) to 2 (left), and up and to the right is
# better. Whoever moves farther changes more classes and keeps fewer hands.*

# %%
zeros = latent.codes(vae, test_x[~test_six][:5])
six = directions["logistic"]
shown = (-0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
with torch.no_grad():
    moved = torch.stack([vae.decode(six.shift(zeros, s)).mean for s in shown], 1)
    axes_walk = vae.decode(
        latent.traverse(torch.zeros(8), range(8), torch.linspace(-2, 2, 13))
    ).mean
plots.attribute(moved, (8, 8), shown, name="the direction from 0 to 6")

# %% [markdown]
# *What to see: five zeros. To the right the upper right of the ring opens and a loop closes below:
# a six in the same slant.*
#
# ## Along the axes, and among the neighbours

# %%
plots.traversals(axes_walk, (8, 8), torch.linspace(-2, 2, 13).tolist(), range(8))

# %% [markdown]
# *What to see: one number of the code at a time from -2 to 2, all others zero. Each row changes
# something, and no row only one thing: nothing in the objective asks for axes with a meaning.*

# %%
near = latent.nearest(z, known, count=11)
same = float((digits.labels[near.rows[:, 0]] == held_out.labels).double().mean())
print(f"the nearest training code is the same digit for {same:.0%} of held-out digits")
plots.neighbours(held_out.x[:5], digits.x[near.rows[:5]], (8, 8))

# %% [markdown]
# *What to see: neighbours in the latent space are the same digit, mostly, in a similar hand,
# although no label was used.*
#
# ## A search: more ink
#
# A property that can be differentiated can be climbed. Without a leash the search would leave the
# region that the decoder was trained on; `ascend` stays where the prior has 95 % of its mass.

# %%
torch.manual_seed(2)
climb = latent.ascend(z[:40], lambda c: vae.decode(c).mean.sum(-1), vae.prior(), steps=60)
with torch.no_grad():
    real = vae.decode(climb.path[-1]).sample().sum(-1)
gained = float((climb.property[-1] - climb.property[0]).mean())
first, last = (float(climb.property[k].mean()) for k in (0, -1))
print(f"ink: {first:.1f} -> {last:.1f} pixels "
      f"promised, {float(real.mean()):.1f} drawn")  # fmt: skip
edge = float(climb.floor.max())
plots.property_ascent(climb.property, climb.log_prior, edge, name="ink (pixels)")

# %% [markdown]
# *What to see. Left: every code gains ink. Right: it pays with prior density and stops at the edge
# of the region.*
#
# ## What goes wrong
#
# - *A midpoint judged by its mean picture.* Grey means are no data; score draws.
# - *A flip without identity.* At strength 2 every digit is a six, and nearly none is its own.
# - *A predictor trusted far from the data.* Keep to the prior, and check by drawing.
# - *Interpolation through a collapsed unit.* Look at `vae.latent_use` first.
#
# ## Exercises
#
# **1.** How long is the middle of a straight line between two independent draws of the prior, in
# eight dimensions, relative to its ends?

# %%
torch.manual_seed(3)
ends_of_line = torch.randn(2, 100_000, 8)
ratio = float(ends_of_line.mean(0).norm(dim=-1).mean() / ends_of_line.norm(dim=-1).mean())
print(f"{ratio:.4f}, 1 / sqrt(2) = {0.5**0.5:.4f}")
assert abs(ratio - 0.5**0.5) < 0.005  # (a + b) / 2 is N(0, I / 2)

# %% [markdown]
# **2.** Show that `remove` is a projection: twice is once, and the coordinate is zero.

# %%
once = six.remove(z)
torch.testing.assert_close(six.remove(once), once)
assert six.coordinate(once).abs().max() < 1e-5
print(f"largest coordinate after removal: {float(six.coordinate(once).abs().max()):.1e}")

# %% [markdown]
# **3.** Can a linear classifier read the kind from codes without the attribute? Classify codes by
# the nearer of the two mean codes, before and after `remove` along the difference of means.

# %%
means = directions["difference of means"]
before = (means.coordinate(latent.codes(vae, test_x)) > 0) == test_six
after = means.coordinate(means.remove(latent.codes(vae, test_x)))
print(
    f"before {float(before.double().mean()):.0%}; after, all codes are equally far from both means"
)
assert before.double().mean() > 0.9
assert after.abs().max() < 1e-5

# %% [markdown]
# ## The numbers of this page, checked

# %%
straight, around = (float(v.mean()) for v in lost.values())
assert straight > around + (0.5 if FAST else 1)
assert 2.5 < straight < 6
assert FAST or 0.8 < around < 2.6
assert length["linear"].min() < 0.8 * length["linear"][0]
assert length["spherical"].min() > 0.95 * length["spherical"][0]
assert right_class > 0.95
for row in found.values():
    assert row[3].flipped > 0.85
    assert row[5].flipped > 0.95
    assert row[0].kept > row[3].kept > row[5].kept
    assert row[5].kept < 0.3
if not FAST:
    assert found["logistic"][3].kept > found["difference of means"][3].kept
assert 0.3 < found["logistic"][3].kept < 0.8
assert same > 0.8
assert (climb.property.diff(dim=0) >= 0).all()
assert (climb.log_prior >= climb.floor - 1e-3).all()
assert (2.5 if FAST else 4.5) < gained < 8
assert abs(float(real.mean() - climb.property[-1].mean())) < 2

# %% [markdown]
# ---
# About 10 seconds in all on two cores of a laptop-class CPU. Your output should look like this
# page; the last digits depend on the machine.
