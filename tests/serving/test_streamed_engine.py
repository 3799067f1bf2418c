# SPDX-License-Identifier: Apache-2.0
"""An engine whose layers pass through memory says what one says that has them."""

import dataclasses
import os
import threading

import layer_folders
import numpy as np
import pytest
import serving_models
import tiny_runtime

from specstream_jax import config
from specstream_jax.config import serving
from specstream_jax.serving import engine as engine_lib, requests
from specstream_jax.streaming import layer_files, weights as weights_lib

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


def plain(model, one):
  """What plain decoding says to a request."""
  decode = config.DecodeConfig(max_new_tokens=16, eos_ids=model.eos_ids)
  made = model.decoder('none', decode)
  drawn = {'seed': one.seed, 'sampling': one.sampling}
  result = made.generate(made.params, [one.prompt], one.max_new_tokens, **drawn)
  return result.tokens[0]


def test_a_row_gets_the_tokens_of_plain_decoding(tmp_path):
  model = tiny_runtime.model()
  made = streamed(model, tmp_path)
  cfg = dataclasses.replace(CFG, num_slots=1, batch_sizes=(1,))
  engine = engine_lib.Engine(made, cfg)
  assert answers(engine, ASKED[1:2]) == [plain(model, ASKED[1])] * 2
  assert made.streamed.counts.taken > 0
  made.streamed.close()


@pytest.mark.slow
def test_tokens_and_scores_are_those_of_weights_that_stay(tmp_path):
  model = tiny_runtime.model()
  made = streamed(model, tmp_path)
  engine = engine_lib.Engine(made, CFG)
  want = [plain(model, one) for one in (*ASKED, ASKED[0])]
  assert answers(engine, ASKED) == want
  before = made.streamed.counts.taken
  scores = engine.scorer()(ASKED[1].prompt)
  assert made.streamed.counts.taken > before
  want = engine_lib.Engine(model, CFG, drafter='none').scorer()(ASKED[1].prompt)
  np.testing.assert_allclose(scores.logprobs, want.logprobs, atol=1e-5)
  np.testing.assert_array_equal(scores.candidates, want.candidates)
  made.streamed.close()


@pytest.mark.slow
def test_adapters_side_by_side_say_what_they_say_with_weights_that_stay(
  tmp_path,
):
  resident = serving_models.engine(max_waiting=9)
  asked = [
    dataclasses.replace(one, adapter=name)
    for name, one in zip(('', *resident.adapters), ASKED * 3, strict=False)
  ]
  made = streamed(serving_models.base(), tmp_path, resident_layers=1)
  engine = engine_lib.Engine(
    made,
    dataclasses.replace(serving_models.CFG, max_waiting=9),
    adapters=serving_models.kinds(),
  )
  assert len({one.adapter for one in asked}) > 3
  assert answers(engine, asked) == answers(resident, asked)
  made.streamed.close()


@pytest.mark.slow
def test_weights_that_cannot_be_read_fail_the_request(tmp_path, monkeypatch):
  monkeypatch.setattr(threading, 'excepthook', lambda args: None)
  made = streamed(tiny_runtime.model(), tmp_path, buffers=1)
  cfg = dataclasses.replace(CFG, num_slots=1, batch_sizes=(1,))
  engine = engine_lib.Engine(made, cfg, drafter='none')
  os.truncate(layer_files.path_of(str(tmp_path), 1), 4096)
  handle = engine.submit(ASKED[0])
  engine.start()
  with pytest.raises(
    requests.RefusedError, match=r'no completion: weights of layer 1: .* ends'
  ):
    handle.result(120)
  engine._thread.join(120)
  with pytest.raises(requests.RefusedError, match='engine has failed: weights'):
    engine.submit(ASKED[0])
  made.streamed.close()
