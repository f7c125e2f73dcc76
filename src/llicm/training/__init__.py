# SPDX-License-Identifier: Apache-2.0
"""Training: the loop, and the models of a study."""
