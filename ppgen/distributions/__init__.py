"""Pyro distributions that Pyro lacks."""

from ppgen.distributions.discretised_logistic import DiscretisedLogistic as DiscretisedLogistic
from ppgen.distributions.restricted_boltzmann import RestrictedBoltzmann as RestrictedBoltzmann
from ppgen.distributions.signed_normal import SignedNormal as SignedNormal
