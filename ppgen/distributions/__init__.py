"""Pyro distributions that Pyro lacks."""

from ppgen.distributions.discretised_logistic import DiscretisedLogistic as DiscretisedLogistic
from ppgen.distributions.rayleigh import Rayleigh as Rayleigh
from ppgen.distributions.restricted_boltzmann import RestrictedBoltzmann as RestrictedBoltzmann
from ppgen.distributions.sentence import Sentence as Sentence
from ppgen.distributions.signed_normal import SignedNormal as SignedNormal
from ppgen.distributions.sphere import SphereUniform as SphereUniform
from ppgen.distributions.sphere import VonMisesFisher as VonMisesFisher
