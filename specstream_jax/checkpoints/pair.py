# SPDX-License-Identifier: Apache-2.0
"""A safetensors file and the JSON that tells what it is, bound by a hash.

Adapters, Medusa heads and DART layers lie on disk this way.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import functools
import os
from typing import Any, NamedTuple, TypeVar, cast

import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors_numpy

from specstream_jax.checkpoints import fields as fields_lib, files, tensor_files
from specstream_jax.config import checks

DTYPES = ('bfloat16', 'float16', 'float32')
_DIGEST = 'weights_sha256'
_Config = TypeVar('_Config')


class Kind(NamedTuple):
  """What such a pair is called.

  Attributes:
    noun: of what it holds, in the singular.
    weights: name of the safetensors file.
    config: name of the JSON file.
    version: format version that is read and written.
    command: what makes one.
  """

  noun: str
  weights: str
  config: str
  version: int
  command: str

  def is_in(self, folder: str | os.PathLike) -> bool:
    """True if the folder holds one."""
    return os.path.isfile(os.path.join(folder, self.config))

  def below(self, folder: str) -> str:
    """The first folder in one, such as a run's, that holds one; '' without."""
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    paths = (os.path.join(folder, name) for name in names)
    return next(filter(self.is_in, paths), '')


def write(
  folder: str | os.PathLike,
  kind: Kind,
  tensors: Mapping[str, np.ndarray],
  fields: Mapping[str, Any],
) -> None:
  """Writes both files; if that fails, those that were there stay whole.

  Raises:
    ValueError: the disk is full, or the folder cannot be written.
  """
  files.write_all(os.fspath(folder), writers(kind, tensors, fields))


def save(
  folder: str | os.PathLike,
  kind: Kind,
  flat: Mapping[str, Any],
  cfg: Any,
  dtype: str,
) -> None:
  """Writes weights by path as `dtype`, a name of `DTYPES`, and a config.

  Raises:
    ValueError: an unknown dtype, a full disk, or no right to write.
  """
  checks.one_of('dtype', dtype, DTYPES)
  tensors = {
    path: np.ascontiguousarray(leaf, dtype=jnp.dtype(dtype))
    for path, leaf in sorted(flat.items())
  }
  write(folder, kind, tensors, dataclasses.asdict(cfg))


def writers(
  kind: Kind, tensors: Mapping[str, np.ndarray], fields: Mapping[str, Any]
) -> dict[str, Callable[[str], None]]:
  """What writes each of both files, for `files.write_all`."""
  content = safetensors_numpy.save(dict(tensors))
  fields = {**fields, _DIGEST: files.sha256_of(content)}
  return {
    kind.weights: functools.partial(files.write_bytes, content=content),
    kind.config: functools.partial(files.write_json, value=fields),
  }


def read_fields(
  folder: str,
  kind: Kind,
  expected: set[str],
  optional: frozenset[str] = frozenset(),
) -> tuple[dict[str, Any], str]:
  """The JSON fields, and the sha256 of the weights they belong to.

  Args:
    folder: that holds the pair.
    kind: of it.
    expected: names of all fields.
    optional: those among them that older files lack.

  Raises:
    ValueError: no such file, another version, or missing or unknown fields.
  """
  if not kind.is_in(folder):
    below = kind.below(folder)
    fix = f'name {below!r}' if below else f'make one with `{kind.command}`'
    raise ValueError(
      f'{folder!r} holds no {kind.noun}: it has no {kind.config}; {fix}'
    )
  fields = files.read_json(os.path.join(folder, kind.config))
  version = fields.get('format_version')
  if version != kind.version:
    raise ValueError(
      f'{kind.noun} {folder!r}: format_version {fields_lib.shown(version)}; accepted: '
      f'{kind.version}; use the release that wrote it'
    )
  digest = fields.pop(_DIGEST, None)
  if problem := fields_lib.problem(_DIGEST, digest, fields_lib.TEXT):
    raise ValueError(f'{kind.noun} {folder!r}: {kind.config}: {problem}')
  if not expected - optional <= set(fields) <= expected:
    raise ValueError(
      f'{kind.noun} {folder!r}: {kind.config} lacks '
      f'{sorted(expected - optional - set(fields))} and has unknown '
      f'{sorted(set(fields) - expected)}; save it again'
    )
  return fields, digest


def load_config(
  folder: str, kind: Kind, of: type[_Config]
) -> tuple[_Config, str]:
  """The config, a dataclass, and the sha256 of the weights it belongs to.

  Raises:
    ValueError: see `read_fields`, or a field that the config refuses.
  """
  fields, digest = read_fields(
    folder, kind, {field.name for field in dataclasses.fields(cast(Any, of))}
  )
  with naming(folder, kind):
    return of(**fields), digest


@contextlib.contextmanager
def naming(folder: str, kind: Kind) -> Iterator[None]:
  """Puts the file's name before what is wrong with a field of it."""
  try:
    yield
  except ValueError as error:
    raise ValueError(
      f'{kind.noun} {folder!r}: {kind.config}: {checks.message(error)}'
    ) from error


def read_tensors(folder: str, kind: Kind, digest: str) -> dict[str, np.ndarray]:
  """The weights by flat path.

  Raises:
    ValueError: the file is missing, damaged, or not the one of this digest.
  """
  path = os.path.join(folder, kind.weights)
  if not os.path.isfile(path):
    raise ValueError(
      f'{kind.noun} {folder!r} has no {kind.weights}; save it again'
    )
  if files.sha256(path) != digest:
    raise ValueError(
      f'{kind.noun} {folder!r}: {kind.weights} ({os.path.getsize(path):,} bytes)'
      f' is not the file that {kind.config} was written with; copy or save both '
      'again'
    )
  return tensor_files.read(path, 'save it again')[0]
