# SPDX-License-Identifier: Apache-2.0
"""`specstream COMMAND [flags]`: picks the command, reads flags and gin."""

import ast
from collections.abc import Callable, Sequence
import difflib
import functools
import importlib
import os
import re
import sys
from typing import NoReturn

from absl import app, flags, logging
import gin
import jax

import specstream_jax
from specstream_jax import processes
from specstream_jax.cli import (
  allocation,
  exits,
  gin_files,
  help_texts,
  recipes,
  task_flags,
)

COMMANDS = help_texts.COMMANDS
# Commands that several processes run as one job.
_DISTRIBUTED = ('train',)
_HELP = {'--help', '-help', '-h', '--helpfull', '-?', '--helpshort'}
# What Python says of a value of the wrong kind, and what it should be.
_KINDS = {
  'invalid literal for int': 'a whole number',
  'could not convert string to float': 'a number',
  'Exceeds the limit': 'a whole number',
  r"\('Non-boolean argument": 'true or false',
}
_DEFAULT_CACHE = os.path.join('~', '.cache', 'specstream', 'xla')


def split_gin(args: Sequence[str]) -> tuple[list[str], list[str]]:
  """Separates `--gin.X.y=z` arguments from the rest, as gin bindings.

  Raises:
    ValueError: such an argument has no value.
  """
  rest, bindings = [], []
  for arg in args:
    name, equals, value = arg.removeprefix('--').partition('=')
    if not (arg.startswith('--gin.') and '.' in name):
      rest.append(arg)
    elif not equals:
      raise ValueError(f'{arg} has no value; write {arg}=VALUE')
    else:
      bindings.append(f'{name.removeprefix("gin.")} = {_literal(value)}')
  return rest, bindings


def _literal(value: str) -> str:
  """`value` as gin reads it: what is no Python literal becomes a string."""
  if value[:1] in ('@', '%'):  # gin's references and macros
    return value
  try:
    ast.literal_eval(value)
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    return repr(value)
  return value


def parse_gin(
  files: Sequence[str], bindings: Sequence[str], *, trusted: bool = False
) -> None:
  """Applies gin files, then bindings; see `gin_files.parse`.

  Raises:
    ValueError: a file is missing, or says what it may not.
  """
  try:
    gin_files.parse(files, bindings, trusted=trusted)
  except ValueError as error:
    raise ValueError(f'gin: {error}') from error


def define_common_flags() -> None:
  """Flags that every command has."""
  flags.DEFINE_multi_string(
    'gin_file',
    [],
    'gin file of config fields, macros and includes; may be repeated.',
  )
  flags.DEFINE_bool(
    'trust_gin',
    False,
    'Let gin files and --gin bindings import modules and refer to any function. '
    'They can run any program then: for files you trust like a program.',
  )
  flags.DEFINE_multi_string(
    'recipe',
    [],
    'Recipe that comes with the package, read before gin files; may be '
    'repeated. `specstream --help` lists them.',
  )
  flags.DEFINE_string(
    'compilation_cache',
    os.environ.get('SPECSTREAM_COMPILATION_CACHE', _DEFAULT_CACHE),
    "Folder of JAX's persistent compilation cache; empty switches it off.",
  )
  flags.DEFINE_string(
    'coordinator',
    '',
    'HOST:PORT of process 0, in a job of several processes; auto asks the '
    'cluster (TPU metadata, SLURM, Open MPI), as several SLURM or Open MPI '
    'tasks do by themselves.',
  )
  flags.DEFINE_integer('num_processes', 0, 'Processes of the job.')
  flags.DEFINE_integer('process_id', -1, 'Number of this process.')
  flags.DEFINE_integer(
    'join_timeout', 300, 'Seconds to wait for the other processes.'
  )
  flags.DEFINE_bool('debug', False, 'Show the stack trace of an error.')


def _use_compilation_cache(folder: str) -> None:
  if folder:
    folder = os.path.expanduser(folder)
    jax.config.update('jax_compilation_cache_dir', folder)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 1.0)


