"""Pyro distributions that Pyro lacks."""

from ppgen.distributions.energies import RezendeMohamed as RezendeMohamed
from ppgen.distributions.restricted_boltzmann import RestrictedBoltzmann as RestrictedBoltzmann
from ppgen.distributions.signed_normal import SignedNormal as SignedNormal
