# SPDX-License-Identifier: Apache-2.0
"""Whole models as folders and on the Hugging Face Hub: `LLICM.from_pretrained`, `save_pretrained`, `push_to_hub`.

A class of its own, because huggingface_hub's mixin takes longer to import than a photo to compress: `llicm.framework`,
which every command loads, does without.
"""

from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelHubMixin, snapshot_download

from llicm import framework
from llicm.errors import UserError
from llicm.files import write_atomically
from llicm.model import load_model, save_model

WEIGHTS = "llicm.safetensors"
CARD = "README.md"  # as the hub calls what is llicm.md beside released weights
_BESIDE = ("photos.md", "lineage.json")  # what a card links to: the photos' authors, and where the weights come from
ABOUT = {"license": "apache-2.0", "library_name": "llicm", "pipeline_tag": "image-to-image"}
TAGS = ("image-compression", "image-restoration")
_TEXT = """---
{{ card_data }}
---

# LL-ICM: image compression for low-level machine vision

```python
from llicm.hub import LLICM

system = LLICM.from_pretrained("this folder or its name")
```
"""


class LLICM(
    framework.LLICM, ModelHubMixin, model_card_template=_TEXT, tags=list(TAGS), **ABOUT
):  # fmt: skip
    """`llicm.framework.LLICM` with the hub's methods; the format is that of `llicm.model`, nothing is pickled."""

    def __init__(self, *parts: Any, **named: Any):
        super().__init__(*parts, **named)
        self._hub_mixin_config = None  # it is in the file of the weights
        self._beside: dict[str, bytes] = {}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """A model in eval mode.

        Args:
            pretrained_model_name_or_path: a folder with `llicm.safetensors`, such as `init/published`, or a name on the
                hub, "owner/name".
            options: of the hub: `revision`, `token`, `cache_dir`, `force_download`, `local_files_only`.

        Raises:
            UserError: there is no such folder, and no such model on the hub or no network to it; or the weights are not
                those of a model (see `llicm.model.load_model`).
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            try:
                files = [WEIGHTS, CARD, *_BESIDE]
                folder = Path(snapshot_download(str(pretrained_model_name_or_path), allow_patterns=files, **options))
            except (OSError, ValueError) as error:
                reason = str(error).strip().splitlines()[0]
                raise UserError(
                    f"{pretrained_model_name_or_path}: no such folder, and the hub gave no such model ({reason}); "
                    "check the name and the network, or give a folder with " + WEIGHTS
                ) from error
        found = load_model(folder / WEIGHTS)
        system = cls(found.codec, found.restorer, found.conditioner, found.prefilter).eval()
        for name in ("llicm.md", CARD, *_BESIDE):
            if (folder / name).is_file():
                system._beside[CARD if name == "llicm.md" else name] = (folder / name).read_bytes()
        return system

    def _save_pretrained(self, save_directory: Path) -> None:
        save_model(self, save_directory / WEIGHTS)
        for name, data in self._beside.items():
            write_atomically(save_directory / name, data)
