# SPDX-License-Identifier: Apache-2.0
"""One contiguous file per layer, laid out as it is to lie in memory.

A folder holds `layers.json` and `layer_0000.bin`, … . All layers have the same
tensors in the same places. A tensor begins at a multiple of 64 bytes and a file
has whole pages, so a buffer that a file was read into by direct I/O can be used
as it is.
"""

from collections.abc import Callable, Mapping
import json
import math
import os
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from specstream_jax.checkpoints import fields, files

MANIFEST = 'layers.json'
PAGE = 4096  # of direct I/O: places, sizes and addresses are multiples of it
VERSION = 2
_ALIGNED = 64  # bytes; what XLA takes without a copy
_READ = 4 << 20  # bytes of one request
AGAIN = 'remove the folder, so that it is written again'


class Place(NamedTuple):
  """Where a tensor lies in the file of its layer.

  Attributes:
    offset: bytes.
    shape: of it.
    dtype: its name.
  """

  offset: int
  shape: tuple[int, ...]
  dtype: str

  @property
  def num_bytes(self) -> int:
    """Bytes."""
    return math.prod(self.shape) * jnp.dtype(self.dtype).itemsize


class Layout(NamedTuple):
  """What all files of a folder have in common.

  Attributes:
    places: by path within the layer, such as 'mlp/up/kernel'.
    num_bytes: size of a file, a multiple of `PAGE`.
    num_layers: how many files there are.
  """

  places: dict[str, Place]
  num_bytes: int
  num_layers: int


class Manifest(NamedTuple):
  """What a folder says of itself.

  Attributes:
    layout: of its files.
    sha256: of each file, as it was written.
    notes: JSON fields of who wrote it.
  """

  layout: Layout
  sha256: list[str]
  notes: dict[str, Any]


