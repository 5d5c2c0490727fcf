"""Posteriors of posteriordb as Pyro stories, by posteriordb's names.

`POSTERIORS` holds twelve whose reference draws are trusted. Their data are read from a local clone
by `ppgen.data.posteriordb`; they do not ship.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ppgen.models.eight_schools import eight_schools, eight_schools_centred
from ppgen.models.posteriordb.gaussian_process import JITTER, covariance, gp_pois_regr, gp_regr
from ppgen.models.posteriordb.mixture import low_dim_gauss_mix
from ppgen.models.posteriordb.port import Port as Port
from ppgen.models.posteriordb.port import Sites, columns
from ppgen.models.posteriordb.regression import (
    blr,
    kidscore_interaction,
    kilpisjarvi,
    logearn_interaction,
    logmesquite,
)
from ppgen.models.posteriordb.time_series import ark, arma11

_BUSH = ("diam1", "diam2", "canopy_height", "total_height", "density")


def _non_centred(draws: Sites, arguments: Mapping[str, Any]) -> Sites:
    eta = (draws["theta"] - draws["mu"].unsqueeze(-1)) / draws["tau"].unsqueeze(-1)
    return {"mu": draws["mu"], "tau": draws["tau"], "eta": eta}


def _whitened(draws: Sites, arguments: Mapping[str, Any]) -> Sites:
    rho, alpha, f = draws["rho"], draws["alpha"], draws["f"]
    factor = torch.linalg.cholesky(covariance(arguments["x"], rho, alpha, JITTER))
    solved = torch.linalg.solve_triangular(factor, f.unsqueeze(-1), upper=False)
    return {"rho": rho, "alpha": alpha, "f_tilde": solved.squeeze(-1)}


def _bushes(data: dict[str, Any]) -> dict[str, Any]:
    logs = [data[name].log() for name in _BUSH]
    return {"x": torch.stack([*logs, data["group"]], -1), "log_weight": data["weight"].log()}


def _earnings(data: dict[str, Any]) -> dict[str, Any]:
    return {"height": data["height"], "male": data["male"], "log_earn": data["earn"].log()}


POSTERIORS: dict[str, Port] = {
    "arK-arK": Port(ark, columns("y", lags="K")),
    "arma-arma11": Port(arma11, columns("y")),
    "earnings-logearn_interaction": Port(logearn_interaction, _earnings),
    "eight_schools-eight_schools_centered": Port(eight_schools_centred, columns("sigma", "y")),
    "eight_schools-eight_schools_noncentered": Port(
        eight_schools, columns("sigma", "y"), _non_centred
    ),
    "gp_pois_regr-gp_pois_regr": Port(gp_pois_regr, columns("x", "k"), _whitened),
    "gp_pois_regr-gp_regr": Port(gp_regr, columns("x", "y")),
    "kidiq-kidscore_interaction": Port(
        kidscore_interaction, columns("mom_hs", "mom_iq", "kid_score")
    ),
    "kilpisjarvi_mod-kilpisjarvi": Port(
        kilpisjarvi,
        columns(
            "x",
            "y",
            alpha_loc="pmualpha",
            alpha_scale="psalpha",
            beta_loc="pmubeta",
            beta_scale="psbeta",
        ),
    ),
    "low_dim_gauss_mix-low_dim_gauss_mix": Port(low_dim_gauss_mix, columns("y")),
    "mesquite-logmesquite": Port(logmesquite, _bushes),
    "sblrc-blr": Port(blr, columns("y", x="X")),
}
