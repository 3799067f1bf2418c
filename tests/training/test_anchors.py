# SPDX-License-Identifier: Apache-2.0
"""A fixed number of stream tokens, whatever γ: what is drawn, and unbiased."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import tiny
import training_batches as tb

from specstream_jax import config
from specstream_jax.training import anchors as anchors_lib, objective
from specstream_jax.workflows import train

STREAMS = tiny.STREAMS.num_streams
CFG = config.ObjectiveConfig(
  stream_weight=0.25, stream_decay=0.5, chunk_size=7, stream_tokens=8
)


def draw(num_keys, weights, num_groups, num_streams, longest):
  """Slots and scale of many keys, as numpy arrays."""
  keys = jax.random.split(jax.random.key(0), num_keys)
  run = lambda key: anchors_lib.draw_slots(
    key, weights, num_groups, num_streams, longest
  )
  return jax.tree.map(np.asarray, jax.jit(jax.vmap(run))(keys))


def predicted(cfg, batch, key):
  """The stream tokens of a step, as numpy arrays."""

  @tb.jit
  def run():
    chosen = anchors_lib.choose_anchors(
      key, batch['decoder_loss_weights'], cfg.anchors_per_sequence
    )
    return anchors_lib.predicted(batch, key, cfg, STREAMS, chosen=chosen)

  return jax.tree.map(np.asarray, run())


def blocks_of(anchors, numbers):
  """[(position, streams)] of one group, checked slot by slot."""
  blocks = []
  for anchor, number in zip(anchors, numbers, strict=True):
    if number == 0:
      blocks.append([anchor, 0])
    assert (anchor, number) == tuple(blocks[-1])
    blocks[-1][1] += 1
  return blocks


@pytest.mark.parametrize('longest', [1, 3, 5])
def test_groups_are_filled_with_blocks_of_first_streams(longest):
  weights = np.zeros((2, 23), np.float32)
  weights[:, ::2] = 1
  slots, _ = draw(50, weights, 3, 5, longest)
  lengths = set()
  for key, row in np.ndindex(50, 2):
    groups = [
      blocks_of(*pair)
      for pair in zip(slots.anchors[key, row], slots.numbers[key, row])
    ]
    assert all(group[0][1] == longest for group in groups[::2])
    blocks = [block for group in groups for block in group]
    lengths |= {length for _, length in blocks}
    places = [place for place, _ in blocks]
    assert all(weights[row, place] for place in places)
    # No position twice before each was there once.
    assert len(set(places)) == min(len(places), 12)
  assert lengths == set(range(1, longest + 1))


def test_sums_over_draws_are_those_of_all_streams_everywhere():
  """Whatever each stream loses at each position; one row is short of any."""
  weights = np.zeros((3, 11), np.float32)
  weights[0, [1, 2, 4, 5, 7, 9, 10]] = 1
  weights[1, [0, 6]] = 1
  slots, scale = draw(4000, weights, 2, 3, 3)
  loss = np.random.default_rng(0).normal(3, 1, (3, 11, 3))
  placed = np.zeros((4000, *loss.shape))
  index = np.indices(scale.shape)
  np.add.at(placed, (index[0], index[1], slots.anchors, slots.numbers), scale)
  assert np.all(placed[:, weights == 0] == 0)
  expected = np.broadcast_to(weights[..., None], loss.shape)
  # The rarest stream of the longest row: at most 7 * sqrt(1/7 / 4000) = 0.04.
  np.testing.assert_allclose(placed.mean(0), expected, atol=0.2)
  totals = (placed * loss).sum((1, 2))
  exact = (expected * loss).sum((0, 1))
  error = (totals.mean(0) - exact) / (totals.std(0) / np.sqrt(4000))
  assert np.all(np.abs(error) < 4), error


def test_predicted_tokens_by_hand():
  batch, key = tb.pack(tb.examples()), jax.random.key(0)
  five = dataclasses.replace(CFG, anchors_per_sequence=5)
  for cfg in (five, dataclasses.replace(five, stream_tokens=0)):
    found = predicted(cfg, batch, key)
    is_budget = bool(cfg.stream_tokens)
    starts = found.anchors.anchors if is_budget else found.anchors[..., None]
    numbers = found.anchors.numbers if is_budget else np.arange(STREAMS)
    starts, numbers = np.broadcast_arrays(starts, numbers)
    assert found.targets.shape == ((3, 2, 3) if is_budget else (3, 5, 3))
    for b, *rest in np.ndindex(found.targets.shape):
      place = (b, *rest)
      t, j = starts[place], numbers[place] + 1
      segment = batch['decoder_segment_ids'][b]
      is_inside = t + j < tb.LENGTH and segment[t + j] == segment[t] > 0
      assert bool(found.weights[place]) == is_inside
      if is_inside:
        assert found.places[place] == t + j
        tokens = batch['decoder_target_tokens'][b]
        assert found.targets[place] == tokens[t + j]
        assert found.parents[place] == tokens[t + j - 1]


def test_loss_is_that_of_the_tokens_drawn_over_the_weight_of_all():
  rows = tb.examples()
  batch, key, oracle = tb.pack(rows), jax.random.key(0), tb.oracle()
  built, base, adapter = tb.model()
  run = lambda: objective.loss(built.merge(base, adapter), batch, key, CFG)
  total, metrics = tb.jit(run)()
  found = predicted(CFG, batch, key)
  segments, expected = batch['decoder_segment_ids'], np.zeros((STREAMS, 2))
  for place in np.argwhere(np.asarray(found.weights) > 0):
    place = tuple(place)
    t, j = (int(x[place]) for x in found.anchors)
    first = int(np.argmax(segments[place[0]] == segments[place[0], t]))
    tokens = batch['decoder_input_tokens'][place[0], first : t + 1]
    _, groups = oracle.run(tokens.tolist(), [t - first])
    law = reference.softmax(oracle.logits(groups[t - first][j]))
    weight = float(found.weights[place])
    expected[j] += -weight * np.log(law[int(found.targets[place])]), weight
  everywhere = np.zeros(STREAMS)
  for _, answer in (example for row in rows for example in row):
    everywhere += [max(len(answer) - j, 0) for j in range(1, STREAMS + 1)]
  np.testing.assert_array_equal(
    anchors_lib.all_weights(batch, STREAMS), everywhere
  )
  mean = lambda name: metrics[f'loss/{name}'][0] / metrics[f'loss/{name}'][1]
  wanted = mean('main') + 0.1 * mean('pruning')
  for j in range(STREAMS):
    pair = [float(x) for x in metrics[f'loss/stream_{j + 1}']]
    np.testing.assert_allclose(pair, expected[j], rtol=1e-4)
    wanted += 0.25 * 0.5**j * expected[j, 0] / everywhere[j]
  assert float(total) == pytest.approx(float(wanted), rel=1e-4)


def test_the_curriculum_lengthens_blocks_evenly():
  cfg = dataclasses.replace(CFG, curriculum_steps=8)
  longest = lambda step: int(anchors_lib.longest_block(cfg, 4, jnp.int32(step)))
  found = [longest(step) for step in range(10)]
  assert found == [1, 1, 2, 2, 3, 3, 4, 4, 4, 4]
  assert anchors_lib.longest_block(cfg, 4, None) == 4
  assert anchors_lib.longest_block(CFG, 4, jnp.int32(0)) == 4


def test_a_step_early_in_the_curriculum_has_first_streams_alone():
  cfg = dataclasses.replace(CFG, curriculum_steps=9, pruning_weight=0.0)
  built, base, adapter = tb.model()

  @tb.jit
  def weights(step):
    _, metrics = objective.loss(
      built.merge(base, adapter),
      tb.pack(tb.examples()),
      jax.random.key(0),
      cfg,
      step=step,
    )
    return [metrics[f'loss/stream_{j + 1}'][1] for j in range(STREAMS)]

  assert [w > 0 for w in weights(0)] == [True, False, False]
  assert [w > 0 for w in weights(3)] == [True, True, False]


def test_a_budget_smaller_than_one_anchor_needs():
  recipe = train.Recipe(objective=CFG)
  assert recipe.objective.num_groups(recipe.stream.num_streams) == 2
  with pytest.raises(ValueError, match=r'stream_tokens is 8 but .* is 9; use'):
    dataclasses.replace(recipe, stream=config.StreamConfig(num_streams=9))
