# SPDX-License-Identifier: Apache-2.0
"""Flags that name a task, for every command that takes one."""

from absl import flags

from specstream_jax import config
from specstream_jax.data import registry, task_modules


def define(*, default: str, about: str = 'Task') -> None:
  """Declares --task and --task_module.

  Args:
    default: task without the flag and without gin; '' is none.
    about: what it is for.
  """
  otherwise = f' Default: {default}.' if default else ''
  flags.DEFINE_string(
    'task',
    None,
    f'{about}: {", ".join(registry.names())}, or seqio:NAME; TaskConfig.name.'
    + otherwise,
  )
  define_module()


def define_module() -> None:
  """Declares --task_module, which `load_modules` reads."""
  flags.DEFINE_multi_string(
    'task_module',
    [],
    'Module that registers seqio tasks when it is imported, such as my.tasks; '
    'may be repeated. It is a program: one that you trust.',
  )


def load_modules() -> None:
  """Imports --task_module, in commands that have it."""
  if 'task_module' in flags.FLAGS:
    task_modules.load(flags.FLAGS.task_module)


def name(*, default: str = '') -> str:
  """The task: flag before gin before default."""
  return flags.FLAGS.task or config.TaskConfig().name or default
