# SPDX-License-Identifier: Apache-2.0
"""Terms of the streams' loss against the oracle, alone and in the objective."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import tiny
import training_batches as tb

from specstream_jax import config
from specstream_jax.modeling import params
from specstream_jax.training import losses

STREAMS = tiny.STREAMS.num_streams
CFG = config.ObjectiveConfig(
  stream_weight=0.25,
  stream_decay=0.5,
  teacher_weight=0.2,
  total_variation_weight=0.3,
  hidden_weight=0.7,
  pruning_weight=0.0,
  chunk_size=7,
)


class Identity:
  """A model whose hidden states are its logits."""

  def logits(self, hidden):
    return hidden


@pytest.mark.parametrize(
  ('count', 'chunk_size', 'size'), [(7, 6, 3), (5, 1, 1), (4, 99, 4)]
)
def test_chunks_are_put_together(count, chunk_size, size):
  """Of two rows, whose last chunk may not be full."""
  seen = []

  def double(x):
    seen.append(x.shape)
    return 2 * x

  x = jnp.arange(2 * count).reshape(2, count)
  found = losses.by_chunks(double, (x,), x.shape, chunk_size)
  np.testing.assert_array_equal(found, 2 * x)
  assert set(seen) == {(2, size)}


def test_ranks_count_tokens_that_are_likelier():
  logits = jnp.array([[[3.0, 1.0, 2.0, 0.0], [0.0, 5.0, 5.0, 5.0]]])
  for target, want in ((0, [0, 3]), (2, [1, 0]), (3, [3, 0])):
    targets = jnp.full((1, 2), target)
    found = losses.token_loss(Identity(), logits, targets, chunk_size=1)
    assert found.rank.tolist() == [want]


def test_terms_equal_the_oracle():
  rng = np.random.default_rng(0)
  own, other = rng.normal(size=(2, 3, 2, 5))
  targets = rng.integers(0, 5, (3, 2))
  found = losses.token_loss(
    Identity(), jnp.asarray(own), jnp.asarray(targets), 4, jnp.asarray(other)
  )
  error = losses.hidden_error(jnp.asarray(own), jnp.asarray(other))
  for place in np.ndindex(3, 2):
    expected = reference.token_terms(
      own[place], other[place], own[place], other[place], targets[place]
    )
    assert float(found.nll[place]) == pytest.approx(expected['stream'], 1e-5)
    for name in ('teacher', 'total_variation'):
      value = getattr(found, name)[place]
      assert float(value) == pytest.approx(expected[name], 1e-5), name
    assert float(error[place]) == pytest.approx(expected['hidden'], 1e-5)


def test_terms_by_hand():
  half, sure = jnp.log(jnp.array([[0.5, 0.5]])), jnp.array([[0.0, -99.0]])
  found = losses.token_loss(Identity(), half, jnp.array([0]), 1, sure)
  assert float(found.total_variation[0]) == pytest.approx(0.5)
  assert float(found.teacher[0]) == pytest.approx(np.log(2))
  ones = jnp.ones((1, 3))
  assert [
    float(losses.hidden_error(k * ones, 2 * ones)[0]) for k in (2, 0)
  ] == [
    0,
    1,
  ]


def test_the_teacher_gets_no_gradient_and_the_stream_finite_ones():
  keys = jax.random.split(jax.random.key(0))
  pair = [jax.random.normal(key, (3, 5)) for key in keys]
  pair[0] = pair[0].at[0].set(pair[1][0])  # where both agree
  pair[0] = pair[0].at[1].multiply(100.0)  # where the law is all but certain

  def total(own, other, name):
    found = losses.token_loss(Identity(), own, jnp.arange(3), 2, other)
    if name == 'hidden':
      return losses.hidden_error(own, other).sum()
    return getattr(found, name).sum()

  names = ('teacher', 'total_variation', 'hidden')
  run = lambda *pair: [jax.grad(total, (0, 1))(*pair, name) for name in names]
  for name, (own, other) in zip(names, tb.jit(run)(*pair), strict=True):
    assert not np.any(other), name
    assert np.all(np.isfinite(own)) and np.any(own), name


def expected_terms(rows):
  """{name: {j: values}} of every stream token, from the oracle."""
  oracle, found = tb.oracle(), {}
  for prompt, answer in (example for row in rows for example in row):
    tokens = np.concatenate([prompt, answer])
    anchors = range(len(prompt) - 1, len(tokens) - 1)
    main, groups = oracle.run(tokens[:-1], anchors)
    for t in anchors:
      for j in range(1, min(STREAMS, len(tokens) - 2 - t) + 1):
        own, other = groups[t][j - 1], main[t + j]
        terms = reference.token_terms(
          oracle.logits(own),
          oracle.logits(other),
          own,
          other,
          tokens[t + 1 + j],
        )
        for name, value in terms.items():
          found.setdefault(name, {}).setdefault(j, []).append(value)
  return found


def test_the_objective_is_made_of_them():
  rows = tb.examples()
  run = tb.gradient_fn(CFG)
  (total, metrics), gradient = run(tb.model()[2], tb.pack(rows))
  wanted, expected = expected_terms(rows), 0.0
  shares = {
    'stream': 0.5, 'teacher': 0.2, 'total_variation': 0.3, 'hidden': 0.7
  }  # fmt: skip
  assert pytest.approx(shares) == CFG.stream_terms
  for name, share in shares.items():
    for j, values in wanted[name].items():
      summed, weight = metrics[f'loss/{name}_{j}']
      assert int(weight) == len(values)
      assert float(summed) == pytest.approx(sum(values), rel=1e-4)
      expected += share * 0.25 * 0.5 ** (j - 1) * np.mean(values)
  summed, weight = metrics['loss/main']
  assert float(total - summed / weight) == pytest.approx(expected, rel=1e-4)
  for path, leaf in params.flatten(gradient).items():
    assert np.all(np.isfinite(leaf)), path
  assert np.any(gradient['streams']['embedding'])


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'total_variation_weight': 1.1}, 'beside a teacher_weight of 0.0; acc'),
    ({'total_variation_weight': -0.1}, 'total_variation_weight is -0.1'),
    (
      {'total_variation_weight': 0.6, 'teacher_weight': 0.5},
      'is 0.6 beside a teacher_weight of 0.5; accepted: 0 to 0.5, as both are',
    ),
    ({'hidden_weight': -1.0}, 'hidden_weight is -1.0'),
    ({'curriculum_steps': 5}, 'curriculum_steps is 5 but stream_tokens is 0'),
  ],
)
def test_weights_that_make_no_loss(fields, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(config.ObjectiveConfig(), **fields)


def test_a_published_mix_leaves_no_other_term():
  cfg = config.ObjectiveConfig(total_variation_weight=0.9)
  terms = {'stream': 0.1, 'total_variation': 0.9}
  assert cfg.stream_terms == pytest.approx(terms)
  both = config.ObjectiveConfig(total_variation_weight=0.3, teacher_weight=0.7)
  assert set(both.stream_terms) == {'teacher', 'total_variation'}
