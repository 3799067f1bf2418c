# SPDX-License-Identifier: Apache-2.0
"""A step taken apart on a tiny model: parts twice, the same tokens."""

import dataclasses
import functools
import json

import commands
import jax
import notebooks
import pytest
import tiny_runtime

from specstream_jax import config
from specstream_jax.decoding import loop
from specstream_jax.modeling import phases
from specstream_jax.workflows import profile

PROMPTS = [[5, 6, 7], [9, 2]]
TREE = 'streams:kind=best_first,num_nodes=4,depth=2,branching=2'


@pytest.fixture(scope='module', name='model')
def _model():
  return tiny_runtime.model()


def compiled(model, drafter, schedule, *parts):
  """(tokens that steps with these parts done twice give, their FLOPs)."""
  cfg = config.DecodeConfig(max_new_tokens=12, schedule=schedule)
  decoder = model.decoder(drafter, cfg)
  state = decoder.start(decoder.params, PROMPTS)
  run = jax.jit(functools.partial(loop.run, decoder.setup))
  with phases.twice(*parts):
    made = run.lower(decoder.params, state, 99)
    step = jax.jit(functools.partial(loop.step, decoder.setup))
    flops = step.lower(decoder.params, state).cost_analysis()['flops']
  return made.compile()(decoder.params, state, 99).tokens.tolist(), flops


@pytest.mark.parametrize('schedule', ['deferred'])
def test_tokens_stay_when_every_part_runs_twice(model, schedule):
  plain, _ = compiled(model, 'none', 'deferred')
  twice, flops = compiled(model, TREE, schedule, *phases.NAMES)
  assert twice == plain
  cfg = config.DecodeConfig(max_new_tokens=12, schedule=schedule)
  decoder = model.decoder(TREE, cfg)
  state = decoder.start(decoder.params, PROMPTS)
  step = jax.jit(functools.partial(loop.step, decoder.setup))
  once = step.lower(decoder.params, state).cost_analysis()['flops']
  assert 1.8 < flops / once < 2.2


@pytest.mark.slow
@pytest.mark.parametrize('schedule', ['deferred', 'parallel', 'likely'])
def test_each_part_is_done_twice_by_itself(model, schedule):
  drafter = TREE + ',likely_nodes=2'
  plain, _ = compiled(model, 'none', 'deferred')
  tokens, once = compiled(model, drafter, schedule)
  assert tokens == plain
  for part in phases.NAMES:
    tokens, flops = compiled(model, drafter, schedule, part)
    assert tokens == plain
    is_there = part != 'streams' or schedule != 'parallel'
    assert (flops > once) == is_there, part


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
  with pytest.raises(ValueError, match="'prompt_lookup'; accepted: 'none', 'st"):
    profile._drafter(model, profile.Options(drafter='prompt_lookup'))
  with pytest.raises(ValueError, match='steps is 0'):
    profile.Options(steps=0)
  plain = dataclasses.replace(model, stream=None)
  assert profile._drafter(plain, profile.Options()).name == 'none'
