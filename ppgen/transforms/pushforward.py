"""The distribution of a transformed base, drawn and scored in one pass of each transform."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from torch import Size, Tensor

_ONE = Size()


class Pushforward(dist.TransformedDistribution):
    """`TransformedDistribution` that asks each transform once for the inverse and its log-det.

    Pyro's asks twice, which doubles the cost of a flow without a cache; a cache, in turn, gives
    the old value after a parameter update. Transforms without `inverse_with_log_det` are asked
    twice, as ever.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        dims = len(self.event_shape)
        total: Any = 0.0
        for transform in reversed(self.transforms):
            combined = getattr(transform, "inverse_with_log_det", None)
            if combined is not None:
                x, log_det = combined(value)
            else:
                x = transform.inv(value)
                log_det = -transform.log_abs_det_jacobian(x, value)
            total = total + _sum_last(log_det, dims - transform.codomain.event_dim)
            dims += transform.domain.event_dim - transform.codomain.event_dim
            value = x
        log_base = self.base_dist.log_prob(value)
        return _sum_last(log_base, dims - len(self.base_dist.event_shape)) + total

    def rsample_with_log_prob(self, sample_shape: Size = _ONE) -> tuple[Tensor, Tensor]:
        """A draw and its log density, from one forward pass: no inverse.

        That is what a guide needs. Gradients flow through both.
        """
        return self.push(self.base_dist.rsample(sample_shape))

    def push(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Where a draw of the base arrives, and the log density there."""
        log_prob = self.base_dist.log_prob(value)
        dims = len(self.base_dist.event_shape)
        for transform in self.transforms:
            combined = getattr(transform, "forward_with_log_det", None)
            if combined is not None:
                y, log_det = combined(value)
            else:
                y = transform(value)
                log_det = transform.log_abs_det_jacobian(value, y)
            log_prob = log_prob - _sum_last(log_det, dims - transform.domain.event_dim)
            dims += transform.codomain.event_dim - transform.domain.event_dim
            value = y
        return value, log_prob


def _sum_last(value: Tensor, dims: int) -> Tensor:
    return value.flatten(-dims).sum(-1) if dims > 0 else value
