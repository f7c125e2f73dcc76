# SPDX-License-Identifier: Apache-2.0
"""Where results come from: lineage, audit, crate. Usable for any study of DVC and papermill."""
