"""Pyro distributions that Pyro lacks."""

from ppgen.distributions.restricted_boltzmann import RestrictedBoltzmann as RestrictedBoltzmann
