# SPDX-License-Identifier: Apache-2.0
"""Gin files, which may set fields of the config classes and nothing else.

Gin lets a file import any module and refer to any function, hence run any
program, and recipes are files that people pass around. Here a file is parsed
by gin's own grammar first; bindings of our classes, macros, literals and
includes are taken, anything else is refused before a thing is imported or
bound. `trusted` hands files to gin as they are.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import importlib
import os
import pkgutil
import tokenize
from typing import Any, NamedTuple

from absl import logging
import gin
from gin import config as gin_config, config_parser

import specstream_jax
from specstream_jax import config

MAX_FILES = 100
# Modules with config classes, beside those of the package `config`.
_OTHERS = ('mesh', 'partitioning')
_MACRO = ('macro', 'gin.macro')
_MOST_VALUES = 10_000  # that macros within macros may make
_MOST_NESTED = 64
_UNREADABLE = (
  SyntaxError,
  tokenize.TokenError,
  ValueError,
  TypeError,
  RecursionError,
  MemoryError,
  StopIteration,
)


class _Reference(NamedTuple):
  """`@name`, `@name()` or `%name` in a value; nothing is looked up yet."""

  name: str
  is_macro: bool
  is_call: bool

  def __str__(self) -> str:
    if self.is_macro:
      return f'%{self.name}'
    return f'@{self.name}' + ('()' if self.is_call else '')


class _Delegate(config_parser.ParserDelegate):
  """Leaves references as they are written."""

  def configurable_reference(self, scoped_configurable_name, evaluate):
    return _Reference(scoped_configurable_name, False, evaluate)

  def macro(self, macro_name):
    return _Reference(macro_name, True, True)


class _Binding(NamedTuple):
  place: str
  key: tuple[str, str, str]
  value: Any


@functools.cache
def classes() -> dict[str, type]:
  """The classes whose fields gin can bind, by name."""
  found = {}
  own = [f'config.{one.name}' for one in pkgutil.iter_modules(config.__path__)]
  for short in ('config', *own, *_OTHERS):
    module = f'{specstream_jax.__name__}.{short}'
    for name, value in vars(importlib.import_module(module)).items():
      if isinstance(value, type) and value.__module__ == module:
        found[name] = value
  return {name: found[name] for name in sorted(found) if _is_bindable(name)}


def _is_bindable(name: str) -> bool:
  try:
    return bool(gin.get_configurable(name))
  except ValueError:
    return False


def parse(
  files: Sequence[str], bindings: Sequence[str], *, trusted: bool = False
) -> None:
  """Applies gin files, then bindings.

  An `include` is looked for in the working directory, beside the file, and
  beside the files of the command line.

  Args:
    files: paths.
    bindings: `Class.field = value` each.
    trusted: files may import modules and refer to any function.

  Raises:
    ValueError: names file, line, what is wrong and what is accepted. Nothing
      has been bound then, unless `trusted`.
  """
  reader = _Reader([os.path.dirname(file) for file in files], trusted)
  for file in files:
    reader.read(file, f'--gin_file={file}')
  for binding in bindings:
    name = ' '.join(binding.partition(' = ')[0].split())
    reader.read_text(binding, f'--gin.{name}')
  if trusted:
    _parse_trusted(files, bindings)
    return
  reader.check_macros()
  for binding in reader.bindings:
    gin.bind_parameter(binding.key, _resolved(binding.value))
  for name in classes():
    _check_ends(name)
  gin.finalize()


def _parse_trusted(files: Sequence[str], bindings: Sequence[str]) -> None:
  """What gin makes of them, imports and all."""
  for file in files:
    gin.add_config_file_search_path(os.path.dirname(os.path.abspath(file)))
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.FATAL)  # gin logs every place it looked at
  try:
    gin.parse_config_files_and_bindings(list(files), list(bindings))
  except (OSError, AttributeError, ImportError, *_UNREADABLE) as error:
    text = str(error).splitlines()[0] if str(error) else repr(error)
    raise ValueError(f'{text}. {_accepted()}') from error
  finally:
    logging.set_verbosity(verbosity)


def _accepted() -> str:
  names = ', '.join(classes())
  return f'Configurable classes: {names}; a field is set as Class.field = value'


class _Reader:
  """Collects the bindings of files and of what they include."""

  def __init__(self, folders: Sequence[str], trusted: bool):
    self._folders, self._trusted = list(folders), trusted
    self._open: list[str] = []  # from the outermost file to the innermost
    self._num_files = 0
    self.bindings: list[_Binding] = []

  def read(self, path: str, place: str) -> None:
    """Reads a file; `place` is what asks for it."""
    self._check_open(path, place)
    if not os.path.isfile(path):
      raise ValueError(f'{place}: no such file')
    try:
      with open(path, encoding='utf-8') as file:
        text = file.read()
    except (OSError, UnicodeDecodeError) as error:
      problem = getattr(error, 'strerror', None) or 'not UTF-8 text'
      raise ValueError(f'{place}: {problem}') from error
    self._open.append(path)
    self.read_text(text, path)
    self._open.pop()

  def _check_open(self, path, place) -> None:
    """Raises ValueError for a circle, or more files than anyone writes."""
    self._num_files += 1
    real = [os.path.realpath(other) for other in self._open]
    if os.path.realpath(path) in real:
      start = real.index(os.path.realpath(path))
      circle = ' -> '.join([*self._open[start:], path])
      raise ValueError(
        f'{place}: files include each other, {circle}; remove one include'
      )
    if self._num_files > MAX_FILES:
      raise ValueError(
        f'{place}: includes come to more than {MAX_FILES} files; put their '
        'bindings into fewer'
      )

  def read_text(self, text: str, source: str) -> None:
    """Takes every statement of a file or of one binding."""
    for statement in _statements(text, source):
      line = statement.location.line_num
      place = f'{source}:{line}' if source in self._open else source
      if isinstance(statement, config_parser.IncludeStatement):
        self._include(statement.filename, source, place)
      elif not self._trusted:
        self._take(statement, place)

  def _include(self, name: str, source: str, place: str) -> None:
    beside = os.path.dirname(source) if source in self._open else ''
    folders = ['', beside, *self._folders]
    paths = dict.fromkeys(os.path.join(folder, name) for folder in folders)
    found = [path for path in paths if os.path.isfile(path)]
    if found:
      self.read(found[0], f'{place}: include {name!r}')
    elif not self._trusted:  # gin itself knows more places
      raise ValueError(
        f'{place}: include {name!r}: no such file; looked for '
        f'{", ".join(map(repr, paths))}'
      )

  def _take(self, statement, place: str) -> None:
    """Keeps a binding that is allowed."""
    if isinstance(statement, config_parser.ImportStatement):
      raise _refusal(place, statement.format())
    owner = _owner(statement, place)
    if isinstance(statement, config_parser.BlockDeclaration):
      return
    scope, selector, field, value, _ = statement
    for reference in _references(value):
      _check_reference(reference, place)
    if owner is None:  # a macro, `name = value` or `name/macro.value = value`
      name = '/'.join(filter(None, (scope, selector)))
      key = (scope if field else name, 'gin.macro', 'value')
    else:
      _check_field(owner, field, place)
      key = (scope, selector, field)
    self.bindings.append(_Binding(place, key, value))

  def check_macros(self) -> None:
    """Raises ValueError for `%name` without `name = value`."""
    known = {key[0] for _, key, _ in self.bindings if key[1] == 'gin.macro'}
    for place, _, value in self.bindings:
      for reference in filter(_is_macro, _references(value)):
        name = _macro_name(reference)
        if name not in known and not _is_constant(name):
          raise ValueError(
            f'{place}: %{name} has no value; write {name} = VALUE'
          )
    self._check_sizes()

  def _check_sizes(self) -> None:
    """Raises ValueError for macros that become huge once they are filled in.

    Gin copies a macro's value wherever it is named: 30 macros that name the one
    before twice are a billion values.
    """
    sizes = {key[0]: 1 for _, key, _ in self.bindings if key[1] == 'gin.macro'}
    for _ in range(_MOST_NESTED):
      for place, key, value in self.bindings:
        named = map(_macro_name, filter(_is_macro, _references(value)))
        size = 1 + sum(sizes.get(name, 1) for name in named)
        if size > _MOST_VALUES:
          raise ValueError(
            f'{place}: macros that name macros make more than '
            f'{_MOST_VALUES:,} values of it; write the value out'
          )
        if key[1] == 'gin.macro':
          sizes[key[0]] = size


def _statements(text: str, source: str) -> Iterator[Any]:
  """What gin's parser reads, each with its line.

  Raises:
    ValueError: it is not gin's grammar; names the line.
  """
  try:
    parser = config_parser.ConfigParser(text, _Delegate())
    while statement := parser.parse_statement():
      yield statement
  except _UNREADABLE as error:
    line = getattr(error, 'lineno', None)
    place = f'{source}:{line}' if line else source
    written = (getattr(error, 'text', None) or '').strip()
    raise ValueError(
      f'{place}: {f"{written!r} is " if written else ""}not gin: '
      f"{_why(error)}; accepted: Class.field = value, include 'FILE'"
    ) from error


def _why(error: BaseException) -> str:
  """What a parser's error says, in one line."""
  text = str(getattr(error, 'msg', None) or (error.args or [repr(error)])[0])
  if text.startswith('malformed node'):
    return 'a value is neither a literal such as 3 or False nor a quoted text'
  return text.splitlines()[0].rstrip('.')


