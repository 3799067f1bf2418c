# SPDX-License-Identifier: Apache-2.0
"""Medusa heads from a folder."""

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp

from specstream_jax import assembly, config
from specstream_jax.checkpoints import medusa as heads_lib
from specstream_jax.decoding import transformer_fns
from specstream_jax.decoding.drafters import medusa as drafter_lib
from specstream_jax.modeling import build, medusa, params as params_lib


def assemble(model, cfg, decode) -> assembly.Assembled:
  """The model without streams, and the heads at `cfg.path`.

  Raises:
    ValueError: no path, heads of another model, or a tree deeper than there
      are heads.
  """
  del decode
  if not cfg.path:
    raise ValueError(
      "drafter 'medusa' has no path; name the folder of its heads: "
      'medusa:path=FOLDER (train some with `specstream train_medusa`)'
    )
  heads_cfg = heads_lib.read_config(cfg.path)
  _check_base(model, heads_cfg)
  tree = cfg.tree or _default_tree(heads_cfg, cfg.drafting)
  drafter = drafter_lib.Medusa(
    medusa.build(model.config, heads_cfg.num_heads), tree, cfg
  )
  written = os.stat(os.path.join(cfg.path, heads_lib.CONFIG)).st_mtime_ns
  weights = _load(cfg.path, model.config.dtype, written)
  built = build.build(model.config, layout=model.layout)
  return assembly.Assembled(
    transformer_fns.model_fns(built),
    drafter,
    transformer_fns.Params(model.base, drafter=weights),
    prompt_model=transformer_fns.model_fns(built, is_prompt=True),
  )


def _default_tree(heads_cfg, drafting) -> config.TreeConfig:
  """What the heads were calibrated to; a beam grows no fixed tree."""
  if drafting == 'beam':
    return config.TreeConfig(depth=min(heads_cfg.num_heads, 4))
  if drafting != 'top_k' and not heads_cfg.choices:
    depth = min(heads_cfg.num_heads, 3)
    return config.TreeConfig('full', depth=depth, branching=2)
  return heads_cfg.tree


def _check_base(model, heads_cfg) -> None:
  flat = params_lib.flatten(model.base)
  if model.layout == 'out_in':
    flat = params_lib.transpose_kernels(flat)
  heads_lib.check_base(heads_cfg, flat, model.config)


@functools.lru_cache(maxsize=2)
def _load(path: str, dtype: str, written: int) -> Any:
  """Nested weights on device; once for all decoders."""
  del written  # Heads that were written anew are read anew.
  flat, _ = heads_lib.load_heads(path)
  arrays = {name: jnp.asarray(leaf, dtype) for name, leaf in flat.items()}
  return jax.block_until_ready(params_lib.unflatten(arrays))
