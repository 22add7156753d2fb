"""How programs are compiled: with which options, when an earlier one serves again, and where they are kept."""

from jaxsign.compilation.cache import kept_on_disk
from jaxsign.compilation.content import Same, content, filled, module_of, packaged
from jaxsign.compilation.options import compiler_options, each_undisturbed, no_platform, undisturbed

__all__ = [
    "Same",
    "compiler_options",
    "content",
    "each_undisturbed",
    "filled",
    "kept_on_disk",
    "module_of",
    "no_platform",
    "packaged",
    "undisturbed",
]
