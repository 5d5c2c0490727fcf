# %% [markdown]
# # Shapes and parameters: when a story does not run
#
# **Result first.** Eight broken stories stop with a message that names the site. Five others run to
# the end and are wrong: one posterior is seven times too narrow and in the wrong place, one is
# ten times too wide, one parameter was never fitted, one model was never trained, and one noise
# comes out as its root. This page breaks each of them on purpose, reads what is said, mends it,
# and ends with a check of four lines that tells the number of terms in a density before anything
# is fitted. It also stops a training half way and goes on with it.

# %%
import os
import tempfile
import warnings

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO

import ppgen
from ppgen.data.synthetic import bars_and_stripes
from ppgen.inference import MLE
from ppgen.models import RBM, NormalNormal
from ppgen.plots import canvas, label, legend, styles
from ppgen.progress import quiet

FAST = os.environ.get("PPGEN_FAST") == "1"
torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)

N = 50
x = torch.linspace(-1.0, 1.0, N)
y = 2.0 * x + 0.5 * torch.randn(N)


def line(x, y):
    """y = b x + noise of standard deviation 1/2; the posterior of b is a formula."""
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(b * x, 0.5), obs=y)


def by_nuts(story, *data):
    """Draws of b by Pyro's own sampler."""
    torch.manual_seed(1)
    chain = MCMC(NUTS(story), num_samples=150 if FAST else 1000, warmup_steps=150,
                 disable_progbar=True)  # fmt: skip
    chain.run(*data)
    return chain.get_samples()["b"]


