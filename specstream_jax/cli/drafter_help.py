# SPDX-License-Identifier: Apache-2.0
"""Every drafter with the settings that it reads, from the config classes."""

import dataclasses
import inspect
import re
import textwrap
from typing import Any

from specstream_jax import config
from specstream_jax.config import drafting

_ATTRIBUTE = re.compile(r'(\w+): (.*)', re.DOTALL)


def text() -> str:
  """Drafters, their settings with defaults, and what the settings mean."""
  lines = ['drafters, with the settings that each reads:']
  used: dict[str, str] = {}
  for name, cls in drafting.known().items():
    reads = [n for n in cls(name=name).reads() if n != 'tree']
    defaults = {f.name: f.default for f in dataclasses.fields(cls)}
    shown = ', '.join(f'{n}={_shown(defaults[n])}' for n in reads)
    if 'tree' in cls(name=name).reads():
      shown += ', and those of a tree'
    lines += _item(name, shown or 'no settings')
    about = attributes(cls)
    used |= {n: about.get(n, '') for n in reads}
  lines += ['', 'settings:']
  for name, about in used.items():
    lines += _item(name, about)
  lines += ['', 'settings of a tree:']
  about, tree = attributes(config.TreeConfig), config.TreeConfig()
  for field in dataclasses.fields(tree):
    if field.name != 'choices':  # a file's
      value = _shown(getattr(tree, field.name))
      lines += _item(f'{field.name}={value}', about[field.name])
  return '\n'.join(lines)


def _shown(value: Any) -> str:
  return str(value) if value != '' else "''"


def _item(name: str, about: str) -> list[str]:
  return textwrap.wrap(
    f'{name}: {about}',
    width=78,
    initial_indent='  ',
    subsequent_indent='      ',
    break_on_hyphens=False,
  )


def attributes(cls: type) -> dict[str, str]:
  """What a class's docstring says of each of its fields, in one line each."""
  whole = inspect.getdoc(cls) or ''
  listed = whole.partition('Attributes:\n')[2]
  found = {}
  for item in re.split(r'\n  (?=\w+: )', '\n' + listed):
    if match := _ATTRIBUTE.match(item.strip()):
      found[match[1]] = ' '.join(match[2].split()).replace('`', '')
  return found
