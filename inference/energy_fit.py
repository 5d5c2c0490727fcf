r"""A flow fitted to an energy: reverse KL divergence, without data.

.. math:: \mathrm{KL}(q \,\|\, p) = E_{x \sim q}[\log q(x) + U(x)] + \log Z,
          \qquad p(x) = e^{-U(x)} / Z
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Size, Tensor, nn
from torch.quasirandom import SobolEngine

from ppgen.arguments import require_nonnegative, require_positive, require_whole
from ppgen.diagnostics.pareto import pareto_k
from ppgen.distributions.standard_normal import StandardNormal, even_normal
from ppgen.inference.training.randomness import seeded
from ppgen.progress import Progress, interruptible
from ppgen.transforms.pushforward import Pushforward

_STEEPEST = 10.0  # norm of the gradient, at most
_EVEN, _HEAVY = 0.95, 0.7  # effective share and k-hat beyond which weights mislead
_REPORTED = 20  # steps between two entries of the history


@dataclass(frozen=True)
class EnergyFit:
    """A flow that was fitted to an energy, and how near it came.

    Args:
        flow: the one that was given, trained.
        elbo: mean of ``-U(x) - log q(x)`` over fresh draws from the flow, nats: at most log Z, and
            the difference is the divergence.
        elbo_error: its standard error.
        log_z: estimate of log Z by importance weights of the same draws, nats.
        log_z_error: its standard error, to be believed where `k_hat` is below 0.7.
        effective: share of the draws that is left by their weights, ``(sum w)^2 / (K sum w^2)``.
        k_hat: shape of the weights' tail (`ppgen.diagnostics.pareto_k`).
        history: the loss ``E[log q + U]`` on the way, in nats; while the energy is tempered, of
            the tempered one.
        tried: the elbo of each flow that was given, in their order.

    A part of the target on which the flow never draws shows in none of these numbers.
    """

    flow: Any
    elbo: float
    elbo_error: float
    log_z: float
    log_z_error: float
    effective: float
    k_hat: float
    history: Tensor
    tried: tuple[float, ...] = ()

    def __str__(self) -> str:
        # a heavy tail of weights that hardly vary does no harm
        bad = self.effective < _EVEN and not self.k_hat < _HEAVY
        trust = f"; k-hat {self.k_hat:.2f}: do not believe log Z" if bad else ""
        return (
            f"log Z = {self.log_z:.4f} +- {self.log_z_error:.4f} nats, "
            f"at least {self.elbo:.4f} +- {self.elbo_error:.4f}: "
            f"KL(flow || target) about {max(0.0, self.log_z - self.elbo):.4f}; "
            f"{self.effective:.0%} of the draws effective{trust}"
        )


def fit_energy(
    energy: Callable[[Tensor], Tensor],
    flow: nn.Module | Sequence[nn.Module],
    *,
    steps: int = 2000,
    batch: int = 256,
    learning_rate: float = 5e-3,
    share: float = 0.05,
    warm: float = 0.4,
    draws: int = 20_000,
    seed: int = 0,
) -> EnergyFit:
    """Fit a flow to a density that is known up to a constant, by its energy.

    The flow draws, the energy judges, and the gradient goes through the draws. The energy counts
    for a part of itself at first: with all of it from the start a flow may settle on one of several
    modes. Adam's rate falls to zero as a cosine. The noise of a batch fills space evenly where the
    flow starts from a `StandardNormal` (see `even_normal`); the result's draws are independent.

    How near it comes depends on the start: where a flow does not follow the target it retreats, and
    hardly returns, for few of its draws are there. So give several flows of the same make; each is
    fitted, and the one with the largest bound is returned. That is the nearest: the bounds are of
    one log Z.

    Args:
        energy: U, differentiable, ``(B, *event) -> (B,)``, nats; for an unnormalised log density
            give its negative.
        flow: a module with ``density() -> distribution`` that draws and scores in one pass, such
            as `ppgen.models.Flow` or `ppgen.models.SphereFlow`. What is drawn often should be quick
            to draw: couplings are, autoregressive layers take as many passes as dimensions. Or
            several, of which the best is kept: ``[Flow(2) for _ in range(3)]``.
        steps: of Adam.
        batch: draws to a step.
        learning_rate: the first.
        share: part of the energy that counts at the start, 0 to 1.
        warm: share of the steps after which all of it counts, above 0.
        draws: fresh ones, for the numbers of the result.
        seed: of all noise; the caller's generator is left as it was.

    Raises:
        ValueError: for options out of range, or no flow; for an energy of the wrong shape, without
            a gradient, or whose loss is not finite.

    References:
        | Variational Inference with Normalizing Flows (Rezende & Mohamed, 2015)
        | https://arxiv.org/abs/1505.05770
        | Quasi-Monte Carlo Variational Inference (Buchholz et al., 2018)
        | https://arxiv.org/abs/1807.01604

    Example:
        >>> from ppgen.models import Flow
        >>> from ppgen.progress import quiet
        >>> with quiet():
        ...     found = fit_energy(lambda x: x.square().sum(-1) / 2, Flow(2), steps=3, draws=50)
        >>> abs(found.elbo - math.log(2 * math.pi)) < 1
        True
    """
    require_whole("fit_energy", steps=steps, batch=batch, draws=draws)
    require_positive("fit_energy", learning_rate=learning_rate, warm=warm)
    require_nonnegative("fit_energy", share=share)
    if share > 1:
        raise ValueError(f"fit_energy(share=...) must be at most 1, got {share}")
    flows = [flow] if isinstance(flow, nn.Module) else list(flow)
    if not flows:
        raise ValueError("a flow is needed, or several; got an empty sequence")
    fits = []
    with interruptible() as interrupt, Progress("energy", steps * len(flows)) as progress:
        for one in flows:
            with seeded(seed, next(one.parameters()).device):
                history = []
                for step, loss in _descend(energy, one, steps, batch, learning_rate, share, warm):
                    if step % _REPORTED == 0:
                        history.append(_finite(loss.item(), step))
                    progress.advance(loss=history[-1])
                    if interrupt:
                        break
                with torch.no_grad():
                    log_q, u = _pass(energy, one, draws)
            _finite(float((log_q + u).mean()), steps)
            fits.append(_judged(one, -u - log_q, torch.tensor(history)))
            if interrupt:
                break
    best = max(fits, key=lambda fit: fit.elbo)
    return replace(best, tried=tuple(fit.elbo for fit in fits))


def _descend(
    energy: Callable[[Tensor], Tensor],
    flow: nn.Module,
    steps: int,
    batch: int,
    learning_rate: float,
    share: float,
    warm: float,
) -> Iterator[tuple[int, Tensor]]:
    """The losses on the way; each has been stepped on when the next is asked for."""
    trained = [p for p in flow.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=learning_rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    points = _even_points(flow, batch)
    for step in range(steps):
        log_q, u = _pass(energy, flow, batch, points)
        loss = (log_q + min(1.0, share + step / (warm * steps)) * u).mean()
        yield step, loss.detach()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, _STEEPEST)
        optimizer.step()
        schedule.step()


def _even_points(flow: Any, batch: int) -> Tensor | None:
    """What base noise is made of, for a flow that starts from a standard normal."""
    density = flow.density()
    base = getattr(density, "base_dist", None)
    if not isinstance(density, Pushforward) or not isinstance(base, StandardNormal):
        return None
    dim = base.event_shape[0]
    if base.batch_shape or dim > SobolEngine.MAXDIM:
        return None
    points = SobolEngine(dim, scramble=True, seed=0).draw(batch, dtype=base.mean.dtype)
    return points.to(base.mean.device)


def _pass(
    energy: Callable[[Tensor], Tensor], flow: Any, count: int, points: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Log densities of fresh draws, and their energies, ``(count,)`` each."""
    density = flow.density()
    if points is None:
        x, log_q = density.rsample_with_log_prob(Size([count]))
    else:
        x, log_q = density.push(even_normal(points))
    u = energy(x)
    if u.shape != log_q.shape:
        raise ValueError(
            f"the energy must give one number for each of {count} points: of x with shape "
            f"{tuple(x.shape)} it should give {tuple(log_q.shape)} and gave {tuple(u.shape)}; "
            "does it lack a .sum(-1)?"
        )
    if x.requires_grad and not u.requires_grad and u.isfinite().all():
        raise ValueError(
            "the energy has no gradient with respect to the points, so that the flow cannot follow "
            "it: write it with torch operations, without .detach(), numpy or torch.no_grad()"
        )
    return log_q, u


def _finite(loss: float, step: int) -> float:
    if math.isfinite(loss):
        return loss
    raise ValueError(
        f"the loss is {loss} at step {step}: the energy has to be finite wherever the flow draws. "
        "Give a wall that rises in place of a jump to infinity; or lower learning_rate."
    )


def _judged(flow: Any, log_weights: Tensor, history: Tensor) -> EnergyFit:
    count = len(log_weights)
    top = log_weights.max()
    weights = (log_weights - top).exp()
    mean = weights.mean()
    return EnergyFit(
        flow,
        elbo=float(log_weights.mean()),
        elbo_error=float(log_weights.std()) / count**0.5,
        log_z=float(top + mean.log()),
        log_z_error=float(weights.std() / mean) / count**0.5,
        effective=float(weights.sum() ** 2 / weights.square().sum()) / count,
        k_hat=pareto_k(log_weights).k,
        history=history,
    )
