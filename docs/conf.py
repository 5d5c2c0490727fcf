"""How Sphinx builds the site: `make docs` writes it into docs/_build/html."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

from ppgen._version import __version__  # noqa: E402

project = "ppgen"
author = "The ppgen developers"
copyright = author
release = version = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # formulas without a network
    "gallery",
]
exclude_patterns = ["_build", "_ext", "tutorials/*.py", "tutorials/README.md"]
nitpicky = False
suppress_warnings = [
    "myst.header",  # a notebook may begin a section below its title
    "mystnb.mime_priority",
    "mystnb.unknown_mime_type",
]

# The notebooks carry their outputs; CI runs their scripts.
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_default_options = {"exclude-members": "__init__, __new__"}
autodoc_type_aliases = {"Story": "Story", "Factors": "Factors", "Coordinate": "Coordinate"}
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Shapes", "notes_style"), ("Example", "example")]

html_theme = "furo"
html_title = f"ppgen {version}"
html_static_path = ["_static"]
html_css_files = ["ppgen.css"]
html_theme_options = {"sidebar_hide_name": False, "navigation_with_keys": True}
html_show_sourcelink = False
html_copy_source = False
