# SPDX-License-Identifier: Apache-2.0
"""The matrix products of a step, by themselves: what a step cannot do without.

Axis letters: B rows, M tree nodes, J streams.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from specstream_jax import config, partitioning
from specstream_jax.decoding import transformer_fns
from specstream_jax.modeling import layers, params as params_lib


class Rows(NamedTuple):
  """How many rows the products of a step have.

  Attributes:
    lower: through the layers below the insertion.
    msa: through those above, in the same pass.
    head: through the LM head, in that pass.
    streams: through the layers above and the head of drafts, in another pass;
      0 without one.
    drafts: through the head of drafts.
  """

  lower: int
  msa: int
  head: int
  streams: int = 0
  drafts: int = 0


def rows_of(
  batch: int,
  size: int,
  *,
  num_streams: int = 0,
  schedule: str = 'deferred',
  keep_nodes: int = 0,
  likely_nodes: int = 0,
) -> Rows:
  """The rows of a step's products.

  Args:
    batch: B.
    size: M.
    num_streams: J; 0 without streams.
    schedule: when streams run; for `likely`, as if no second pass were needed.
    keep_nodes: nodes that survive pruning; 0 is all.
    likely_nodes: nodes that carry streams under `likely`.
  """
  kept, drafts = keep_nodes or size, batch * num_streams
  if not num_streams:
    return Rows(batch * size, batch * size, batch * size)
  carriers = {'parallel': kept, 'likely': min(likely_nodes, kept)}
  msa = batch * (kept + carriers.get(schedule, 0) * num_streams)
  streams = drafts if schedule == 'deferred' else 0
  return Rows(batch * size, msa, batch * kept, streams, drafts)


# Those that read the same input, and wait for each other in no way.
_GROUPS = (
  ('query_key_value', 'query', 'key', 'value'),
  ('out',),
  ('gate', 'up'),
  ('down',),
)


def used(
  params: transformer_fns.Params,
  cfg: config.ModelConfig,
  first_msa: int,
  rows: Rows,
) -> Iterator[tuple[list[Any], int]]:
  """(kernels [out, in] of one input, rows) in the order of a step.

  Args:
    params: of the decoder.
    cfg: of the model.
    first_msa: number of the first MSA layer.
    rows: see `rows_of`.
  """
  flat = params_lib.flatten(params.base)
  layers_ = [_of_layer(flat, number) for number in range(cfg.num_layers)]
  is_tied = cfg.tie_word_embeddings
  head = flat['embed/embedding' if is_tied else 'lm_head/kernel']
  drafts = getattr(getattr(params.drafter, 'head', ()), 'rows', head)
  for number, groups in enumerate(layers_):
    count = rows.lower if number < first_msa else rows.msa
    yield from ((group, count) for group in groups)
  yield [head], rows.head
  if rows.streams:
    for groups in layers_[first_msa:]:
      yield from ((group, rows.streams) for group in groups)
  if rows.drafts:
    yield [drafts], rows.drafts


def _of_layer(flat, number) -> list[list[Any]]:
  """Its kernels by group."""
  found = {
    path.split('/')[-2]: leaf
    for path, leaf in flat.items()
    if path.startswith(f'layers/{number}/') and path.endswith('/kernel')
  }
  groups = ([found[n] for n in names if n in found] for names in _GROUPS)
  return [group for group in groups if group]


class Products:
  """Steps that multiply and do nothing else; groups wait for each other."""

  def __init__(
    self,
    found: Sequence[tuple[list[Any], int]],
    steps: int,
    partitioner: partitioning.Partitioner,
  ):
    """Takes (kernels, rows) of a step, and how many steps to run."""
    self._groups = [group for group, _ in found]
    self._steps = steps
    dtype = self._groups[0][0].dtype
    rng = np.random.default_rng(0)
    # As the model has them: with two axes XLA would turn the product around.
    shapes = [(1, count, group[0].shape[1]) for group, count in found]
    inputs = {
      shape: jnp.asarray(rng.standard_normal(shape), dtype)
      for shape in set(shapes)
    }

    def multiply(groups, number):
      for group, shape in zip(groups, shapes, strict=True):
        x = inputs[shape] * number
        made = [layers.project(x, kernel)[0, 0, 0] for kernel in group]
        number = 1 + jnp.tanh(sum(made))  # so that the next one waits
        number = number.astype(dtype)
      return number

    def run(groups):
      body = lambda _, number: multiply(groups, number)
      return jax.lax.fori_loop(0, steps, body, jnp.ones((), dtype))

    self._run = partitioner.jit(run)

  def __call__(self) -> int:
    """Runs them, and returns how many steps they were."""
    jax.block_until_ready(self._run(self._groups))
    return self._steps
