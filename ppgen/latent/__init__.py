"""What can be done with the codes of a model that encodes and decodes: functions on tensors.

Codes ``(*, L)`` come from :func:`codes`; whatever is done to them, ``model.decode(z).mean`` shows.
"""

from ppgen.latent.attributes import Attribute as Attribute
from ppgen.latent.attributes import Effect as Effect
from ppgen.latent.attributes import attribute_effect as attribute_effect
from ppgen.latent.attributes import difference_of_means as difference_of_means
from ppgen.latent.attributes import logistic_direction as logistic_direction
from ppgen.latent.codes import Midpoints as Midpoints
from ppgen.latent.codes import Neighbours as Neighbours
from ppgen.latent.codes import codes as codes
from ppgen.latent.codes import midpoint_likelihood as midpoint_likelihood
from ppgen.latent.codes import nearest as nearest
from ppgen.latent.codes import reconstruct as reconstruct
from ppgen.latent.paths import Path as Path
from ppgen.latent.paths import linear as linear
from ppgen.latent.paths import manifold as manifold
from ppgen.latent.paths import spherical as spherical
from ppgen.latent.paths import traverse as traverse
from ppgen.latent.search import Ascent as Ascent
from ppgen.latent.search import ascend as ascend
