# SPDX-License-Identifier: Apache-2.0
"""From records to what is published: comparisons, tables and figures."""
