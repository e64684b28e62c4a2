"""Sphinx: the pages are Markdown, and every warning is an error (`make docs`)."""

project = "atoll"
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "atoll"
