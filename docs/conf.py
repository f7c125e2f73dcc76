# SPDX-License-Identifier: Apache-2.0
"""How Sphinx makes the site of `make report`; `llicm.provenance.site` gathers what it reads."""

import re

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

project = "LL-ICM"
html_title = "LL-ICM"
root_doc = "README"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["../extra"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
pygments_style = "default"

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
myst_update_mathjax = False
nb_execution_mode = "off"  # but those that ask for it in their metadata, notebooks/explore
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_render_markdown_format = "myst"
nb_ipywidgets_js = {}  # a script from a network
suppress_warnings = ["toc.not_included"]  # pages of lineage are found by their links

exclude_patterns = ["docs/_*"]
templates_path = ["_templates"]
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}

# Pages and outputs of notebooks load nothing from a network, and browsers hold them to it.
POLICY = "default-src 'self' 'unsafe-inline' data: blob:"
HATTED = r"<munderover>\s*(<mi>.*?</mi>)\s*(<mi>.*?</mi>)\s*(<mo[^>]*>ˆ</mo>)\s*</munderover>"


def _mathml(block):
    def visit(self, node):
        made = tex2mathml(node.astext(), as_block=block)
        # docutils sets the index of a letter with a hat below the letter
        self.body.append(re.sub(HATTED, r"<msub><mover>\1\3</mover>\2</msub>", made))
        raise nodes.SkipNode

    return visit


def _hold(app, page, template, context, doctree):
    context["metatags"] = (
        context.get("metatags", "") + f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    )


def _table(found):
    rows = [line.strip("| ").split(" | ") for line in found[0].splitlines() if set(line) - set("|-")]
    cells = ("\n     - ".join(row) for row in rows)
    return ".. list-table::\n   :header-rows: 1\n\n" + "".join(f"   * - {row}\n" for row in cells)


def _markdown(app, what, name, obj, options, lines):
    """Tables and blocks of code in the text of a module as reStructuredText has them."""
    if what in ("attribute", "property"):
        lines[:0] = ["..", ""]  # napoleon takes what stands before a colon in the first line that has text for a type
    if what == "module":
        text = re.sub(r"\n\n(?=    )", "\n\n::\n\n", "\n".join(lines))
        lines[:] = re.sub(r"(^\|.*\n)+", _table, text + "\n", flags=re.M).splitlines()


def setup(app):
    app.connect("autodoc-process-docstring", _markdown, priority=400)  # before napoleon
    app.add_html_math_renderer("mathml", (_mathml(False), None), (_mathml(True), None))
    app.connect("html-page-context", _hold)
