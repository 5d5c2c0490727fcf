"""ppgen's engines and Pyro's NUTS on the same stories, for `worker.serve`."""

from __future__ import annotations

import contextlib
import operator
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import MCMC, SVI, Trace_ELBO
from pyro.infer import NUTS as PyroNUTS
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam

sys.path.insert(0, str(Path(__file__).parent))
from worker import Arrays, Request, core_seconds, serve

from ppgen.inference import HMC, NUTS, VI
from ppgen.models import logistic_regression
from ppgen.models.posteriordb import POSTERIORS
from ppgen.program import Program
from ppgen.progress import quiet
from ppgen.types import Engine

WARMUP = 500  # of Pyro's chain
STEPS = 100  # of SVI between two looks


def story(posterior: str, data: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    tensors = {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in data.items()
    }
    if posterior in POSTERIORS:
        return POSTERIORS[posterior].story, tensors
    return logistic_regression, tensors


def ours(engine: Engine, request: Request) -> Arrays:
    model, data = story(request.posterior, request.data)
    torch.manual_seed(request.seed)
    with quiet():
        posterior = engine.run(model, **data)
    return {name: x.numpy() for name, x in posterior.draws.items()}


class _Late(Exception):
    pass


def pyros(request: Request) -> Arrays:
    """One chain of Pyro's NUTS; stopped after the cap, with the draws that there are."""
    model, data = story(request.posterior, request.data)
    pyro.set_rng_seed(request.seed)
    torch.set_default_dtype(torch.float64)
    kernel, kept = PyroNUTS(model), []
    begin = time.process_time()

    def keep(kernel: Any, params: dict[str, Any], stage: str, i: int) -> None:
        if stage == "Sample":
            kept.append({name: x.clone() for name, x in params.items()})
        if time.process_time() - begin > request.cap:
            raise _Late

    mcmc = MCMC(kernel, request.draws, WARMUP, hook_fn=keep, disable_progbar=True)
    with contextlib.suppress(_Late):
        mcmc.run(**data)
    if len(kept) < 8:
        raise SystemExit(f"{len(kept)} draws after {request.cap:.0f} s")
    program = Program(model, **data)
    z = torch.stack([torch.cat([k[n].flatten() for n in program.sites]) for k in kept])
    values = program.constrain(z, deterministic=True)
    return {name: x[None].numpy() for name, x in values.items()}


def variational(request: Request) -> Arrays:
    """Our mean-field VI as it stops by itself, with the draws that it takes then."""
    model, data = story(request.posterior, request.data)
    torch.manual_seed(request.seed)
    begin = core_seconds()
    with quiet():
        posterior = VI().run(model, **data)
    seconds = core_seconds() - begin
    fit: Any = posterior.guide_log_prob.__self__  # pyright: ignore[reportFunctionMemberAccess]
    with torch.no_grad():
        loc = fit.frame.push(fit.guide.loc[None])
        scale = fit.frame.factor * fit.guide.log_scale.exp()[None]
    return {
        "times": np.array([seconds]),
        "settled": np.array([posterior.converged]),
        "loc": loc.numpy(),
        "scale": scale.numpy(),
    }


def pyros_svi(request: Request) -> Arrays:
    """Pyro's SVI with AutoNormal, one draw a step: the guide at every hundredth step."""
    model, data = story(request.posterior, request.data)
    pyro.set_rng_seed(request.seed)
    torch.set_default_dtype(torch.float64)
    begin = core_seconds()
    guide = AutoNormal(model)
    svi = SVI(model, guide, Adam({"lr": request.rate}), Trace_ELBO())
    path: dict[str, list[np.ndarray]] = {"times": []}
    while core_seconds() - begin < request.cap:
        for _ in range(STEPS):
            svi.step(**data)
        path["times"].append(np.array(core_seconds() - begin))
        for name in guide.prototype_trace.iter_stochastic_nodes():
            for what, where in (("loc", guide.locs), ("scale", guide.scales)):
                value = operator.attrgetter(name[0])(where).detach().numpy().copy()
                path.setdefault(f"{what}/{name[0]}", []).append(value)
    return {name: np.stack(values) for name, values in path.items()}


def density(posterior: str, data: dict[str, Any], points: list[Arrays]) -> list[float]:
    model, tensors = story(posterior, data)
    program = Program(model, **tensors)
    sites = {n: torch.tensor(np.stack([np.asarray(p[n]) for p in points])) for n in program.sites}
    return program.value_and_grad(program.unconstrain(sites), part="map")[0].tolist()


if __name__ == "__main__":
    samplers = {
        "HMC": lambda request: ours(HMC(draws=request.draws), request),
        "HMC, 256 chains": lambda request: ours(HMC(chains=256, draws=request.draws), request),
        "NUTS": lambda request: ours(NUTS(draws=request.draws), request),
        "Pyro": pyros,
        "VI": variational,
        "Pyro's SVI": pyros_svi,
    }
    serve(["torch", "pyro-ppl", "numpy"], samplers, density)
