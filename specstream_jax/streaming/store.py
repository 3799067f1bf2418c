# SPDX-License-Identifier: Apache-2.0
"""Files of layers of a loaded model, written once for a base and an adapter."""

from collections.abc import Mapping
import functools
import json
import os
import time
from typing import Any

from absl import logging
import jax
import numpy as np

from specstream_jax import config
from specstream_jax.checkpoints import fetch, files, weights as weights_lib
from specstream_jax.outputs import locks
from specstream_jax.streaming import contents as contents_lib, layer_files

_POLL = 0.5  # seconds between two looks at what another process writes


def key(
  contents: str, folded: Mapping[str, Any], adapter: Mapping[str, Any]
) -> str:
  """A name for weights: of other ones, it is another.

  Args:
    contents: hash of the base and what its numbers mean, see `contents`.
    folded: flat weights, as they are stored; their dtypes count.
    adapter: flat LoRA that is folded into them.
  """
  dtypes = sorted(
    {np.dtype(leaf.dtype).name for leaf in _shapes(folded).values()}
  )
  own = weights_lib.fingerprint(adapter, whole=True)
  said = [contents, own, *dtypes, layer_files.VERSION]
  return files.sha256_of(json.dumps(said).encode())[:16]


def root(cfg: config.StreamedWeightsConfig) -> str:
  """Where the folders of all weights lie."""
  return cfg.folder or os.path.join(fetch.cache_folder(), 'layers')


def prepare(
  folded: Mapping[str, Any], name: str, cfg: config.StreamedWeightsConfig
) -> tuple[str, dict[str, Any]]:
  """The folder of the layers' files, and flat weights that are of no layer.

  Kernels lie as [out, in]. Files that are not there are written, a tensor in
  memory at a time.

  Args:
    folded: base weights by path, read when asked for.
    name: from `key`.
    cfg: says where the folders lie.

  Raises:
    ValueError: the files cannot be written, or what is there is not the layers
      of this model, as they were written.
  """
  folder = os.path.join(root(cfg), name)
  rest = {
    path: folded[path] for path in folded if not path.startswith('layers/')
  }
  layout = _layout(folded)
  while not _is_there(folder):
    try:
      with locks.hold(folder, 'layers'):
        if not _is_there(folder):  # or another process has just written it
          _write(folded, folder, name, layout, root(cfg))
    except locks.HeldError as error:
      logging.log_first_n(logging.WARNING, 'waiting for it: %s', 1, error)
      time.sleep(_POLL)
    except OSError as error:
      raise ValueError(
        f'files of layers cannot be written to {folder!r} ({error.strerror}); '
        'make room, or name another folder with '
        '--gin.StreamedWeightsConfig.folder'
      ) from error
  manifest = layer_files.read_manifest(folder)
  if manifest.layout != layout:
    raise ValueError(
      f'{os.path.join(folder, layer_files.MANIFEST)!r} is not of the layers of '
      f'this model; {layer_files.AGAIN}'
    )
  _check_contents(folder, manifest, root(cfg))
  return folder, rest


def _check_contents(folder, manifest, hashes):
  """Raises ValueError if a file is another than was written."""
  for layer, sha256 in enumerate(manifest.sha256):
    path = layer_files.path_of(folder, layer)
    if contents_lib.of_file(path, hashes) != sha256:
      raise ValueError(
        f'weights of a layer: {path!r} was changed since it was written; '
        f'{layer_files.AGAIN}'
      )


def _is_there(folder):
  return os.path.exists(os.path.join(folder, layer_files.MANIFEST))


def _shapes(folded):
  """What has a shape and a dtype, by path, known without reading if it can be."""
  return getattr(folded, 'shapes', folded)


def _layout(folded):
  """Where tensors lie in the file of any layer."""
  shapes, all_shapes = {}, _shapes(folded)
  for path, leaf in all_shapes.items():
    if path.startswith('layers/0/'):
      shape = leaf.shape[::-1] if path.endswith('kernel') else leaf.shape
      shapes[path.split('/', 2)[2]] = jax.ShapeDtypeStruct(shape, leaf.dtype)
  numbers = {p.split('/')[1] for p in all_shapes if p.startswith('layers/')}
  return layer_files.lay_out(shapes, len(numbers))


def _write(folded, folder, name, layout, hashes):
  def read(layer, path):
    leaf = np.asarray(folded[f'layers/{layer}/{path}'])
    return leaf.T if path.endswith('kernel') else leaf

  # Remembered: nobody reads a file again for its hash.
  sha256 = functools.partial(contents_lib.of_file, folder=hashes)
  layer_files.write(folder, layout, read, {'weights': name}, sha256)
