# SPDX-License-Identifier: Apache-2.0
"""Folders of layers, of weights that a test has at hand."""

import numpy as np

from specstream_jax.modeling import params
from specstream_jax.streaming import layer_files


def write(folder, base):
  """Files of the layers of nested base weights; the rest of the weights."""
  flat = params.flatten(base)
  of = lambda i: {
    path.split('/', 2)[2]: np.asarray(leaf)
    for path, leaf in flat.items()
    if path.startswith(f'layers/{i}/')
  }
  count = len(base['layers'])
  layout = layer_files.lay_out(of(0), count)
  layer_files.write(str(folder), layout, lambda i, path: of(i)[path], {})
  return {name: leaf for name, leaf in base.items() if name != 'layers'}
