"""The evidence lower bound, at little more than the cost of its arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import reduce
from operator import add
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import Tensor
from torch.distributions import kl_divergence
from torch.nn.functional import binary_cross_entropy_with_logits

from ppgen.arguments import require_whole
from ppgen.inference.annealing import check_divergence_options, regularised
from ppgen.inference.pair import Site, Sites, run_pair
from ppgen.inference.recorded_steps import RecordedSteps
from ppgen.tape import Unrecordable


class ELBO(Trace_ELBO):
    r"""Evidence lower bound of any Pyro model and guide; a loss for ``pyro.infer.SVI``.

    .. math:: \mathrm{ELBO} = E_{q(z)}[\log p(x, z) - \log q(z)] \le \log p(x)

    Like Pyro's, the loss is the *negative* ELBO in nats, *summed* over the batch and scaled by
    plates. It is the same estimate as Pyro's at less cost: no validation inside the step, one
    light record of each program, fused cross entropy. A pair made of this package's modules and
    torch's alone costs what the bare PyTorch step costs (Pyro's ELBO 1.3 to 1.5 times that): its
    step is recorded and replayed, see `recorded_steps`.

    - Divergences between sites are analytic where torch knows them and where that is right: the
      model's parents of the site come before it in the guide too. Elsewhere Monte Carlo.
    - A guide site without reparameterised samples makes it Pyro's `Trace_ELBO` (score
      function), an enumerated one `TraceEnum_ELBO`; both are right and slower.

    Args:
        particles: draws from the guide that are averaged.
        analytic: use analytic divergences; otherwise every term is Monte Carlo, as in
            `Trace_ELBO`.
        beta: weight of the divergence in training, a number or a function of the step, such as
            `WarmUp`; `loss`, which evaluates, has it at one always.
        free_bits: nats of each unit's divergence, on average over the examples, that training
            leaves alone; likewise.

    Raises:
        ValueError: from a step, when a term is not finite (its site is named) or when the guide
            lacks a latent site of the model; before any gradient is written.

    References:
        | Automated Variational Inference in Probabilistic Programming (Wingate, Weber, 2013)
        | https://arxiv.org/abs/1301.1299
        | beta-VAE (Higgins et al., 2017)
        | Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016),
          on free bits
    """

    def __init__(
        self,
        particles: int = 1,
        *,
        analytic: bool = True,
        beta: float | Callable[[int], float] = 1.0,
        free_bits: float = 0.0,
    ) -> None:
        require_whole(self, particles=particles)
        super().__init__(num_particles=particles)
        check_divergence_options(beta, free_bits)
        self.analytic, self.beta, self.free_bits = analytic, beta, free_bits
        self.step = 0  # of training, for beta
        self._share = 1 / particles
        self._steps = RecordedSteps()

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """The negative ELBO; its gradient is added to every parameter's ``.grad``.

        With `beta` or `free_bits` it is their objective instead.
        """
        total = 0.0
        objective, beta = self._reparameterised, self._next_beta()
        inputs = args
        if beta is not None:
            objective, inputs = self._regularised, (beta, *args)
        for _ in range(self.num_particles):
            value = self._steps.run(objective, model, guide, inputs, kwargs, self._share)
            if value is None:
                loss = self._particle(model, guide, args, kwargs, beta)
                value = loss.item()
                if loss.requires_grad:
                    share = None if self._share == 1 else loss.new_tensor(self._share)
                    loss.backward(share, retain_graph=self.retain_graph)
            total += value
        return total / self.num_particles

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """The negative ELBO, without gradients."""
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def differentiable_loss(
        self, model: Callable, guide: Callable, *args: Any, **kwargs: Any
    ) -> Tensor:
        """The negative ELBO as a tensor, to be differentiated by autograd."""
        losses = [self._particle(model, guide, args, kwargs) for _ in range(self.num_particles)]
        return reduce(add, losses) / self.num_particles

    def state_dict(self) -> dict[str, Tensor] | None:
        """What a resumed run needs: how far `beta` has come, where it moves."""
        return {"step": torch.tensor(self.step)} if callable(self.beta) else None

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        self.step = int(tensors["step"])

    def _next_beta(self) -> Tensor | None:
        """The weight of this step, an input of the recording; None: there is nothing to weigh."""
        beta = float(self.beta(self.step)) if callable(self.beta) else self.beta
        self.step += 1
        # a warm-up that is over costs nothing
        return torch.tensor(beta) if beta != 1 or self.free_bits else None

    def _particle(
        self,
        model: Callable,
        guide: Callable,
        args: tuple,
        kwargs: dict[str, Any],
        beta: Tensor | None = None,
    ) -> Tensor:
        drawn, scored = run_pair(model, guide, args, kwargs)
        estimator = _fallback(drawn, scored)
        if estimator is not None and beta is not None:
            raise ValueError(
                "beta and free_bits need a guide whose sites have reparameterised draws; scale the "
                "latent sites with pyro.poutine.scale instead"
            )
        if estimator is not None:
            # guessed by Pyro it would cost a run of the pair, and a line of log, at every step
            pyros = estimator(max_plate_nesting=_nesting(drawn, scored))
            # TraceEnum_ELBO refuses to differentiate what has no gradient
            compute = pyros.differentiable_loss if torch.is_grad_enabled() else pyros.loss
            loss = torch.as_tensor(compute(model, guide, *args, **kwargs))
            if not math.isfinite(loss.item()):
                raise ValueError(
                    f"the ELBO is {-loss.item()}: look at the data and the learning rate"
                )
            return loss
        terms = _terms(drawn, scored, self.analytic)
        loss = _total(terms)
        if beta is not None:
            loss = regularised(terms, drawn, scored, beta.to(loss), self.free_bits)
        if not math.isfinite(loss.item()):
            raise ValueError(_complaint(-loss.item(), terms, scored))
        return loss

    def _reparameterised(self, model: Callable, guide: Callable, *args: Any) -> Tensor:
        """The negative ELBO by reparameterised draws; nothing is looked at."""
        drawn, scored = run_pair(model, guide, args, {})
        if _fallback(drawn, scored) is not None:
            raise Unrecordable("a guide site has no reparameterised samples")
        return _total(_terms(drawn, scored, self.analytic))

    def _regularised(self, model: Callable, guide: Callable, beta: Tensor, *args: Any) -> Tensor:
        """The same with the divergence weighed and floored."""
        drawn, scored = run_pair(model, guide, args, {})
        if _fallback(drawn, scored) is not None:
            raise Unrecordable("a guide site has no reparameterised samples")
        terms = _terms(drawn, scored, self.analytic)
        return regularised(terms, drawn, scored, beta, self.free_bits)


def _fallback(guide: Sites, model: Sites) -> type[Trace_ELBO | TraceEnum_ELBO] | None:
    """Pyro's estimator, where reparameterised draws alone do not give the gradient."""
    sites = [*guide.values(), *model.values()]
    if any(site.options.get("enumerate") for site in sites):
        return TraceEnum_ELBO
    for site in guide.values():
        # a Rejector is reparameterised in part: it has a score term too
        partly = isinstance(site.base, dist.Rejector)
        if not site.observed and (partly or not site.fn.has_rsample):
            return Trace_ELBO
    return None


