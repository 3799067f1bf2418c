# SPDX-License-Identifier: Apache-2.0
"""Requests of many, decoded in one running batch."""
