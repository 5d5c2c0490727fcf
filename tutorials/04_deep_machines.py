# %% [markdown]
# # Deep belief networks and deep Boltzmann machines
#
# **Result first.** There are two ways to put a second hidden layer on a restricted Boltzmann
# machine (RBM). In a deep belief network (DBN) the upper layer *generates* the lower one; in a deep
# Boltzmann machine (DBM) the two are tied without a direction. On 8x8 digits, from the same sizes,
# the DBM ends about 0.3 nats per digit above an RBM of the size of its first layer, and what is
# proven of the DBN stays about 0.5 nats below it: depth alone gains nothing, joint training does.
# The page shows where the two differ: in what happens to the hidden units once $x$ is known.

# %%
import math
import os
from functools import partial

import torch

import ppgen
from ppgen import plots
from ppgen.data import load
from ppgen.inference import ContrastiveDivergence, UpDown, greedy
from ppgen.models import DBM, DBN, RBM, BaseRate
from ppgen.models.duplicated_rbm import pretraining_machines
from ppgen.plots import canvas, label, legend, styles
from ppgen.progress import quiet

FAST = os.environ.get("PPGEN_FAST") == "1"
torch.manual_seed(0)
torch.set_num_threads(1)

digits = load("digits", binarisation="threshold")
held_out = load("digits", "test", binarisation="threshold")
HIDDEN = (100, 60)

chains = partial(ContrastiveDivergence, 5, persistent=True)  # 5 sweeps of chains that go on


def epochs(count):
    """Options of a training: stochastic gradients, a rate that falls to zero, an average."""
    count = count // 10 if FAST else count
    return {
        "epochs": count,
        "schedule": lambda epoch: 1 - epoch / count,
        "optimizer": torch.optim.SGD,
        "averaging": 0.95 if FAST else 0.99,
    }


# one layer
rbm = RBM.from_data(digits.x, hidden=HIDDEN[0])
with quiet():
    ppgen.train(rbm, digits, loss=chains(), learning_rate=0.5, **epochs(100))

# directed: a stack of RBMs, each trained on what the one below makes of the data; then up-down
stack = [RBM(64, HIDDEN[0]), RBM(*HIDDEN)]
with quiet():
    greedy(stack, digits.x, loss=chains, learning_rate=0.5, **epochs(60))
dbn_start = DBN.from_rbms(stack)
dbn = DBN(64, HIDDEN, tied=False)
dbn.assemble(stack)
with quiet():
    ppgen.train(dbn, digits, loss=UpDown(5), learning_rate=0.05, **epochs(100))

# undirected: a stack with doubled inputs; then mean field against persistent chains
pretrained = pretraining_machines((64, *HIDDEN))
with quiet():
    greedy(pretrained, digits.x, loss=chains, learning_rate=0.2, **epochs(30))
dbm_start = DBM.from_data(digits.x, HIDDEN)
dbm_start.assemble(pretrained)
dbm = DBM.from_data(digits.x, HIDDEN)
dbm.assemble(pretrained)
with quiet():
    ppgen.train(dbm, digits, loss=chains(), learning_rate=0.2, **epochs(60))

stories = {
    "RBM": rbm,
    "DBN, greedy": dbn_start,
    "DBN, up-down": dbn,
    "DBM, pretrained": dbm_start,
    "DBM": dbm,
}
# log Z by annealed importance sampling, as in 03_a_boltzmann_machine
effort = {"temperatures": 60 if FAST else 2000, "burn_in": 200, "seed": 1}
with quiet():
    scores = {
        name: ppgen.log_likelihood(story, held_out.x, samples=50 if FAST else 1000, **effort)
        for name, story in stories.items()
    }
scores["base rates"] = ppgen.log_likelihood(BaseRate(digits.x), held_out.x)
for name, score in scores.items():
    loose = score.details.get("elbo", score.lower)
    print(f"{name:<16} one draw >= {loose:7.2f}   many draws >= {score.lower:7.2f} "
          f"+- {score.lower_error:.2f} nats   ({score.kind})")  # fmt: skip
plots.leaderboard(scores, title="Nats per held-out digit")