def complaint(run, *arguments):
    """What a call raises, without Pyro's table of shapes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            run(*arguments)
        except (ValueError, RuntimeError) as error:
            return str(error.__cause__ or error)
    return "no complaint"


precision = 1 + 4 * x.square().sum()  # 1 / sd^2 = 4
exact = dist.Normal(4 * (x * y).sum() / precision, precision.rsqrt())
right, column = by_nuts(line, x, y), by_nuts(line, x, y[:, None])
print(f"exact posterior of b:   {exact.mean:6.3f} +- {exact.stddev:.3f}")
print(f"NUTS, y of shape (50,): {right.mean():6.3f} +- {right.std():.3f}")
print(f"NUTS, y of shape (50, 1): {column.mean():.3f} +- {column.std():.3f}, and no complaint")

# %% [markdown]
# ## Data, story, and three kinds of shape
#
# Fifty points about a line of slope 2. The last line of output is the first bug, and the most
# common of all: `y` is a column, as tables give it, and the mean is a row.
#
# A distribution has three shapes. `batch_shape` counts laws side by side, independent and each
# with a log density of its own; `event_shape` is the shape of *one* value of one law; and
# `sample_shape` is what is asked of `sample`. A value has the shape sample + batch + event, and
# `log_prob` has sample + batch: **the event is summed, the batch is not**. `.to_event(k)` declares
# that the last $k$ dimensions of the batch belong to one value.

# %%
shapes = {
    "Normal(zeros(6), 1)": dist.Normal(torch.zeros(6), 1.0),
    "Normal(zeros(6), 1).to_event(1)": dist.Normal(torch.zeros(6), 1.0).to_event(1),
    "MultivariateNormal(zeros(6), I)": dist.MultivariateNormal(torch.zeros(6), torch.eye(6)),
    "Categorical(logits (6, 3))": dist.Categorical(logits=torch.zeros(6, 3)),
    "Dirichlet(ones(6, 3))": dist.Dirichlet(torch.ones(6, 3)),
}
for name, law in shapes.items():
    log_p = law.log_prob(law.sample((100,)))
    assert log_p.shape == (100, *law.batch_shape)
    print(f"{name:<32} batch {tuple(law.batch_shape)!s:<5} event {tuple(law.event_shape)!s:<5} "
          f"log_prob of 100 draws {tuple(log_p.shape)}")  # fmt: skip

few = torch.randn(6)
terms = {
    "a row of six values": dist.Normal(torch.zeros(6), 1.0).log_prob(few)[None],
    "to_event(1)": dist.Normal(torch.zeros(6), 1.0).to_event(1).log_prob(few)[None, None],
    "y a column, mean a row": dist.Normal(0.1 * torch.arange(6.0), 1.0).log_prob(few[:, None]),
}
figure, axes = canvas(
    2.9,
    "What is added up",
    "Each cell is one number of log_prob (nats); the density is the sum of them.",
    columns=3,
)
for ax, (name, cells) in zip(axes, terms.items(), strict=True):
    ax.imshow(cells, cmap="Blues_r", vmin=-3.5, vmax=-0.5)
    for (i, j), value in zip(torch.cartesian_prod(*map(torch.arange, cells.shape)),
                             cells.flatten(), strict=True):  # fmt: skip
        ax.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=7,
                color="white" if value < -2.2 else "#1b1f24")  # fmt: skip
    ax.set(xlim=(-0.6, 5.6), ylim=(5.6, -0.6), xticks=[], yticks=[])
    ax.grid(visible=False)
    ax.spines[["left", "bottom"]].set_visible(False)
    label(ax, "", "", f"{name}:\nshape {tuple(cells.squeeze().shape)}")
figure

# %% [markdown]
# *What to see: six values give six terms, or, as one event, one number that is their sum. A column
# against a row gives 36 terms: each value is compared with every mean.* That is what happened to
# the line: the likelihood is that of $50^2$ data, of which each $y_i$ meets each $x_j$. So the
# wrong posterior is a formula too,
#
# $$
# \text{precision } 1 + 4 N \sum_j x_j^2, \qquad
# \text{mean } \frac{4 \sum_i y_i \sum_j x_j}{\text{precision}} ,
# $$
#
# with a standard deviation that is $\sqrt N$ times too small and, as $\sum_j x_j = 0$ here, a slope
# of zero: the line is gone. Pyro's ELBO checks the shape and objects; its samplers do not. ppgen
# refuses, whichever engine is used.

# %%
wrong_precision = 1 + 4 * N * x.square().sum()
print(f"predicted: {4 * y.sum() * x.sum() / wrong_precision:.3f} +- {wrong_precision.rsqrt():.3f}")
print(f"found:     {column.mean():.3f} +- {column.std():.3f}")
refused_column = complaint(ppgen.fit, line, x, y[:, None])
print("ppgen:", refused_column)

# %% [markdown]
# ## Errors that speak
#
# Below are six more that stop. Read the first line: it names the site, and the two sizes that do
# not agree. `explain` prints the shapes of every site before anything is fitted; Pyro's own is
# `pyro.poutine.trace(story).get_trace(...).format_shapes()`.


# %%
def plate_of_another_size(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 40):  # mend: pyro.plate("data", len(x))
        pyro.sample("x", dist.Normal(mu, 1.0).expand([50]), obs=x)


def pictures_without_to_event(pixels):
    with pyro.plate("data", len(pixels)):  # mend: .to_event(1), 64 pixels are one picture
        pyro.sample("x", dist.Bernoulli(torch.full((100, 64), 0.5)), obs=pixels)


def one_name_for_many(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    for value in x:  # mend: a plate, or f"x_{n}"
        pyro.sample("x", dist.Normal(mu, 1.0), obs=value)


def a_site_that_comes_and_goes(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    if mu > 0:  # mend: always sample it, and switch with torch.where
        mu = mu + pyro.sample("extra", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def a_discrete_site_without_end(x):
    count = pyro.sample("count", dist.Poisson(3.0))  # mend: sum it out, or use Gibbs steps
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(count, 1.0), obs=x)


missing = x.clone()
missing[7] = torch.nan  # mend: drop the row, or make the value a site
cases = {
    "plate of another size": (plate_of_another_size, x),
    "pictures without to_event": (pictures_without_to_event, torch.zeros(100, 64)),
    "one name for many": (one_name_for_many, x),
    "a site that comes and goes": (a_site_that_comes_and_goes, x),
    "a discrete site without end": (a_discrete_site_without_end, x),
    "a missing value": (line, x, missing),
}
said = {name: complaint(ppgen.fit, *case) for name, case in cases.items()}
for name, message in said.items():
    print(f"{name}:\n    {message}")
print()
print(ppgen.explain(line, x, y))

# %% [markdown]
# A parameter has traps of its own. `pyro.param` without a constraint lets a scale become negative,
# and a guide without one of the model's sites is only *warned* of: the site is then drawn from its
# prior, in silence from then on.


# %%
def two(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    sd = pyro.sample("sd", dist.HalfNormal(10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, sd), obs=x)


def forgetful(x):  # mend: a site "sd" in the guide
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    pyro.sample("mu", dist.Normal(loc, scale))


def unconstrained(x):  # mend: constraint=dist.constraints.positive
    scale = pyro.param("scale", torch.tensor(-0.5))
    pyro.sample("mu", dist.Normal(0.0, scale))


with pyro.get_param_store().scope(), warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    Trace_ELBO().loss(two, forgetful, y)
only_warned = str(caught[0].message)
with pyro.get_param_store().scope():
    guided = pyro.poutine.replay(two, pyro.poutine.trace(forgetful).get_trace(y))
torch.manual_seed(2)
runs = (pyro.poutine.trace(guided).get_trace(y) for _ in range(500))
sds = torch.stack([run.nodes["sd"]["value"] for run in runs])
print("warned:", only_warned)
print(f"sd as it is drawn: mean {sds.mean():.1f}; the prior's {10 * (2 / torch.pi) ** 0.5:.1f}; "
      f"that of the data {y.std():.2f}")  # fmt: skip
with pyro.get_param_store().scope():
    negative_scale = complaint(Trace_ELBO().loss, two, unconstrained, y)
print("negative scale:", negative_scale.splitlines()[0][:95], "...")

# %% [markdown]
# ## The second model that does not train
#
# Pyro keeps parameters in one store, under their names. A second model of the same class finds the
# first one's parameters there and, with `pyro.module`, the optimiser goes on with *those*. It
# reports a loss, the loss falls, and the model in your hand stays at its start. Run each fit in a
# store of its own, `with pyro.get_param_store().scope()`, as every fit of ppgen does; or give a
# torch optimiser `model.parameters()`.


# %%
class Mean(torch.nn.Module):
    """x ~ N(theta, 1), theta a parameter."""

    def __init__(self):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.zeros(()))

    def model(self, x):
        pyro.module("mean", self)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.theta, 1.0), obs=x)

    def guide(self, x):
        pass


def train(module, data):
    """Pyro's loop; how far theta gets."""
    svi = SVI(module.model, module.guide, pyro.optim.Adam({"lr": 0.1}), loss=Trace_ELBO())
    track = []
    for _ in range(100):
        svi.step(data)
        track.append(float(module.theta.detach()))
    return track


