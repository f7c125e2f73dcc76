# SPDX-License-Identifier: Apache-2.0
"""Clean photos, synthetic training images, pairs on disk, and the endless stream of training batches."""