# %% [markdown]
# *What to see: a bar lies between two bounds, an arrow begins at a lower bound and has no end. The
# RBM is enclosed from both sides. Of DBN and DBM only lower bounds are known, so an arrow that
# begins left of another says that less is proven, not that the model is worse.*
#
# The data: 1,437 handwritten digits of 8x8 pixels, on or off, and 360 held out. In the printed
# table the first number is the variational bound, with one draw of the hidden layers for each
# weight; the second averages many weights before the logarithm and is never looser.
#
# ## Two stories
#
# **Directed.** The two highest layers of a DBN are an RBM. Below it each layer generates the next:
#
# $$
# p(x, h_1, h_2) = p_\mathrm{RBM}(h_1, h_2)\; p(x \mid h_1), \qquad
# p(x_i = 1 \mid h_1) = \sigma(b_{0,i} + (W_1 h_1)_i) .
# $$
#
# **Undirected.** A DBM has one energy for all layers,
#
# $$
# E(x, h_1, h_2) = -b_0^\top x - b_1^\top h_1 - b_2^\top h_2 - x^\top W_1 h_1 - h_1^\top W_2 h_2,
# \qquad p = e^{-E} / Z,
# $$
#
# and $h_1$ listens both ways: $p(h_1 = 1 \mid x, h_2) = \sigma(b_1 + W_1^\top x + W_2 h_2)$.
#
# ## Explaining away
#
# The house has jumped: was it a truck, or an earthquake? Both are rare, and either is enough. Once
# the truck is seen, the earthquake is no longer needed. Independent causes become *dependent* when
# their effect is known. With two causes and one effect there are eight states, and all can be
# summed. Four machines with the same weights between $x$ and its two causes:


# %%
bit = torch.tensor([0.0, 1.0], dtype=torch.float64)
CAUSES = torch.cartesian_prod(bit, bit)  # (4, 2)
HAPPENED = torch.ones(1, dtype=torch.float64)


def house():
    """p(x = 1 | h) = sigmoid(-6 + 8 (h_1 + h_2)); each cause alone has p = sigmoid(-4)."""
    bottom = RBM(1, 2).double()
    with torch.no_grad():
        bottom.weight.fill_(8.0)
        bottom.visible_bias.fill_(-6.0)
        bottom.hidden_bias.fill_(-4.0)
    return bottom


@torch.no_grad()
def posterior(network):
    """p(h_1 | x = 1) over the four states, by the sum."""
    if isinstance(network, RBM):
        x = HAPPENED.expand(4, 1)
        return torch.softmax(-network.energy(x, CAUSES), 0)
    if isinstance(network, DBN):
        x = HAPPENED.expand(4, 1)
        log_joint = -network.top.free_energy(CAUSES) + network.log_generative([x, CAUSES])
        return torch.softmax(log_joint, 0)
    states = torch.cartesian_prod(*[bit] * (2 + network.sizes[2]))  # h_1 and h_2 together
    h1, h2 = states[:, :2], states[:, 2:]
    side = torch.cat([HAPPENED.expand(len(states), 1), h2], -1)
    weight = torch.softmax(-network.energy(side, h1), 0)
    return weight.view(4, -1).sum(1)


def correlation(p):
    """Of the two causes under the probabilities of the four states."""
    mean = p @ CAUSES
    covariance = p @ CAUSES.prod(1) - mean.prod()
    return float(covariance / (mean * (1 - mean)).prod().sqrt())


no_prior = RBM(2, 1, weight_scale=0.0).double()  # on top: causes that know nothing of each other
with torch.no_grad():
    no_prior.visible_bias.fill_(-4.0)
shared = DBM(1, (2, 1), weight_scale=0.0).double()  # one unit above, which both causes excite
with torch.no_grad():
    shared.weight_1.fill_(8.0)
    shared.weight_2.fill_(3.0)
    for bias, value in zip(shared.biases, (-6.0, -9.0, -2.0), strict=True):
        bias.fill_(value)
networks = {
    "RBM": house(),
    "DBN, independent causes": DBN.from_rbms([house(), no_prior]),
    "DBN, transpose on top": DBN.from_rbms([house(), house().transposed()]),
    "DBM": shared,
}
together, corr = {}, {}
for name, network in networks.items():
    p = posterior(network)
    corr[name] = correlation(p)
    truck = float(p[2] + p[3])
    seen = float(p[3] / (p[1] + p[3]))  # the truck, once the earthquake is known
    together[name] = truck, seen
    print(f"{name:<24} p(truck | jump) {truck:.3f}   p(truck | jump, earthquake) {seen:.3f}   "
          f"correlation {corr[name]:+.3f}")  # fmt: skip

