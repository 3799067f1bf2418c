# SPDX-License-Identifier: Apache-2.0
"""Families on eight virtual devices learn and decode as on one."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import xla_flags

HERE = pathlib.Path(__file__).parent
# What it takes to be split: biases, norms per head, fused checkpoints, tables of
# positions, layers of two kinds.
NAMES = ('gemma3', 'opt', 'gpt_neox', 'phi3')


def main(name):
  """Prints what one device and eight make of a family, as JSON."""
  import dataclasses

  import family_models
  import jax
  import jax.numpy as jnp
  import tiny

  from specstream_jax import (
    config,
    mesh as mesh_lib,
    partitioning,
    runtime,
  )
  from specstream_jax.modeling import params
  from specstream_jax.training import step as step_lib

  cfg = dataclasses.replace(family_models.load(name).cfg, vocab_size=64)
  tree = config.TreeConfig(kind='best_first', depth=2, num_nodes=5)
  objective = config.ObjectiveConfig(anchors_per_sequence=11, chunk_size=16)
  tokens = jnp.asarray(np.random.default_rng(0).integers(1, 64, (8, 12)))
  batch = {
    'decoder_input_tokens': np.asarray(tokens[:, :-1]),
    'decoder_target_tokens': np.asarray(tokens[:, 1:]),
    'decoder_loss_weights': np.ones((8, 11), np.float32),
    'decoder_positions': np.tile(np.arange(11, dtype=np.int32), (8, 1)),
    'decoder_segment_ids': np.ones((8, 11), np.int32),
  }

  def learn(part):
    """(loss, squared norms) after one step."""
    built, base, adapter = tiny.model(
      cfg, family_models.STREAMS, family_models.LORA
    )
    base = params.unflatten(part.put(params.flatten(base)))
    optimizer = step_lib.make_optimizer(config.OptimizerConfig(), 9)
    state = step_lib.place_state(step_lib.init_state(adapter, optimizer), part)

    def advance(state, base, batch):
      """One step."""
      return step_lib.train_step(
        state,
        base,
        batch,
        built=built,
        optimizer=optimizer,
        cfg=objective,
        seed=0,
      )

    run = part.jit(advance)
    state, _ = run(state, base, part.put_batch(batch))
    state, metrics = run(state, base, part.put_batch(batch))
    flat = params.flatten(part.gather(state.adapter))
    norms = {path: float((leaf**2).sum()) for path, leaf in flat.items()}
    return float(metrics['loss/total'][0]), norms

  def decode(part):
    """Tokens of streams and of plain decoding."""
    _, base, adapter = tiny.model(
      cfg, family_models.STREAMS, config.LoraConfig(rank=0)
    )
    model = runtime.Model(
      config=cfg,
      base=params.unflatten(part.put(params.flatten(base), transposed=True)),
      adapter=params.unflatten(part.put(params.flatten(adapter))),
      stream=family_models.STREAMS,
      lora=None,
      tree=tree,
      source={},
      tokenizer=None,
      chat_template=None,
      eos_ids=(),
      partitioner=part,
    )
    prompts = [[1 + i, 7, 3 * i + 2][: 1 + i % 3] for i in range(8)]
    found = {}
    for drafter in ('none', 'streams'):
      made = model.decoder(
        drafter, config.DecodeConfig(max_new_tokens=12, prompt_bucket=4)
      )
      found[drafter] = made.generate(model.params(drafter), prompts).tokens
    return found

  found = []
  for sizes in ((1, 1, 1), (2, 2, 2)):
    count = int(np.prod(sizes))
    mesh = mesh_lib.make_mesh(
      mesh_lib.MeshConfig(*sizes), jax.devices()[:count]
    )
    part = partitioning.Partitioner(mesh)
    loss, norms = learn(part)
    found.append({'loss': loss, 'norms': norms, 'tokens': decode(part)})
  print(json.dumps(found))


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_eight_devices_do_what_one_does(name):
  path = os.pathsep.join([str(HERE), str(HERE.parent)])
  env = os.environ | {
    'XLA_FLAGS': xla_flags.fast('--xla_force_host_platform_device_count=8'),
    'PYTHONPATH': path + os.pathsep + os.environ.get('PYTHONPATH', ''),
  }
  done = subprocess.run(
    [sys.executable, __file__, name], env=env, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr[-3000:]
  lines = [line for line in done.stdout.splitlines() if line.startswith('[')]
  one, eight = json.loads(lines[-1])
  assert one['tokens']['streams'] == one['tokens']['none']
  assert eight['tokens'] == one['tokens']
  assert eight['loss'] == pytest.approx(one['loss'], rel=1e-5)
  for leaf, norm in one['norms'].items():
    assert eight['norms'][leaf] == pytest.approx(norm, rel=2e-4), leaf


if __name__ == '__main__':
  main(sys.argv[1])
