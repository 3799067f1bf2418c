# SPDX-License-Identifier: Apache-2.0
"""Reference pages written from the program itself: commands and gin fields."""

from collections.abc import Iterator
import dataclasses
import importlib
import inspect
import pathlib

from absl import flags

from specstream_jax.cli import (
  command_flags,
  completion,
  drafter_help,
  gin_files,
  help_texts,
  main,
  recipes,
)

_PLAIN = {'str': 'text', 'int': 'whole number', 'bool': 'true or false'}


def commands() -> str:
  """The page of all commands: what each does, its flags, their defaults."""
  lines = ['# Commands', '']
  lines.append(
    'Written from the program. A switch `--x` is turned off with `--nox`; '
    '`--gin.Class.field=value` sets any [config field](config.md).'
  )
  for group, names in help_texts.GROUPS.items():
    lines += ['', f'**To {group}**', '']
    lines += [
      f'- [`{name}`](#{name}): {help_texts.COMMANDS[name]}' for name in names
    ]
  for names in help_texts.GROUPS.values():
    for name in names:
      lines += _command(name)
  lines += ['', '## Flags of every command', '']
  lines += _flags(command_flags.defined_by(main.define_common_flags))
  return '\n'.join([*lines, ''])


def _command(name: str) -> Iterator[str]:
  module = importlib.import_module(f'specstream_jax.cli.{name}')
  yield from ('', f'## {name}', '')
  yield from ('```text', (module.__doc__ or '').strip(), '```')
  own = command_flags.of(name)
  if own:
    yield from ('', *_flags(own))
  more = getattr(module, 'more_help', str)()
  if more:
    yield from ('', '```text', more.strip(), '```')


def _flags(own: dict[str, flags.Flag]) -> Iterator[str]:
  yield from ('| flag | meaning |', '|---|---|')
  for flag in own.values():
    about = help_texts.summary(flag)
    if isinstance(flag, flags.EnumFlag):
      about += f' One of {", ".join(map(str, flag.parser.enum_values))}.'
    yield f'| `{completion.typed(flag)}` | {_cell(about)} |'


def fields() -> str:
  """The page of all config classes, their fields, defaults and meanings."""
  lines = ['# Config fields', '']
  lines.append(
    'Written from the config classes. Set a field on the command line with '
    '`--gin.StreamConfig.num_streams=3`, or in a gin file: '
    '`StreamConfig.num_streams = 3`. Flags come before gin, gin before the '
    'defaults here. A command ignores classes that it does not use, and says '
    'so.'
  )
  for name, cls in gin_files.classes().items():
    lines += ['', f'## {name}', '', _summary(cls), '']
    lines += ['| field | kind | default | meaning |', '|---|---|---|---|']
    lines += _rows(cls)
  lines += ['', '## Recipes', '']
  lines.append('Gin files that come with the package, for `--recipe=NAME`.')
  lines += ['', '| recipe | for |', '|---|---|']
  for name, path in zip(recipes.names(), recipes.paths(recipes.names())):
    lines.append(f'| `{name}` | {_cell(_first_comment(path))} |')
  return '\n'.join([*lines, ''])


def _summary(cls: type) -> str:
  """What stands above the list of fields in a class's docstring."""
  return (inspect.getdoc(cls) or '').partition('\n\nAttributes:')[0]


def _rows(cls: type) -> Iterator[str]:
  about = drafter_help.attributes(cls)
  for field in dataclasses.fields(cls):
    kind = str(getattr(field.type, '__name__', field.type))
    default = (
      'none' if field.default is dataclasses.MISSING else repr(field.default)
    )
    yield (
      f'| `{field.name}` | {_cell(_PLAIN.get(kind, kind))} | '
      f'{_cell(default)} | {_cell(about.get(field.name, ""))} |'
    )


def _first_comment(path: str) -> str:
  """The first sentence or so of a gin file's opening comment."""
  lines = pathlib.Path(path).read_text().splitlines()
  said = []
  for line in lines:
    if not line.startswith('#'):
      break
    said.append(line.lstrip('# '))
  return ' '.join(said)


def _cell(text: str) -> str:
  """Text that may stand in a table, with nothing in it read as markup."""
  for sign, kept in (('|', '&#124;'), ('<', '&lt;'), ('*', '&#42;')):
    text = text.replace(sign, kept)
  return text.replace('_', '&#95;')
