"""How Sphinx builds the manual: `make docs`. Why Sphinx: docs/decisions/0031-manual.md."""

import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for reference_pages, beside this file

project = "Character Engine"
version = release = metadata.version("charengine")
copyright = "the Character Engine authors"
language = "en"

extensions = ["myst_parser", "reference_pages", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
default_role = "code"  # what docstrings write in single backticks
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r".*")]  # types of other libraries have no page here

# Nothing is asked of anybody when a page is looked at: no fonts, scripts or badges from elsewhere.
html_theme = "pydata_sphinx_theme"
html_title = f"Character Engine {release}"
html_static_path = ["_static"]
templates_path = ["_templates"]
html_sidebars = {"**": ["whole-manual.html"]}
html_css_files = ["manual.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "logo": {"text": "Character Engine"},
    "navbar_center": [],
    "navbar_end": ["theme-switcher"],
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
