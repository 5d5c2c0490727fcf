"""Pictures, one function each, as `matplotlib.figure.Figure`.

Made with matplotlib's object interface: no pyplot, no backend, no global setting is touched. In a
notebook a figure that is a cell's last value shows itself; ``figure.savefig("name.png")`` writes
it. For a picture of your own in the same look: `canvas`, `styles`, `label`, `legend`,
`colour_bar`.
"""

from ppgen.plots.agreement import interval_coverage as interval_coverage
from ppgen.plots.agreement import loo_differences as loo_differences
from ppgen.plots.calibration import ecdf_difference as ecdf_difference
from ppgen.plots.chains import rank_histogram as rank_histogram
from ppgen.plots.chains import trace as trace
from ppgen.plots.curves import elbo_curve as elbo_curve
from ppgen.plots.curves import free_energies as free_energies
from ppgen.plots.curves import leaderboard as leaderboard
from ppgen.plots.curves import loss_curve as loss_curve
from ppgen.plots.divergences import reverse_and_forward as reverse_and_forward
from ppgen.plots.gradients import gradient_variance as gradient_variance
from ppgen.plots.grid import grids as grids
from ppgen.plots.latent import attribute as attribute
from ppgen.plots.latent import interpolations as interpolations
from ppgen.plots.latent import manifold as manifold
from ppgen.plots.latent import neighbours as neighbours
from ppgen.plots.latent import property_ascent as property_ascent
from ppgen.plots.latent import traversals as traversals
from ppgen.plots.machines import autocorrelation as autocorrelation
from ppgen.plots.machines import likelihood_curve as likelihood_curve
from ppgen.plots.pictures import filters as filters
from ppgen.plots.pictures import images as images
from ppgen.plots.pictures import reconstructions as reconstructions
from ppgen.plots.posteriors import marginals as marginals
from ppgen.plots.posteriors import pair as pair
from ppgen.plots.predictive import posterior_predictive as posterior_predictive
from ppgen.plots.sphere import globe as globe
from ppgen.plots.style import canvas as canvas
from ppgen.plots.style import colour_bar as colour_bar
from ppgen.plots.style import label as label
from ppgen.plots.style import legend as legend
from ppgen.plots.style import styles as styles
