"""jaxsign: sign gradient descent on two-layer transformers in JAX."""

import sys as _sys

__version__ = "0.1.0"

# isort: off

# One run
from jaxsign.training.task import Task as Task
from jaxsign.training.task import Reduction as Reduction
from jaxsign.training.train import train as train
from jaxsign.training.train import Run as Run
from jaxsign.training.rng import stream as stream
from jaxsign.training.schedule import log_steps as log_steps

# Many runs
from jaxsign.sweep.sweep import Sweep as Sweep
from jaxsign.sweep.run import run_sweep as run_sweep
from jaxsign.cli.experiment import sweep_cli as sweep_cli
from jaxsign.store.results import open_results as open_results
from jaxsign.trajectories.reader import open_trajectory as open_trajectory
from jaxsign.trajectories.replay import replay as replay

# Optimizers
from jaxsign.optimizers.rules import sign_gd as sign_gd
from jaxsign.optimizers.rules import signum as signum
from jaxsign.optimizers.rules import power_gd as power_gd
from jaxsign.optimizers.rules import smooth_sign_gd as smooth_sign_gd
from jaxsign.optimizers.rules import scale_by_power as scale_by_power
from jaxsign.optimizers.rules import scale_by_smooth_sign as scale_by_smooth_sign
from jaxsign.optimizers.grid import grid as grid
from jaxsign.optimizers.grid import static as static
from jaxsign.optimizers.adapters import observed_at as observed_at
from jaxsign.optimizers.probes import degree as degree

# The paper's system
from jaxsign.systems.two_layer.engines import two_layer as two_layer
from jaxsign.systems.two_layer.with_curvature import two_layer_curvature as two_layer_curvature
from jaxsign.systems.two_layer.with_updates import two_layer_updates as two_layer_updates
from jaxsign.systems.two_layer.problem import Problem as Problem
from jaxsign.systems.two_layer.problem import Hyper as Hyper
from jaxsign.systems.two_layer import presets as presets
from jaxsign.systems.two_layer.data import TrainingSet as TrainingSet
from jaxsign.systems.two_layer.data import Dataset as Dataset
from jaxsign.systems.two_layer.model import Params as Params
from jaxsign.systems.two_layer.model import apply as apply

# Companion systems
from jaxsign.systems.linear_attention import linear_attention as linear_attention
from jaxsign.systems.linear_attention import RegressionProblem as RegressionProblem
from jaxsign.systems.linear_attention import RegressionHyper as RegressionHyper
from jaxsign.systems.kernels import kernel_attention as kernel_attention
from jaxsign.systems.kernels import KernelProblem as KernelProblem
from jaxsign.systems.kernels import KernelHyper as KernelHyper
from jaxsign.systems.residual import residual_attention as residual_attention
from jaxsign.systems.residual import ResidualProblem as ResidualProblem
from jaxsign.systems.residual import ResidualHyper as ResidualHyper
from jaxsign.systems.cnn import two_layer_cnn as two_layer_cnn
from jaxsign.systems.cnn import CnnProblem as CnnProblem
from jaxsign.systems.cnn import CnnHyper as CnnHyper
from jaxsign.systems.deep_transformer import deep_transformer as deep_transformer
from jaxsign.systems.deep_transformer import DeepProblem as DeepProblem
from jaxsign.systems.digits.task import noisy_digits as noisy_digits
from jaxsign.systems.digits.problem import DigitsProblem as DigitsProblem
from jaxsign.systems.digits.problem import DigitsHyper as DigitsHyper
from jaxsign.systems.digits.data import load_digits as load_digits
from jaxsign.systems.text.task import noisy_text as noisy_text
from jaxsign.systems.text.problem import TextProblem as TextProblem
from jaxsign.systems.text.problem import TextHyper as TextHyper
from jaxsign.systems.text.corpus import load_text as load_text

# Reading results
from jaxsign.analysis.equal_loss import at_train_loss as at_train_loss
from jaxsign.analysis.stages import find_stages as find_stages
from jaxsign.analysis.measures import claim_numbers as claim_numbers
from jaxsign.analysis.reading import CannotDecide as CannotDecide
from jaxsign.analysis import curvature as curvature
from jaxsign.analysis import landscape as landscape
from jaxsign import theory as theory

# Claims, figures and the report
from jaxsign.claims.verdicts import check as check
from jaxsign.claims.claim import Claim as Claim
from jaxsign.claims.verdicts import ClaimTable as ClaimTable
from jaxsign.claims.claim import Part as Part
from jaxsign import plot as plot
from jaxsign import report as report

# Public modules that lie in folders can be imported by their public names: `from jaxsign.presets import paper_like`.
_sys.modules["jaxsign.curvature"] = curvature
_sys.modules["jaxsign.landscape"] = landscape
_sys.modules["jaxsign.presets"] = presets
