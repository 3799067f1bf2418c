# SPDX-License-Identifier: Apache-2.0
"""The two kinds of weight, and dicts of them, nested and flat.

`BaseParam` is a weight of the pretrained model, `AdapterParam` one that a task
trains. A model is split once into (graphdef, base, adapter); everything that
is compiled takes the two plain dicts and merges inside.
"""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from specstream_jax import arrays


class BaseParam(nnx.Param):
  """A weight of the pretrained model; never differentiated."""


class AdapterParam(nnx.Param):
  """A weight that one task adds: LoRA, stream embeddings, pruning adapter."""


def flatten(tree: arrays.Params) -> dict[str, Any]:
  """Nested dict -> {'layers/0/mlp/up/kernel': leaf}, sorted by path."""
  flat = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(dict(tree))[0]:
    flat['/'.join(str(entry.key) for entry in path)] = leaf
  return dict(sorted(flat.items()))


def unflatten(flat: arrays.FlatParams) -> dict[Any, Any]:
  """Inverse of `flatten`; path parts made of digits become int keys."""
  tree: dict[Any, Any] = {}
  for path, leaf in flat.items():
    *parents, name = (int(p) if p.isdigit() else p for p in path.split('/'))
    node = tree
    for part in parents:
      node = node.setdefault(part, {})
    node[name] = leaf
  return tree


def count(tree: arrays.Params) -> int:
  """Number of scalars in a tree."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def cast(tree: arrays.Params, dtype: str) -> Any:
  """Every leaf as `dtype`."""
  return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)


def transpose_kernels(flat: arrays.FlatParams) -> dict[str, Any]:
  """Kernels from [in, out] to [out, in] or back; the rest as it is."""
  return {
    path: leaf.T if path.endswith('kernel') else leaf
    for path, leaf in flat.items()
  }
