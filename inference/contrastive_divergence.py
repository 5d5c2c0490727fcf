r"""Contrastive divergence and persistent contrastive divergence.

The gradient of ``mean log p(x)`` of a Boltzmann machine is the difference of two means of
``s t^T``, s its visible and t its hidden side: with the data clamped, and over the machine's own
states. CD takes the second mean after a few Gibbs steps from the data, PCD from chains that go on
across updates. In a deep machine the first mean is a mean-field one, and the gradient that of the
variational bound; or it is sampled as well, and the gradient is that of the likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from ppgen.arguments import require_between, require_nonnegative, require_positive, require_whole
from ppgen.distributions.unit_checks import require_levels
from ppgen.inference.phase_gradient import Gradient, Offsets, difference, positive_phase, shapes_of
from ppgen.inference.svi_loss import SVILoss, show_parameters
from ppgen.types import BoltzmannMachine, DirectedLayers, PairwiseMachine

Kept = Any  # of persistent chains: a tensor, or a dictionary of tensors


class State(NamedTuple):
    """What the next step needs."""

    # Persistent chains: their hidden sides, (C, H), or what the sampler keeps; None without them.
    chains: Kept | None
    visible_offset: Tensor  # running mean of the visible statistics given the data, (M,); mu first
    hidden_offset: Tensor  # lambda: running mean of the hidden side given the data, (H,)


class Info(NamedTuple):
    """What a caller may log."""

    # Mean F(data) - mean F(chains), nats: neither a likelihood nor the objective. Both are of whole
    # visible sides; with the data clamped, latent layers stand there by their means.
    contrast: Tensor
    fantasies: Tensor  # visible sides of the negative phase, (C, D)


class Sampler(Protocol):
    """What moves the chains of the negative phase, in the place of block Gibbs."""

    def start(self, machine: BoltzmannMachine, visible: Tensor) -> Kept:
        """What it keeps of chains that stand at these visible sides, ``(C, D)``."""
        ...

    def move(self, machine: BoltzmannMachine, kept: Any, steps: int) -> tuple[Kept, Tensor]:
        """The same after `steps` updates, and the visible sides, ``(C, D)``; `kept` stays."""
        ...


def init(
    machine: BoltzmannMachine,
    batch: Tensor,
    *,
    persistent: bool = False,
    chains: int | None = None,
    sampler: Sampler | None = None,
) -> State:
    """Offsets at the means of the first batch; persistent chains one half step from its rows.

    With `chains`, that many chains start from rows of the batch drawn with replacement; without,
    one from each row.
    """
    positive = machine.positive_phase(batch)
    hidden = None
    if persistent:
        start = positive
        if chains is not None:
            rows = torch.randint(len(batch), (chains,), device=positive.hidden.device)
            start = positive._replace(visible=positive.visible[rows], hidden=positive.hidden[rows])
        hidden = machine.hidden_states(start)
        if sampler is not None:
            hidden = sampler.start(machine, machine.sample_visible(hidden))
    return State(hidden, positive.visible_mean, positive.hidden_mean)


@torch.no_grad()
def step(
    state: State,
    batch: Tensor,
    *,
    machine: BoltzmannMachine,
    gibbs_steps: int = 1,
    posterior_sweeps: int = 0,
    centred: bool = True,
    offset_rate: float = 0.01,
    weight_decay: float = 0.0,
    sparsity: float = 0.0,
    sparsity_target: float = 0.1,
    sampler: Sampler | None = None,
    out: Gradient | None = None,
) -> tuple[State, Gradient, Info]:
    """One stochastic gradient: `gibbs_steps` sweeps from the data, or from the state's chains.

    Args:
        state: from `init` or the last step; the chains are persistent where it holds some.
        batch: data, ``(B, visible)``; its size may differ from the number of chains.
        out: tensors to be overwritten by the gradient.
    """
    positive = positive_phase(machine, batch, posterior_sweeps)
    kept = state.chains
    if sampler is None:
        visible = machine.sample_visible(machine.hidden_states(positive) if kept is None else kept)
        for _ in range(gibbs_steps - 1):
            visible = machine.sweep(visible)
    else:
        if kept is None:
            kept = sampler.start(machine, machine.sample_visible(machine.hidden_states(positive)))
        kept, visible = sampler.move(machine, kept, gibbs_steps)
    negative = machine.statistics(visible)
    if state.chains is None:
        kept = None
    elif sampler is None:
        kept = machine.hidden_states(negative)
    state = State(
        kept,
        torch.lerp(state.visible_offset, positive.visible_mean, offset_rate),
        torch.lerp(state.hidden_offset, positive.hidden_mean, offset_rate),
    )
    offsets = Offsets(state.visible_offset, state.hidden_offset) if centred else None
    gradient = difference(positive, negative, offsets, out, machine.couplings)
    if weight_decay:
        gradient.weight.add_(machine.weight, alpha=weight_decay)
    if sparsity:
        gradient.hidden_bias.add_(state.hidden_offset - sparsity_target, alpha=sparsity)
    # The chains hold states of all even layers: no entropy on either side.
    energy = positive.free_energy + positive.entropy
    return state, gradient, Info(energy - negative.free_energy, visible)


class ContrastiveDivergence(SVILoss):
    """Loss that trains a Boltzmann machine without its log Z.

    In Pyro: ``SVI(rbm.model, rbm.guide, optim, loss=ContrastiveDivergence())``. In a torch loop:
    ``loss.loss_and_grads(rbm.model, rbm.guide, x)``, which adds to ``.grad`` as ``backward`` does.
    The float that comes back is the contrast, mean F(data) - mean F(chains) in nats: near zero in
    equilibrium, but neither a likelihood nor the objective. One object belongs to one machine.

    Args:
        gibbs_steps: block Gibbs sweeps a step (the k of CD-k); or, for `ppgen.train`, a function of
            the epoch, 0, 1, ...: few while weights are small, more when chains mix badly.
        persistent: PCD: chains go on across steps; else each step starts at the data.
        chains: number of persistent chains; as many as rows of the first batch if None.
        posterior_sweeps: of a machine with several hidden layers, Gibbs sweeps of its latent layers
            with the data clamped, from a draw of the mean field: for enough of them the gradient is
            that of the likelihood. 0: the mean field itself, and the gradient of its bound.
        weight_decay: L2 on the weights, not on the biases: adds ``weight_decay * W``.
        sparsity: drives the mean of each hidden unit towards `sparsity_target` by its bias, the
            gradient of a cross-entropy: adds ``sparsity * (mean - target)``. Of a deep machine, the
            units of its hidden side: h1, h3, ...
        sparsity_target: in (0, 1); the means are those that centring runs (`offset_rate`).
        centred: use the centred gradient, which trains better and costs little.
        offset_rate: rate of the running means about which it centres.
        sampler: what moves the chains in the place of block Gibbs: `Tempered` (parallel
            tempering), `Trajectory` (parallel trajectory tempering) or, for real units,
            `Langevin`; `gibbs_steps` then counts its updates.

    References:
        | A learning algorithm for Boltzmann machines (Ackley, Hinton, Sejnowski, 1985), on both
          phases by sampling
        | Training products of experts by minimizing contrastive divergence (Hinton, 2002)
        | Training restricted Boltzmann machines using approximations to the likelihood gradient
          (Tieleman, 2008)
        | Sparse deep belief net model for visual area V2 (Lee, Ekanadham, Ng, 2008)
    """

    def __init__(
        self,
        gibbs_steps: int | Callable[[int], int] = 1,
        persistent: bool = False,
        *,
        chains: int | None = None,
        posterior_sweeps: int = 0,
        weight_decay: float = 0.0,
        sparsity: float = 0.0,
        sparsity_target: float = 0.1,
        centred: bool = True,
        offset_rate: float = 0.01,
        sampler: Sampler | None = None,
    ) -> None:
        first = gibbs_steps(0) if callable(gibbs_steps) else gibbs_steps
        require_whole(self, gibbs_steps=first, chains=1 if chains is None else chains)
        require_whole(self, least=0, posterior_sweeps=posterior_sweeps)
        require_nonnegative(self, weight_decay=weight_decay, sparsity=sparsity)
        if chains is not None and not persistent:
            raise ValueError("chains: only persistent chains have a number; set persistent=True")
        require_between(self, sparsity_target=sparsity_target)
        require_positive(self, offset_rate=offset_rate)
        if offset_rate > 1:
            raise ValueError(f"offset_rate: expected a number in (0, 1], got {offset_rate}")
        self.persistent, self.chains, self.sampler = persistent, chains, sampler
        self.options: dict[str, Any] = {
            "gibbs_steps": gibbs_steps,
            "centred": centred,
            "offset_rate": offset_rate,
            "weight_decay": weight_decay,
        }
        if posterior_sweeps:  # so that runs without it resume as they were recorded
            self.options["posterior_sweeps"] = posterior_sweeps
        if sparsity:
            self.options |= {"sparsity": sparsity, "sparsity_target": sparsity_target}
        self.state: State | None = None
        self._steps = first
        self._scratch: Gradient | None = None

    def check_data(self, machine: Any, batch: Tensor, *_: Tensor) -> None:
        """Refuse what is no data of the machine's units; of steps only the first one looks.

        Grey levels may stand for the means of binary draws.

        Raises:
            ValueError: by row and column.
        """
        batch = _checked(batch, _machine(machine, None))
        require_levels(batch, machine.units, type(self).__name__)

    def begin_epoch(self, epoch: int) -> None:
        """Take the number of sweeps of this epoch, where it is a function of that."""
        steps: int | Callable[[int], int] = self.options["gibbs_steps"]
        self._steps = steps(epoch) if callable(steps) else steps
        require_whole(f"epoch {epoch}: {type(self).__name__}", gibbs_steps=self._steps)

    def loss_and_grads(self, model: Callable, guide: Callable | None, batch: Tensor) -> float:
        machine = _machine(model, guide)
        batch = _checked(batch, machine)
        show_parameters(machine)
        return float(self.accumulate(machine, batch).contrast)

    def accumulate(self, machine: BoltzmannMachine, batch: Tensor) -> Info:
        """One step of `machine` with `batch`; the gradient is added to its parameters' ``.grad``.

        Raises:
            ValueError: when the contrast is not finite, before any gradient is written.
        """
        parameters = dict(machine.named_parameters())
        state = self._start(machine, batch)
        memory = self._memory(machine, state, parameters)
        state, gradient, info = step(
            state, batch, machine=machine, sampler=self.sampler, out=memory, **self._options()
        )
        if not math.isfinite(info.contrast.item()):
            raise ValueError(_why_not_finite(batch))
        self.state = state
        _add(machine.by_parameter(*gradient), gradient, parameters)
        return info

    def accumulate_in_place(self, machine: BoltzmannMachine, batch: Tensor) -> Tensor:
        """The contrast of a step in memory that stays, ``()``, for ``train(compile=True)``."""
        return self.step_in_place(machine, _checked(batch, machine)).contrast

    def step_in_place(self, machine: BoltzmannMachine, batch: Tensor) -> Info:
        """`accumulate` after the first step: chains and offsets are overwritten where they are.

        Nothing of it is looked at, so that a GPU can replay the step.
        """
        state = self._start(machine, batch)
        new, gradient, info = step(
            state, batch, machine=machine, sampler=self.sampler, **self._options()
        )
        for kept, value in zip(state, new, strict=True):
            if kept is not None and value is not None:
                kept.copy_(value)
        _add(machine.by_parameter(*gradient), gradient, dict(machine.named_parameters()))
        return info

    def loss(self, model: Callable, guide: Callable | None, batch: Tensor) -> float:
        """The contrast alone: no gradient, and the chains stay where they are."""
        machine = _machine(model, guide)
        return float(self.observe(machine, _checked(batch, machine)).contrast)

    def observe(self, machine: BoltzmannMachine, batch: Tensor) -> Info:
        """What `accumulate` would see; nothing moves."""
        start, sampler = self._start(machine, batch), self.sampler
        return step(start, batch, machine=machine, sampler=sampler, **self._options())[2]

    def state_dict(self) -> dict[str, Kept]:
        """The tensors that a resumed run needs: chains and offsets; empty before the first step."""
        tensors = {} if self.state is None else self.state._asdict()
        return {name: value for name, value in tensors.items() if value is not None}

    def load_state_dict(self, tensors: Mapping[str, Kept]) -> None:
        if not tensors:
            self.state = None
            return
        expected = {"visible_offset", "hidden_offset"} | ({"chains"} if self.persistent else set())
        if set(tensors) != expected:
            raise ValueError(
                f"ContrastiveDivergence: expected tensors {sorted(expected)}, got {sorted(tensors)}"
            )
        self.state = State(
            tensors.get("chains"), tensors["visible_offset"], tensors["hidden_offset"]
        )

    def _options(self) -> dict[str, Any]:
        """Of `step`, now."""
        return self.options | {"gibbs_steps": self._steps}

    def _start(self, machine: BoltzmannMachine, batch: Tensor) -> State:
        if self.state is None:
            require_levels(batch, machine.units, type(self).__name__)
            if self.options.get("posterior_sweeps") and len(machine.weight) == machine.visible:
                raise ValueError(
                    "posterior_sweeps: all latent units of this machine are independent given the "
                    "data, and their means exact: leave it out"
                )
            return init(
                machine,
                batch,
                persistent=self.persistent,
                chains=self.chains,
                sampler=self.sampler,
            )
        sides = (*self.state.visible_offset.shape, *self.state.hidden_offset.shape)
        expected = (*machine.visible_natural().shape, *machine.hidden_bias.shape)
        if sides != expected:
            raise ValueError(
                f"this ContrastiveDivergence holds the state of a machine with {sides} units, and "
                f"got one with {expected}: make one loss for each machine"
            )
        return self.state

    def _memory(
        self, machine: BoltzmannMachine, state: State, parameters: Mapping[str, Parameter]
    ) -> Gradient:
        # Memory for the gradient is kept: fresh pages for it cost as much as a matrix product.
        mu = state.visible_offset
        shapes = shapes_of(machine.visible_bias, mu, state.hidden_offset)
        kept, taken = self._scratch, {id(p.grad) for p in parameters.values()}
        if (
            kept is None
            or kept.weight.shape != shapes[0]
            or kept.weight.dtype != mu.dtype
            or not taken.isdisjoint(map(id, kept))
        ):
            kept = self._scratch = Gradient(*(mu.new_zeros(shape) for shape in shapes))
        return kept


def _add(parts: Mapping[str, Tensor], whole: Gradient, parameters: Mapping[str, Parameter]) -> None:
    for name, value in parts.items():
        if not parameters[name].requires_grad:
            continue
        if (grad := parameters[name].grad) is not None:
            grad.add_(value)
        elif any(value is tensor for tensor in whole):
            parameters[name].grad = value
        else:  # a view, of memory that the next step overwrites
            parameters[name].grad = value.clone(memory_format=torch.contiguous_format)


def _machine(model: Callable, guide: Callable | None) -> BoltzmannMachine:
    machine = getattr(model, "__self__", model)
    if not isinstance(machine, BoltzmannMachine):
        instead = "other stories have an ELBO: use pyro.infer.Trace_ELBO"
        if isinstance(machine, PairwiseMachine):
            instead = "a machine without two sides has SingleSiteDivergence or PseudoLikelihood"
        elif isinstance(machine, DirectedLayers):
            instead = "a deep belief network has TopLayer or UpDown"
        raise TypeError(
            "ContrastiveDivergence: expected the `model` of a Boltzmann machine (rbm.model), got "
            f"{model!r}; {instead}"
        )
    if guide is not None and getattr(guide, "__self__", guide) is not machine:
        raise ValueError("ContrastiveDivergence: model and guide belong to different machines")
    return machine


def _checked(batch: Tensor, machine: BoltzmannMachine) -> Tensor:
    units = machine.visible
    if batch.dim() != 2 or batch.shape[1] != units or len(batch) == 0:
        raise ValueError(
            f"ContrastiveDivergence: expected a batch of shape (B, {units}) with B > 0, got "
            f"{tuple(batch.shape)}"
        )
    return batch.to(machine.visible_bias)


def _why_not_finite(batch: Tensor) -> str:
    bad = (~batch.isfinite()).nonzero()
    if len(bad):
        row, column = bad[0].tolist()
        return f"the batch is not finite in row {row}, column {column} ({len(bad)} such entries)"
    return "the free energy is not finite: parameters have diverged; use a smaller learning rate"