figure, axes = canvas(
    2.2, "Two causes, given their effect", "p(h | x = 1) by enumeration.", columns=4, sharey=True
)
for ax, (name, network) in zip(axes, networks.items(), strict=True):
    ax.bar(range(4), posterior(network).numpy(), color="#0072B2", width=0.7)
    ax.set_xticks(range(4), ["00", "01", "10", "11"])
    label(ax, "causes", "probability" if ax is axes[0] else "", name.replace(", ", ",\n"))
figure

# %% [markdown]
# *What to see: in the second panel one cause is on, or the other, and both together are as good
# as excluded: each explains the other away. A product of two coins cannot be shaped like that, so a
# recognition pass, which is one, must be wrong there. In the RBM the causes are independent given
# $x$ by construction. The third panel has the **complementary prior** of Hinton, Osindero and Teh
# (2006): a top machine that is the transpose of the one below prefers just those pairs that the
# effect would make unlikely, and the posterior is a product again, the RBM's own. In the DBM
# the two causes agree, since a unit above excites both.*
#
# That third case is why greedy training works: it begins each new layer as the transpose of the
# one below, where the recognition pass is exact, and can only gain from there on.
#
# ## Learning in a directed network: greedy, then up-down
#
# `greedy` trains the lowest RBM on the data, draws its hidden units for every digit, and trains the
# next RBM on these draws. `UpDown` (the wake-sleep algorithm with a machine on top) then gives
# the recognition pass weights of its own (`tied=False`) and tunes all at once:
#
# - *up*: draw $h_1$ from $x$ by recognition, and teach the generative weights to give $x$ back;
# - *top*: teach the RBM on top the states that came up, by contrastive divergence;
# - *down*: let the top dream, generate $x$, and teach recognition the states that it came from.
#
# ## Learning in an undirected one: mean field and persistent chains
#
# The gradient has the two terms of any Boltzmann machine. The machine's own term comes from
# **persistent chains**. The data's term needs $p(h_1, h_2 \mid x)$, and for a DBM this has no
# formula. **Mean field** takes the nearest product of coins, by coordinate ascent on
#
# $$
# \log p(x) \ge E_q[-E(x, h)] + H(q) - \log Z .
# $$
#
# Each update sets one layer's means to $\sigma$ of its input from both sides. How many does it
# take?

# %%
steps = (1, 2, 3, 5, 10, 20, 50)
rising = {}
for name, machine in {"pretrained": dbm_start, "trained": dbm}.items():
    kept = machine.mean_field_steps
    values = []
    for machine.mean_field_steps in steps:
        with torch.no_grad():
            values.append(float(machine.bound(held_out.x).mean()))
    machine.mean_field_steps = kept
    rising[name] = torch.tensor(values)
    short = ", ".join(f"{steps[k]}: {values[-1] - v:.3f}" for k, v in enumerate(values[:5]))
    print(f"{name}: nats short of the end after so many updates: {short}")

figure, (left, right) = canvas(
    2.8, "Mean field", "Left: what is missing. Right: what one layer knows of x.", columns=2
)
for (name, values), style in zip(rising.items(), styles(rising), strict=True):
    left.semilogy(steps[:-1], (values[-1] - values[:-1]).clamp(min=1e-6), **style, label=name)
label(left, "updates of both layers", "short of the fixed point (nats)")
legend(left, *left.get_legend_handles_labels())
with torch.no_grad():
    means = dbm.mean_field(held_out.x)
for layer, style in zip((1, 2), styles({1: 0, 2: 0}), strict=True):
    heights, edges = torch.histogram(means[layer].flatten(), 30, range=(0.0, 1.0), density=True)
    right.plot((edges[1:] + edges[:-1]) / 2, heights, **style, label=f"layer {layer}")
right.set_yscale("log")
label(right, "mean of a unit, given x", "density")
legend(right, *right.get_legend_handles_labels())
figure

