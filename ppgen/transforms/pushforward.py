"""The distribution of a transformed base, scored in one pass of each transform."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from torch import Tensor


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


def _sum_last(value: Tensor, dims: int) -> Tensor:
    return value.flatten(-dims).sum(-1) if dims > 0 else value