def _nesting(guide: Sites, model: Sites) -> int:
    """Batch dimensions that plates take."""
    plates = (frame for site in (*guide.values(), *model.values()) for frame in site.plates)
    return max((-frame.dim for frame in plates if frame.vectorized), default=0)


def _terms(guide: Sites, model: Sites, analytic: bool) -> dict[str, Tensor]:
    """What one draw from the guide adds to the negative ELBO, site by site, nats."""
    terms: dict[str, Tensor] = {}
    position = {name: i for i, name in enumerate(guide)}
    latest = -1  # where the guide drew the last of the model's latent sites so far
    for name, site in model.items():
        if site.observed:
            terms[name] = _surprise(site)
            continue
        if name not in guide:
            raise ValueError(
                f"the model's latent site {name!r} is not in the guide, which has "
                f"{sorted(guide)}: sample it there under the same name"
            )
        q, parents_first = guide[name], latest < position[name]
        latest = max(latest, position[name])
        kl = _divergence(q, site) if analytic and parents_first else None
        terms[name] = _surprise(site) - _surprise(q) if kl is None else kl
    for name, q in guide.items():
        if name not in model or model[name].observed:
            terms[f"{name} of the guide"] = -_surprise(q)
    return terms


def _total(terms: dict[str, Tensor]) -> Tensor:
    return reduce(add, terms.values()) if terms else torch.zeros(())


