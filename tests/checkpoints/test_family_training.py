# SPDX-License-Identifier: Apache-2.0
"""Every family trains: a real step, its weights on disk, scan and remat."""

import functools

import family_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specstream_jax import config, partitioning
from specstream_jax.checkpoints import adapters, loading
from specstream_jax.modeling import build, params, stacks
from specstream_jax.training import step as step_lib

LENGTH = 11
# Every position is an anchor, so that steps on one batch have one loss.
OBJECTIVE = config.ObjectiveConfig(
  anchors_per_sequence=LENGTH, pruning_anchors=LENGTH, chunk_size=64
)
OPTIMIZER = config.OptimizerConfig(warmup_steps=0, clip_norm=100.0)


def batch(made):
  """The text that transformers wrote, as one of training."""
  tokens = jnp.asarray(made.text[:, :LENGTH])
  return {
    'decoder_input_tokens': tokens,
    'decoder_target_tokens': jnp.asarray(made.text[:, 1 : LENGTH + 1]),
    'decoder_loss_weights': jnp.ones(tokens.shape),
    'decoder_positions': jnp.arange(LENGTH)[None].repeat(2, axis=0),
    'decoder_segment_ids': jnp.ones_like(tokens),
  }


def train(made, built, base, num_steps, remat='none'):
  """Losses of so many steps, and the adapter after them, by path."""
  optimizer = step_lib.make_optimizer(OPTIMIZER, 9)
  advance = jax.jit(
    functools.partial(
      step_lib.train_step,
      built=built,
      optimizer=optimizer,
      cfg=OBJECTIVE,
      seed=0,
      remat=remat,
    )
  )
  state, losses = step_lib.init_state(made.adapter, optimizer), []
  for _ in range(num_steps):
    state, metrics = advance(state, base, batch(made))
    losses.append(float(metrics['loss/total'][0]))
  return losses, params.flatten(jax.device_get(state.adapter))


def saved(folder, name, flat):
  """Writes an adapter of a family as training does, without rounding it."""
  made = family_models.load(name)
  loaded = loading.load_model(made.folder)
  cfg = adapters.AdapterConfig(
    base_model_id=name,
    base_config_hash=loaded.config_hash,
    base_fingerprint=loaded.fingerprint,
    stream=family_models.STREAMS,
    lora=family_models.LORA,
    tree=config.TreeConfig(depth=2, branching=2, num_nodes=4),
  )
  adapters.save_adapter(folder, flat, cfg, dtype='float32')
  return loaded


@pytest.mark.parametrize('name', family_models.covering())
def test_a_step_moves_every_weight_and_saves_them(name, tmp_path):
  made = family_models.load(name)
  losses, after = train(made, made.built, made.base, 2)
  assert np.isfinite(losses).all()
  assert losses[1] < losses[0]
  modules = set()
  for path, leaf in params.flatten(made.adapter).items():
    assert np.isfinite(after[path]).all(), path
    assert (after[path] != leaf).any(), path
    modules.add(path.split('/')[-2])
  wanted = set(config.LORA_MODULES)
  if not made.cfg.mlp.is_gated:
    wanted.remove('gate')
  assert wanted <= modules
  loaded = saved(tmp_path, name, after)
  again, cfg = adapters.load_adapter(tmp_path)
  adapters.check_base(cfg, loaded)
  adapters.check_weights(tmp_path, again, cfg, loaded.config)
  for path, leaf in after.items():
    np.testing.assert_array_equal(again[path], leaf)


@pytest.mark.slow
@pytest.mark.parametrize(
  'name',
  [
    'smollm3',
    *(
      pytest.param(name, marks=pytest.mark.slow)
      for name in family_models.NAMES
      if name != 'smollm3'
    ),
  ],
)
def test_scan_and_remat_train_alike(name):
  made = family_models.load(name)
  losses, after = train(made, made.built, made.base, 1)
  stacked = build.build(
    made.cfg, family_models.STREAMS, family_models.LORA, is_stacked=True
  )
  flat = stacks.Stacked(made.flat, stacked.stacked_at)
  base = params.unflatten(partitioning.default().put(flat))
  scanned, others = train(made, stacked, base, 1, remat='full')
  np.testing.assert_allclose(scanned, losses, rtol=1e-5)
  # Adam's first step is the sign of the gradient: near 0 it may be either.
  for path, leaf in after.items():
    close = np.isclose(others[path], leaf, atol=2e-5)
    assert close.mean() > 0.97, path
