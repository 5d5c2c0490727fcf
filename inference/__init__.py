"""Inference methods, one file each, and what stands on top of them."""

from ppgen.inference.annealed_importance_sampling import LogPartition as LogPartition
from ppgen.inference.annealed_importance_sampling import (
    boltzmann_likelihood as boltzmann_likelihood,
)
from ppgen.inference.calibrate import calibrate as calibrate
from ppgen.inference.calibration import Calibration as Calibration
from ppgen.inference.cavi import CAVI as CAVI
from ppgen.inference.compare import Comparison as Comparison
from ppgen.inference.compare import compare as compare
from ppgen.inference.contrastive_divergence import ContrastiveDivergence as ContrastiveDivergence
from ppgen.inference.elbo import ELBO as ELBO
from ppgen.inference.exact import Exact as Exact
from ppgen.inference.fit import fit as fit
from ppgen.inference.flow_guides import flow_guide as flow_guide
from ppgen.inference.gibbs import BlockGibbs as BlockGibbs
from ppgen.inference.gibbs_engine import ConditionalGibbs as ConditionalGibbs
from ppgen.inference.gibbs_engine import Gibbs as Gibbs
from ppgen.inference.guides import full_rank_guide as full_rank_guide
from ppgen.inference.guides import low_rank_guide as low_rank_guide
from ppgen.inference.guides import mean_field_guide as mean_field_guide
from ppgen.inference.hmc_engine import HMC as HMC
from ppgen.inference.laplace import Laplace as Laplace
from ppgen.inference.likelihood import log_likelihood as log_likelihood
from ppgen.inference.nuts import NUTS as NUTS
from ppgen.inference.point import MAP as MAP
from ppgen.inference.point import MLE as MLE
from ppgen.inference.train import TrainResult as TrainResult
from ppgen.inference.train import train as train
from ppgen.inference.vi import VI as VI
