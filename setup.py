# SPDX-License-Identifier: Apache-2.0
"""Kept for tools that call setup.py; everything is in pyproject.toml."""

import setuptools

setuptools.setup()
