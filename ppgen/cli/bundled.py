"""The stories that the command line knows by name."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

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
    example: str = "data"  # the function beside it that returns its arguments, where it has any

    def load(self) -> Any:
        """The story: a function, a class to build, or the `model` of a class as it comes."""
        found = getattr(import_module(self.module), self.name)
        return found().model if self.kind == "bayes" and isinstance(found, type) else found

    def arguments(self) -> dict[str, Tensor]:
        """Data that come with it."""
        return getattr(import_module(self.module), self.example, dict)()


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
        "ppgen.models.logistic_regression", "logistic_regression", "bayes", "binary y", "-"
    ),
    "hierarchical_regression": Bundled(
        "ppgen.models.hierarchical_regression",
        "hierarchical_regression",
        "bayes",
        "lines of groups, partially pooled",
        "Gelman & Hill 2007",
    ),
    "item_response": Bundled(
        "ppgen.models.item_response",
        "item_response",
        "bayes",
        "abilities and difficulties behind right and wrong answers",
        "Birnbaum 1968",
    ),
    "bayesian_neural_network": Bundled(
        "ppgen.models.bayesian_neural_network",
        "bayesian_neural_network",
        "bayes",
        "a posterior over weights",
        "Neal 1996",
    ),
    "gaussian_process": Bundled(
        "ppgen.models.gaussian_process",
        "gaussian_process",
        "bayes",
        "regression without a form",
        "Rasmussen & Williams 2006",
    ),
    "poisson_gaussian_process": Bundled(
        "ppgen.models.gaussian_process",
        "poisson_gaussian_process",
        "bayes",
        "counts around such a curve",
        "Rasmussen & Williams 2006",
        example="counts",
    ),
    "stochastic_volatility": Bundled(
        "ppgen.models.stochastic_volatility",
        "stochastic_volatility",
        "bayes",
        "returns whose spread wanders",
        "Kim et al. 1998",
    ),
    "neals_funnel": Bundled(
        "ppgen.models.neals_funnel",
        "neals_funnel",
        "bayes",
        "no data: a width and what it scales",
        "Neal 2003",
    ),
    "banana": Bundled(
        "ppgen.models.banana",
        "banana",
        "bayes",
        "no data: a bent ridge of known moments",
        "Haario et al. 1999",
    ),
    "correlated_gaussian": Bundled(
        "ppgen.models.correlated_gaussian",
        "correlated_gaussian",
        "bayes",
        "no data: known moments",
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
    "logit_regression": Bundled(
        "ppgen.models.logit_regression",
        "LogitRegression",
        "bayes",
        "binary y, latent Polya-Gamma precisions",
        "Polson, Scott & Windle 2013",
    ),
    "gaussian_mixture": Bundled(
        "ppgen.models.gaussian_mixture",
        "GaussianMixture",
        "bayes",
        "mixture with diagonal covariances",
        "Bishop 2006",
    ),
    "rbm": Bundled(
        "ppgen.models.rbm",
        "RBM",
        "deep",
        "restricted Boltzmann machine; of real numbers (--visible-units gaussian), with --labels",
        "Hinton 2002",
    ),
    "dbm": Bundled(
        "ppgen.models.dbm",
        "DBM",
        "deep",
        "deep Boltzmann machine of binary data, two hidden layers",
        "Salakhutdinov & Hinton 2009; Montavon & Müller 2012",
    ),
    "dbn": Bundled(
        "ppgen.models.dbn",
        "DBN",
        "deep",
        "deep belief network of binary data, two hidden layers",
        "Hinton, Osindero & Teh 2006",
    ),
    "vae": Bundled(
        "ppgen.models.vae",
        "VAE",
        "deep",
        "variational autoencoder; its parts by --pixels, --prior, --posterior",
        "Kingma & Welling 2014",
    ),
    "flow": Bundled(
        "ppgen.models.dequantized_flow",
        "DequantizedFlow",
        "deep",
        "normalizing flow of binary data; its kind by --layer",
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
