"""A posterior in ArviZ's format, its dimensions named by the plates of the story."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ppgen.anatomy import Site
from ppgen.posterior import Posterior
from ppgen.program import Program

if TYPE_CHECKING:
    import xarray

_SAMPLE = ("chain", "draw")
_TAKEN = (None, *_SAMPLE, "sample")  # the last by what ArviZ stacks of both


def datatree(posterior: Posterior, program: Program | None = None) -> xarray.DataTree:
    """See :meth:`ppgen.posterior.Posterior.to_datatree`; `program` is the story with its data."""
    from arviz_base import from_dict
    from xarray import DataTree

    groups = {"posterior": posterior.draws, "sample_stats": posterior.stats}
    sites: Mapping[str, Site] = {}
    if program is not None:
        groups |= _of_story(posterior, program)
        sites = program.anatomy.sites
    trees: dict[str, xarray.Dataset] = {}
    for name, group in groups.items():
        arrays = {_plain(site): _numpy(value) for site, value in group.items()}
        if not arrays:
            continue
        before = 0 if name == "observed_data" else len(_SAMPLE)
        dims = {
            _plain(site): _dims(sites[site], tuple(value.shape[before:]))
            for site, value in group.items()
            if site in sites
        }
        with warnings.catch_warnings():
            # many short chains are meant
            warnings.filterwarnings("ignore", message="Found chain dimension to be longer")
            trees[name] = from_dict({name: arrays}, dims=dims)[name].to_dataset()
    return DataTree.from_dict(trees)


def _of_story(posterior: Posterior, program: Program) -> dict[str, dict[str, Tensor]]:
    z, kinds = posterior.unconstrained, program.anatomy.of_kind
    assert z is not None
    factors = kinds("factor")
    priors = program.prior_densities(z)
    likelihood = {
        name: value
        for name, value in program.log_likelihood(z).items()
        if name not in factors or factors[name].batch_shape.numel() > 1
    }
    drawn = program.replicate({n: posterior.draws[n].flatten(0, 1) for n in program.sites})
    return {
        "log_prior": priors if set(priors) == set(program.sites) else {},
        "log_likelihood": likelihood,
        "observed_data": program.observed(),
        "posterior_predictive": {
            name: drawn[name].unflatten(0, z.shape[:2]) for name in kinds("observed")
        },
    }


def _dims(site: Site, shape: tuple[int, ...]) -> list[str]:
    """Names of the dimensions of a value of `site`, or of its densities."""
    names = [f"{_plain(site.name)}_dim_{k}" for k in range(len(shape))]
    batch, plates, sizes = len(site.batch_shape), site.plate_dims, dict(site.plates)
    # What is computed does not say how many of its dimensions belong to one event.
    known = site.kind != "deterministic" or len(shape) == len(plates)
    if not known or shape not in (tuple(site.shape), tuple(site.batch_shape)):
        return names
    for back, plate in enumerate(reversed(plates[-batch:] if batch else ()), start=1):
        if plate not in _TAKEN and sizes[plate] == shape[batch - back]:
            names[batch - back] = _plain(plate)
    return names


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _plain(name: str) -> str:
    return name.replace("/", ".")