# %% [markdown]
# *What to see. Left: the bound rises with every update, and ten are plenty; the trained machine,
# whose layers are tied more strongly, needs more of them. Right: the picture
# is a bathtub. More than half of the first layer's units are on or off with probability 0.9 once
# $x$ is known, and there a product of coins is not far from the truth.*
#
# That is no luck: a bound also rises where the posterior turns into what mean field can say. The
# other way is to **draw** the hidden layers, by Gibbs sampling with $x$ held fixed. The gradient is
# then that of $\log p(x)$, and the posterior may be what it likes.

# %%
sampled = DBM.from_data(digits.x, HIDDEN)
sampled.assemble(pretrained)
with quiet():
    loss = chains(posterior_sweeps=1)
    ppgen.train(sampled, digits, loss=loss, learning_rate=0.2, **epochs(60))
    drawn = ppgen.log_likelihood(sampled, held_out.x, samples=50 if FAST else 1000, **effort)
count = {}
for name, score in {"mean field": scores["DBM"], "sampling": drawn}.items():
    found = score.details
    count[name] = found["effective_draws"] / found["samples"]
    print(f"{name:<10}  bound >= {found['elbo']:.2f}   many draws >= {score.lower:.2f} nats, of "
          f"which {count[name]:.0%} count")  # fmt: skip

# %% [markdown]
# *What to see: of the draws from mean field a smaller share counts where the posterior was left
# free, and the bound is looser for it; the machine itself is as good, if not better.*
#
# ## What the layers have learnt
#
# What is a unit looking for? Weight each held-out digit by how far on the unit is, take the mean
# picture, and subtract the mean of all digits. That works for any layer. How much does a unit say
# about *which* digit it is? No label was used in training; the mutual information between the unit
# (on or off) and the label is the answer, in nats. It can be at most $\log 2 = 0.69$.

# %%
with torch.no_grad():
    up = {}
    for name, data in {"train": digits.x, "test": held_out.x}.items():
        below = torch.sigmoid(dbn.recognition_logits(1, data))
        _, first, second = dbm.mean_field(data)
        up[name] = {
            "pixels": data,
            "RBM layer 1": torch.sigmoid(rbm.hidden_logits(data)),
            "DBN layer 1": below,
            "DBN layer 2": torch.sigmoid(dbn.top.hidden_logits(below)),
            "DBM layer 1": first,
            "DBM layer 2": second,
        }
label_of = torch.nn.functional.one_hot(held_out.labels, 10).double()  # (N, 10)


def information(units):
    """Mutual information of each unit, rounded to on or off, with the label, nats: (U,)."""
    on = (units > 0.5).double()
    joint = torch.stack([label_of.T @ on, label_of.T @ (1 - on)], -1) / len(on)  # (10, U, 2)
    product = joint.sum((0,)) * label_of.mean(0)[:, None, None]
    return torch.where(joint > 0, joint * (joint / product).log(), 0.0).sum((0, 2))


def accuracy(name):
    """Held-out share of right answers of ridge regression from a layer to the ten labels."""
    A, B = (torch.cat([up[k][name], torch.ones(len(up[k][name]), 1)], 1).double() for k in up)
    wanted = torch.nn.functional.one_hot(digits.labels, 10).double()
    W = torch.linalg.solve(A.T @ A + 10 * torch.eye(A.shape[1]).double(), A.T @ wanted)
    return float(((B @ W).argmax(1) == held_out.labels).double().mean())


told = {name: float(information(units).mean()) for name, units in up["test"].items()}
read = {name: accuracy(name) for name in told}
for name, units in up["test"].items():
    print(f"{name:<12} {units.shape[1]:>3} units: {told[name]:.2f} nats a unit about the digit; "
          f"all together, read linearly: {read[name]:.1%} right")  # fmt: skip

pictures = []
for name in list(told)[2:]:
    units = up["test"][name].double()
    best = information(units).argsort(descending=True)[:12]
    seen_by = units[:, best].T @ held_out.x.double() / units[:, best].sum(0)[:, None]
    pictures.append(seen_by - held_out.x.double().mean(0))
plots.filters(
    torch.cat(pictures),
    (8, 8),
    columns=12,
    title="What the units look for",
    unit="mean pixel where on, less mean of all",
)

