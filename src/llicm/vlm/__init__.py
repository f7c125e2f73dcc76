# SPDX-License-Identifier: Apache-2.0
"""The vision-language model: open_clip models, the DA-CLIP controller, its losses, and readers of released weights."""
