# SPDX-License-Identifier: Apache-2.0
"""A step taken apart on a tiny model: parts twice, the same tokens."""

import dataclasses
import functools
import json

import commands
import jax
import jax.numpy as jnp
import notebooks
import pytest
import tiny_runtime

from specstream_jax import config, sampling
from specstream_jax.decoding import loop
from specstream_jax.modeling import phases
from specstream_jax.workflows import profile

PROMPTS = [[5, 6, 7], [9, 2]]
TREE = 'streams:kind=best_first,num_nodes=4,depth=2,branching=2'


@pytest.fixture(scope='module', name='model')
def _model():
  return tiny_runtime.model()


def decoder_of(model, drafter, schedule):
  cfg = config.DecodeConfig(max_new_tokens=12, schedule=schedule)
  return model.decoder(drafter, cfg)


def tokens(model, drafter, schedule, *parts):
  """What steps give that do these parts twice."""
  decoder = decoder_of(model, drafter, schedule)
  state = decoder.start(decoder.params, PROMPTS)
  run = jax.jit(functools.partial(loop.run, decoder.setup))
  with phases.twice(*parts):
    return run(decoder.params, state, 99).tokens.tolist()


def flops(model, drafter, schedule):
  """(*parts) -> FLOPs of a step, before XLA has seen it."""
  decoder = decoder_of(model, drafter, schedule)
  rows = loop.Rows(
    jnp.full(2, 12), jnp.full((2, 1), -1), sampling.row_keys(0, [0, 1])
  )
  prompts = jnp.array([[5, 6, 7], [9, 2, 0]]), jnp.array([3, 2])
  start = functools.partial(
    loop.prefill, decoder.setup, decoder.params, *prompts, cache_length=20
  )
  state = jax.eval_shape(start, rows)

  def count(*parts):
    step = jax.jit(functools.partial(loop.step, decoder.setup))
    with phases.twice(*parts):
      return step.lower(decoder.params, state).cost_analysis()['flops']

  return count


def test_every_part_can_be_traced_twice(model):
  count = flops(model, TREE, 'deferred')
  once = count()
  more = [count(part) - once for part in phases.NAMES]
  assert min(more) > 0
  # Hardly anything is in no part.
  assert 0.9 < sum(more) / once < 1.1


@pytest.mark.slow
@pytest.mark.parametrize('schedule', ['deferred', 'parallel', 'likely'])
def test_tokens_stay_whatever_runs_twice(model, schedule):
  drafter = TREE + ',likely_nodes=2'
  plain = tokens(model, 'none', 'deferred')
  assert tokens(model, 'none', 'deferred', *phases.NAMES) == plain
  assert tokens(model, drafter, schedule) == plain
  assert tokens(model, drafter, schedule, *phases.NAMES) == plain
  for part in ('lower', 'msa', 'commit', 'draft'):
    assert tokens(model, drafter, schedule, part) == plain, part


@pytest.mark.slow
@pytest.mark.parametrize('drafter', ['none', TREE])
def test_the_command_writes_table_file_and_plot(tmp_path, drafter):
  base, adapter = notebooks.write_tiny(tmp_path)
  rows = (json.dumps({'prompt': text}) + '\n' for text in ('ab', 'xyz'))
  (tmp_path / 'own.jsonl').write_text(''.join(rows))
  done = commands.run(
    'profile',
    f'--model={base}',
    f'--adapter={adapter}',
    f'--task=jsonl/own@{tmp_path}',
    f'--drafter={drafter.replace("depth=2", "depth=1")}',
    '--max_new_tokens=8',
    '--batch=2',
    '--steps=2',
    '--rounds=2',
    f'--output_dir={tmp_path}/out',
  )
  assert done.status == 0, done.err
  for name in ('in no part', 'whole step', 'matrix products alone', 'LM head'):
    assert name in done.out
  assert ('draft tree' in done.out) == (drafter != 'none')
  found = json.loads((tmp_path / 'out' / 'profile.json').read_text())
  parts = found['profile']['parts']
  total = sum(part['ms'] for part in parts) + found['profile']['rest_ms']
  assert total == pytest.approx(found['profile']['whole']['ms'])
  assert len(parts) == (3 if drafter == 'none' else 9)
  assert all(len(times) == 2 for times in found['seconds'].values())
  assert '<svg' in (tmp_path / 'out' / 'profile.svg').read_text()


def test_the_parts_are_those_that_the_step_has(model):
  parts = lambda text, **more: list(
    profile._parts(
      profile._drafter(model, profile.Options(drafter=text)),
      profile.Options(**more),
    )
  )
  assert parts('none') == ['lower', 'head', 'verify']
  assert parts('') == list(phases.NAMES)
  assert 'streams' not in parts('', schedule='parallel')
  assert 'streams' in parts('streams:schedule=likely', schedule='parallel')


def test_what_cannot_be_taken_apart_is_refused(model):
  with pytest.raises(
    ValueError, match="'prompt_lookup'; accepted: 'none', 'st"
  ):
    profile._drafter(model, profile.Options(drafter='prompt_lookup'))
  with pytest.raises(ValueError, match='steps is 0'):
    profile.Options(steps=0)
  plain = dataclasses.replace(model, stream=None)
  assert profile._drafter(plain, profile.Options()).name == 'none'
