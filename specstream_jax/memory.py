# SPDX-License-Identifier: Apache-2.0
"""Memory of the device: what is free, what is too much, said before it runs.

On a CPU the kernel ends a process that takes too much without a word, so what
is certain not to fit is refused.
"""

import pathlib
import re
from typing import Any

from absl import logging
import jax

_CGROUP = pathlib.Path('/sys/fs/cgroup')
_MEMINFO = pathlib.Path('/proc/meminfo')
_ASKED = re.compile(r'allocat\w*\D{0,40}?([\d.]+ ?(?:bytes|[KMGT]i?B))')


class OutOfMemoryError(ValueError):
  """Something does not fit into memory."""


def check(
  what: str, num_bytes: int, smaller: str, *, num_devices: int = 1
) -> None:
  """Raises OutOfMemoryError if `num_bytes` more do not fit.

  Args:
    what: takes them, in the plural.
    num_bytes: at least, over all devices.
    smaller: what makes it less.
    num_devices: that share them; those of a CPU have one memory.
  """
  device = jax.local_devices()[0]
  if device.platform != 'cpu':
    num_bytes //= num_devices
  free = available(device)
  if free is not None and num_bytes > free:
    raise OutOfMemoryError(
      f'{what} take {size(num_bytes)}, and {size(free)} are free on '
      f'{device.device_kind}; {smaller}'
    )


def warn(
  what: str, num_bytes: int, smaller: str, *, num_devices: int = 1
) -> None:
  """Warns if an estimate is more than is free; arguments as for `check`."""
  try:
    check(what, num_bytes, smaller, num_devices=num_devices)
  except OutOfMemoryError as error:
    logging.warning('by an estimate %s', error)


def available(device: Any) -> int | None:
  """Free bytes of a device, or of this machine's part for us; None: unknown."""
  if device.platform == 'cpu':
    found = [_of_machine(), _of_container()]
    return min((x for x in found if x is not None), default=None)
  stats = device.memory_stats() or {}
  if 'bytes_limit' not in stats:
    return None
  return stats['bytes_limit'] - stats.get('bytes_in_use', 0)


def explain(error: BaseException) -> str | None:
  """What an error says of memory, and what there is; None if it is another."""
  text = str(error).strip()
  is_own = isinstance(error, OutOfMemoryError)
  is_other = isinstance(error, MemoryError) or (
    'RESOURCE_EXHAUSTED' in text and 'memory' in text.lower()
  )
  if is_own or not is_other:
    return text if is_own else None
  found = _ASKED.search(text)
  asked = f'{_readable(found[1])} more were asked for' if found else text[:200]
  device = jax.local_devices()[0]
  free = available(device)
  there_is = '' if free is None else f', {size(free)} are free'
  return f'out of memory on {device.device_kind}: {asked}{there_is}'


def size(num_bytes: int) -> str:
  """'1.5 GB'; three digits are enough."""
  for unit, scale in (('TB', 1e12), ('GB', 1e9), ('MB', 1e6)):
    if num_bytes >= scale:
      return f'{num_bytes / scale:,.1f} {unit}'
  return f'{num_bytes / 1e3:,.1f} kB'


def _readable(amount: str) -> str:
  number = amount.removesuffix('bytes').strip()
  return size(int(number)) if number.isdecimal() else amount


def _of_machine() -> int | None:
  """Bytes that can be had without ending anybody's process."""
  if not _MEMINFO.is_file():
    return None
  fields = dict(line.split(':') for line in _MEMINFO.read_text().splitlines())
  names = ('MemAvailable', 'SwapFree')
  kilobytes = [int(fields.get(name, '0').split()[0]) for name in names]
  return 1024 * sum(kilobytes) or None


def _of_container() -> int | None:
  """Bytes that the limit of this container leaves."""
  try:
    limit = (_CGROUP / 'memory.max').read_text().strip()
    used = (_CGROUP / 'memory.current').read_text()
    cache = re.search(
      r'^inactive_file (\d+)', (_CGROUP / 'memory.stat').read_text(), re.M
    )
  except OSError:
    return None
  if not limit.isdecimal():  # 'max': none
    return None
  return int(limit) - int(used) + (int(cache[1]) if cache else 0)