# %% [markdown]
# *What to see: rows 1 and 2 are the layers of the DBN, rows 3 and 4 those of the DBM; in each row
# the twelve units that say most about the label. Red is ink that goes with the unit, blue is ink
# that does not.* A unit of so small a picture looks for a stroke or two, in all four rows. The
# table tells the layers apart: from pixels to the first layer to the second, a *single* unit says
# more and more about the digit. The 60 units of the second layer *together* do not say more than
# the 100 below them, from which they are made: a layer can only lose information.
#
# ## Samples
#
# A DBN is sampled by a long chain of the machine *on top* and a single pass down; a DBM by a chain
# of all its layers.

# %%
sweeps = 150 if FAST else 1000
torch.manual_seed(1)
from_dbn = dbn.sample(30, gibbs_steps=sweeps)
side = dbm.machine_side(BaseRate(digits.x).sample(30))
for _ in range(sweeps):
    side = dbm.sweep(side)
from_dbm = side[:, :64]
plots.images(
    torch.cat([held_out.x[:15], from_dbn, from_dbm]),
    (8, 8),
    columns=15,
    title="Digits and samples",
    subtitle="Row 1: held-out digits. Rows 2 and 3: the DBN. Rows 4 and 5: the DBM.",
)

# %% [markdown]
# *What to see: both chains began far from any digit and arrive at strokes that could be digits, of
# several kinds. Neither repeats a single shape, as a chain that does not mix would.* Networks of
# the same two kinds for pictures of 28x28 pixels, trained on MNIST, come with the repository:
# `ppgen sample pretrained/dbm-mnist-500-1000` draws from one of them.
#
# ## What goes wrong
#
# - *Up-down with tied weights.* The two phases would pull the same weights in different directions;
#   `UpDown` refuses a tied network and says so.
# - *A DBM assembled from plain RBMs.* Each layer then hears twice what it was trained to hear, once
#   from below and once from above. The doubled stack (`pretraining_machines`) accounts for it; the
#   cell below measures what happens without.
# - *A DBM without pretraining, and without centring.* Its layers wait for each other. ppgen's
#   `ContrastiveDivergence` is centred by default, and then even a DBM from small weights learns.
# - *Comparing bounds as if they were values.* A DBN's bound is loose by
#   $\mathrm{KL}(q \,\|\, p(h \mid x))$, and by more where explaining away is strong.
# - *$h_2$ forgotten in the state of a chain.* The state of a DBM's chain is a whole side, $(x,
#   h_2)$. Passing on $x$ alone, with $h_2$ set anew by mean field, is another chain.

# %%
plain = DBM.from_data(digits.x, HIDDEN)
plain.assemble(stack)  # RBMs that were trained for a DBN
with quiet():
    naive = ppgen.log_likelihood(plain, held_out.x, samples=50 if FAST else 200, **effort)
print(f"assembled from a doubled stack: >= {scores['DBM, pretrained'].lower:.2f} nats")
print(f"assembled from plain RBMs:      >= {naive.lower:.2f} nats")
try:
    tied = DBN.from_rbms(stack)
    UpDown().loss_and_grads(tied.model, tied.guide, digits.x[:10])
except ValueError as error:
    complaint = str(error)
print(complaint)

# %% [markdown]
# ## Exercises
#
# **1.** Show by enumeration that a DBN whose top is the transpose of the RBM below has that RBM's
# law of $x$, to the last digit.

# %%
torch.manual_seed(0)
small = RBM(4, 3, weight_scale=1.0).double()
deep = DBN.from_rbms([small, small.transposed()])
X, H = torch.cartesian_prod(*[bit] * 4), torch.cartesian_prod(*[bit] * 3)
with torch.no_grad():
    log_top = -deep.top.free_energy(H) - deep.top.log_partition()  # log p(h_1)
    below = deep.log_generative([X[:, None].expand(16, 8, 4), H[None].expand(16, 8, 3)])
    log_p = torch.logsumexp(log_top + below, 1)
    torch.testing.assert_close(log_p, small.marginal().log_prob(X))
print(f"sum of p(x) = {log_p.exp().sum():.12f}; largest difference "
      f"{(log_p - small.marginal().log_prob(X)).abs().max():.1e} nats")  # fmt: skip