low, high = torch.randn(200) - 3, torch.randn(200) + 3
tracks = {}
with pyro.get_param_store().scope():  # so that this page cleans up after itself
    tracks["first"] = train(Mean(), low)
    tracks["second, same store"] = train(Mean(), high)
with pyro.get_param_store().scope():
    tracks["second, own store"] = train(Mean(), high)
for name, values in tracks.items():
    print(f"{name:<19} theta ends at {values[-1]:+.2f}")

# %% [markdown]
# ## Minibatches that count for less than they are
#
# A minibatch of $B$ out of $N$ data stands for all of them: its log-likelihood has to be
# multiplied by $N / B$. `pyro.plate(..., size, subsample_size)` does it. A plain minibatch in a
# plate of its own size does not, and then the posterior is that of $B$ data:
# $\sqrt{N / B}$ times too wide where the prior is wide. The loss looks the same.

# %%
many = 1.0 + torch.randn(1000)
story = NormalNormal(mean=0.0, scale=10.0, noise=1.0)
steps = 300 if FAST else 800


def normal(x):
    loc = pyro.param("loc", torch.tensor(0.8))
    scale = pyro.param("scale", torch.tensor(0.1), constraint=dist.constraints.positive)
    pyro.sample("mu", dist.Normal(loc, scale))


def scaled(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(many), subsample=x) as chosen:  # N / B comes from the plate
        pyro.sample("x", dist.Normal(mu, 1.0), obs=many[chosen])


def unscaled(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=many[x])


widths = {}
for name, model in {"scaled": scaled, "unscaled": unscaled}.items():
    torch.manual_seed(3)
    with pyro.get_param_store().scope():
        decay = pyro.optim.ExponentialLR(
            {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.03},
             "gamma": 0.02 ** (1 / steps)}
        )  # fmt: skip
        loss = Trace_ELBO(num_particles=64, vectorize_particles=True, max_plate_nesting=1)
        svi = SVI(model, normal, decay, loss=loss)
        for _ in range(steps):
            svi.step(torch.randperm(len(many))[:10])
            decay.step()
        widths[name] = float(pyro.param("scale").detach())
true_width = float(story.exact_posterior(many)["mu"].stddev)
of_ten = float(story.exact_posterior(many[:10])["mu"].stddev)
print(f"posterior sd of mu: exact {true_width:.4f}, of ten data {of_ten:.4f}")
print(f"10 of 1000 a step: scaled {widths['scaled']:.4f}, unscaled {widths['unscaled']:.4f}")

