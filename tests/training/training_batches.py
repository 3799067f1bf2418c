# SPDX-License-Identifier: Apache-2.0
"""Small examples, packed batches and models for the training tests."""

import dataclasses
import functools

import jax
import numpy as np
import reference
import tiny

from specstream_jax import config
from specstream_jax.data import features
from specstream_jax.modeling import params
from specstream_jax.training import objective

CONFIG = dataclasses.replace(tiny.CONFIG, num_layers=3)
LORA = config.LoraConfig(rank=2, alpha=3.0, modules=('query', 'down'))
# (prompt, answer) lengths of the examples of each row; the last one is empty.
SIZES = (((3, 4), (2, 6)), ((1, 5), (4, 3)), ())
LENGTH = 17
# Compiling takes most of the time here; running takes none.
jit = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)


def draw(sizes, seed=0):
  """Random (prompt ids, answer ids) of the given lengths."""
  rng = np.random.default_rng(seed)
  ids = lambda n: rng.integers(0, CONFIG.vocab_size, n).astype(np.int32)
  return [(ids(prompt), ids(answer)) for prompt, answer in sizes]


def pack(rows, length=LENGTH):
  """Batch of rows, each a list of examples, packed in that order."""
  return features.stack(
    [features.row([features.segment(*e) for e in r], length) for r in rows],
    len(rows),
  )


def examples(seed=0):
  """Examples of every row, of the lengths in `SIZES`."""
  return [draw(sizes, 10 * seed + i) for i, sizes in enumerate(SIZES)]


def model():
  """(built, base, adapter) of three layers, two of them with streams."""
  return tiny.model(CONFIG, tiny.STREAMS, LORA)


def oracle():
  _, base, adapter = model()
  return reference.Model(
    params.flatten(base), params.flatten(adapter), CONFIG, tiny.STREAMS, LORA
  )


@functools.cache
def gradient_fn(cfg):
  """Jitted (adapter, batch) -> ((loss, metrics), gradient)."""
  built, base, _ = model()

  def loss(adapter, batch):
    merged = built.merge(base, adapter)
    return objective.loss(merged, batch, jax.random.key(0), cfg)

  return jit(jax.value_and_grad(loss, has_aux=True))