# %% [markdown]
# **2.** What is $\log Z$ of a DBM with $W_2 = 0$ and $b_2 = 0$?

# %%
torch.manual_seed(0)
flat = DBM(4, (3, 5), weight_scale=1.0).double()
lower = RBM(4, 3).double()
with torch.no_grad():
    flat.weight_2.zero_()
    lower.weight.copy_(flat.weight_1)
    difference = float(flat.log_partition() - lower.log_partition())
print(f"log Z exceeds the RBM's by {difference:.6f}, 5 log 2 = {5 * math.log(2):.6f} nats")
assert abs(difference - 5 * math.log(2)) < 1e-9  # five coins that nobody listens to

# %% [markdown]
# **3.** When is mean field bad? Build a DBM whose posterior has two equal modes. How much does the
# bound lose?

# %%
two_modes = DBM(1, (1, 1), weight_scale=0.0, mean_field_steps=200).double()
with torch.no_grad():
    two_modes.weight_2.fill_(12.0)
    two_modes.biases[1].fill_(-6.0)
    two_modes.biases[2].fill_(-6.0)  # both units on costs as much as both off
    x = torch.zeros(1, 1, dtype=torch.float64)
    lost = float(two_modes.log_unnormalised(x) - two_modes.bound(x))
print(f"lost {lost:.4f} nats, log 2 = {math.log(2):.4f}")
assert abs(lost - math.log(2)) < 0.02  # a product of coins sits in one mode and misses the other

# %% [markdown]
# ## The numbers of this page, checked

# %%
assert scores["RBM"].kind == "bounds"
assert all(scores[name].kind == "lower" for name in stories if name != "RBM")
coins = scores.pop("base rates").lower
assert all(score.lower > coins + (2 if FAST else 6) for score in scores.values())
for name, score in scores.items():
    if name != "RBM":
        assert score.details["elbo"] <= score.lower + 1e-9
assert scores["DBM"].lower > scores["DBM, pretrained"].lower + 0.2
if not FAST:
    assert scores["DBN, up-down"].lower > scores["DBN, greedy"].lower + 0.1
    assert 0.2 < scores["RBM"].lower - scores["DBN, up-down"].lower < 0.8
    assert 0.1 < scores["DBM"].lower - scores["RBM"].upper < 0.6
if not FAST:
    assert count["sampling"] < 0.5 * count["mean field"]
    assert drawn.details["elbo"] < scores["DBM"].details["elbo"]
    assert drawn.lower > scores["DBM"].lower - 0.15
assert naive.lower < scores["DBM, pretrained"].lower - 1
assert "untie" in complaint
assert abs(corr["RBM"]) < 1e-9
assert abs(corr["DBN, transpose on top"]) < 1e-9
torch.testing.assert_close(posterior(networks["RBM"]), posterior(networks["DBN, transpose on top"]))
assert corr["DBN, independent causes"] < -0.5
assert corr["DBM"] > 0.1
assert together["DBN, independent causes"][1] < 0.1 * together["DBN, independent causes"][0]
for values in rising.values():
    assert (values.diff() > -1e-3).all()
    assert values[-1] - values[4] < 0.02  # after ten updates
slow, quick = rising["trained"], rising["pretrained"]
if not FAST:
    assert slow[-1] - slow[0] > quick[-1] - quick[0]
    assert ((means[1] < 0.1) | (means[1] > 0.9)).double().mean() > 0.5
    assert scores["DBM"].lower > scores["RBM"].upper
for kind in ("DBN", "DBM"):
    assert told["pixels"] < told[f"{kind} layer 1"]
    assert read[f"{kind} layer 2"] < read[f"{kind} layer 1"]
if not FAST:
    assert told["DBN layer 1"] < told["DBN layer 2"]
    assert told["DBM layer 1"] + 0.03 < told["DBM layer 2"]
assert max(told.values()) < math.log(2)
assert from_dbn.unique().tolist() == from_dbm.unique().tolist() == [0.0, 1.0]
assert len(from_dbn.unique(dim=0)) > 25
assert len(from_dbm.unique(dim=0)) > 25

# %% [markdown]
# ---
# About 50 seconds in all on two cores of a laptop-class CPU. Your output should look like this
# page; the last digits depend on the machine.
