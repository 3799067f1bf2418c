# SPDX-License-Identifier: Apache-2.0
"""Speculative Streaming (arXiv 2402.11131) in JAX.

A causal language model drafts for itself: the pass that verifies the last
draft tree also predicts the next one. `import specstream_jax as ss` gives
`ss.load`, `ss.generate`, `ss.stream`, `ss.stream_text`, `ss.train` and
`ss.evaluate`.
"""

import importlib

__version__ = '0.2.0'


_API = (
  'DrafterConfig',
  'Model',
  'Execution',
  'Generation',
  'Recipe',
  'SamplingConfig',
  'StreamConfig',
  'Trained',
  'TreeConfig',
  'evaluate',
  'generate',
  'load',
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
