# SPDX-License-Identifier: Apache-2.0
"""What generate and evaluate refuse or warn of."""

import dataclasses

from absl import logging
import pytest
import tiny_runtime

from specstream_jax import config
from specstream_jax.config import drafting as config_drafting
from specstream_jax.workflows import evaluate, generate


@pytest.fixture(scope='module')
def model():
  return tiny_runtime.model()


@pytest.mark.parametrize('token', [-1, 257])
def test_token_ids_outside_the_vocabulary(model, token):
  with pytest.raises(ValueError, match=f'token id {token}; accepted: 0 to 256'):
    generate.generate(model, [[5, token]])


@pytest.mark.parametrize(('limit', 'warns'), [(9, True), (10, False)])
def test_positions_the_model_was_not_made_for(model, monkeypatch, limit, warns):
  found = []
  monkeypatch.setattr(logging, 'warning', lambda *args: found.append(args))
  short = dataclasses.replace(
    model,
    config=dataclasses.replace(model.config, max_position_embeddings=limit),
  )
  short.warn_if_long([[1] * 4, [1] * 6], 4)
  assert bool(found) == warns


def test_positions_the_model_does_not_have(model):
  short = dataclasses.replace(
    model, config=dataclasses.replace(model.config, num_learned_positions=9)
  )
  short.warn_if_long([[1] * 5], 4)
  with pytest.raises(
    ValueError, match='10 positions, but the model has only 9'
  ):
    short.warn_if_long([[1] * 6], 4)
  # Also where nothing has asked before: distillation, benchmark, check.
  made = short.decoder('none', config.DecodeConfig(max_new_tokens=8))
  with pytest.raises(
    ValueError, match='10 positions, but the model has only 9; use a shorter'
  ):
    made.generate(made.params, [[1] * 6, [1] * 4], [4, 5])


@pytest.mark.slow
def test_lossy_output_says_so(model):
  lossy = config_drafting.DrafterConfig(verifier='typical')
  tree = config.TreeConfig(num_nodes=3, depth=2, branching=2)
  for drafter, rule in ((lossy, 'lossy'), ('streams', 'lossless')):
    options = generate.Options(4, drafter, tree)
    (row,) = generate.generate(model, ['ab'], options)
    assert row.output == generate.output(model, options) == rule


def test_evaluate_is_for_streams(model):
  other = config_drafting.DrafterConfig('prompt_lookup')
  options = evaluate.Options(drafter=other, num_prompts=1)
  with pytest.raises(ValueError, match="drafter is 'prompt_lookup'; evaluate"):
    evaluate.evaluate(model, options)


@pytest.mark.slow
def test_evaluate_decodes_with_the_drafter_it_is_given(model):
  tree = config.TreeConfig(num_nodes=4, depth=2, branching=2)
  options = evaluate.Options(
    drafter=config_drafting.DrafterConfig(tree=tree),
    num_prompts=2,
    max_new_tokens=6,
    repeats=1,
  )
  run = evaluate.evaluate(model, options, progress=False)
  assert run.tree['num_nodes'] == 4 and run.label == 'streams best_first 4'
  assert run.equal_fraction == 1 and run.extra_parameters > 0
