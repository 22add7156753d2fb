"""How programs are compiled: with which options, when an earlier one serves again, and where they are kept."""

from jaxsign.compilation.cache import kept_on_disk
from jaxsign.compilation.content import Same, content, filled, module_of, packaged
from jaxsign.compilation.devices import cores, idle_cores, number, start_on_every_core
from jaxsign.compilation.options import collecting_later, compiler_options, each_undisturbed, no_platform, undisturbed

__all__ = [
    "Same",
    "collecting_later",
    "compiler_options",
    "content",
    "cores",
    "each_undisturbed",
    "filled",
    "idle_cores",
    "kept_on_disk",
    "module_of",
    "no_platform",
    "number",
    "packaged",
    "start_on_every_core",
    "undisturbed",
]