def _owner(statement, place: str) -> type | None:
  """The class that a statement sets fields of; None for a macro's value.

  Raises:
    ValueError: it is none of ours.
  """
  selector = statement.selector
  field = getattr(statement, 'arg_name', None)
  if field == '' or (selector in _MACRO and field == 'value'):
    return None
  own = _own(selector)
  if own is None:
    written = f'{selector}.{field}' if field else selector
    if '.' in selector or _is_bindable(selector):
      raise _refusal(place, written)
    raise ValueError(f'{place}: there is no class {selector!r}. {_accepted()}')
  return own


def _own(selector: str) -> type | None:
  """The class of ours that a selector names."""
  try:
    found = gin.get_configurable(selector)
  except (ValueError, KeyError):  # unknown, or of several
    return None
  return next((cls for cls in classes().values() if cls is found), None)


def _check_field(owner: type, field: str, place: str) -> None:
  names = [f.name for f in dataclasses.fields(owner)]
  if field not in names:
    raise ValueError(
      f'{place}: {owner.__name__} has no field {field!r}; accepted: '
      f'{", ".join(names)}'
    )


def _check_reference(reference: _Reference, place: str) -> None:
  """Raises ValueError unless it is a macro or one of our classes."""
  if _is_macro(reference) or _own(reference.name.rpartition('/')[2]):
    return
  raise _refusal(place, str(reference))


