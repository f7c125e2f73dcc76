# SPDX-License-Identifier: Apache-2.0
"""Measuring methods: metrics, records, and the comparison of their curves."""
