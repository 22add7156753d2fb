"""The exact laws of SignGD and the closed forms that follow from them, one function a law.

Notation (token 1 signal, token 2 noise; disjoint supports, context 2, alpha = 0; attention and features per head):
c_i = y_i * (sign of the signal patch), A_i = s_11 s_12, B_i = s_21 s_22, S_i = s_11 + s_21,
g_i = y_i <v, xi_i> - c_i <v, mu>, p_i = 1/(1 + exp(y_i F_i)); noises carry the observed label, signals are <w, mu>.
Host functions (late rates, stage times, test error) return NumPy floats; the one-step laws accept tracers.
"""

from jaxsign.theory.equal_loss import ErrorAtLoss as ErrorAtLoss
from jaxsign.theory.equal_loss import error_at_loss as error_at_loss
from jaxsign.theory.equal_loss import rule_error_at_loss as rule_error_at_loss
from jaxsign.theory.errors import gd_boundary as gd_boundary
from jaxsign.theory.errors import gd_test_error as gd_test_error
from jaxsign.theory.errors import overlap_share as overlap_share
from jaxsign.theory.errors import sign_boundary as sign_boundary
from jaxsign.theory.errors import sign_test_error as sign_test_error
from jaxsign.theory.rates import adam_late_loss_rate as adam_late_loss_rate
from jaxsign.theory.rates import adam_loss_rate as adam_loss_rate
from jaxsign.theory.rates import adam_sublinear_rate as adam_sublinear_rate
from jaxsign.theory.rates import late_loss_rate as late_loss_rate
from jaxsign.theory.steps import key_noise_step as key_noise_step
from jaxsign.theory.steps import key_signal_step as key_signal_step
from jaxsign.theory.steps import query_noise_step as query_noise_step
from jaxsign.theory.steps import query_signal_step as query_signal_step
from jaxsign.theory.steps import value_noise_share as value_noise_share
from jaxsign.theory.steps import value_noise_step as value_noise_step
from jaxsign.theory.steps import value_signal_step as value_signal_step
from jaxsign.theory.times import stage_five_time as stage_five_time
from jaxsign.theory.times import stage_four_time as stage_four_time
from jaxsign.theory.times import stage_one_time as stage_one_time
from jaxsign.theory.times import stage_three_time as stage_three_time
from jaxsign.theory.times import stage_two_time as stage_two_time
from jaxsign.theory.votes import adam_batch_share as adam_batch_share
from jaxsign.theory.votes import shared_test_error as shared_test_error
from jaxsign.theory.votes import sign_batch_share as sign_batch_share
from jaxsign.theory.votes import smooth_sign_share as smooth_sign_share
