"""The Protocols where models and algorithms meet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

if TYPE_CHECKING:
    from pyro.distributions import TorchDistribution
    from torch.nn import Parameter

    from ppgen.distributions import RestrictedBoltzmann
    from ppgen.distributions.units import HiddenUnits, Units
    from ppgen.posterior import Posterior

Story = Callable[..., Any]
"""Any Pyro callable: a function, a bound `model` of a module, a conditioned model."""

Factors: TypeAlias = "Mapping[str, TorchDistribution]"
"""The law of each block, ``(*batch)``; a point mass where its value is given."""

Coordinate: TypeAlias = "Callable[[Factors], TorchDistribution]"
"""The law of one block, given those of the others."""


class Engine(Protocol):
    """An inference method: a frozen dataclass of options with one method."""

    def run(self, model: Story, *args: Any, **kwargs: Any) -> Posterior: ...


@runtime_checkable
class ExactDensity(Protocol):
    """A story whose ``log p(x)`` is a formula: flows, base-rate models."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of each example, ``(*, D) -> (*)``, nats."""
        ...


@runtime_checkable
class ImportanceWeighted(Protocol):
    """A story with an amortised guide, whose ``log p(x)`` importance sampling bounds."""

    def log_weights(self, x: Tensor, samples: int) -> Tensor:
        """``log p(x, z) - log q(z | x)``, z ~ q: ``(B, D) -> (samples, B)``, nats."""
        ...


@runtime_checkable
class DecoderModel(Protocol):
    """A story with a continuous code, whose ``log p(x)`` annealing of the code bounds.

    A story of several layers has ``flat() -> DecoderModel`` instead, its codes side by side.
    """

    def prior(self) -> TorchDistribution:
        """p(z), of event shape ``(L,)``."""
        ...

    def decode(self, z: Tensor) -> TorchDistribution:
        """p(x | z), ``(*, L)`` to a law of batch ``(*)`` and event ``(D,)``."""
        ...


@runtime_checkable
class Autoencoder(Protocol):
    """A story whose latent space can be walked through: codes of examples, examples of codes."""

    def encode(self, x: Tensor) -> TorchDistribution:
        """The recognition distribution q(z | x): ``(*, D)`` -> laws of ``(L,)``."""
        ...

    def decode(self, z: Tensor) -> TorchDistribution:
        """The generating distribution p(x | z): ``(*, L)`` -> laws of ``(D,)``."""
        ...


class Statistics(NamedTuple):
    """What one phase of a Boltzmann machine knows of its N states: enough for its gradient."""

    visible: Tensor  # states of the visible side (their means in a mean-field phase), (N, D)
    hidden: Tensor  # means of the hidden side given them, (N, H)
    visible_mean: Tensor  # of the visible units' statistics over the N states, (M,); M = D mostly
    hidden_mean: Tensor  # over the N states, (H,)
    free_energy: Tensor  # mean over the N states, nats, (); an upper bound in a mean-field phase
    entropy: Tensor | float = 0.0  # of the means in `visible`, nats: what made it a bound


