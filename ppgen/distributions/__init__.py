"""Pyro distributions that Pyro lacks."""

from ppgen.distributions.boltzmann import Boltzmann as Boltzmann
from ppgen.distributions.causal_bernoulli import CausalBernoulli as CausalBernoulli
from ppgen.distributions.discretised_logistic import DiscretisedLogistic as DiscretisedLogistic
from ppgen.distributions.energies import RezendeMohamed as RezendeMohamed
from ppgen.distributions.gaussian_hmm import GaussianHMM as GaussianHMM
from ppgen.distributions.hidden_units import Rectified as Rectified
from ppgen.distributions.hidden_units import UnitGaussian as UnitGaussian
from ppgen.distributions.polya_gamma import PolyaGamma as PolyaGamma
from ppgen.distributions.positive_normal import PositiveNormal as PositiveNormal
from ppgen.distributions.rayleigh import Rayleigh as Rayleigh
from ppgen.distributions.restricted_boltzmann import RestrictedBoltzmann as RestrictedBoltzmann
from ppgen.distributions.sentence import Sentence as Sentence
from ppgen.distributions.signed_normal import SignedNormal as SignedNormal
from ppgen.distributions.sphere import SphereUniform as SphereUniform
from ppgen.distributions.sphere import VonMisesFisher as VonMisesFisher
from ppgen.distributions.spherical_cauchy import SphericalCauchy as SphericalCauchy
from ppgen.distributions.standard_normal import StandardNormal as StandardNormal
from ppgen.distributions.standard_normal import even_normal as even_normal
from ppgen.distributions.units import Beside as Beside
from ppgen.distributions.units import Binary as Binary
from ppgen.distributions.units import Gaussian as Gaussian
from ppgen.distributions.units import OneHot as OneHot
