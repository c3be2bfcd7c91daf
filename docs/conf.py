"""Sphinx: pages in Markdown (MyST), the API from docstrings. ``sphinx-build -W docs site`` makes the site."""

project = "attnguide"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "attnguide"
html_show_copyright = False
exclude_patterns = ["_build", "site"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring, napoleon_numpy_docstring = True, False
