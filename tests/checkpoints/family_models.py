# SPDX-License-Identifier: Apache-2.0
"""The tiny checkpoints of `tests/golden/families`, and what to do with them."""

import functools
import json
import pathlib
import types

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from specstream_jax import config
from specstream_jax.checkpoints import huggingface
from specstream_jax.decoding import tree as tree_lib
from specstream_jax.modeling import build, forward, params

FOLDER = pathlib.Path(__file__).parents[1] / 'golden' / 'families'
NAMES = sorted(path.name for path in FOLDER.iterdir())
# Families that need most of what the block can do; the others are slow tests
# where every one takes seconds.
COVERING = ('gemma3', 'opt', 'phi', 'smollm3')
STREAMS = config.StreamConfig(
  num_streams=2, num_msa_layers=2, pruning_rank=2, coupling_rank=2
)
LORA = config.LoraConfig(rank=2, alpha=3.0)


def covering(*more):
  """Parameters of a test: all families, of which most only if slow."""
  return [
    name
    if name in (*COVERING, *more)
    else pytest.param(name, marks=pytest.mark.slow)
    for name in NAMES
  ]


@functools.cache
def load(name):
  """Config, weights, built model with random adapter, and what is expected."""
  folder = FOLDER / name
  cfg = huggingface.read_config(folder)
  flat = dict(huggingface.open_params(folder, cfg))
  expected = safetensors_numpy.load_file(folder / 'expected.safetensors')
  built = build.build(cfg, STREAMS, LORA)
  base = params.unflatten({p: jnp.asarray(leaf) for p, leaf in flat.items()})
  rng = np.random.default_rng(0)
  adapter = {
    path: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32)
    for path, leaf in params.flatten(built.adapter).items()
  }
  return types.SimpleNamespace(
    folder=folder,
    cfg=cfg,
    flat=flat,
    text=expected['text'],
    logits=expected['logits'],
    built=built,
    base=base,
    adapter=params.unflatten(adapter),
    plain=build.build(cfg),
  )


def raw_config(name, file='config.json'):
  return json.loads((FOLDER / name / file).read_text())


def train_pass(model, tokens, anchors=None):
  """`forward_train` of whole rows."""
  tokens = jnp.asarray(tokens)
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
  segments = jnp.ones_like(tokens)
  return forward.forward_train(model, tokens, positions, segments, anchors)


class Told:
  """A drafter that knows the text, and drafts wrong tokens beside it.

  Nodes: the root, three right tokens in a row, a wrong sibling of the first and
  a wrong child of that.
  """

  size, max_depth, with_streams = 6, 3, False

  def __init__(self, text):
    self.text = jnp.asarray(np.pad(text, ((0, 0), (0, 4))))

  def init(self, params, prompts, prompt_lengths):
    return ()

  def propose(self, params, context, state):
    ahead = context.leaf_positions[:, None] + jnp.arange(2, 5)[None]
    first, second, third = jnp.take_along_axis(
      self.text, jnp.minimum(ahead, self.text.shape[1] - 1), axis=1
    ).T
    wrong = (first + 1) % 50
    nodes = [context.root, first, wrong, second, wrong, third]
    tokens = jnp.stack(nodes, axis=1).astype(jnp.int32)
    spread = lambda row: jnp.broadcast_to(jnp.array([row]), tokens.shape)
    parents, depths = spread([0, 0, 0, 1, 2, 3]), spread([0, 1, 1, 2, 2, 3])
    return tree_lib.DraftTree(tokens, parents, depths), state
