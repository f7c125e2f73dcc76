# SPDX-License-Identifier: Apache-2.0
"""The method grammar: complete ways from a degraded image X to an output image through real bytes, by name.

    codec                       X ─codec─► bytes ─► X̂
    codec>restorer              X ─codec─► bytes ─► X̂ ─restorer─► X̂_H      (the paper's simplest framework)
    restorer>codec              X ─restorer─► X_r ─codec─► bytes ─► X̂      (restoration before encoding)
    restorer>codec>restorer     X ─restorer─► X_r ─codec─► bytes ─► X̂ ─restorer─► X̂_H

A word is a trained model or a conventional codec (`raw` is none: 24 bits a pixel). A model that has codec and restorer,
such as LL-ICM, is a whole method in one word, with its prefilter if it has one. `restorer@10` is a diffusion restorer
with so many steps.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from llicm.errors import UserError

NONE = "none"  # in place of a model or weight file that is not there
ROLES = ("baseline", "test", "specialist", "ablation", "steps", "reference")


@dataclass(frozen=True)
class Method:
    """One row of the benchmark.

    Attributes:
        name: as records have it, e.g. "restorer>heic>adapted". group: entry of `benchmark`.
        role: "test" for forms of LL-ICM, "specialist" for those made for one task, "baseline", "ablation", "steps"
            (numbers of diffusion steps), or "reference" (without compression).
        codec: a conventional codec, "raw", or the model whose codec it is. learned: the latter.
        prefilter, restorer: models that restore before coding and after decoding, or None.
        levels: settings of the codec, in ascending rate. steps: of a diffusion restorer, None for its own number.
        title: for readers.
    """

    name: str
    group: str
    role: str
    codec: str
    learned: bool
    prefilter: str | None
    restorer: str | None
    levels: tuple[float, ...]
    steps: int | None = None
    title: str = ""

    @property
    def order(self) -> str:
        """Where the restorer stands: "alone", "after", "before" or "around" the codec."""
        if self.prefilter:
            return "around" if self.restorer else "before"
        return "after" if self.restorer else "alone"

    @property
    def models(self) -> set[str]:
        """Trained models whose weights it needs."""
        return {name for name in (self.prefilter, self.restorer, self.codec if self.learned else None) if name}


def methods_of(benchmark: Mapping[str, Any], parts: Mapping[str, Collection[str]]) -> list[Method]:
    """All methods of params.yaml, in its order.

    Args:
        benchmark: codec groups by name (see `llicm.parameters.Group`).
        parts: of each trained model those of "codec", "restorer" and "prefilter" that it has.

    Raises:
        UserError: a method that is none by the grammar, or two of one name.
    """
    found: dict[str, Method] = {}
    for name, group in benchmark.items():
        for method in _of_group(name, group, parts):
            if method.name in found:
                raise UserError(f"params.yaml: method '{method.name}' is in two groups; rename one")
            found[method.name] = method
    return list(found.values())


def _of_group(group: str, spec: Any, parts: Mapping[str, Collection[str]]) -> list[Method]:
    written = spec.methods if isinstance(spec.methods, Mapping) else {text: text for text in spec.methods}
    methods = []
    for name, text in written.items():
        codec, prefilter, restorer, steps = _parse(text, parts)
        levels = spec.levels.get(codec, ()) if isinstance(spec.levels, Mapping) else spec.levels
        if not levels:
            raise UserError(f"params.yaml: benchmark.{group} has no levels for codec '{codec}'; add them")
        title = spec.title or name.replace(">", " → ")
        methods.append(
            Method(name, group, spec.role, codec, codec in parts, prefilter, restorer, tuple(levels), steps, title)
        )
    return methods


def _parse(text: str, parts: Mapping[str, Collection[str]]) -> tuple[str, str | None, str | None, int | None]:
    """Codec, prefilter, restorer and steps of a method as it is written."""
    words, steps = text.split(">"), None
    if "@" in words[-1]:
        words[-1], _, number = words[-1].partition("@")
        if not number.isdecimal() or not int(number):
            raise UserError(f"params.yaml: method '{text}': '{number}' is no number of steps; write restorer@10")
        steps = int(number)
    # the first word that is a conventional codec, or a model that has one; an adapted restorer comes with its codec too
    place = next((i for i, word in enumerate(words) if word not in parts or "codec" in parts[word]), None)
    if place is None:
        raise UserError(f"params.yaml: method '{text}' has no codec; add one")
    codec = words[place]
    if len(words) == 1:
        own = parts.get(codec, ())
        return codec, codec if "prefilter" in own else None, codec if "restorer" in own else None, steps
    before, after = words[:place], words[place + 1 :]
    for word in (*before, *after):
        if "restorer" not in parts.get(word, ()):
            raise UserError(f"params.yaml: method '{text}': '{word}' is no model that restores; correct it")
    if len(before) > 1 or len(after) > 1:
        raise UserError(f"params.yaml: method '{text}' has two restorers in a row; leave one on each side of the codec")
    return codec, before[0] if before else None, after[0] if after else None, steps
