# SPDX-License-Identifier: Apache-2.0
"""Drafts that do not pay are left alone for a while; tokens stay the same."""

import dataclasses

import jax.numpy as jnp
import pytest
import tiny_runtime

from specstream_jax import config
from specstream_jax.config import drafting
from specstream_jax.decoding import pauses
from specstream_jax.tpu import hlo

PROMPTS = [[5, 6, 7], [9]]
DECODE = config.DecodeConfig(max_new_tokens=40)


@pytest.fixture(scope='module')
def model():
  return tiny_runtime.model()


def generate(model, drafter, **kwargs):
  decoder = model.decoder(drafter, DECODE)
  return decoder.generate(decoder.params, PROMPTS, **kwargs)


@pytest.mark.parametrize(
  'pays_above', [1.05, pytest.param(9.0, marks=pytest.mark.slow)]
)
def test_tokens_are_those_of_plain_decoding(model, pays_above):
  plain = generate(model, 'none')
  text = f'prompt_lookup:depth=2,pays_above={pays_above}'
  paused = generate(model, text)
  assert paused.tokens == plain.tokens
  lengths = [
    1 + n + sum(row) for n, row in zip(paused.calls, paused.accept_lengths)
  ]
  assert lengths == list(map(len, plain.tokens))


def test_a_text_may_be_taken_step_by_step(model):
  text = 'prompt_lookup:depth=2,pays_above=1.05'
  decoder = model.decoder(text, DECODE)
  whole = generate(model, text)
  rows = [[] for _ in PROMPTS]
  for row, tokens in decoder.stream(decoder.params, PROMPTS, steps=1):
    rows[row] += tokens
  assert rows == whole.tokens


class Play:
  """What the gauge comes to, call after call, from what calls emit."""

  def __init__(self, pays_above):
    self.pays_above, self.gauge = pays_above, pauses.begin(pays_above)
    self.drafting = []

  def run(self, emitted):
    """One call each; an infinite text of calls that emit as told."""
    for count in emitted:
      gauge = pauses._rest(self.gauge, self.pays_above)
      is_resting = bool(gauge.resting > 0)
      self.drafting.append(not is_resting)
      if is_resting:
        self.gauge = pauses._wake(gauge, gauge.resting - 1)
      else:
        self.gauge = pauses._judge(
          gauge, jnp.float32(count), jnp.bool_(True), self.pays_above
        )
    return self.drafting


def test_what_never_pays_is_tried_ever_less():
  play = Play(2.0)
  drafting = play.run([1.0] * 1200)
  # Three calls, then a pause of 16; the pauses double up to 128.
  assert drafting[:3] == [True] * 3
  assert not any(drafting[4:19])
  assert sum(drafting) < 0.04 * len(drafting)
  assert sum(drafting[600:]) <= 0.03 * 600


def test_what_pays_is_never_left_alone():
  assert all(Play(2.0).run([3.0] * 200))


def test_drafts_come_back_when_the_text_gets_easier():
  play = Play(2.0)
  play.run([1.0] * 60)
  drafting = play.run([4.0] * 400)[60:]
  first = drafting.index(True, 1)
  assert first < 140
  assert all(drafting[first + 3 :])
  # And the next pause is a short one again.
  assert int(play.gauge.pause) == 16


@pytest.mark.parametrize(
  'text, said',
  [
    ('streams:pays_above=2,drafting=beam,verifier=typical', "'walk' only"),
    ('lookahead:pays_above=2', 'does not read pays_above'),
    ('draft_model:path=x,pays_above=2', 'does not read pays_above'),
    ('streams:pays_above=-1', 'pays_above is -1'),
  ],
)
def test_where_drafts_cannot_pause_it_says_so(text, said):
  with pytest.raises(ValueError, match=said):
    drafting.parse(text)


def test_the_cache_stays_where_it_is(model):
  """As `test_compiled_step_copies_neither_cache_nor_weights`."""
  decode = dataclasses.replace(DECODE, cache_length=2048)
  decoder = model.decoder('prompt_lookup:depth=2,pays_above=1.5', decode)
  state = decoder.start(decoder.params, PROMPTS[:1])
  lowered = decoder._run_pausing.lower(
    decoder.params, state, decoder._gauge, jnp.int32(9), None
  )
  compiled, layer_bytes = lowered.compile(), state.cache.keys[0].nbytes
  lines = hlo.copies_of_size(compiled.as_text(), layer_bytes)
  # Attention weights have the slots in them, but not the width of a head.
  lines = [line for line in lines if 8 in hlo.dims(line)]
  assert not lines, '\n'.join(lines)
  # Keys and values of two layers are given, and given back, in place.
  aliased = compiled.memory_analysis().alias_size_in_bytes
  assert aliased >= 4 * layer_bytes
