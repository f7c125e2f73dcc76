# SPDX-License-Identifier: Apache-2.0
"""The study as a pipeline: stages, their notebooks and code, resumable checkpoints."""
