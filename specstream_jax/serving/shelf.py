# SPDX-License-Identifier: Apache-2.0
"""Adapters that requests may load and unload while the server runs.

Those that it was started with, and those below one folder. Nothing outside is
read, whatever a path or a link says, and no answer says where the folder is.
"""

from collections.abc import Callable, Mapping
import errno
import os
import re
import stat
import threading
from typing import Any

from specstream_jax.checkpoints import fitted
from specstream_jax.config import checks
from specstream_jax.serving import bodies, engine as engine_lib

_NAME = re.compile(r'\w[\w.:@/+-]{0,99}')


class Shelf:
  """Where adapters lie, and how they get on and off an engine."""

  def __init__(
    self,
    read: Callable[[str], fitted.Fitted],
    given: Mapping[str, str],
    root: str = '',
  ):
    """Reads nothing yet.

    Args:
      read: the adapter of a path; ValueError if there is none that fits.
      given: path by name, of those that the server was started with.
      root: folder whose folders may be loaded; '' is none.
    """
    self._read, self._given = read, dict(given)
    self._root = os.path.realpath(root) if root else ''
    self._lock = threading.Lock()  # one change at a time

  def load(
    self, body: Mapping[str, Any], engine: engine_lib.Engine, base: str
  ) -> str:
    """Serves the adapter `lora_name` of `lora_path`; what to say of it.

    Args:
      body: JSON of the request.
      engine: what serves it.
      base: name of the base in the API, which no adapter can have.

    Raises:
      ApiError: there is none that may be loaded, or it does not fit.
    """
    bodies.check_names(body, {'lora_name', 'lora_path', 'load_inplace'})
    name = _text(body, 'lora_name')
    if not _NAME.fullmatch(name) or name == base:
      raise _refused(
        f'lora_name is {name[:80]!r}; accepted: up to 100 letters, digits and '
        f'any of _.:@/+-, but not {base!r}, which is the base',
        'lora_name',
      )
    path = self._path(body, name)
    with self._lock:
      is_new = not bodies.flag(body, 'load_inplace', False)
      if is_new and name in engine.adapters:
        raise _refused(
          f'adapter {name!r} is loaded already; unload it first, or say '
          'load_inplace',
          'lora_name',
        )
      self._load(engine, name, path)
    return f'Success: LoRA adapter {name!r} added successfully.'

  def unload(
    self, body: Mapping[str, Any], engine: engine_lib.Engine, base: str
  ) -> str:
    """Serves the adapter `lora_name` no more; arguments as of `load`.

    Raises:
      ApiError: there is no such adapter.
    """
    del base
    bodies.check_names(body, {'lora_name'})
    name = _text(body, 'lora_name')
    with self._lock:
      if name not in engine.adapters:
        raise _missing(f'there is no adapter {name[:80]!r} to unload')
      bodies.naming('lora_name')(lambda: engine.unload_adapter(name))
    return f'Success: LoRA adapter {name!r} removed successfully.'

  def _path(self, body, name) -> str:
    """What `lora_path` means: one that was given, or one below the root."""
    given = self._given.get(name)
    if given and body.get('lora_path') in (None, given):
      return given
    path = _text(body, 'lora_path')
    if self._root and '\0' not in path:
      real = os.path.realpath(os.path.join(self._root, path))
      if _is_below(real, self._root) and os.path.isdir(real):
        self._check_files(real)
        return real
    where = 'below --adapter_root' if self._root else 'as there is no root'
    raise _missing(
      f'there is no adapter folder {path[:80]!r} {where}; and only those may be '
      'loaded, or, by their names, those that the server was started with',
      'lora_path',
    )

  def _check_files(self, folder) -> None:
    """Raises ApiError unless all lies below the root, and can be read."""
    for name in os.listdir(folder):
      real = os.path.realpath(os.path.join(folder, name))
      kind = os.stat(real).st_mode if os.path.exists(real) else 0
      is_file = stat.S_ISREG(kind) or stat.S_ISDIR(kind)
      if not (_is_below(real, self._root) and is_file):
        raise _missing(
          f'{name[:80]!r} of the adapter is no file below --adapter_root',
          'lora_path',
        )

  def _load(self, engine, name, path) -> None:
    """Errors name the adapter instead of its place."""
    try:
      engine.load_adapter(name, self._read(path))
    except OSError as error:
      reason = os.strerror(error.errno or errno.EIO)
      raise _refused(
        f'adapter {name!r} cannot be read ({reason})', 'lora_path'
      ) from error
    except ValueError as error:
      text = checks.message(error)
      for place, said in ((path, name), (self._root, '')):
        for spelled in (place, repr(place)[1:-1]) if place else ():
          text = text.replace(spelled, said)
      raise _refused(bodies.public(ValueError(text)), 'lora_path') from error


def _is_below(path: str, root: str) -> bool:
  """Whether a real path is inside a real folder."""
  return path != root and os.path.commonpath((path, root)) == root


def _text(body: Mapping[str, Any], name: str) -> str:
  value = bodies.need(body, name)
  if not isinstance(value, str) or not value:
    raise _refused(f'{name} is {value!r:.80}; accepted: a text', name)
  return value


def _refused(message: str, param: str) -> bodies.ApiError:
  return bodies.ApiError(400, message, param=param)


def _missing(message: str, param: str = 'lora_name') -> bodies.ApiError:
  return bodies.ApiError(404, message, kind='not_found_error', param=param)
