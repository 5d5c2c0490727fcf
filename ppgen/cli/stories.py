"""The stories that the command line knows by name, and those in a user's file."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppgen.cli.options import note
from ppgen.cli.trial import arguments_that_run

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Bundled:
    """A story in the table that `ppgen models` prints."""

    module: str
    name: str
    kind: str  # "bayes" is fitted and compared; "deep" is trained
    about: str
    paper: str

    def load(self) -> Any:
        """The story: a function, a class to build, or the `model` of a class as it comes."""
        found = getattr(import_module(self.module), self.name)
        return found().model if self.kind == "bayes" and isinstance(found, type) else found


BUNDLED = {
    "eight_schools": Bundled(
        "ppgen.models.eight_schools",
        "eight_schools",
        "bayes",
        "hierarchical normal means, non-centred",
        "Rubin 1981",
    ),
    "eight_schools_centred": Bundled(
        "ppgen.models.eight_schools",
        "eight_schools_centred",
        "bayes",
        "the same, with the funnel",
        "Rubin 1981",
    ),
    "linear_regression": Bundled(
        "ppgen.models.linear_regression",
        "linear_regression",
        "bayes",
        "y ~ intercept + x . slope, unknown noise",
        "-",
    ),
    "logistic_regression": Bundled(
        "ppgen.models.logistic_regression",
        "logistic_regression",
        "bayes",
        "binary y",
        "-",
    ),
    "beta_bernoulli": Bundled(
        "ppgen.models.beta_bernoulli",
        "BetaBernoulli",
        "bayes",
        "a coin of unknown bias, conjugate",
        "Gelman et al. 2013",
    ),
    "normal_normal": Bundled(
        "ppgen.models.normal_normal",
        "NormalNormal",
        "bayes",
        "a mean with known noise, conjugate",
        "Gelman et al. 2013",
    ),
    "normal_gamma": Bundled(
        "ppgen.models.normal_gamma",
        "NormalGamma",
        "bayes",
        "mean and precision of a normal, conjugate",
        "Bishop 2006",
    ),
    "dirichlet_categorical": Bundled(
        "ppgen.models.dirichlet_categorical",
        "DirichletCategorical",
        "bayes",
        "shares of classes, conjugate",
        "Gelman et al. 2013",
    ),
    "gamma_poisson": Bundled(
        "ppgen.models.gamma_poisson",
        "GammaPoisson",
        "bayes",
        "a rate of rare events, conjugate",
        "Gelman et al. 2013",
    ),
    "conjugate_regression": Bundled(
        "ppgen.models.conjugate_regression",
        "ConjugateRegression",
        "bayes",
        "linear regression, conjugate",
        "Gelman et al. 2013",
    ),
    "shrinkage_regression": Bundled(
        "ppgen.models.shrinkage_regression",
        "ShrinkageRegression",
        "bayes",
        "linear regression that learns its shrinkage",
        "Bishop 2006",
    ),
    "probit_regression": Bundled(
        "ppgen.models.probit_regression",
        "ProbitRegression",
        "bayes",
        "binary y, latent outcomes",
        "Albert & Chib 1993",
    ),
    "gaussian_mixture": Bundled(
        "ppgen.models.gaussian_mixture",
        "GaussianMixture",
        "bayes",
        "mixture with diagonal covariances",
        "Bishop 2006",
    ),
    "rbm": Bundled(
        "ppgen.models.rbm", "RBM", "deep", "restricted Boltzmann machine", "Hinton 2002"
    ),
    "dbm": Bundled(
        "ppgen.models.dbm",
        "DBM",
        "deep",
        "deep Boltzmann machine, two hidden layers",
        "Salakhutdinov & Hinton 2009; Montavon & Müller 2012",
    ),
    "dbn": Bundled(
        "ppgen.models.dbn",
        "DBN",
        "deep",
        "deep belief network, two hidden layers",
        "Hinton, Osindero & Teh 2006",
    ),
    "vae": Bundled(
        "ppgen.models.vae", "VAE", "deep", "variational autoencoder", "Kingma & Welling 2014"
    ),
    "flow": Bundled(
        "ppgen.models.dequantized_flow",
        "DequantizedFlow",
        "deep",
        "autoregressive spline flow",
        "Papamakarios et al. 2017; Durkan et al. 2019",
    ),
    "sentences": Bundled(
        "ppgen.models.sentence_vae",
        "SentenceVAE",
        "deep",
        "variational autoencoder of sentences; --data FILE.txt or grammar",
        "Bowman et al. 2016",
    ),
    "molecules": Bundled(
        "ppgen.models.molecule_vae",
        "MoleculeVAE",
        "deep",
        "variational autoencoder of molecules; --data FILE.smi or molecules",
        "Gomez-Bombarelli et al. 2018",
    ),
}


def bayes_story(name: str, data: str | None) -> tuple[Callable[..., Any], dict[str, Tensor]]:
    """A Bayesian story and its keyword arguments, from a file or the bundled example.

    Raises:
        ValueError: where there is no such story, saying which there are.
        ppgen.data.DataError: where the file does not fit the story.
    """
    if name in BUNDLED:
        bundled = BUNDLED[name]
        if bundled.kind != "bayes":
            raise ValueError(f"{name} is trained, not fitted: ppgen train {name} --data digits")
        model = bundled.load()
        if data is None:
            return model, import_module(bundled.module).data()
    else:
        model = _from_file(name)
    if data is None:
        return model, arguments_that_run(model, _own_data(model), columns=False)
    from ppgen.data import arguments_for, read_table

    table = read_table(data)
    given = arguments_for(model, table)
    for name in given.keys() & table.categories.keys():
        codes = ", ".join(f"{text} = {code}" for code, text in enumerate(table.categories[name]))
        note(f"column {name} holds text: {codes}")
    return model, arguments_that_run(model, given, columns=True)


def _own_data(model: Callable[..., Any]) -> dict[str, Tensor]:
    """What the function ``data`` beside the story in its file returns, if there is one."""
    provide: Any = getattr(sys.modules.get(model.__module__), "data", None)
    found: Any = provide() if callable(provide) else {}
    return found


def _from_file(place: str) -> Callable[..., Any]:
    path, colon, name = place.rpartition(":")
    if not colon or not path.endswith(".py"):
        known = [n for n, b in BUNDLED.items() if b.kind == "bayes"]
        raise ValueError(
            f"no story {place!r}: give one of {', '.join(known)}, or a function in a file of "
            "yours as mystory.py:model"
        )
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    module_name = f"ppgen_story_{file.stem}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    sys.path.insert(0, str(file.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{file} failed while it was imported: {error!r}") from error
    finally:
        sys.path.pop(0)
    story = getattr(module, name, None)
    if not callable(story):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise ValueError(f"{file} has no function {name!r}; it has {', '.join(names)}")
    return story