def run(argv: Sequence[str] | None = None) -> None:
  """Entry point of the `specstream` program."""
  args = list(sys.argv[1:] if argv is None else argv)
  given = ['specstream', *args]
  if not args or args[0] in ('-h', '--help', 'help'):
    _show_help(help_texts.usage())
  if args[0] == '--version':
    _show_help(f'specstream_jax {specstream_jax.__version__}')
  name = args.pop(0)
  if name not in COMMANDS:
    near = difflib.get_close_matches(name, COMMANDS, 1)
    meant = (
      f'; did you mean {near[0]!r}?' if near else f'\n\n{help_texts.usage()}'
    )
    print(f'specstream: unknown command {name!r}{meant}', file=sys.stderr)
    raise SystemExit(2)
  try:
    args, bindings = split_gin(args)
  except ValueError as error:
    print(f'specstream {name}: {error}', file=sys.stderr)
    raise SystemExit(2) from None
  if not sys.stderr.isatty():  # a log wants no ten lines a second
    os.environ.setdefault('TQDM_MININTERVAL', '10')
  command = importlib.import_module(f'specstream_jax.cli.{name}')
  own = _defined_by(command.define_flags)
  common = _defined_by(define_common_flags)
  if wanted := _HELP & set(args):
    sections = {'flags': own, 'flags of every command': common}
    if '--helpfull' in wanted:
      known = {*own, *common}
      rest = sorted(set(flags.FLAGS) - known)
      sections['flags of the libraries'] = rest
    more = getattr(command, 'more_help', str)()
    about = command.__doc__ or ''
    _show_help(help_texts.command_usage(name, about, sections, more))
  if argv is None and getattr(command, 'TRAINS', False):
    allocation.settle()

  def main(remaining: Sequence[str]) -> int:
    return _guarded(name, command, remaining, bindings)

  # What results say they were made with.
  sys.argv[:] = given
  app.run(
    main,
    argv=[f'specstream {name}', *args],
    flags_parser=functools.partial(_parse_flags, name),
  )


def _parse_flags(name: str, args: Sequence[str]) -> list[str]:
  """What the flags leave over; a mistake in them becomes one line."""
  try:
    return flags.FLAGS(args)
  except flags.Error as error:
    text = re.sub(r'(\S{80})\S+', r'\1…:', ' '.join(str(error).split()))
    for told, accepted in _KINDS.items():
      text = re.sub(f': {told}.*', f': accepted: {accepted}', text)
    print(
      f'specstream {name}: {text}; specstream {name} --help lists the flags',
      file=sys.stderr,
    )
    raise SystemExit(2) from None


def _show_help(text: str) -> NoReturn:
  """Prints it and leaves; `--help | head` is not an error."""
  try:
    print(text, flush=True)
  except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  raise SystemExit(0)


def _defined_by(define: Callable[[], None]) -> list[str]:
  """Names of the flags that a function defines."""
  before = set(flags.FLAGS)
  define()
  return sorted(set(flags.FLAGS) - before)


def _guarded(name, command, remaining, bindings):
  """Runs the command; a user's mistake becomes one line and exit status 1."""
  logging.set_verbosity(logging.WARNING)
  try:
    if remaining[1:] and not getattr(command, 'TAKES_NAMES', False):
      raise ValueError(
        f'does not take {" ".join(map(repr, remaining[1:]))}; flags begin '
        'with --'
      )
    args = flags.FLAGS
    files = [*recipes.paths(args.recipe), *args.gin_file]
    parse_gin(files, bindings, trusted=args.trust_gin)
    _use_compilation_cache(args.compilation_cache)
    if name in _DISTRIBUTED:
      processes.initialize(
        args.coordinator, args.num_processes, args.process_id, args.join_timeout
      )
    else:  # those save on SIGTERM by themselves, and all processes agree on it
      exits.on_sigterm()
    task_flags.load_modules()
    _say_where(getattr(command, 'RESULTS', ''))
    status = command.main(remaining) or 0
    sys.stdout.flush()
    _warn_of_unused(bindings)
    return status
  except exits.CAUGHT as error:
    if flags.FLAGS.debug:
      raise
    return exits.report(name, error)


def _say_where(flag: str) -> None:
  """Names the folder or file that a command is going to fill."""
  value = getattr(flags.FLAGS, flag) if flag else None
  is_dry = 'dry_run' in flags.FLAGS and flags.FLAGS.dry_run
  if value and not is_dry and processes.is_main():
    print(f'results will be in {value}', file=sys.stderr, flush=True)


def _warn_of_unused(bindings: Sequence[str]) -> None:
  """Names the command line's gin bindings that nothing read."""
  used = {
    line.partition(' = ')[0] for line in gin.operative_config_str().splitlines()
  }
  names = [binding.partition(' = ')[0] for binding in bindings]
  unused = [name for name in names if name not in used]
  if unused:
    print(
      f'note: this command does not read {", ".join(unused)}', file=sys.stderr
    )


if __name__ == '__main__':
  run()
