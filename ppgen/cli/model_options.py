"""Options of ``ppgen train`` that belong to one kind of model, a group for each kind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

_MACHINES = Group("Boltzmann machines")
_CODES = Group("VAEs and sentences")


@Parameter(name="*", group=_MACHINES)
@dataclass(frozen=True)
class MachineOptions:
    """Of an RBM, a DBM and a DBN."""

    gibbs_steps: int = 1
    "Of contrastive divergence."

    persistent: Annotated[bool, Parameter(negative="")] = False
    "Chains go on from step to step."

    start_from: Path | None = None
    """A run whose layers become the lowest ones: of an RBM, or of a DBM or DBN with no more layers.
    A DBN then trains its top layer alone, but all of them where the run has as many."""

    pretraining_epochs: int | None = None
    "For each layer, before all are trained; as many as epochs for a DBN, none for a DBM."

    mean_field_steps: int = 10
    "At most, for each batch of a DBM; the likelihood is always measured with 30."


@Parameter(name="*", group=_CODES)
@dataclass(frozen=True)
class CodeOptions:
    """Of stories with a latent code."""

    latent: int = 20
    "Dimensions of the code."

    convolutional: Annotated[bool, Parameter(negative="")] = False
    "A VAE's networks are convolutional; hidden is the encoder's last width."

    prior: Literal["standard", "mixture", "vampprior", "flow"] = "standard"
    "Of a VAE's code; the mixtures have 50 components."

    posterior: Literal["normal", "full", "planar", "sylvester"] = "normal"
    "Of a VAE's code; planar and sylvester are flows told by the encoder."

    flow_layers: int = 10
    "Of that posterior."

    warm_up: int = 0
    "Steps over which the weight of the divergence rises from 0 to 1."

    free_bits: float = 0.0
    "Nats of each unit's divergence that training leaves alone."

    word_dropout: float = 0.0
    "Share of the tokens before that the decoder of sentences does not see."

    characters: Annotated[bool, Parameter(negative="")] = False
    "Tokens of sentences are characters instead of words."