def lay_out(shapes: Mapping[str, Any], num_layers: int) -> Layout:
  """Places of tensors that have `shape` and `dtype`, one after the other."""
  places, offset = {}, 0
  for path, leaf in shapes.items():
    place = Place(offset, tuple(leaf.shape), jnp.dtype(leaf.dtype).name)
    places[path] = place
    offset += -(-place.num_bytes // _ALIGNED) * _ALIGNED
  return Layout(places, -(-offset // PAGE) * PAGE, num_layers)


def path_of(folder: str, layer: int) -> str:
  """The file of a layer."""
  return os.path.join(folder, f'layer_{layer:04d}.bin')


def write(
  folder: str,
  layout: Layout,
  read: Callable[[int, str], np.ndarray],
  notes: Mapping[str, Any],
  sha256: Callable[[str], str] | None = None,
) -> None:
  """Writes every layer, one tensor in memory at a time; the manifest last.

  Args:
    folder: made if it is not there.
    layout: of all layers.
    read: (layer, path within it) -> array, of the shape and dtype laid out.
    notes: JSON fields that the manifest keeps.
    sha256: of a file that was written; None reads it for that.
  """
  os.makedirs(folder, exist_ok=True)
  for layer in range(layout.num_layers):
    with open(path_of(folder, layer), 'wb') as file:
      for path, place in layout.places.items():
        leaf = np.ascontiguousarray(read(layer, path), jnp.dtype(place.dtype))
        file.seek(place.offset)
        file.write(leaf.reshape(-1).view(np.uint8).data)
      file.truncate(layout.num_bytes)
      file.flush()
      os.fsync(file.fileno())
  manifest = {
    'version': VERSION,
    'num_layers': layout.num_layers,
    'num_bytes': layout.num_bytes,
    'places': {path: list(place) for path, place in layout.places.items()},
    'sha256': [
      (sha256 or files.sha256)(path_of(folder, i))
      for i in range(layout.num_layers)
    ],
    'notes': dict(notes),
  }
  part = os.path.join(folder, f'{MANIFEST}.part')
  with open(part, 'w') as file:
    json.dump(manifest, file, indent=1)
  os.replace(part, os.path.join(folder, MANIFEST))


def read_manifest(folder: str) -> Manifest:
  """Of a folder, whose files all have their size.

  Raises:
    ValueError: there is no such folder, or something is damaged.
  """
  where = os.path.join(folder, MANIFEST)
  found = files.read_json(where, AGAIN)
  wrong = _problem(found)
  if wrong:
    raise ValueError(f'{where!r}: {wrong}; {AGAIN}')
  places = {
    path: Place(offset, tuple(shape), dtype)
    for path, (offset, shape, dtype) in found['places'].items()
  }
  layout = Layout(places, found['num_bytes'], found['num_layers'])
  for layer in range(layout.num_layers):
    check_size(path_of(folder, layer), layout.num_bytes)
  return Manifest(layout, found['sha256'], found['notes'])


def check_size(path: str, num_bytes: int) -> None:
  """Raises ValueError if a file is missing or not of its size."""
  try:
    size = os.stat(path).st_size
  except OSError as error:
    raise ValueError(
      f'weights of a layer: {path!r} cannot be read ({error.strerror}); {AGAIN}'
    ) from None
  if size != num_bytes:
    raise ValueError(
      f'weights of a layer: {path!r} has {size:,} bytes, not {num_bytes:,}; '
      f'{AGAIN}'
    )


def _problem(found) -> str:
  """What is wrong with a manifest, '' for nothing."""
  if found.get('version') != VERSION:
    return f'version is {fields.shown(found.get("version"))}, not {VERSION}'
  most = 1 << 40
  for name, kind in (
    ('num_layers', fields.SIZE),
    ('num_bytes', fields.integers(PAGE, most)),
    ('places', fields.OBJECT),
    ('sha256', fields.TEXTS),
    ('notes', fields.OBJECT),
  ):
    if not kind.fits(found.get(name)):
      return fields.problem(name, found.get(name), kind)
  if found['num_bytes'] % PAGE:
    return f'num_bytes is {found["num_bytes"]}, no multiple of {PAGE}'
  if len(found['sha256']) != found['num_layers']:
    return f'sha256 is of {len(found["sha256"])} layers'
  for path, place in found['places'].items():
    if not _is_place(place, found['num_bytes']):
      return f'the place of {path!r} is {fields.shown(place)}'
  return ''


def _is_place(place, num_bytes) -> bool:
  """Whether it is [offset, shape, dtype] within a file."""
  if not (isinstance(place, list) and len(place) == 3):
    return False
  offset, shape, dtype = place
  is_one = (
    fields.COUNT.fits(offset) or (fields.is_integer(offset) and offset > 0)
  ) and fields.COUNTS.fits(shape)
  if not is_one or dtype not in ('float32', 'bfloat16', 'float16', 'int8'):
    return False
  end = offset + Place(offset, tuple(shape), dtype).num_bytes
  return offset % _ALIGNED == 0 and end <= num_bytes


class Reader:
  """Reads the files of layers into buffers; safe for one thread at a time."""

  def __init__(self, folder: str, layout: Layout, how: str = 'direct'):
    """Opens every file.

    Args:
      folder: of them.
      layout: of `read_manifest`.
      how: a name of `config.streaming.READS`; where files cannot be read
        directly, it becomes drop.

    Raises:
      ValueError: a file cannot be opened.
    """
    self.layout, self.how = layout, how
    self._paths = [path_of(folder, i) for i in range(layout.num_layers)]
    self._files = [self._open(path) for path in self._paths]

  def _open(self, path):
    if self.how == 'direct':
      try:
        return os.open(path, os.O_RDONLY | os.O_DIRECT)
      except (OSError, AttributeError):
        self.how = 'drop'  # a file system, or a machine, that has no such I/O
    try:
      return os.open(path, os.O_RDONLY)
    except OSError as error:
      raise ValueError(
        f'weights of a layer: {path!r} cannot be read ({error.strerror}); '
        f'{AGAIN}'
      ) from None

  def read(self, layer: int, buffer: memoryview) -> None:
    """The file of a layer, whole, into a buffer of its size.

    Raises:
      ValueError: it cannot be read, or ends early.
    """
    file, path, at = self._files[layer], self._paths[layer], 0
    try:
      while at < len(buffer):
        count = os.preadv(file, [buffer[at : at + _READ]], at)
        if count <= 0 or count % PAGE:
          at += max(count, 0)
          break
        at += count
      if self.how == 'drop':
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:
      raise ValueError(
        f'weights of layer {layer}: {path!r} cannot be read at byte {at:,} '
        f'({error.strerror}); what was decoded so far is left out'
      ) from error
    if at < len(buffer):
      raise ValueError(
        f'weights of layer {layer}: {path!r} ends at byte {at:,} of '
        f'{len(buffer):,}; {AGAIN}'
      )

  def close(self) -> None:
    """Closes the files; nothing can be read any more."""
    for file in self._files:
      os.close(file)
    self._files = []
