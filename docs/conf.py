"""Sphinx's settings: pages in Markdown, the API from the docstrings."""

import inspect

import kimiajax as kj

project = "kimiajax"
author = "the authors of kimiajax"
release = version = kj.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"kimiajax {release}"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
default_role = "code"
napoleon_use_ivar = True
python_maximum_signature_line_length = 100
nitpicky = False


def setup(app):
    """The signature of a class's own docstring is enough: what its dataclass makes of `__init__` says it again."""
    app.connect("autodoc-process-docstring", _drop_generated)


def _drop_generated(app, what, name, found, options, lines):
    if what == "class" and inspect.isclass(found) and lines and lines[0].startswith(f"{found.__name__}("):
        lines.clear()
