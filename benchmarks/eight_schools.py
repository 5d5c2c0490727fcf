"""Eight schools: our HMC and NUTS beside Pyro's NUTS, effective draws per second of the whole call.

Both calls start from the story and the data: recording, compiling, warm-up and draws count. The
engines take turns, and the table shows medians. Nothing is shared between the calls.

    python benchmarks/eight_schools.py [repetitions]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC
from pyro.infer import NUTS as PyroNUTS
from torch import Tensor

from ppgen import diagnostics
from ppgen.inference.hmc_engine import HMC
from ppgen.inference.nuts import NUTS
from ppgen.progress import quiet

Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], dtype=torch.float64)
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], dtype=torch.float64)
REFERENCE = {"mu": (4.411, 3.309), "tau": (3.602, 3.198)}  # mean, sd: posteriordb


def eight_schools(y: Tensor, sigma: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(y.new_full((), 5.0)))
    with pyro.plate("schools", len(y)):
        eta = pyro.sample("eta", dist.Normal(torch.zeros_like(y), 1.0))
        pyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)


def with_theta(draws: dict[str, Tensor]) -> dict[str, Tensor]:
    theta = draws["mu"].unsqueeze(-1) + draws["tau"].unsqueeze(-1) * draws["eta"]
    return {"mu": draws["mu"], "tau": draws["tau"], "theta": theta}


def ours() -> dict[str, Tensor]:
    return with_theta(HMC().run(eight_schools, Y, SIGMA).draws)


def nuts() -> dict[str, Tensor]:
    return with_theta(NUTS().run(eight_schools, Y, SIGMA).draws)


def pyro_as_it_is() -> dict[str, Tensor]:
    kernel = PyroNUTS(eight_schools)
    mcmc = MCMC(kernel, num_samples=500, warmup_steps=500, disable_progbar=True)
    mcmc.run(Y, SIGMA)
    return with_theta(mcmc.get_samples(group_by_chain=True))


ENGINES: dict[str, Callable[[], dict[str, Tensor]]] = {
    "HMC, 64 chains x 200": ours,
    "NUTS, 4 chains x 1000": nuts,
    "Pyro's NUTS, 1 x 500": pyro_as_it_is,
}


def measure(engine: Callable[[], dict[str, Tensor]]) -> dict[str, float]:
    begin = time.perf_counter()
    draws = engine()
    seconds = time.perf_counter() - begin
    ess = min(float(diagnostics.ess_bulk(x).min()) for x in draws.values())
    shift = max(abs(float(draws[n].mean()) - m) / s for n, (m, s) in REFERENCE.items())
    rhat = max(float(diagnostics.rhat(x).max()) for x in draws.values())
    return {"seconds": seconds, "ess": ess, "rate": ess / seconds, "rhat": rhat, "shift": shift}


def main(repetitions: int) -> None:
    results: dict[str, list[dict[str, float]]] = {name: [] for name in ENGINES}
    with quiet(), torch.random.fork_rng():
        for repetition in range(repetitions):
            for name, engine in ENGINES.items():
                torch.manual_seed(repetition)
                with pyro.get_param_store().scope():
                    results[name].append(measure(engine))
    print(f"eight schools, {torch.get_num_threads()} threads, median of {repetitions}")
    print(
        f"{'':30}{'seconds':>9}{'min ESS':>9}{'ESS/s':>9}{'R-hat':>8}{'shift/sd':>10}{'ratio':>8}"
    )
    base = statistics.median(row["rate"] for row in results["Pyro's NUTS, 1 x 500"])
    for name, rows in results.items():
        middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        print(
            f"{name:30}{middle['seconds']:9.2f}{middle['ess']:9.0f}{middle['rate']:9.1f}"
            f"{middle['rhat']:8.3f}{middle['shift']:10.3f}{middle['rate'] / base:7.1f}x"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
