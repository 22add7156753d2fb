"""jaxsign: sign gradient descent on two-layer transformers in JAX."""

from jaxsign import presets as presets
from jaxsign import theory as theory
from jaxsign.data.signal_noise import Dataset as Dataset
from jaxsign.engines import two_layer as two_layer
from jaxsign.models.two_layer import Params as Params
from jaxsign.models.two_layer import apply as apply
from jaxsign.optim import grid as grid
from jaxsign.optim import power_gd as power_gd
from jaxsign.optim import scale_by_power as scale_by_power
from jaxsign.optim import scale_by_smooth_sign as scale_by_smooth_sign
from jaxsign.optim import sign_gd as sign_gd
from jaxsign.optim import signum as signum
from jaxsign.optim import smooth_sign_gd as smooth_sign_gd
from jaxsign.problem import Hyper as Hyper
from jaxsign.problem import Problem as Problem
from jaxsign.rng import stream as stream
from jaxsign.task import Task as Task
from jaxsign.training import Run as Run
from jaxsign.training import log_steps as log_steps
from jaxsign.training import train as train
