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


def used(
  params: transformer_fns.Params,
  cfg: config.ModelConfig,
  first_msa: int,
  rows: Rows,
) -> Iterator[tuple[Any, int]]:
  """(kernel [out, in], rows) in the order of a step.

  Args:
    params: of the decoder.
    cfg: of the model.
    first_msa: number of the first MSA layer.
    rows: see `rows_of`.
  """
  flat = params_lib.flatten(params.base)
  kernels: list[list[Any]] = [[] for _ in range(cfg.num_layers)]
  for path, leaf in flat.items():
    if path.startswith('layers/') and path.endswith('/kernel'):
      kernels[int(path.split('/')[1])].append(leaf)
  is_tied = cfg.tie_word_embeddings
  head = flat['embed/embedding' if is_tied else 'lm_head/kernel']
  drafts = getattr(getattr(params.drafter, 'head', ()), 'rows', head)
  for number, layer in enumerate(kernels):
    count = rows.lower if number < first_msa else rows.msa
    yield from ((kernel, count) for kernel in layer)
  yield head, rows.head
  if rows.streams:
    for layer in kernels[first_msa:]:
      yield from ((kernel, rows.streams) for kernel in layer)
  if rows.drafts:
    yield drafts, rows.drafts


class Products:
  """Steps that multiply and do nothing else; each product waits for the last."""

  def __init__(
    self,
    found: Sequence[tuple[Any, int]],
    steps: int,
    partitioner: partitioning.Partitioner,
  ):
    """Takes (kernel [out, in], rows) of a step, and how many steps to run."""
    self._kernels = [kernel for kernel, _ in found]
    self._steps = steps
    rng = np.random.default_rng(0)
    shapes = [(1, count, kernel.shape[1]) for kernel, count in found]
    noise = {shape: rng.standard_normal(shape) for shape in set(shapes)}
    inputs = {
      shape: jnp.asarray(value, found[0][0].dtype)
      for shape, value in noise.items()
    }

    def multiply(kernels, number):
      for kernel, shape in zip(kernels, shapes, strict=True):
        y = layers.project(inputs[shape] * number, kernel)
        number = 1 + jnp.tanh(y[0, 0, 0])
      return number

    def run(kernels):
      body = lambda _, number: multiply(kernels, number)
      start = jnp.ones((), found[0][0].dtype)
      return jax.lax.fori_loop(0, steps, body, start)

    self._run = partitioner.jit(run)

  def __call__(self) -> int:
    """Runs them, and returns how many steps they were."""
    jax.block_until_ready(self._run(self._kernels))
    return self._steps
