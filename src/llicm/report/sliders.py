# SPDX-License-Identifier: Apache-2.0
"""Pictures to compare under a slider, as pages for the site, whose style sheet lays one over the other."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2

from llicm.files import write_atomically
from llicm.images import write_png
from llicm.report.pictures import Column

# No blank lines: in Markdown they would end the block of HTML. The slider is an input of the browser's own, so keys
# move it too; autocomplete is off for browsers that keep what was chosen when a page is loaded again.
PAGE = jinja2.Template("""\
# {{ title }}

{{ text }}
{% for label, pictures in rows.items() %}

## {{ label }}

<figure class="compare">
<div>
{% for side, shown in sides %}
<img class="{{ side }}" src="{{ pictures[shown].file }}" alt="{{ pictures[shown].words }}" loading="lazy">
{% endfor %}
</div>
<input type="range" min="0" max="100" value="50" autocomplete="off"
aria-label="{{ label }}: how much of the left picture is seen"
oninput="this.closest('figure').style.setProperty('--at', this.value + '%')">
{% for side, shown in sides %}
<label>{{ side }} <select autocomplete="off" onchange="Object.assign(
this.closest('figure').querySelector('.{{ side }}'), {src: this.value, alt: this.selectedOptions[0].text})">
{% for picture in pictures %}
<option value="{{ picture.file }}"{{ " selected" if loop.index0 == shown }}>{{ picture.words }}</option>
{% endfor %}
</select></label>
{% endfor %}
</figure>
{% endfor %}
""", autoescape=True, trim_blocks=True, lstrip_blocks=True)  # fmt: skip


def write_sliders(
    path: Path, title: str, text: str, rows: Mapping[str, Sequence[Column]], left: int, right: int
) -> None:
    """Write a page of pictures under sliders as Markdown, and the pictures beside it.

    Args:
        path: of the page, such as `failures.md`; the pictures are `failures-0-0.png` and so on.
        rows: heading -> pictures among which the reader chooses, as `llicm.report.pictures` makes them.
        left, right: which of them are shown at first.
    """
    listed: dict[str, list[dict[str, str]]] = {}
    for label, columns in rows.items():
        listed[label] = []
        for title_of, picture, caption in columns:
            file = f"{path.stem}-{len(listed) - 1}-{len(listed[label])}.png"
            write_png(picture, path.parent / file)
            listed[label].append({"file": file, "words": " ".join(f"{title_of}: {caption}".split())})
    page = PAGE.render(title=title, text=text, rows=listed, sides=[("left", left), ("right", right)])
    write_atomically(path, page.encode())
