# SPDX-License-Identifier: Apache-2.0
"""How much of a tree is verified follows the drafts; tokens stay the same."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runtime

from specstream_jax import config
from specstream_jax.config import budgets as config_budgets, drafting
from specstream_jax.decoding import budgets, loop, plain, tree as tree_lib
from specstream_jax.tpu import hlo

PROMPTS = [[5, 6, 7], [9]]
DECODE = config.DecodeConfig(max_new_tokens=40)
SAMPLED = config.SamplingConfig(temperature=1.0, top_k=29, top_p=0.95)
SIZES = config_budgets.parse('2:1.5/4:2', 64)


@pytest.fixture(scope='module')
def model():
  return tiny_runtime.model()


def text(costs):
  tree = 'kind=best_first,depth=2,branching=3,num_nodes=6'
  return f'streams:{tree},budgets={costs}'


@pytest.fixture(scope='module')
def plain_tokens(model):
  decoder = model.decoder('none', DECODE)
  return {
    sampling: decoder.generate(
      decoder.params, PROMPTS, sampling=sampling
    ).tokens
    for sampling in (config.SamplingConfig(), SAMPLED)
  }


@pytest.mark.parametrize(
  'costs',
  [
    '3:0.9/6:1.02',  # some calls of each size, some pauses
    pytest.param('3:0.5/6:0.9', marks=pytest.mark.slow),  # never pauses
    pytest.param('2:3/4:3.5/6:4', marks=pytest.mark.slow),  # never pays
  ],
)
def test_tokens_are_those_of_plain_decoding(model, plain_tokens, costs):
  decoder = model.decoder(text(costs), DECODE)
  for sampling, want in plain_tokens.items():
    for _ in range(2):  # the second goes on with what the first has learned
      made = decoder.generate(decoder.params, PROMPTS, sampling=sampling)
      assert made.tokens == want
      lengths = [
        1 + n + sum(row) for n, row in zip(made.calls, made.accept_lengths)
      ]
      assert lengths == list(map(len, want))
  assert decoder.num_compilations == 4  # greedy and sampled, prompts and loop
