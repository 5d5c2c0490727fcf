"""Options of ``ppgen train`` that belong to one kind of model, a group for each kind."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from cyclopts import Group, Parameter

_MACHINES = Group("Boltzmann machines")
_FLOWS = Group("Flows, and the flow posterior of a VAE")
_CODES = Group("VAEs, sentences and molecules")


# what looks at the options of a group, and at some of them alone
_MODELS = {
    "MachineOptions": ("rbm", "dbm", "dbn"),
    "CodeOptions": ("vae", "sentences", "molecules"),
    "FlowOptions": ("flow", "vae"),
    "pretraining_epochs": ("dbm", "dbn"),
    "mean_field_steps": ("dbm",),
    "posterior_sweeps": ("dbm",),
    "labels": ("rbm",),
    "weight_decay": ("rbm", "dbm", "dbn", "vae", "sentences", "molecules"),
}


@Parameter(name="*", group=_MACHINES)
@dataclass(frozen=True)
class MachineOptions:
    """Of an RBM, a DBM and a DBN."""

    gibbs_steps: Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative="")] = (1,)
    """Of contrastive divergence, from update to update. Several numbers are for equal parts of the
    epochs, one after the other: 1 5 25 takes few steps while weights are small and chains mix.
    `ppgen resume --epochs` divides anew."""

    visible_units: Literal["binary", "gaussian"] = "binary"
    """Of an RBM; gaussian ones are real numbers, grey levels or a table, which are standardised,
    with noise within whole levels. A DBM and a DBN are binary."""

    hidden_units: Literal["binary", "gaussian", "relu"] = "binary"
    "Of an RBM. Gaussian ones have unit variance; relu ones are these restricted to zero and above."

    labels: Annotated[bool, Parameter(negative="")] = False
    """Of an RBM of data that have some: the label is a part of each example, so that the machine
    classifies (`ppgen evaluate`) and draws examples of a class (`ppgen sample --label 3`)."""

    persistent: Annotated[bool, Parameter(negative="")] = False
    "Chains go on from step to step."

    sampler: Literal["gibbs", "langevin", "trajectory", "tempering"] = "gibbs"
    """What moves the chains. Gibbs draws the sides in turn. Langevin moves gaussian visible units
    by small steps from where they are: take it without persistent, where it fits a little better
    for half as much time again. Trajectory swaps the chains with draws of the machine as it was
    earlier: take it with persistent, where they stick in modes. Tempering, with persistent only,
    swaps them with replicas of the machine as it is now, at smaller inverse temperatures."""

    temperatures: int | None = None
    """Of sampler tempering: equal steps of the inverse temperature from 0 to 1, 5 when not given;
    each has replicas of all chains, so that an update takes as many times as long."""

    sparsity: float = 0.0
    """Strength with which the bias of each hidden unit is moved until its mean is the sparsity
    target: small targets make units that are mostly off, each for something of its own."""

    sparsity_target: float | None = None
    "Between 0 and 1; 0.1 when not given."

    pretraining_epochs: int | None = None
    "For each layer, before all are trained; as many as epochs for a DBN, none for a DBM."

    mean_field_steps: int = 10
    "At most, for each batch of a DBM; the likelihood is always measured with 30."

    posterior_sweeps: int = 0
    """Of a DBM, whose posterior is no product: Gibbs sweeps of the hidden layers given each batch,
    from a draw of the mean field. The likelihood is then trained, and not its mean-field bound."""

    likelihood_every: int | None = None
    "Epochs between two measurements on held-out data, by a short annealing: bounds over epochs."

    compile: Annotated[bool, Parameter(negative="")] = False
    "On a GPU each update is one CUDA graph, with the same numbers; not with sampler trajectory."


@Parameter(name="*", group=_CODES)
@dataclass(frozen=True)
class CodeOptions:
    """Of stories with a latent code."""

    latent: int | None = None
    "Dimensions of the code; 20, and 128 for molecules."

    convolutional: Annotated[bool, Parameter(negative="")] = False
    "A VAE's networks are convolutional; hidden is the encoder's last width."

    channels: Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative="")] = (32, 64)
    "Of convolutional networks: of each layer that halves the image."

    refine: int = 1
    "Likewise: convolutions between those that halve; 0 is several times faster."

    pixels: Literal["binary", "causal", "grey", "gaussian", "logistic", "categorical"] = "binary"
    """Of a VAE, their law given the code. Causal ones are binary and told of those above and to the
    left of them; grey is a density on [0, 1], gaussian one of any numbers with a learned scale;
    logistic and categorical are laws of whole grey levels, as 0 to 255."""

    levels: int | None = None
    "Of logistic and categorical pixels; as many as the data set has, 256 for a file."

    prior: Literal["standard", "mixture", "vampprior", "flow"] = "standard"
    "Of a VAE's code; the mixtures have 50 components."

    posterior: Literal["normal", "full", "planar", "sylvester", "iaf", "spline"] = "normal"
    """Of a VAE's code; planar, sylvester and the autoregressive iaf and spline are flows told by
    the encoder."""

    objective: Literal["elbo", "iwae", "dreg", "rws", "ws"] = "elbo"
    """The bound that is raised: dreg is iwae with quieter gradients; rws is reweighted wake-sleep,
    whose encoder learns from weighted draws instead, and ws wake-sleep, whose encoder learns from
    what the decoder dreams."""

    draws: int | None = None
    "Of the code for each example and step: 1 for elbo and ws, 8 for the others."

    beta: float | None = None
    """Weight of the divergence in training; 1, and 0.02 for molecules, whose codes are to give back
    the very molecule."""

    warm_up: int = 0
    "Steps over which the weight of the divergence rises from 0 to 1; elbo only."

    free_bits: float = 0.0
    "Nats of each unit's divergence that training leaves alone; elbo only."

    weight_decay: float = 0.0
    "As in AdamW; of a Boltzmann machine an L2 cost of its weights, and of no biases."

    word_dropout: float = 0.0
    "Share of the tokens before that the decoder of sentences does not see."

    least: int = 1
    "Times that a word of sentences must occur in the text; rarer ones are read as unknown."

    characters: Annotated[bool, Parameter(negative="")] = False
    "Tokens of sentences are characters instead of words."

    notation: Literal["selfies", "smiles"] = "selfies"
    "Of molecules; every string of SELFIES is one."


@Parameter(name="*", group=_FLOWS)
@dataclass(frozen=True)
class FlowOptions:
    """Of a flow; the number of layers and of columns also of a VAE's flow posterior."""

    layer: Literal[
        "autoregressive", "coupling", "spline", "planar", "radial", "sylvester", "continuous"
    ] = "autoregressive"
    """The kind of a flow's layers. Autoregressive ones fit best, score in one pass and draw in as
    many as there are columns; coupling (shift and scale) and spline take one pass both ways.
    Planar, radial and sylvester bend space at a plane, around a point and along several directions,
    and score through their inverse; continuous is a drift, whose equation is solved. Hidden is the
    widths of the networks, of a continuous layer the number of its waves; planar, radial and
    sylvester have none."""

    flow_layers: int | None = None
    """How many: 1 autoregressive or continuous, 4 spline, 8 coupling, sylvester, 16 planar, radial;
    in a VAE's posterior 10 planar, sylvester, 4 iaf, 2 spline."""

    flow_columns: int | None = None
    """Directions of each Sylvester layer, at most as many as it has dimensions; 8 of a flow, all of
    a VAE's code. A layer is scored by solving one equation after another, one for each."""


def refuse_unused(model: str, *groups: MachineOptions | CodeOptions | FlowOptions) -> None:
    """Refuse an option that was given although nothing in the training of `model` looks at it.

    Raises:
        ValueError: by the option's name, with the models that it is of.
    """
    for group in groups:
        for field in fields(group):
            value = getattr(group, field.name)
            models = _MODELS.get(field.name, _MODELS[type(group).__name__])
            if model not in models and value != field.default:
                name = field.name.replace("_", "-")
                raise ValueError(
                    f"--{name}: of {', '.join(models)}; a run of {model} does not look at it, so "
                    "leave it out"
                )
