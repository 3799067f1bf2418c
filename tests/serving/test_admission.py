# SPDX-License-Identifier: Apache-2.0
"""Where the bounds of a request lie, by hand; no device."""

import types
from typing import Any

import numpy as np
import pytest

from specstream_jax import config
from specstream_jax.config import serving
from specstream_jax.decoding import edits
from specstream_jax.serving import admission, requests

CFG = serving.EngineConfig(cache_length=32, chunk=8, max_new_tokens=20)


def _model(positions=0) -> Any:
  sizes = types.SimpleNamespace(
    most_positions=positions, vocab_size=2 * edits.ROOM
  )
  return types.SimpleNamespace(
    config=sizes,
    check_ids=lambda ids, name: None,
    pieces=types.SimpleNamespace(is_exact=True),
  )


def _request(num_prompt=3, **values):
  return requests.Request((1,) * num_prompt, **values)


@pytest.mark.parametrize(
  ('num_prompt', 'asked', 'positions', 'want'),
  [
    (3, None, 0, 20),  # as many as the engine gives
    (3, 20, 0, 20),
    (7, None, 0, 20),  # 32 - 5 - 7
    (9, None, 0, 18),
    (9, 18, 0, 18),
    (26, None, 0, 1),
    (3, None, 12, 9),  # the tree needs none of the model's positions
    (3, 9, 12, 9),
    (9, None, 100, 18),
  ],
)
def test_room_for_new_tokens(num_prompt, asked, positions, want):
  request = _request(num_prompt, max_new_tokens=asked)
  assert admission.limit(request, _model(positions), CFG, 5) == want


@pytest.mark.parametrize(
  ('num_prompt', 'asked', 'positions', 'message'),
  [
    (3, 21, 0, 'max_new_tokens is 21; accepted: 1 to 20'),
    (9, 19, 0, 'come to 33 positions, but there are 32'),
    (27, None, 0, 'come to 33 positions'),
    (3, 10, 12, '13'),
  ],
)
def test_one_more_is_too_many(num_prompt, asked, positions, message):
  request = _request(num_prompt, max_new_tokens=asked)
  with pytest.raises(ValueError, match=message):
    admission.limit(request, _model(positions), CFG, 5)


def test_bounds_may_be_reached():
  biases = dict.fromkeys(range(edits.ROOM), 1.0)
  cfg = config.SamplingConfig(min_new_tokens=4, logit_bias=biases)
  admission.check(_request(sampling=cfg), _model(), 4, 0)
  cfg = config.SamplingConfig(logit_bias=biases | {edits.ROOM: 1.0})
  with pytest.raises(ValueError, match=f'{edits.ROOM + 1} tokens are biased'):
    admission.check(_request(sampling=cfg), _model(), 4, 0)


def test_a_stop_text_needs_exact_pieces():
  model = _model()
  admission.check(_request(stop=('a',)), model, 4, 0)
  model.pieces.is_exact = False
  admission.check(_request(), model, 4, 0)
  with pytest.raises(ValueError, match='stop texts need a tokenizer'):
    admission.check(_request(stop=('a',)), model, 4, 0)


def test_ids_count_once():
  served: Any = types.SimpleNamespace(eos_ids=(8, 9))
  request = _request(stop_ids=(7, 8))
  found = admission.end_ids(request, _model(), served, 3)
  assert found == ([8, 9], [7, 8])
  with pytest.raises(ValueError, match=r'3 token ids would end.* at most 2'):
    admission.end_ids(request, _model(), served, 2)
  ignoring = _request(
    stop_ids=(7, 8), sampling=config.SamplingConfig(ignore_eos=True)
  )
  assert admission.end_ids(ignoring, _model(), served, 2) == ([], [7, 8])


def test_a_batch_of_one():
  rows = admission.as_arrays(
    _request(), most=4, ids=[9, 7, 9], num_ids=4, num_guessed=0, has_drafts=True
  )
  assert np.asarray(rows.limits).tolist() == [4]
  assert np.asarray(rows.eos_ids).tolist() == [[7, 9, -1, -1]]
  assert np.asarray(rows.has_drafts).tolist() == [True]
