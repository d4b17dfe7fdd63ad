"""The documentation site: `make docs` builds it into docs/_build/html, and every warning is an error."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "site"))

import polyak

project = "polyak"
author = "The polyak authors"
copyright = "the polyak authors, MIT licence"
version = release = polyak.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_parser",
    "sphinx_copybutton",
    "themed_figures",
    "accessible",
]
exclude_patterns = ["site"]
myst_heading_anchors = 3
myst_enable_extensions = ["attrs_inline"]

autodoc_typehints = "none"  # the ranges of the options are in their descriptions
autodoc_mock_imports = ["accelerate", "lightning", "pytorch_lightning", "transformers"]  # the pages need none of them
autodoc_member_order = "bysource"
maximum_signature_line_length = 72
napoleon_google_docstring = True
napoleon_numpy_docstring = False

default_role = "code"  # single backticks in docstrings

html_theme = "furo"
html_title = f"polyak {version}"
html_static_path = ["site/static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True
