"""Plain functions on arrays that say how far an answer can be trusted.

Draws are ``(chains, draws, *shape)``, samples ``(n, *shape)``; tensors are taken as well. What
cannot be diagnosed is NaN, and NaN passes no threshold.
"""

from ppgen.diagnostics.chains import EBFMI_LIMIT as EBFMI_LIMIT
from ppgen.diagnostics.chains import ESS_LIMIT as ESS_LIMIT
from ppgen.diagnostics.chains import RHAT_LIMIT as RHAT_LIMIT
from ppgen.diagnostics.chains import Convergence as Convergence
from ppgen.diagnostics.chains import autocorrelation as autocorrelation
from ppgen.diagnostics.chains import convergence as convergence
from ppgen.diagnostics.chains import ebfmi as ebfmi
from ppgen.diagnostics.chains import ess_bulk as ess_bulk
from ppgen.diagnostics.chains import ess_mean as ess_mean
from ppgen.diagnostics.chains import ess_tail as ess_tail
from ppgen.diagnostics.chains import mcse_mean as mcse_mean
from ppgen.diagnostics.chains import mcse_quantile as mcse_quantile
from ppgen.diagnostics.chains import mcse_sd as mcse_sd
from ppgen.diagnostics.chains import rhat as rhat
from ppgen.diagnostics.classifier import ClassifierTest as ClassifierTest
from ppgen.diagnostics.classifier import c2st as c2st
from ppgen.diagnostics.covariance import Extremes as Extremes
from ppgen.diagnostics.covariance import whitened_extremes as whitened_extremes
from ppgen.diagnostics.distances import KolmogorovSmirnov as KolmogorovSmirnov
from ppgen.diagnostics.distances import ks as ks
from ppgen.diagnostics.distances import sliced_wasserstein as sliced_wasserstein
from ppgen.diagnostics.distances import wasserstein1 as wasserstein1
from ppgen.diagnostics.halves import Spread as Spread
from ppgen.diagnostics.halves import correlations as correlations
from ppgen.diagnostics.halves import spread_of_halves as spread_of_halves
from ppgen.diagnostics.intervals import eti as eti
from ppgen.diagnostics.intervals import hdi as hdi
from ppgen.diagnostics.intervals import share_error as share_error
from ppgen.diagnostics.kernels import KernelTest as KernelTest
from ppgen.diagnostics.kernels import ksd as ksd
from ppgen.diagnostics.kernels import mmd as mmd
from ppgen.diagnostics.kernels import mmd_against_halves as mmd_against_halves
from ppgen.diagnostics.latent import LatentUse as LatentUse
from ppgen.diagnostics.latent import latent_use as latent_use
from ppgen.diagnostics.latent import unit_divergences as unit_divergences
from ppgen.diagnostics.nested import nested_rhat as nested_rhat
from ppgen.diagnostics.nested import nested_rhat_limit as nested_rhat_limit
from ppgen.diagnostics.ngrams import ngram_log_prob as ngram_log_prob
from ppgen.diagnostics.pareto import ParetoK as ParetoK
from ppgen.diagnostics.pareto import pareto_k as pareto_k
from ppgen.diagnostics.pareto import psis as psis
from ppgen.diagnostics.perplexity import TextScore as TextScore
from ppgen.diagnostics.perplexity import text_score as text_score
from ppgen.diagnostics.uniformity import ecdf_band as ecdf_band
from ppgen.diagnostics.uniformity import symmetry as symmetry
from ppgen.diagnostics.uniformity import uniformity as uniformity
