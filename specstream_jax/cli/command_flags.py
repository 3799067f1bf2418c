# SPDX-License-Identifier: Apache-2.0
"""The flags of every command, without running one."""

from collections.abc import Callable
import importlib

from absl import flags


def of(name: str) -> dict[str, flags.Flag]:
  """The flags of a command's own, by name.

  Args:
    name: of the command, as in `help_texts.COMMANDS`.
  """
  command = importlib.import_module(f'specstream_jax.cli.{name}')
  return defined_by(command.define_flags)


def defined_by(define: Callable[[], None]) -> dict[str, flags.Flag]:
  """The flags that a function defines, which are forgotten again.

  Flags are global to a process, and commands share names.
  """
  before = set(flags.FLAGS)
  define()
  own = {name: flags.FLAGS[name] for name in set(flags.FLAGS) - before}
  for name in own:
    delattr(flags.FLAGS, name)
  return dict(sorted(own.items()))
