# SPDX-License-Identifier: Apache-2.0
"""The cache is updated in place inside `lax.while_loop`."""

import functools

import jax
import jax.numpy as jnp
import pytest

from specstream_jax import config
from specstream_jax.modeling import cache as cache_lib
from specstream_jax.tpu import hlo

SLOTS, NODES, PATH = 1031, 7, 3
MODEL = config.ModelConfig(
  vocab_size=11,
  hidden_size=10,
  intermediate_size=17,
  num_layers=2,
  num_heads=5,
  num_kv_heads=5,
  head_dim=14,
)


def _attend(query, keys, values):
  """[B, M, K, H], with both products in the layout [B, K, S, H]."""
  batch = ((0, 1), (0, 1))
  query = query.swapaxes(1, 2)
  logits = jax.lax.dot_general(query, keys, (((3,), (3,)), batch))
  weights = jax.nn.softmax(logits, axis=-1)
  out = jax.lax.dot_general(weights, values, (((3,), (2,)), batch))
  return out.swapaxes(1, 2)


def _step(state, *, plant=None):
  """Attend, append, commit, with the data flow of a real step."""
  cache, x = state
  new_keys, new_values = [], []
  for i, (key, value) in enumerate(zip(cache.keys, cache.values, strict=True)):
    new_keys.append(jnp.sin(x + i))
    new_values.append(jnp.tanh(x - i))
    seen = key
    if plant == 'transpose':
      seen = jax.lax.optimization_barrier(key.swapaxes(1, 2)).swapaxes(1, 2)
    x += _attend(x, seen, value)
  flat, new, start = cache_lib.order(
    x.reshape(*x.shape[:2], -1), (new_keys, new_values), cache.length
  )
  x, (new_keys, new_values) = flat.reshape(x.shape), new
  write = lambda layer, new: cache_lib.append(layer, new, start)
  keys = map(write, cache.keys, new_keys)
  values = map(write, cache.values, new_values)
  written = cache_lib.Cache(tuple(keys), tuple(values), cache.length)
  path = jnp.argsort(x[:, 1:, 0, 0], axis=1)[:, : PATH - 1] + 1
  path = jnp.pad(jnp.sort(path, axis=1), ((0, 0), (1, 0)))
  accept_length = path[:, -1] % path.shape[1]
  after = cache_lib.commit(written, path, accept_length)
  if plant == 'rollback':
    keep = (accept_length > 0)[:, None, None, None]
    old = jax.tree.map(
      lambda new, old: jnp.where(keep, new, old), after.keys, cache.keys
    )
    after = cache_lib.Cache(old, after.values, after.length)
  return after, x


def _compiled(batch, nodes, plant=None):
  def run(state):
    is_running = lambda s: jnp.all(s[0].length < SLOTS - NODES)
    return jax.lax.while_loop(
      is_running, functools.partial(_step, plant=plant), state
    )

  empty = cache_lib.init(MODEL, batch, SLOTS, 'float32')
  x = jnp.ones((batch, nodes, MODEL.num_kv_heads, MODEL.head_dim))
  compiled = jax.jit(run, donate_argnums=0).lower((empty, x)).compile()
  return compiled, empty.keys[0].nbytes


@pytest.mark.parametrize('batch', [1, 3])
@pytest.mark.parametrize('nodes', [1, NODES])
def test_nothing_of_the_caches_size_is_moved(batch, nodes):
  compiled, layer_bytes = _compiled(batch, nodes)
  assert hlo.copies_of_size(compiled.as_text(), layer_bytes // 2) == []
  aliased = compiled.memory_analysis().alias_size_in_bytes
  assert aliased >= 4 * layer_bytes


@pytest.mark.parametrize('plant', ['transpose', 'rollback'])
def test_planted_copies_are_found(plant):
  compiled, layer_bytes = _compiled(3, NODES, plant)
  assert hlo.copies_of_size(compiled.as_text(), layer_bytes // 2)


TEXT = """
HloModule jit_run

%fused_update (p0: f32[8,16], p1: f32[1,16], p2: s32[]) -> f32[8,16] {
  %p0 = f32[8,16]{1,0} parameter(0)
  %p1 = f32[1,16]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  ROOT %d = f32[8,16]{1,0} dynamic-update-slice(%p0, %p1, %p2, %p2)
}

%fused_wide (p0: bf16[8,16], p1: f32[1,16], p2: s32[]) -> f32[8,16] {
  %p0 = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  %wide = f32[8,16]{1,0} convert(%p0)
  %p1 = f32[1,16]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  ROOT %d = f32[8,16]{1,0} dynamic-update-slice(%wide, %p1, %p2, %p2)
}

%body (arg: (f32[8,16], bf16[8,16], s32[])) -> (f32[8,16], bf16[8,16], s32[]) {
  %arg = (f32[8,16]{1,0}, bf16[8,16]{1,0}, s32[]) parameter(0)
  %x = f32[8,16]{1,0} get-tuple-element(%arg), index=0
  %y = bf16[8,16]{1,0} get-tuple-element(%arg), index=1
  %i = s32[] get-tuple-element(%arg), index=2
  %row = f32[1,16]{1,0} slice(%x), slice={[0:1], [0:16]}
  %a = f32[8,16]{1,0} fusion(%x, %row, %i), kind=kLoop, calls=%fused_update
  %b = f32[8,16]{1,0} fusion(%y, %row, %i), kind=kLoop, calls=%fused_wide
  %start = (f32[8,16]{1,0}, f32[8,16]{1,0}, u32[]) copy-start(%b)
  ROOT %t = (f32[8,16]{1,0}, bf16[8,16]{1,0}, s32[]) tuple(%a, %y, %i)
}

%cond (arg: (f32[8,16], bf16[8,16], s32[])) -> pred[] {
  %arg = (f32[8,16]{1,0}, bf16[8,16]{1,0}, s32[]) parameter(0)
  ROOT %c = pred[] constant(true)
}

ENTRY %main (p: (f32[8,16], bf16[8,16], s32[])) -> f32[8,16] {
  %p = (f32[8,16]{1,0}, bf16[8,16]{1,0}, s32[]) parameter(0)
  %w = (f32[8,16]{1,0}, bf16[8,16], s32[]) while(%p), condition=%cond, body=%body
  %out = f32[8,16]{1,0} get-tuple-element(%w), index=0
  ROOT %copy = f32[8,16]{1,0} copy(%out)
}
"""


def test_hand_written_text():
  found = [line.split(' = ')[0] for line in hlo.copies_of_size(TEXT, 512)]
  assert found == ['body: %b', 'body: %start']
  assert len(hlo.copies_of_size(TEXT, 64)) == 3
