# SPDX-License-Identifier: Apache-2.0
"""Speculative Streaming (arXiv 2402.11131) in JAX.

A causal language model drafts for itself: the pass that verifies the last
XX
"""

import importlib

__version__ = '0.2.0'


_API = (
  'Adapted',
  'DrafterConfig',
  'Model',
  'Execution',
  'Exported',
  'Generation',
  'Recipe',
  'SamplingConfig',
  'StreamConfig',
  'Trained',
  'TreeConfig',
  'adapt',
  'check',
  'compare',
  'evaluate',
  'export',
  'generate',
  'load',
  'prepare',
  'stream',
  'stream_text',
  'train',
)


def __getattr__(name: str):
  # Loaded on first use: a submodule can be imported without the rest.
  if name in _API:
    return getattr(importlib.import_module('specstream_jax.api'), name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
  return list(_API)
