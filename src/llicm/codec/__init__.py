# SPDX-License-Identifier: Apache-2.0
"""The codecs: learned (compressai) and conventional, and the bitstream container."""
