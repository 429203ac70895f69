project = "crop-assets"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
html_theme = "furo"
html_title = "crop-assets"
# headings of this depth have anchors, by which pages link to each other
myst_heading_anchors = 3
