"""Every system's claims, and how the settings that its claims are decided in are called."""

from typing import Any

from jaxsign.analysis.runs import system_of
from jaxsign.claims import adam, architecture, bridge, data_quality, digits, linear_attention, residual, restore
from jaxsign.claims import dynamics as two_layer
from jaxsign.claims import kernels as kernel_attention
from jaxsign.claims.claim import Claim

#: {system: its claims and `Dataset -> setting`}; a Dataset of any other system is read as one of the paper's.
SYSTEMS: dict[str, Any] = {
    "two_layer": two_layer,
    "linear_attention": linear_attention,
    "kernel_attention": kernel_attention,
    "residual_attention": residual,
    "two_layer_curvature": bridge,
    "two_layer_updates": adam,
    "deep_transformer": architecture,
    "noisy_digits": digits,
}
#: Experiments on the paper's system that have claims of their own.
EXPERIMENTS = (restore, data_quality)
CLAIMS: tuple[Claim, ...] = tuple(claim for module in (*SYSTEMS.values(), *EXPERIMENTS) for claim in module.CLAIMS)


def known_system(ds: Any) -> str:
    """The system whose claims a Dataset is asked."""
    found = system_of(ds)
    return found if found in SYSTEMS else "two_layer"


def setting_of(ds: Any) -> str:
    """The name of a Dataset's setting, such as "paper_like" or "theory, n=21"."""
    return str(SYSTEMS[known_system(ds)].setting_of(ds))