def _complaint(elbo: float, terms: dict[str, Tensor], model: Sites) -> str:
    for name, site in model.items():
        if site.observed and not site.value.isfinite().all():
            place = (~site.value.isfinite()).nonzero()[0].tolist()
            value = site.value[tuple(place)].item()
            return f"the ELBO is {elbo}: the observed {name!r} is {value} at {place}"
    name = next((name for name, term in terms.items() if not term.isfinite()), "the sum of all")
    return (
        f"the ELBO is {elbo}, first at site {name!r}: look for values outside its support and for "
        "parameters that have diverged; a lower learning rate or a bounded scale helps"
    )


def _surprise(site: Site) -> Tensor:
    """Summed, scaled and masked ``-log p(value)`` of a site, nats."""
    base, value = site.base, site.value
    if type(base) is dist.Bernoulli and "logits" in base.__dict__ and site.mask is None:
        # one kernel instead of a pixel-by-pixel log probability and its sum
        alike = base.logits.shape == value.shape and base.logits.dtype == value.dtype
        if alike and not isinstance(site.scale, Tensor):
            total = binary_cross_entropy_with_logits(base.logits, value, reduction="sum")
            return total if site.scale == 1 else site.scale * total
    return -_weighted(site.fn.log_prob(value), site)


def _divergence(q: Site, p: Site) -> Tensor | None:
    """Summed KL(q || p) where torch has it and it means what the two log densities mean."""
    if q.fn.batch_shape != p.fn.batch_shape or q.fn.event_shape != p.fn.event_shape:
        return None
    # torch's KL of a Delta forgets its log density, the Jacobian of Pyro's autoguides
    if isinstance(q.base, dist.Delta):
        return None
    if not (_equal(q.scale, p.scale) and _equal(q.mask, p.mask)):
        return None
    plain = q.mask is None and not isinstance(q.scale, Tensor)
    if plain and type(q.base) is dist.Normal and type(p.base) is dist.Normal:
        total = NormalDivergence.apply(q.base.loc, q.base.scale, p.base.loc, p.base.scale)
        return total if q.scale == 1 else q.scale * total
    try:
        return _weighted(kl_divergence(q.fn, p.fn), q)
    except NotImplementedError:
        return None


class NormalDivergence(torch.autograd.Function):
    r"""Summed KL of normals as one node, which takes 60 us off a step of a VAE.

    .. math:: \mathrm{KL}(N(m, s^2) \,\|\, N(\mu, \sigma^2)) =
        \sum \tfrac12 (d^2 + r^2 - 1) - \log r, \quad d = (m - \mu) / \sigma, \; r = s / \sigma

    Args: loc: m. scale: s. prior_loc: mu. prior_scale: sigma. All of one shape; nats.
    """

    @staticmethod
    def forward(  # a `setup_context` of its own would cost as much as the whole saves
        ctx: Any, loc: Tensor, scale: Tensor, prior_loc: Tensor, prior_scale: Tensor
    ) -> Tensor:
        ctx.save_for_backward(loc, scale, prior_loc, prior_scale)
        shift, ratio = (loc - prior_loc) / prior_scale, scale / prior_scale
        return 0.5 * (shift.square() + ratio.square() - 1).sum() - ratio.log().sum()

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        loc, scale, prior_loc, prior_scale = ctx.saved_tensors
        # written with tensor operations on the inputs: autograd can differentiate it again
        unit = outputs[0] / prior_scale
        shift, ratio = (loc - prior_loc) / prior_scale, scale / prior_scale
        by_loc = unit * shift
        prior_learns = ctx.needs_input_grad[3]
        by_prior_scale = unit * (1 - shift.square() - ratio.square()) if prior_learns else None
        return by_loc, unit * (ratio - 1 / ratio), -by_loc, by_prior_scale


def _weighted(term: Tensor, site: Site) -> Tensor:
    weighted: Any = scale_and_mask(term, site.scale, site.mask)
    return weighted.sum()


def _equal(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    return not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b