@runtime_checkable
class BoltzmannMachine(Protocol):
    """A bipartite machine, ``log p(s, t) = a.s + b.t + s.W.t - log Z``.

    A layered machine is bipartite: its *visible side* is its even layers (x, and every second
    layer above), its *hidden side* the odd ones; each is independent given the other. Below, `x`
    is the data layer, alone in the visible side of a machine with one hidden layer. Visible units
    are of some kind in `ppgen.distributions.units`, whose statistics and natural parameters then
    stand for s and a in ``a.s``, hidden ones of a kind whose only statistic is t itself.
    """

    if TYPE_CHECKING:  # from Python 3.12 on, isinstance does not see the parameters of a module
        visible: int  # units of x, the first of the visible side
        units: Units  # the kind of the visible side
        hidden_units: HiddenUnits  # the kind of the hidden side

        # Read alone: parameters, or assembled from those of the layers.
        @property
        def weight(self) -> Tensor: ...  # W between the sides, (D, H)

        @property
        def visible_bias(self) -> Tensor: ...  # a, (D,)

        @property
        def hidden_bias(self) -> Tensor: ...  # b, (H,)

        @property
        def couplings(self) -> tuple[tuple[slice, slice], ...]:  # blocks of W that are not zero
            ...

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]: ...

    def hidden_logits(self, s: Tensor) -> Tensor:
        """Natural parameters of the hidden side given the visible, ``(*, D) -> (*, H)``.

        Log-odds where the units are binary.
        """
        ...

    def visible_natural(self, t: Tensor | None = None) -> Tensor:
        """Natural parameters of the visible side given the hidden (None: all off).

        ``(*, H) -> (*, M)``; log-odds, M = D, where the units are binary.
        """
        ...

    def free_energy(self, s: Tensor) -> Tensor:
        """``-log sum_t exp(-energy(s, t))``: ``(*, D) -> (*)``, nats."""
        ...

    def marginal(self) -> RestrictedBoltzmann:
        """The law of the visible side, normalised where log Z is known."""
        ...

    def sample_visible(self, t: Tensor) -> Tensor:
        """Draw the visible side given the hidden, ``(*, H) -> (*, D)``."""
        ...

    def sample_hidden(self, s: Tensor) -> Tensor:
        """Draw the hidden side given the visible, ``(*, D) -> (*, H)``."""
        ...

    def hidden_states(self, phase: Statistics) -> Tensor:
        """Draw the hidden side of a phase, ``(N, H)``."""
        ...

    def sweep(self, s: Tensor) -> Tensor:
        """One block Gibbs update of the visible side through the hidden side."""
        ...

    def positive_phase(self, x: Tensor) -> Statistics:
        """Statistics with the data clamped, ``(N, visible)``."""
        ...

    def statistics(self, s: Tensor) -> Statistics:
        """Statistics of states of the visible side, ``(N, D)``."""
        ...

    def by_parameter(
        self, weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor
    ) -> dict[str, Tensor]:
        """A gradient in W, a (natural) and b as that in each parameter, by its name."""
        ...


@runtime_checkable
class MachineStory(BoltzmannMachine, Protocol):
    """A machine that is a story of its own, whose latent sites are parts of its two sides."""

    def model(self, x: Tensor | None = None, *, examples: int = 1) -> Any: ...

    def energy(self, s: Tensor, t: Tensor) -> Tensor:
        """Minus the unnormalised log density of both sides: ``(*, D), (*, H) -> (*)``, nats."""
        ...

    def sites(self, s: Tensor, t: Tensor) -> dict[str, Tensor]:
        """The values of the model's sites, x among them, in a state of both sides."""
        ...


@runtime_checkable
class PairwiseMachine(Protocol):
    """A Boltzmann machine of visible units alone, ``log p(x) = a.x + x.W.x / 2 - log Z``."""

    if TYPE_CHECKING:
        visible: int  # units of x

        @property
        def weight(self) -> Tensor: ...  # W, symmetric with a zero diagonal, (D, D)

        @property
        def visible_bias(self) -> Tensor: ...  # a, (D,)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]: ...

    def energy(self, x: Tensor) -> Tensor:
        """``-a.x - x.W.x / 2``: ``(*, D) -> (*)``, nats."""
        ...

    def pseudo_log_likelihood(self, x: Tensor) -> Tensor:
        """``sum_i log p(x_i | all others)``: ``(*, D) -> (*)``, nats."""
        ...

    def by_parameter(self, weight: Tensor, visible_bias: Tensor) -> dict[str, Tensor]:
        """A gradient in the W_ij, i < j, and a as the gradient in each parameter, by its name."""
        ...


