# SPDX-License-Identifier: Apache-2.0
"""What the Python interface answers to a call that it does not understand."""

from collections.abc import Callable
import dataclasses
import functools
import inspect
from typing import Any, TypeVar, cast

from specstream_jax.config import SamplingConfig, TreeConfig, checks
from specstream_jax.runtime import Model

_Function = TypeVar('_Function', bound=Callable[..., Any])


def says_where(function: _Function) -> _Function:
  """A function of a model that answers what it does not know.

  Raises:
    ValueError: it is not called with a model, or with an option that is not
      there; says which there are, or which config it is in.
  """
  named = checks.names_options(function)
  accepted = set(inspect.signature(function).parameters)
  holders = ((SamplingConfig, 'sampling'), (TreeConfig, 'tree'))

  @functools.wraps(function)
  def checked(model, *args, **options):
    """Says so where it is not called with a model, or not with its options."""
    checks.check(
      isinstance(model, Model),
      f'the model is {model!r:.80}; load one first: ss.load(…)',
    )
    for config, holder in holders:
      fields = {field.name for field in dataclasses.fields(config)}
      wrong = fields & set(options) - accepted
      for option in wrong if holder in accepted else ():
        raise ValueError(
          f'{function.__name__} has no option {option!r}; it is a field of '
          f'{config.__name__}: pass '
          f'{holder}=ss.{config.__name__}({option}={options[option]!r})'
        )
    return named(model, *args, **options)

  return cast(_Function, checked)
