# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities as the endpoints show them."""

import json
import math

import byte_model
import numpy as np

from specstream_jax.serving import likelihoods, scoring
from specstream_jax.text import pieces as pieces_lib

PIECES = pieces_lib.Pieces(byte_model.byte_tokenizer())
# 'a', the two halves of 'é'; 0 is EOS.
A, FIRST, SECOND = PIECES.tokenizer.encode('aé').ids
TOKENS = [A, FIRST, SECOND, 0, A]
SCORES = scoring.Scores(
  np.array([-1.5, -0.5, -math.inf, math.nan], np.float32),
  np.array([[A, FIRST, 0]] * 4, np.int32),
  np.array([[-0.25, -1.5, -2.0]] * 4, np.float32),
)


def test_a_completion_by_hand():
  made = likelihoods.of_text(PIECES, TOKENS, SCORES, start=0, num_top=1)
  first, second = r'bytes:\xc3', r'bytes:\xa9'
  assert made == {
    'tokens': ['a', first, second, '<eos>', 'a'],
    'token_logprobs': [None, -1.5, -0.5, -9999.0, -9999.0],
    'top_logprobs': [
      None,
      {'a': -0.25, first: -1.5},
      {'a': -0.25, second: -0.5},
      {'a': -0.25, '<eos>': -9999.0},
      {'a': -0.25},
    ],
    'text_offset': [0, 1, 1, 2, 2],
  }
  json.dumps(made, allow_nan=False)
  later = likelihoods.of_text(PIECES, TOKENS, SCORES, start=3, num_top=0)
  assert later['tokens'] == ['<eos>', 'a'] and later['text_offset'] == [0, 0]
  assert later['top_logprobs'] == [{'<eos>': -9999.0}, {'a': -9999.0}]


def test_a_chat_by_hand():
  made = likelihoods.of_chat(PIECES, TOKENS, SCORES, start=1, num_top=2)
  assert made['refusal'] is None
  one, _, end, _ = made['content']
  rivals = [
    {'token': 'a', 'logprob': -0.25, 'bytes': [97]},
    {'token': r'bytes:\xc3', 'logprob': -1.5, 'bytes': [0xC3]},
  ]
  assert one == rivals[1] | {'top_logprobs': rivals}
  assert end['token'] == '<eos>' and end['bytes'] == []
