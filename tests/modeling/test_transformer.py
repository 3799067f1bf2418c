# SPDX-License-Identifier: Apache-2.0
"""The transformer against the numpy oracle, and its three ways to itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import tiny

from specstream_jax import config, partitioning
from specstream_jax.decoding import tree as tree_lib
from specstream_jax.modeling import (
  build,
  cache as cache_lib,
  forward,
  initialize,
  params,
  stacks,
  streams as streams_lib,
)

VARIANTS = {
  'fine_tuned': tiny.STREAMS,
  'lossless': dataclasses.replace(tiny.STREAMS, mode='lossless'),
  'anchor': dataclasses.replace(tiny.STREAMS, position='anchor'),
  'low_rank': dataclasses.replace(
    tiny.STREAMS, insertion='low_rank', insertion_rank=3
  ),
  'value_rotation': dataclasses.replace(
    tiny.STREAMS, embedding='value_rotation', rotation_step=0.3
  ),
  'mask': dataclasses.replace(
    tiny.STREAMS, mode='lossless', insertion='mask', num_msa_layers=3
  ),
}
HEADS = {'multi_head': (6, 6), 'grouped': (6, 2), 'multi_query': (6, 1)}


def run_train(built, base, adapter, tokens, anchors):
  """Jitted pass over one segment per row."""
  batch, length = tokens.shape
  segments = jnp.ones((batch, length), jnp.int32)
  positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)

  @jax.jit
  def run(base, adapter, tokens, anchors):
    return forward.forward_train(
      built.merge(base, adapter), tokens, positions, segments, anchors
    )

  return run(base, adapter, tokens, anchors)


def tree_pass(built, *, with_streams, **settings):
  """Jitted `forward_tree` of (base, adapter, tokens, positions, mask, cache)."""
  return jax.jit(
    lambda base, adapter, *args: forward.forward_tree(
      built.merge(base, adapter), *args, with_streams=with_streams, **settings
    )
  )


@pytest.mark.parametrize('name', VARIANTS)
def test_streams_match_the_oracle(name):
  streams = VARIANTS[name]
  built, base, adapter = tiny.model(streams=streams)
  tokens = tiny.tokens(3, (2, 7))
  anchors = jnp.array([[1, 4, 6], [0, 2, 5]])
  hidden = run_train(built, base, adapter, tokens, anchors)
  oracle = reference.Model(
    params.flatten(base),
    params.flatten(adapter),
    tiny.CONFIG,
    streams,
    tiny.LORA,
  )
  for row in range(2):
    main, groups = oracle.run(tokens[row].tolist(), anchors[row].tolist())
    np.testing.assert_allclose(hidden.main[row], main, atol=2e-5)
    for i, anchor in enumerate(anchors[row].tolist()):
      np.testing.assert_allclose(
        hidden.streams[row, i], groups[anchor], atol=2e-5
      )


def test_mask_streams_are_made_of_learned_vectors():
  with pytest.raises(
    ValueError,
    match=r"insertion is 'mask' but .* is 'value_rotation'; use embedding='lea",
  ):
    dataclasses.replace(VARIANTS['mask'], embedding='value_rotation')


@pytest.mark.parametrize('name', ['value_rotation', 'mask'])
def test_first_streams_of_several_anchors_share_a_group(name):
  """Each is what it would be if its anchor had all streams."""
  built, base, adapter = tiny.model(streams=VARIANTS[name])
  tokens = tiny.tokens(3, (2, 7))
  slots = streams_lib.Slots(
    jnp.array([[[1, 1, 4], [6, 2, 4]], [[0, 0, 0], [5, 3, 3]]]),
    jnp.array([[[0, 1, 0], [0, 0, 0]], [[0, 1, 2], [0, 0, 1]]]),
  )
  everywhere = jnp.broadcast_to(jnp.arange(7), tokens.shape)
  whole = run_train(built, base, adapter, tokens, everywhere)
  parts = run_train(built, base, adapter, tokens, slots)
  np.testing.assert_allclose(parts.main, whole.main, atol=2e-5)
  rows = jnp.arange(2)[:, None, None]
  np.testing.assert_allclose(
    parts.streams, whole.streams[rows, slots.anchors, slots.numbers], atol=2e-5
  )


@pytest.mark.parametrize('heads', HEADS)
@pytest.mark.parametrize('rope', ['default', 'linear', 'llama3'])
def test_main_stream_matches_the_oracle(heads, rope):
  num_heads, num_kv_heads = HEADS[heads]
  scaling = config.RopeScaling(
    rope, factor=4.0, original_max_position_embeddings=16
  )
  cfg = dataclasses.replace(
    tiny.CONFIG,
    num_heads=num_heads,
    num_kv_heads=num_kv_heads,
    rope_scaling=scaling,
    rope_theta=100.0,
    tie_word_embeddings=rope == 'linear',
    num_layers=2,
  )
  built, base, _ = tiny.model(cfg, None, None)
  tokens = tiny.tokens(5, (1, 11))
  hidden = run_train(built, base, {}, tokens, None)
  oracle = reference.Model(params.flatten(base), {}, cfg)
  main, _ = oracle.run(tokens[0].tolist())
  np.testing.assert_allclose(hidden.main[0], main, atol=2e-5)
  logits = built.merge(base, {}).logits(hidden.main)
  np.testing.assert_allclose(logits[0], oracle.logits(main), atol=1e-4)


def test_main_stream_is_the_same_with_and_without_streams():
  built, base, adapter = tiny.model()
  tokens = tiny.tokens(7, (2, 7))
  with_streams = run_train(built, base, adapter, tokens, jnp.array([[2], [3]]))
  without = run_train(built, base, adapter, tokens, None)
  # Up to rounding: compilers fuse the two programs differently.
  np.testing.assert_allclose(with_streams.main, without.main, atol=1e-5)


def test_lossless_main_stream_is_the_untouched_base():
  streams = VARIANTS['lossless']
  built, base, adapter = tiny.model(streams=streams)
  plain, _, _ = tiny.model(streams=None, lora=None)
  tokens = tiny.tokens(7, (2, 7))
  tuned = run_train(built, base, adapter, tokens, jnp.array([[2], [3]]))
  untouched = run_train(plain, base, {}, tokens, None)
  np.testing.assert_array_equal(tuned.main, untouched.main)


def test_segments_do_not_see_each_other():
  built, base, adapter = tiny.model()
  tokens = tiny.tokens(11, (1, 9))
  positions = jnp.array([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
  segments = jnp.array([[1, 1, 1, 1, 2, 2, 2, 2, 2]])
  packed = jax.jit(
    lambda b, a: forward.forward_train(
      built.merge(b, a), tokens, positions, segments, jnp.array([[2, 6]])
    )
  )(base, adapter)
  alone = run_train(built, base, adapter, tokens[:, 4:], jnp.array([[2]]))
  np.testing.assert_allclose(packed.main[:, 4:], alone.main, atol=1e-5)
  np.testing.assert_allclose(packed.streams[:, 1:], alone.streams, atol=1e-5)


def test_padding_changes_nothing_and_gives_no_nan():
  built, base, adapter = tiny.model()
  tokens = tiny.tokens(13, (1, 7))
  positions = jnp.array([[0, 1, 2, 3, 4, 0, 0]])
  segments = jnp.array([[1, 1, 1, 1, 1, 0, 0]])
  padded = jax.jit(
    lambda b, a: forward.forward_train(
      built.merge(b, a), tokens, positions, segments
    )
  )(base, adapter)
  alone = run_train(built, base, adapter, tokens[:, :5], None)
  np.testing.assert_allclose(padded.main[:, :5], alone.main, atol=1e-5)
  assert np.isfinite(padded.main).all()


@pytest.mark.parametrize(
  'name, remat, is_stacked',
  [
    pytest.param('fine_tuned', 'minimal', False, marks=pytest.mark.slow),
    ('fine_tuned', 'full', False),
    pytest.param('fine_tuned', 'none', True, marks=pytest.mark.slow),
    pytest.param('lossless', 'minimal', False, marks=pytest.mark.slow),
    ('lossless', 'full', True),
  ],
)
def test_remat_and_scan_give_the_same_gradient(name, remat, is_stacked):
  deep = dataclasses.replace(tiny.CONFIG, num_layers=5)  # two groups of layers
  built, base, adapter = tiny.model(deep, streams=VARIANTS[name])
  tokens, anchors = tiny.tokens(3, (1, 7)), jnp.array([[1, 5]])
  args = (tokens, jnp.arange(7)[None], jnp.ones((1, 7), jnp.int32), anchors)

  def gradient(built, base, remat):
    def total(adapter):
      model = built.merge(base, adapter)
      hidden = forward.forward_train(model, *args, remat=remat)
      return hidden.streams.sum()

    return params.flatten(jax.jit(jax.grad(total))(adapter))

  plain = gradient(built, base, 'none')
  if is_stacked:
    built = build.build(deep, VARIANTS[name], tiny.LORA, is_stacked=True)
    flat = stacks.Stacked(params.flatten(base), built.stacked_at)
    single = partitioning.default()
    base = params.unflatten(single.put(flat))
    shapes = lambda tree: jax.tree.map(lambda leaf: leaf.shape, tree)
    assert shapes(built.base) == shapes(base)
    assert shapes(built.adapter) == shapes(adapter)
  found = gradient(built, base, remat)
  assert set(found) == set(plain)
  for path, value in plain.items():
    scale = float(jnp.abs(value).max())
    np.testing.assert_allclose(found[path], value, rtol=0, atol=1e-4 * scale)


def summed_streams(mode):
  """((adapter, base) -> sum of all stream states, base, adapter)."""
  built, base, adapter = tiny.model(streams=VARIANTS[mode])
  tokens, anchors = tiny.tokens(3, (1, 7)), jnp.array([[1, 5]])

  def total(adapter, base):
    segments = jnp.ones((1, 7), jnp.int32)
    return forward.forward_train(
      built.merge(base, adapter), tokens, jnp.arange(7)[None], segments, anchors
    ).streams.sum()

  return total, base, adapter


@pytest.mark.parametrize('mode', ['fine_tuned', 'lossless'])
def test_gradient_equals_finite_differences(mode):
  total, base, adapter = summed_streams(mode)
  total = jax.jit(total)
  flat = params.flatten(jax.jit(jax.grad(total))(adapter, base))
  for path in ('streams/embedding', 'layers/2/mlp/down/lora_a'):
    noise = jax.random.normal(jax.random.key(1), flat[path].shape)
    direction = flat[path] / jnp.linalg.norm(flat[path]) + 0.1 * noise
    moved = lambda step, path=path, direction=direction: total(
      params.unflatten(
        {
          p: v + step * direction if p == path else v
          for p, v in params.flatten(adapter).items()
        }
      ),
      base,
    )
    slope = (moved(1e-2) - moved(-1e-2)) / 2e-2
    expected = jnp.vdot(flat[path], direction)
    assert abs(expected) > 0.5  # else the tolerance would hide a lost gradient
    np.testing.assert_allclose(slope, expected, rtol=3e-2, atol=3e-2)


def test_lossless_training_differentiates_streams_alone():
  def flops(mode):
    total, base, adapter = summed_streams(mode)
    step = jax.jit(jax.grad(total)).lower(adapter, base).compile()
    return step.cost_analysis()['flops']

  # 7 main tokens and 6 stream tokens: the former go forward only.
  assert flops('lossless') < 0.7 * flops('fine_tuned')


def prefix_cache(built, base, adapter, tokens, lengths, num_slots=19):
  """Cache after the first lengths[b] tokens of each row."""
  batch, padded = tokens.shape
  cache = cache_lib.init(built.cfg, batch, num_slots, 'float32')
  causal = jnp.broadcast_to(
    jnp.tri(padded, dtype=bool), (batch, padded, padded)
  )
  positions = jnp.broadcast_to(jnp.arange(padded), tokens.shape)
  run = tree_pass(built, with_streams=False)
  _, cache, _, *_ = run(base, adapter, tokens, positions, causal, cache)
  return dataclasses.replace(cache, length=lengths)


@pytest.mark.parametrize('name', VARIANTS)
def test_tree_pass_equals_a_fresh_pass_over_each_path(name):
  built, base, adapter = tiny.model(streams=VARIANTS[name])
  prompts, lengths = tiny.tokens(17, (2, 5)), jnp.array([5, 3])
  cache = prefix_cache(built, base, adapter, prompts, lengths)
  nodes = tiny.tokens(19, (2, 5))
  parents = jnp.array([[0, 0, 0, 1, 3], [0, 0, 1, 1, 2]])
  depths = jnp.array([[0, 1, 1, 2, 3], [0, 1, 2, 2, 3]])
  hidden, cache, streams, *_ = tree_pass(built, with_streams=True)(
    base,
    adapter,
    nodes,
    lengths[:, None] + depths,
    tree_lib.ancestor_mask(parents),
    cache,
  )
  texts, ends = np.zeros((10, 9), np.int32), []
  for row in range(2):
    for node in range(5):
      path = [node]
      while path[0]:
        path.insert(0, int(parents[row, path[0]]))
      text = [*prompts[row, : lengths[row]].tolist()]
      text += [int(nodes[row, i]) for i in path]
      texts[len(ends), : len(text)] = text
      ends.append(len(text) - 1)
  fresh = run_train(
    built, base, adapter, jnp.array(texts), jnp.array(ends)[:, None]
  )
  np.testing.assert_allclose(
    hidden.reshape(10, -1), fresh.main[np.arange(10), ends], atol=3e-5
  )
  np.testing.assert_allclose(
    streams.reshape(10, *streams.shape[2:]), fresh.streams[:, 0], atol=3e-5
  )


@pytest.mark.parametrize('with_streams', [False, True])
def test_a_prompt_need_not_look_at_the_empty_cache(with_streams):
  built, base, adapter = tiny.model(streams=tiny.STREAMS)
  tokens = tiny.tokens(17, (2, 5))
  causal = jnp.broadcast_to(jnp.tri(5, dtype=bool), (2, 5, 5))
  positions = jnp.broadcast_to(jnp.arange(5), (2, 5))
  cache = cache_lib.init(built.cfg, 2, 9, 'float32')
  args = (base, adapter, tokens, positions, causal, cache)
  looked = tree_pass(built, with_streams=with_streams)(*args)
  found = tree_pass(built, with_streams=with_streams, is_prompt=True)(*args)
  for one, other in zip(
    jax.tree.leaves(found), jax.tree.leaves(looked), strict=True
  ):
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_tree_that_grows_is_the_whole_tree():
  built, base, adapter = tiny.model(streams=tiny.STREAMS)
  prompts, lengths = tiny.tokens(17, (2, 5)), jnp.array([5, 3])
  cache = prefix_cache(built, base, adapter, prompts, lengths)
  nodes = tiny.tokens(19, (2, 5))
  parents = jnp.array([[0, 0, 0, 1, 3], [0, 0, 1, 1, 2]])
  depths = jnp.array([[0, 1, 1, 2, 3], [0, 1, 2, 2, 3]])
  places, mask = lengths[:, None] + depths, tree_lib.ancestor_mask(parents)
  run = tree_pass(built, with_streams=True)
  whole = run(base, adapter, nodes, places, mask, cache)
  for first, last in ((0, 1), (1, 3), (3, 5)):
    part = slice(first, last)
    seen = mask[:, part, :last]
    grown = run(base, adapter, nodes[:, part], places[:, part], seen, cache)
    cache = grown.cache
    np.testing.assert_allclose(grown.main, whole.main[:, part], atol=3e-5)
    np.testing.assert_allclose(grown.streams, whole.streams[:, part], atol=3e-5)
  for one, other in zip(cache.keys, whole.cache.keys, strict=True):
    np.testing.assert_allclose(one, other, atol=3e-5)


def test_deferred_streams_equal_parallel_streams():
  built, base, adapter = tiny.model()
  prompts, lengths = tiny.tokens(17, (2, 5)), jnp.array([5, 3])
  cache = prefix_cache(built, base, adapter, prompts, lengths)
  nodes, parents = tiny.tokens(19, (2, 3)), jnp.array([[0, 0, 1], [0, 0, 0]])
  depths = jnp.array([[0, 1, 2], [0, 1, 1]])
  args = (nodes, lengths[:, None] + depths, tree_lib.ancestor_mask(parents))
  weights = (base, adapter)
  _, _, parallel, *_ = tree_pass(built, with_streams=True)(
    *weights, *args, cache
  )
  _, after, insertion, *_ = tree_pass(built, with_streams=False)(
    *weights, *args, cache
  )
  path, accept = jnp.array([[0, 1, 2], [0, 2, 0]]), jnp.array([2, 1])
  committed = cache_lib.commit(after, path, accept)
  leaf = jnp.array([2, 2])
  rows = jnp.arange(2)
  deferred = jax.jit(
    lambda b, a, *args: forward.forward_streams(built.merge(b, a), *args)
  )(*weights, insertion[rows, leaf], committed.length - 1, committed)
  np.testing.assert_allclose(deferred, parallel[rows, leaf], atol=2e-5)
  # Invariant: what is committed is what a fresh pass over the same tokens has.
  for row in range(2):
    text = [*prompts[row, : lengths[row]].tolist()]
    text += [int(nodes[row, i]) for i in path[row, : accept[row] + 1]]
    fresh = prefix_cache(
      built, *weights, jnp.array([text]), jnp.array([len(text)])
    )
    for got, want in zip(committed.keys, fresh.keys):
      np.testing.assert_allclose(
        got[row, :, : len(text)], want[0, :, : len(text)], atol=2e-5
      )


def test_bfloat16_keeps_softmax_and_logits_in_float32():
  cfg = dataclasses.replace(tiny.CONFIG, dtype='bfloat16')
  built, base, adapter = tiny.model(cfg)
  wide, _, _ = tiny.model()
  tokens = tiny.tokens(3, (1, 7))
  low = run_train(built, base, adapter, tokens, None)
  assert low.main.dtype == jnp.bfloat16
  model = built.merge(base, adapter)
  assert model.logits(low.main).dtype == jnp.float32
  full = run_train(wide, params.cast(base, 'float32'), adapter, tokens, None)
  error = jnp.abs(low.main.astype(jnp.float32) - full.main).max()
  assert error < 0.2 * jnp.abs(full.main).max()


@pytest.mark.parametrize('tied', [True, False])
def test_transposed_kernels_give_the_same_logits(tied):
  cfg = dataclasses.replace(tiny.CONFIG, tie_word_embeddings=tied)
  built, base, adapter = tiny.model(cfg)
  other = build.build(cfg, tiny.STREAMS, tiny.LORA, 'out_in')
  turned = params.unflatten(params.transpose_kernels(params.flatten(base)))
  tokens, anchors = tiny.tokens(3, (2, 7)), jnp.array([[1], [4]])
  want = run_train(built, base, adapter, tokens, anchors)
  got = run_train(other, turned, adapter, tokens, anchors)
  np.testing.assert_allclose(got.streams, want.streams, atol=2e-5)
  np.testing.assert_allclose(
    other.merge(turned, adapter).logits(got.main),
    built.merge(base, adapter).logits(want.main),
    atol=1e-4,
  )


def test_full_size_model_has_the_expected_shapes():
  cfg = config.ModelConfig(
    32000, 4096, 11008, 32, 32, 32, 128, dtype='bfloat16'
  )
  streams = config.StreamConfig(num_streams=4, num_msa_layers=8)
  lora = config.LoraConfig(rank=0)
  built = build.build(cfg, streams, lora)
  assert params.count(built.base) == 6_738_415_616
  # Extra parameters of the paper's 7B rows: gamma h + 16 h.
  assert params.count(built.adapter) == 4 * 4096 + 16 * 4096 == 81_920
  out = jax.eval_shape(
    lambda b, a, t: run_train(built, b, a, t, t[:, :3]).streams,
    built.base,
    built.adapter,
    jax.ShapeDtypeStruct((2, 64), jnp.int32),
  )
  assert out.shape == (2, 3, 4, 4096)


@pytest.mark.parametrize('is_residual', [True, False])
def test_early_exit_reads_its_adapter_with_and_without_residual(is_residual):
  streams = dataclasses.replace(tiny.STREAMS, pruning_residual=is_residual)
  built, base, adapter = tiny.model(streams=streams)
  flat = params.flatten(adapter)
  hidden = jax.random.normal(jax.random.key(1), (5, tiny.CONFIG.hidden_size))
  got = built.merge(base, adapter).early_hidden(hidden)
  change = hidden @ flat['pruning/down'] @ flat['pruning/up']
  early = np.asarray(hidden + change if is_residual else change)
  rms = np.sqrt((early**2).mean(-1, keepdims=True) + tiny.CONFIG.rms_norm_eps)
  scale = np.asarray(params.flatten(base)['final_norm/scale'])
  np.testing.assert_allclose(got, early / rms * scale, rtol=1e-5)


def test_pruning_adapter_without_residual_starts_away_from_zero():
  alone = dataclasses.replace(tiny.STREAMS, pruning_residual=False)
  for streams in (tiny.STREAMS, alone):
    adapter = initialize.init_adapter(
      jax.random.key(0), tiny.CONFIG, streams, tiny.LORA
    )
    up = params.flatten(adapter)['pruning/up']
    assert bool(jnp.any(up)) == (not streams.pruning_residual)
