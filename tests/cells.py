# SPDX-License-Identifier: Apache-2.0
"""Small notebooks for tests of the pipeline."""

import nbformat


def code(source, *tags):
    cell = nbformat.v4.new_code_cell(source)
    if tags:
        cell.metadata["tags"] = list(tags)
    return cell


def notebook(*cells):
    return nbformat.v4.new_notebook(cells=list(cells))
