# SPDX-License-Identifier: Apache-2.0
"""Modules of a user that register seqio tasks when they are imported."""

from collections.abc import Iterable
import importlib
import os
import sys

from specstream_jax.data import quiet

SEQIO = 'seqio:'
# Distributions of the extra `data`.
_OF_THE_EXTRA = {
  'seqio',
  'tensorflow',
  'tensorflow_datasets',
  'tensorflow_text',
  'importlib_resources',
  'sentencepiece',
}
INSTALL = "pip install 'specstream-jax[data]'"


def load(names: Iterable[str]) -> None:
  """Imports modules, from the working directory too.

  Args:
    names: such as `my.tasks`.

  Raises:
    ValueError: one is not found or cannot be imported.
  """
  folder = os.getcwd()
  if folder not in sys.path:
    sys.path.insert(0, folder)
  for name in names:
    try:
      with quiet.filtered():
        importlib.import_module(name)
    except ImportError as error:
      raise ValueError(_missing(name, error, folder)) from error
    except Exception as error:  # It is the user's program.
      raise ValueError(
        f'--task_module={name} cannot be imported: {said(error)}; '
        f'`python -c "import {name}"` shows where'
      ) from error


def _missing(name: str, error: ImportError, folder: str) -> str:
  """Which module is not there, and what would bring it."""
  missing = error.name or ''
  if is_of_the_extra(missing):
    return f'--task_module={name} needs {missing}; install the extra: {INSTALL}'
  if missing and (name == missing or name.startswith(missing + '.')):
    return (
      f'--task_module={name}: there is no module {missing!r} in {folder} or '
      'among the installed packages; give the name that Python imports, such '
      'as my.tasks for my/tasks.py, from the folder in which my/ lies'
    )
  return f'--task_module={name} cannot be imported: {said(error)}'


def is_of_the_extra(module: str) -> bool:
  """Whether a module comes with the extra `data`."""
  return module.partition('.')[0] in _OF_THE_EXTRA


def said(error: BaseException) -> str:
  """The kind of an error and the first line of what it says."""
  lines = str(error).strip().splitlines()
  return f'{type(error).__name__}: {lines[0][:300] if lines else "no reason"}'
