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
    system = system_of(ds)
    return system if system in SYSTEMS else "two_layer"


def own_system(ds: "xr.Dataset") -> str:
    """What `system` of a claim says to be about a Dataset alone: the name of its function, or of the Task swept."""
    of_task = ((manifest(ds)["definition"].get("system") or {}).get("state") or {}).get("task") or {}
    system = str(of_task.get("name", "")) if system_of(ds) == "OneTask" else system_of(ds)
    return system if system and (system not in SYSTEMS or system == system_of(ds)) else "two_layer"


def setting_of(ds: "xr.Dataset") -> Setting:
    """A Dataset's setting, such as "paper_like" or "disjoint, n=21"."""
    setting: Setting = SYSTEMS[known_system(ds)].setting_of(ds)
    return setting
