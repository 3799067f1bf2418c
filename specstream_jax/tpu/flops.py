# SPDX-License-Identifier: Apache-2.0
"""Floating-point operations of the products in a function, loops counted.

XLA's cost analysis counts the body of a loop once, however often it runs; a
scan over layers would look like one layer.
"""

from collections.abc import Iterator
import math
from typing import Any

import jax


def of_products(jaxpr: Any) -> int:
  """2 * m * n * k of every product, over all devices.

  A scan counts as often as it runs, a while loop once (one decoding step), of
  a conditional the most expensive branch, of `platform_dependent` the default.

  Args:
    jaxpr: closed or open, such as `jax.jit(f).trace(*args).jaxpr`.
  """
  total = 0
  for equation in getattr(jaxpr, 'jaxpr', jaxpr).eqns:
    if equation.primitive.name == 'dot_general':
      total += _product(equation)
      continue
    inner = [of_products(one) for one in _inner(equation)]
    if not inner:
      continue
    if equation.params.get('branches_platforms'):
      total += inner[-1]
    elif equation.primitive.name == 'cond':
      total += max(inner)
    else:
      total += equation.params.get('length', 1) * sum(inner)
  return total


def _product(equation) -> int:
  (contracted, _), _ = equation.params['dimension_numbers']
  left = equation.invars[0].aval.shape
  depth = math.prod(left[axis] for axis in contracted)
  return 2 * depth * math.prod(equation.outvars[0].aval.shape)


def _inner(equation) -> Iterator[Any]:
  """Jaxprs in the parameters of an equation."""
  for value in jax.tree.leaves(
    list(equation.params.values()), is_leaf=lambda x: hasattr(x, 'eqns')
  ):
    if hasattr(value, 'eqns'):
      yield value