def _is_macro(reference: _Reference) -> bool:
  is_spelt_out = reference.name.rpartition('/')[2] in _MACRO
  return reference.is_macro or (is_spelt_out and reference.is_call)


def _macro_name(reference: _Reference) -> str:
  """The name that a macro was given, however it is referred to."""
  return reference.name.removesuffix('/macro').removesuffix('/gin.macro')


def _is_constant(name: str) -> bool:
  resolved = gin_config.ParserDelegate().macro(name)
  return resolved.selector == 'gin.constant'


def _refusal(place: str, written: str) -> ValueError:
  return ValueError(
    f'{place}: {written!r} is not allowed, as it could run any program; '
    'accepted: fields of the config classes, macros, literals, include. '
    '--trust_gin lets gin files do all that gin can; give it for files that '
    'you trust as you trust a program'
  )


def _references(value: Any) -> Iterator[_Reference]:
  """Every reference within a value."""
  if isinstance(value, _Reference):
    yield value
  elif isinstance(value, dict):
    for pair in value.items():
      yield from _references(pair)
  elif isinstance(value, list | tuple):
    for member in value:
      yield from _references(member)


def _resolved(value: Any) -> Any:
  """The value with gin's references in place of ours."""
  delegate = gin_config.ParserDelegate()
  if isinstance(value, _Reference):
    if value.is_macro:
      return delegate.macro(value.name)
    return delegate.configurable_reference(value.name, value.is_call)
  if isinstance(value, dict):
    return {_resolved(k): _resolved(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return type(value)(map(_resolved, value))
  return value


def _check_ends(name: str) -> None:
  """Raises ValueError for a value that leads back to itself."""
  try:
    gin.get_bindings(name)
  except RecursionError:
    raise ValueError(
      f'a value of {name} leads back to itself through macros or references; '
      'give one of them a literal'
    ) from None
  except ValueError:
    pass  # Told where the value is used, if it is.
