"""Generative stories, one file each."""

from ppgen.models.banana import banana as banana
from ppgen.models.base_rate import BaseRate as BaseRate
from ppgen.models.bayesian_neural_network import bayesian_neural_network as bayesian_neural_network
from ppgen.models.beta_bernoulli import BetaBernoulli as BetaBernoulli
from ppgen.models.boltzmann_machine import (
    FullyVisibleBoltzmannMachine as FullyVisibleBoltzmannMachine,
)
from ppgen.models.classification_rbm import ClassificationRBM as ClassificationRBM
from ppgen.models.classification_rbm import labelled as labelled
from ppgen.models.conditional_vae import ConditionalVAE as ConditionalVAE
from ppgen.models.conjugate_regression import ConjugateRegression as ConjugateRegression
from ppgen.models.correlated_gaussian import correlated_gaussian as correlated_gaussian
from ppgen.models.dbm import DBM as DBM
from ppgen.models.dbn import DBN as DBN
from ppgen.models.dequantized_flow import DequantizedFlow as DequantizedFlow
from ppgen.models.dirichlet_categorical import DirichletCategorical as DirichletCategorical
from ppgen.models.eight_schools import eight_schools as eight_schools
from ppgen.models.eight_schools import eight_schools_centred as eight_schools_centred
from ppgen.models.flow import Flow as Flow
from ppgen.models.gamma_poisson import GammaPoisson as GammaPoisson
from ppgen.models.gaussian_mixture import GaussianMixture as GaussianMixture
from ppgen.models.gaussian_process import gaussian_process as gaussian_process
from ppgen.models.gaussian_process import poisson_gaussian_process as poisson_gaussian_process
from ppgen.models.gaussian_rbm import GaussianRBM as GaussianRBM
from ppgen.models.hierarchical_regression import hierarchical_regression as hierarchical_regression
from ppgen.models.hierarchical_vae import HierarchicalVAE as HierarchicalVAE
from ppgen.models.image_flow import ImageFlow as ImageFlow
from ppgen.models.item_response import item_response as item_response
from ppgen.models.language_model import LanguageModel as LanguageModel
from ppgen.models.linear_regression import linear_regression as linear_regression
from ppgen.models.logistic_regression import logistic_regression as logistic_regression
from ppgen.models.logit_regression import LogitRegression as LogitRegression
from ppgen.models.moebius_mixture import MoebiusMixture as MoebiusMixture
from ppgen.models.molecule_vae import MoleculeVAE as MoleculeVAE
from ppgen.models.neals_funnel import neals_funnel as neals_funnel
from ppgen.models.normal_gamma import NormalGamma as NormalGamma
from ppgen.models.normal_normal import NormalNormal as NormalNormal
from ppgen.models.probit_regression import ProbitRegression as ProbitRegression
from ppgen.models.rbm import RBM as RBM
from ppgen.models.rbm_vae import RBMVAE as RBMVAE
from ppgen.models.semi_supervised_vae import SemiSupervisedVAE as SemiSupervisedVAE
from ppgen.models.sentence_vae import SentenceVAE as SentenceVAE
from ppgen.models.shrinkage_regression import ShrinkageRegression as ShrinkageRegression
from ppgen.models.sphere_flow import SphereFlow as SphereFlow
from ppgen.models.stochastic_volatility import stochastic_volatility as stochastic_volatility
from ppgen.models.torus_flow import TorusFlow as TorusFlow
from ppgen.models.vae import VAE as VAE