figure, (left, right_ax) = canvas(
    2.8, "Two bugs that say nothing", "Left: one store for two models. Right: posteriors of mu.",
    columns=2,
)  # fmt: skip
for (name, values), style in zip(tracks.items(), styles(tracks), strict=True):
    left.plot(values, label=name, **style)
label(left, "step", "theta")
left.set_ylim(-3.6, 7)  # room for the names
legend(left, *left.get_legend_handles_labels(), loc="upper left")
grid = torch.linspace(-0.2, 2.2, 600)
for (name, width), style in zip(widths.items(), styles(widths), strict=True):
    density = dist.Normal(many.mean(), width).log_prob(grid).exp()
    right_ax.plot(grid, density, label=f"{name}: sd {width:.3f}", **style)
right_ax.axvline(float(many.mean()), color="#5b6570", linewidth=0.7, label="mean of the data")
right_ax.set_ylim(0, 16)
label(right_ax, "mu", "posterior density")
legend(right_ax, *right_ax.get_legend_handles_labels())
figure

# %% [markdown]
# *What to see. Left: the second model has data around +3; in the store of the first (dashed) it
# does not move, in a store of its own it gets there. Right: without the factor $N / B = 100$ the
# posterior is ten times too wide. Both curves are at the same place, so no plot of fitted values
# shows it.*
#
# ## A check of four lines
#
# Most silent bugs change *how many terms* a density has, or how much each counts. So count them:
# the data terms of a story, each with its scale, must add up to the number of data.


# %%
def data_terms(story, *arguments):
    """How many data the log-likelihood counts, per observed site."""
    trace = pyro.poutine.trace(story).get_trace(*arguments)
    trace.compute_log_prob()
    observed = {n: s for n, s in trace.nodes.items() if s["type"] == "sample" and s["is_observed"]}
    return {n: float(s["scale"] * s["log_prob"].numel()) for n, s in observed.items()}


batch = torch.arange(10)
counts = {
    "line": data_terms(line, x, y)["y"],
    "line, y a column": data_terms(line, x, y[:, None])["y"],
    "minibatch, scaled": data_terms(scaled, batch)["x"],
    "minibatch, unscaled": data_terms(unscaled, batch)["x"],
}
for name, count in counts.items():
    print(f"{name:<20} {count:6.0f} terms")

# %% [markdown]
# ## Training that was stopped
#
# *How do I go on with a training that was interrupted?* Give it a folder. Every epoch, and every
# `checkpoint_every` steps, the parameters, the optimiser, the random numbers and the order of the
# data go there; `resume=True` goes on where it stopped and ends with the same numbers, bit for
# bit. Here a machine is stopped after two epochs of four.

# %%
patterns = bars_and_stripes(3).sample(400)


def machine():
    torch.manual_seed(0)
    return RBM(9, 8, weight_scale=0.1)


with tempfile.TemporaryDirectory() as folder, quiet():
    whole, begun, resumed = machine(), machine(), machine()
    options = {"batch_size": 50, "learning_rate": 0.05, "seed": 0}
    ppgen.train(whole, patterns, epochs=4, **options)
    ppgen.train(begun, patterns, epochs=2, out=f"{folder}/run", **options)
    ppgen.train(resumed, patterns, epochs=4, out=f"{folder}/run", resume=True, **options)
same = all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
print(f"stopped and resumed: equal to the run without a stop, bit for bit: {same}")

# %% [markdown]
# ## What goes wrong
#
# The whole page, as a table to come back to:
#
# | symptom | cause | mend |
# |---|---|---|
# | `Shape mismatch inside plate` | plate size, or no `to_event` | `len(x)`; `.to_event(1)` |
# | `invalid log_prob shape` | a batch dimension outside all plates | a plate, or `to_event` |
# | `Multiple sample sites named` | one name in a Python loop | a plate, or numbered names |
# | posterior $\sqrt N$ times too narrow | a column against a row | `.squeeze(-1)` |
# | posterior $\sqrt{N / B}$ times too wide | minibatch without scale | `subsample=` of the plate |
# | loss falls, model does not move | one parameter store for two models | `scope()` |
# | `not in guide`, as a warning | a latent without a site in the guide | add it |
# | nothing at all, widths off | variance given for the standard deviation | exercise 2 |
#
# ## Exercises
#
# **1.** Without running it: which batch shape, event shape and shape of `log_prob` has
# `Normal(zeros(4, 1, 3), 1).expand([4, 2, 3]).to_event(2)`?

