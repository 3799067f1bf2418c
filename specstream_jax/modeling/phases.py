# SPDX-License-Identifier: Apache-2.0
"""The parts of a decode step, each under its name, which can run twice.

A part's time inside a compiled step cannot be read off a clock. But the step
can be traced so that the part runs twice, with the same result: what it takes
longer then is what the part costs.
"""

from collections.abc import Callable, Iterator
import contextlib
import contextvars
from typing import Any

import jax
import jax.numpy as jnp

# In the order of a step.
NAMES = {
  'lower': 'lower layers',
  'insertion': 'stream insertion',
  'msa': 'MSA layers',
  'head': 'LM head',
  'verify': 'verify',
  'commit': 'commit',
  'streams': 'streams, MSA layers',
  'draft_head': 'streams, LM head',
  'draft': 'draft tree',
}

_twice: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar(
  'twice', default=frozenset()
)


@contextlib.contextmanager
def twice(*names: str) -> Iterator[None]:
  """What is traced in here runs the parts of these names twice."""
  token = _twice.set(frozenset(names))
  try:
    yield
  finally:
    _twice.reset(token)


def run(
  name: str,
  part: Callable[..., Any],
  *reads: Any,
  keeps: Any = None,
  again: Callable[..., Any] | None = None,
) -> Any:
  """part(*reads), or part(*reads, keeps) if it changes something that it keeps.

  Args:
    name: one of `NAMES`.
    part: returns its result or, with `keeps`, (result, what became of those).
    *reads: pytrees of arrays. All of the part follows from them, else XLA
      would do once what is asked for twice.
    keeps: a pytree that is updated in place, such as a cache. A second run
      updates what the first one left.
    again: (*reads) -> what a second run reads, where the same would do harm.
  """
  with jax.named_scope(name):
    given = () if keeps is None else (keeps,)
    out = part(*reads, *given)
    if name not in _twice.get():
      return out
    reads = reads if again is None else again(*reads)
    if keeps is None:
      return part(*_after(reads, out))
    return part(*_after(reads, out[0]), out[1])


def _after(tree: Any, out: Any) -> Any:
  """The tree's arrays, by a term that is 0 made to depend on arrays `out`.

  No barrier: XLA would have two equal runs become one behind it.
  """
  firsts = [
    leaf.ravel()[0].astype(jnp.float32)
    for leaf in jax.tree.leaves(out)
    if _is_number(leaf)
  ]
  if not firsts:
    return tree
  total = sum(firsts[1:], firsts[0])
  never = jnp.isnan(total) & (total > 0)

  def wait(leaf):
    if leaf.dtype == bool:
      return leaf | never
    return leaf + never.astype(leaf.dtype) if _is_number(leaf) else leaf

  return jax.tree.map(wait, tree)


def _is_number(leaf: Any) -> bool:
  is_any = lambda kind: jnp.issubdtype(leaf.dtype, kind)
  return leaf.size > 0 and (is_any(jnp.floating) or is_any(jnp.integer))