@runtime_checkable
class UnnormalisedDensity(Protocol):
    """A story whose ``log p(x)`` is known, or bounded from below, up to the log Z of a machine.

    The machine is the story itself for RBM and DBM, and the one on top for a DBN.
    """

    if TYPE_CHECKING:
        visible: int  # units of x

    @property
    def machine(self) -> BoltzmannMachine: ...

    def machine_side(self, x: Tensor) -> Tensor:
        """Mean or draw of the machine's visible side with the data clamped, ``(N, D)``."""
        ...

    def log_unnormalised(self, x: Tensor) -> Tensor | None:
        """Exact ``log p(x) + log Z``, ``(N,)``, nats; None where it is no feasible sum."""
        ...

    def unnormalised_log_weights(self, x: Tensor, samples: int) -> Tensor:
        """``log p(x, z) + log Z - log q(z | x)``, z ~ q: ``(N, D) -> (samples, N)``, nats."""
        ...


@runtime_checkable
class MachinePrior(UnnormalisedDensity, Protocol):
    """A story whose binary latents z are the visible side of its machine: a VAE with RBM prior."""

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]: ...

    def encode(self, x: Tensor) -> TorchDistribution:
        """``q(z | x)``, of event shape ``(L,)``."""
        ...

    def log_unnormalised_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """``log p(x, z) + log Z``, ``(*)``, nats."""
        ...


@runtime_checkable
class DirectedLayers(UnnormalisedDensity, Protocol):
    """Directed layers under a machine, with a recognition pass of their own: a DBN.

    `layers` is ``[x, h1, ..., s]``, s being the visible side of the machine; ``(N, units)`` each.
    """

    if TYPE_CHECKING:
        tied: bool  # whether the recognition pass shares the generative weights

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]: ...

    def recognise(self, x: Tensor) -> list[Tensor]:
        """Layers drawn upwards from x."""
        ...

    def generate(self, side: Tensor) -> list[Tensor]:
        """Layers drawn downwards from s."""
        ...

    def log_generative(self, layers: Sequence[Tensor]) -> Tensor:
        """``log p(x, h1, ... | s)``, ``(N,)``, nats."""
        ...

    def log_recognition(self, layers: Sequence[Tensor]) -> Tensor:
        """``log q(h1, ..., s | x)``, ``(N,)``, nats."""
        ...


@runtime_checkable
class Conjugate(Protocol):
    """A story whose posterior is a formula; `data` are the arguments of its ``model``."""

    def model(self, *data: Any) -> Any: ...

    def guide(self, *data: Any) -> Any:
        """The exact posterior, jointly: its ELBO is the log evidence, for every draw."""
        ...

    def exact_posterior(self, *data: Any) -> dict[str, TorchDistribution]:
        """The marginal law of each latent site."""
        ...

    def log_evidence(self, *data: Any) -> Tensor:
        """``log p(data)``, ``()``, nats."""
        ...

    def predictive(self, *data: Any) -> TorchDistribution:
        """The law of one more observation, given the data."""
        ...


@runtime_checkable
class ConditionallyConjugate(Protocol):
    """A story in which each block, given all others, has a law in closed form.

    Its blocks are latent sites, and auxiliary variables that the story sums or integrates out,
    such as the assignments of a mixture. Laws have batch shape ``(*batch)``, events the shape of
    the block.
    """

    def model(self, *data: Any) -> Any: ...

    def start(self, count: int, *data: Any) -> dict[str, Tensor]:
        """Dispersed values, ``(count, *shape)``, of all blocks but the first."""
        ...

    def coordinates(self, *data: Any) -> dict[str, Coordinate]:
        """For each block, in the order of a sweep, ``q -> exp E_q[log p(data, all)]``.

        With point masses for the others that is the full conditional (Gibbs), with laws the
        best factor (coordinate ascent).
        """
        ...

    def expected_log_joint(self, factors: Factors, *data: Any) -> Tensor:
        """``E_q[log p(data, all blocks)]``, on their own scale, ``(*batch)``, nats."""
        ...


@runtime_checkable
class Exchangeable(Protocol):
    """A story whose posterior stays the same when its components change their numbers.

    Draws of every engine come in its canonical order, so that chains and engines can be compared.
    """

    def canonical(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same values, ``(*batch, *shape)`` of each block, in an order that is unique."""
        ...
