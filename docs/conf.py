"""Sphinx: how the documentation is built, without network and with every warning an error (`make docs`)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # our own extensions

project = "jaxsign"
author = copyright = "The jaxsign authors"
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_parser",
    "plain_docstrings",
    "notebook_page",
    "generated",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

#: `name` in a docstring is a name of the library where there is one, and code in any case.
default_role = "py:obj"
smartquotes_action = "D"  # dashes only: quoted values are code
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # shapes and legal ranges stand in the docstrings
maximum_signature_line_length = 90
napoleon_numpy_docstring = False
napoleon_use_rtype = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "jaxsign"
html_static_path = ["static"]
html_css_files = ["wide.css"]
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
