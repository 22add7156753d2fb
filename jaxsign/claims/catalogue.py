"""Which claims are there, and in which setting was a Dataset made?"""

from types import ModuleType
from typing import TYPE_CHECKING

from jaxsign.analysis.runs import manifest, system_of
from jaxsign.claims import (
    adam,
    architecture,
    atlas,
    betas,
    bridge,
    cnn,
    data_quality,
    dial,
    digits,
    dynamics,
    kernels,
    linear_attention,
    regime,
    residual,
    restore,
    sample_size,
    stage_map,
    text,
)  # fmt: skip
from jaxsign.claims.claim import Claim
from jaxsign.claims.setting import Setting

if TYPE_CHECKING:
    import xarray as xr

#: {system: the module whose `setting_of` knows it}; a Dataset of any other system is read as one of the paper's.
SYSTEMS: dict[str, ModuleType] = {
    "two_layer": dynamics,
    "linear_attention": linear_attention,
    "kernel_attention": kernels,
    "residual_attention": residual,
    "two_layer_curvature": dynamics,
    "two_layer_updates": dynamics,
    "deep_transformer": architecture,
    "noisy_digits": digits,
    "two_layer_cnn": cnn,
    "noisy_text": text,
}
#: The experiments in the order in which their claims are listed.
EXPERIMENTS: tuple[ModuleType, ...] = (
    dynamics, linear_attention, kernels, residual, bridge, adam, architecture, digits, restore, cnn, data_quality,
    atlas, stage_map, dial, betas, sample_size, regime, text,
)  # fmt: skip
CLAIMS: tuple[Claim, ...] = tuple(claim for module in EXPERIMENTS for claim in module.CLAIMS)


def known_system(ds: "xr.Dataset") -> str:
    """The system whose claims a Dataset is asked."""
    return system_of(ds) if _is_ours(ds) else "two_layer"


def own_system(ds: "xr.Dataset") -> str:
    """What `system` of a claim says to be about a Dataset alone: the name of its function, or of the Task swept."""
    system = system_of(ds)
    return system if system and (system not in SYSTEMS or _is_ours(ds)) else "two_layer"


def _is_ours(ds: "xr.Dataset") -> bool:
    """Whether a Dataset is of a system of jaxsign: a Task of the user may have the name of one."""
    function = str((manifest(ds)["definition"].get("system") or {}).get("name", "")).rpartition(".")[2]
    return function in SYSTEMS


def setting_of(ds: "xr.Dataset") -> Setting:
    """A Dataset's setting, such as "paper_like" or "disjoint, n=21"; of a system that is not jaxsign's, its name."""
    if (own := own_system(ds)) not in SYSTEMS:
        return Setting(own)
    setting: Setting = SYSTEMS[known_system(ds)].setting_of(ds)
    return setting
