# SPDX-License-Identifier: Apache-2.0
"""An engine whose layers pass through memory says what one says that has them."""

import dataclasses

import layer_folders
import numpy as np
import tiny_runtime

from specstream_jax import config
from specstream_jax.config import serving
from specstream_jax.serving import engine as engine_lib, requests
from specstream_jax.streaming import weights as weights_lib

CFG = serving.EngineConfig(
  num_slots=2,
  cache_length=64,
  max_new_tokens=16,
  chunk=8,
  quantum=4,
  max_end_ids=3,
  batch_sizes=(2,),
  max_drafting_rows=1,  # with two rows nobody drafts
  schedule='parallel',
)
SAMPLED = config.SamplingConfig(1.3, top_k=40)
ASKED = (
  requests.Request((10, 20, 30), max_new_tokens=15),
  requests.Request(tuple(range(40, 59)), max_new_tokens=9, sampling=SAMPLED),
  requests.Request((7,), max_new_tokens=16, seed=5, sampling=SAMPLED),
)


def streamed(model, folder, **settings):
  """The model with its layers in files."""
  rest = layer_folders.write(folder, model.base)
  cfg = config.StreamedWeightsConfig(**settings)
  weights = weights_lib.LayerWeights(str(folder), cfg)
  return dataclasses.replace(model, base=rest, streamed=weights, _decoders={})


def answers(engine, asked):
  """Tokens of requests that run together, and then of the first one alone."""
  handles = [engine.submit(request) for request in asked]
  while engine.step():
    pass
  last = engine.submit(asked[0])
  while engine.step():
    pass
  return [handle.result(0).tokens for handle in (*handles, last)]


def plain(model):
  """What plain decoding says to `ASKED`, one at a time."""
  decode = config.DecodeConfig(max_new_tokens=16, eos_ids=model.eos_ids)
  made = model.decoder('none', decode)
  return [
    made.generate(
      made.params,
      [one.prompt],
      one.max_new_tokens,
      seed=one.seed,
      sampling=one.sampling,
    ).tokens[0]
    for one in (*ASKED, ASKED[0])
  ]


def test_tokens_and_scores_are_those_of_weights_that_stay(tmp_path):
  model = tiny_runtime.model()
  made = streamed(model, tmp_path)
  engine = engine_lib.Engine(made, CFG)
  assert answers(engine, ASKED) == plain(model)
  before = made.streamed.counts.taken
  scores = engine.scorer()(ASKED[1].prompt)
  assert made.streamed.counts.taken > before
  want = engine_lib.Engine(model, CFG, drafter='none').scorer()(ASKED[1].prompt)
  np.testing.assert_allclose(scores.logprobs, want.logprobs, atol=1e-5)
  np.testing.assert_array_equal(scores.candidates, want.candidates)
  made.streamed.close()
