# SPDX-License-Identifier: Apache-2.0
"""One pass of plain decoding foretells the calls of every tree."""

import dataclasses

import pytest
import tiny_runtime

from specstream_jax import config, runtime
from specstream_jax.bench import survey
from specstream_jax.config import drafting as config_drafting

PROMPTS = [[5, 6, 7], [9], [2, 2, 2, 2]]
# A small vocabulary, so that drafts of random streams are often right.
TREES = (
  config.TreeConfig(num_nodes=3, depth=2, branching=2),
  config.TreeConfig(num_nodes=9, depth=3, branching=6),
)
DRAFTER = config_drafting.DrafterConfig('streams')
DECODE = config.DecodeConfig(max_new_tokens=24, eos_ids=(5,))


@pytest.fixture(scope='module')
def model():
  small = dataclasses.replace(tiny_runtime.model(), eos_ids=())
  cfg = dataclasses.replace(small.config, vocab_size=7)
  base = dict(small.base)
  embedding = base['embed']['embedding'][:7]
  base['embed'] = {'embedding': embedding}
  small = dataclasses.replace(small, config=cfg, base=base)
  stream = config.StreamConfig(num_streams=3, num_msa_layers=1, coupling_rank=2)
  return runtime.with_random_streams(small, stream)


@pytest.mark.slow
@pytest.mark.parametrize('temperature', [0.0, 0.9])
def test_the_calls_are_those_that_decoding_makes(model, temperature):
  sampling = config.SamplingConfig(temperature=temperature)
  ids = [4, 0, 7]
  seen = survey.Survey(model, DRAFTER, TREES, DECODE).run(
    PROMPTS, sampling=sampling, seed=3, row_ids=ids
  )
  assert max(seen.num_tokens) > 9
  for tree in TREES:
    drafter = dataclasses.replace(DRAFTER, tree=tree)
    decoder = model.decoder(drafter, DECODE)
    made = decoder.generate(
      decoder.params, PROMPTS, seed=3, row_ids=ids, sampling=sampling
    )
    assert list(map(len, made.tokens)) == seen.num_tokens
    assert made.calls.tolist() == seen.calls[tree]
  # Something is accepted, and larger trees take fewer calls.
  total = [sum(seen.calls[tree]) for tree in TREES]
  assert total[1] < total[0] < sum(seen.num_tokens) - len(PROMPTS)


def test_a_tree_that_does_not_fit_is_refused(model):
  deep = config.TreeConfig(depth=4)
  with pytest.raises(ValueError, match='3 speculative streams'):
    survey.Survey(model, DRAFTER, (deep,), DECODE)