# %%
law = dist.Normal(torch.zeros(4, 1, 3), 1.0).expand([4, 2, 3]).to_event(2)
assert law.batch_shape == (4,)
assert law.event_shape == (2, 3)
assert law.log_prob(torch.zeros(2, 3)).shape == (4,)  # one value, broadcast over four laws
print(f"batch {tuple(law.batch_shape)}, event {tuple(law.event_shape)}")

# %% [markdown]
# **2.** `dist.Normal` takes a standard deviation. What does maximum likelihood find for `s` in
# `dist.Normal(0, s**2)` on data of standard deviation 0.5, and which check shows the slip?


# %%
def squared(x):
    s = pyro.sample("s", dist.HalfNormal(10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, s**2), obs=x)


torch.manual_seed(4)
noise = 0.5 * torch.randn(2000)
with quiet():
    found = ppgen.fit(squared, noise, using=MLE())["s"].item()
print(f"s = {found:.3f}; the data have {noise.std():.3f}, whose root is {noise.std() ** 0.5:.3f}")
assert abs(found - noise.square().mean().sqrt() ** 0.5) < 1e-4
# predictions are unharmed: what shows it is a known truth, simulated and fitted

# %% [markdown]
# **3.** Three schools of four pupils: write the story with nested plates so that `log_prob` of the
# marks is a table of three by four, and count its terms.


# %%
def schools(marks):
    outer, inner = pyro.plate("school", 3, dim=-2), pyro.plate("pupil", 4, dim=-1)
    with outer:
        level = pyro.sample("level", dist.Normal(0.0, 1.0))  # (3, 1)
    with outer, inner:
        return pyro.sample("marks", dist.Normal(level, 1.0), obs=marks)


trace = pyro.poutine.trace(schools).get_trace(torch.zeros(3, 4))
trace.compute_log_prob()
print(trace.format_shapes())
assert trace.nodes["level"]["value"].shape == (3, 1)
assert trace.nodes["marks"]["log_prob"].shape == (3, 4)
assert data_terms(schools, torch.zeros(3, 4)) == {"marks": 12}

# %% [markdown]
# ## The numbers of this page, checked

# %%
assert abs(right.mean() - exact.mean) < (0.6 if FAST else 0.25) * exact.stddev
assert abs(right.std() / exact.stddev - 1) < (0.4 if FAST else 0.15)
assert 6.5 < exact.stddev * wrong_precision.sqrt() < 7.5  # seven times too narrow
assert abs(column.std() * wrong_precision.sqrt() - 1) < (0.4 if FAST else 0.15)
assert abs(column.mean()) < wrong_precision.rsqrt()
assert column.mean() < exact.mean - 10 * exact.stddev
assert "broadcast to (50, 50)" in refused_column
assert (terms["a row of six values"].sum() - terms["to_event(1)"]).abs().max() < 1e-12
for name, words in {
    "plate of another size": ("'data'", "site x", "40 vs 50"),
    "pictures without to_event": ("'data'", "site x", "100 vs 64"),
    "one name for many": ("'x' occurs twice",),
    "a site that comes and goes": ("'extra'", "only on some paths"),
    "a discrete site without end": ("'count'", "infinitely many"),
    "a missing value": ("'y'", "nan at index [7]"),
}.items():
    assert all(word in said[name] for word in words), said[name]
assert "in model but not guide: {'sd'}" in only_warned
assert abs(sds.mean() - 10 * (2 / torch.pi) ** 0.5) < 5 * sds.std() / 500**0.5  # the prior's mean
assert "GreaterThan" in negative_scale
assert tracks["first"][-1] < -2.5
assert tracks["second, same store"] == [0.0] * 100  # not one step
assert tracks["second, own store"][-1] > 2.5
assert abs(true_width * 1000**0.5 - 1) < 1e-3
assert abs(widths["scaled"] / true_width - 1) < (0.5 if FAST else 0.25)
assert abs(widths["unscaled"] / of_ten - 1) < 0.25
assert 9.9 < of_ten / true_width < 10.1
assert list(counts.values()) == [50, 2500, 1000, 10]
assert same

# %% [markdown]
# ---
# About fifteen seconds in all on two cores of a laptop-class CPU. Your output should look like this
# page; the last digits depend on the machine.
