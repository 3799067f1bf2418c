# SPDX-License-Identifier: Apache-2.0
"""What is taken of generation_config.json, and what is said of it."""

import json

import pytest

from specstream_jax import config
from specstream_jax.checkpoints import generation_config

NONE = '(generation_config=none takes nothing)'
CASES = {
  'nothing': ({'eos_token_id': 2, 'transformers_version': '5'}, {}, ''),
  'sampled': (
    {'do_sample': True, 'temperature': 0.6, 'top_p': 0.9, 'max_length': 20},
    {'temperature': 0.6, 'top_p': 0.9},
    f'generation_config.json: took temperature=0.6, top_p=0.9 {NONE}',
  ),
  'sampled at 1': (
    {'do_sample': True, 'top_k': -1, 'min_p': None},
    {'temperature': 1.0},
    f'generation_config.json: took temperature=1.0 {NONE}',
  ),
  'all of it': (
    {
      'do_sample': True,
      'temperature': 0.7,
      'top_k': 20,
      'top_p': 0.8,
      'min_p': 0.05,
      'repetition_penalty': 1.05,
      'suppress_tokens': [1, 2, 3, 4, 5],
      'min_new_tokens': 3,
      'sequence_bias': [[[45], -0.6]],
    },
    {
      'temperature': 0.7,
      'top_k': 20,
      'top_p': 0.8,
      'min_p': 0.05,
      'repetition_penalty': 1.05,
      'suppress_tokens': (1, 2, 3, 4, 5),
      'min_new_tokens': 3,
      'logit_bias': ((45, -0.6),),
    },
    'generation_config.json: took temperature=0.7, top_k=20, top_p=0.8, '
    'min_p=0.05, repetition_penalty=1.05, logit_bias=((45, -0.6),), '
    f'suppress_tokens=[5 entries], min_new_tokens=3 {NONE}',
  ),
  'greedy': (
    {'temperature': 0.6, 'top_k': 50, 'repetition_penalty': 1.1},
    {'repetition_penalty': 1.1},
    'generation_config.json: took repetition_penalty=1.1; left out '
    'temperature=0.6 (do_sample is not true), top_k=50 (do_sample is not true) '
    f'{NONE}',
  ),
  'not supported': (
    {'num_beams': 4, 'no_repeat_ngram_size': 3, 'begin_suppress_tokens': [220]},
    {},
    'generation_config.json: left out begin_suppress_tokens=[220] (not '
    'supported), no_repeat_ngram_size=3 (not supported), num_beams=4 (not '
    f'supported) {NONE}',
  ),
  'off': (
    {
      'num_beams': 1,
      'typical_p': 1.0,
      'no_repeat_ngram_size': 0,
      'bad_words_ids': None,
      'suppress_tokens': [],
      'repetition_penalty': 1.0,
    },
    {},
    '',
  ),
  'elsewhere': (
    {'max_new_tokens': 2048, 'stop_strings': ['x']},
    {},
    'generation_config.json: left out max_new_tokens=2048 (max_new_tokens '
    f"decides), stop_strings=['x'] (stop decides) {NONE}",
  ),
  'unknown': (
    {'presence_penalty': 1.5},
    {},
    'generation_config.json: left out presence_penalty=1.5 (not supported) '
    f'{NONE}',
  ),
  'biases of several tokens': (
    {'sequence_bias': [[[45], 2], [[1, 2], 3.0]]},
    {'logit_bias': ((45, 2.0),)},
    'generation_config.json: took logit_bias=((45, 2.0),); left out '
    f'sequence_bias of several tokens (not supported) {NONE}',
  ),
}


@pytest.mark.parametrize('name', CASES)
def test_what_is_taken(name):
  raw, values, line = CASES[name]
  found = generation_config.parse(raw, 257)
  assert found.sampling == config.SamplingConfig(**values)
  assert found.line() == line


@pytest.mark.parametrize(
  ('raw', 'message'),
  [
    (
      {'do_sample': True, 'temperature': 'hot'},
      "temperature is the text 'hot'; accepted",
    ),
    ({'do_sample': True, 'top_p': 2}, 'top_p is 2.0; accepted'),
    (
      {'do_sample': True, 'top_k': 'many'},
      "top_k is the text 'many'; accepted",
    ),
    ({'repetition_penalty': 0}, 'repetition_penalty is 0.0; it must be > 0'),
    ({'do_sample': True, 'top_p': 0.0}, 'top_p is 0.0; accepted: 0 < top_p'),
    ({'suppress_tokens': 'x'}, "suppress_tokens is 'x'; accepted: a list"),
    ({'suppress_tokens': [257]}, 'names token id 257; accepted: 0 to 256'),
    ({'sequence_bias': [[[300], 1]]}, 'logit_bias names token id 300; acc'),
    ({'sequence_bias': 3}, 'sequence_bias is 3; it must be a list of'),
    ({'sequence_bias': [[['a'], 1]]}, "logit_bias is 'a'; it must be"),
  ],
)
def test_values_out_of_range(raw, message):
  fix = 'mend the file, or use generation_config=none'
  with pytest.raises(
    ValueError, match=f'generation_config.json: .*{message}.*{fix}'
  ):
    generation_config.parse(raw, 257)
  # What is not used need not be right.
  if 'do_sample' in raw:
    generation_config.parse(raw | {'do_sample': False}, 257)


def test_a_folder_may_have_no_file(tmp_path):
  assert generation_config.read(tmp_path) == {}
  (tmp_path / generation_config.FILE).write_text(json.dumps({'top_k': 3}))
  assert generation_config.read(tmp_path) == {'top_k': 3}
