# SPDX-License-Identifier: Apache-2.0
"""Weights that pass through memory layer by layer, for models larger than it."""
