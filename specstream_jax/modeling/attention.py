# SPDX-License-Identifier: Apache-2.0
"""Multi-stream attention: the one softmax attention of the package.

Paper, eqs. 1 and 2: the main stream attends to the main stream; stream j of
anchor t attends to the main stream up to t and to streams <= j of the same t,
with one softmax over both.

Axis letters: B rows, T query positions, S key slots, A anchors, J streams,
K KV heads, G query heads per KV head, H head dim, D model width.
"""

from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from specstream_jax import config, typing
from specstream_jax.decoding import cache as cache_lib
from specstream_jax.modeling import layers


class Rows(NamedTuple):
  """What a layer needs to know of its tokens: main tokens, then streams.

  Attributes:
    cos: RoPE table [B, T, H/2] float32, T = num_main + A * J.
    sin: like `cos`.
    mask: [B, T, S] bool, True = may attend to that main-stream slot. Two main
      tokens and the two streams of the second, S = 2:
          1 0    main 0
          1 1    main 1
          1 1    stream 1 of main 1
          1 1    stream 2 of main 1   (and, by group, stream 1)
    num_main: static; how many of the T tokens are main tokens.
    num_streams: static; J.
    lora_start: static; first token that LoRA acts on.
    start: [B] int32 first cache slot to write, or None without a cache.
  """

  cos: typing.Array
  sin: typing.Array
  mask: typing.Array
  num_main: int
  num_streams: int
  lora_start: int = 0
  start: typing.Array | None = None


class KeyValues(NamedTuple):
  """Keys and values [B, K, S, H] of the main stream."""

  keys: typing.Array
  values: typing.Array


def attend(
  query: typing.Array,
  main: KeyValues,
  mask: typing.Array,
  streams: KeyValues | None = None,
) -> typing.Array:
  """Softmax attention over main slots and, if given, the own stream group.

  Args:
    query: [B, T, K, G, H], already scaled by H ** -0.5.
    main: keys and values [B, K, S, H].
    mask: bool [B, T, S]; a row with no True attends to nothing meaningful.
    streams: keys and values [B, A, J, K, H] with T = A * J; stream j sees
      streams <= j of its own anchor.

  Returns:
    [B, T, K, G, H] in the dtype of `query`; logits and softmax are float32.
  """
  f32, shape = jnp.float32, query.shape
  # One product over G * T rows per KV head, batch axes in front: the cache is
  # read where it lies. The einsum with five letters makes XLA copy it.
  flat = query.transpose(0, 2, 3, 1, 4)  # [B, K, G, T, H]
  flat = flat.reshape(*main.keys.shape[:2], -1, shape[-1])
  logits = jnp.einsum(
    'BKXH,BKSH->BKXS', flat, main.keys, preferred_element_type=f32
  ).reshape(shape[0], shape[2], shape[3], shape[1], -1)  # [B, K, G, T, S]
  logits = jnp.where(mask[:, None, None], logits, jnp.finfo(f32).min)
  if streams is not None:
    logits = jnp.concatenate([logits, _own_logits(query, streams)], axis=-1)
  weights = jax.nn.softmax(logits, axis=-1).astype(query.dtype)
  num_slots = main.keys.shape[2]
  flat = weights[..., :num_slots].reshape(*flat.shape[:3], num_slots)
  out = jnp.einsum('BKXS,BKSH->BKXH', flat, main.values)
  out = out.reshape(shape[0], shape[2], shape[3], shape[1], shape[4])
  out = out.transpose(0, 3, 1, 2, 4)
  if streams is not None:
    own = weights[..., num_slots:]
    own = own.reshape(*own.shape[:3], *streams.keys.shape[1:3], own.shape[-1])
    extra = jnp.einsum('BKGAJL,BALKH->BAJKGH', own, streams.values)
    out += extra.reshape(shape)
  return out


def _own_logits(query, streams):
  """Logits [B, K, G, T, J] of streams against streams <= j of their group."""
  f32 = jnp.float32
  grouped = query.reshape(*streams.keys.shape[:3], *query.shape[2:])
  own = jnp.einsum(
    'BAJKGH,BALKH->BKGAJL', grouped, streams.keys, preferred_element_type=f32
  )
  causal = jnp.tri(own.shape[-1], dtype=bool)
  own = jnp.where(causal, own, jnp.finfo(f32).min)
  return own.reshape(*own.shape[:3], -1, own.shape[-1])


class Attention(nnx.Module):
  """Grouped-query attention over main tokens and streams."""

  def __init__(
    self,
    cfg: config.ModelConfig,
    lora: config.LoraConfig | None,
    *,
    rotation_step: float = 0.0,
    layout: str = 'in_out',
  ):
    def linear(name: str, shape: tuple[int, int]) -> layers.Linear:
      adapted = lora if lora and name in lora.modules else None
      return layers.Linear(*shape, dtype=cfg.dtype, lora=adapted, layout=layout)

    width, kv_width = (
      cfg.num_heads * cfg.head_dim,
      cfg.num_kv_heads * cfg.head_dim,
    )
    self.query = linear('query', (cfg.hidden_size, width))
    self.key = linear('key', (cfg.hidden_size, kv_width))
    self.value = linear('value', (cfg.hidden_size, kv_width))
    self.out = linear('out', (width, cfg.hidden_size))
    self.cfg = cfg
    self.rotation_step = rotation_step

  def __call__(
    self, x: typing.Array, rows: Rows, cached: KeyValues | None
  ) -> tuple[typing.Array, KeyValues | None]:
    """Attention output for x [B, T, D] and the cache with the new main K/V."""
    query, key, value = self._project(x, rows)
    main, cached = self._main_keys(key, value, rows, cached)
    num_main = rows.num_main
    outs = []
    if num_main:
      outs.append(attend(query[:, :num_main], main, rows.mask[:, :num_main]))
    if x.shape[1] > num_main:
      streams = self._stream_keys(key, value, rows)
      outs.append(
        attend(query[:, num_main:], main, rows.mask[:, num_main:], streams)
      )
    out = outs[0] if len(outs) == 1 else jnp.concatenate(outs, axis=1)
    out = out.reshape(*x.shape[:2], -1)
    return self.out(out, rows.lora_start), cached

  def _project(self, x, rows):
    """q [B, T, K, G, H] scaled, k and v [B, T, K, H]; RoPE applied."""
    cfg, tables = self.cfg, (rows.cos[:, :, None], rows.sin[:, :, None])
    split = lambda y: y.reshape(*x.shape[:2], -1, cfg.head_dim)
    query = layers.rotate(split(self.query(x, rows.lora_start)), *tables)
    key = layers.rotate(split(self.key(x, rows.lora_start)), *tables)
    value = split(self.value(x, rows.lora_start))
    query *= cfg.head_dim**-0.5
    query = query.reshape(
      *x.shape[:2], cfg.num_kv_heads, cfg.group_size, cfg.head_dim
    )
    return query, key, value

  def _main_keys(self, key, value, rows, cached):
    """Main keys to attend to, and the cache after writing the new ones."""
    key, value = key[:, : rows.num_main], value[:, : rows.num_main]
    if cached is None:
      return KeyValues(key.swapaxes(1, 2), value.swapaxes(1, 2)), None
    if rows.num_main:
      cached = KeyValues(
        cache_lib.append(cached.keys, key, rows.start),
        cache_lib.append(cached.values, value, rows.start),
      )
    return cached, cached

  def _stream_keys(self, key, value, rows):
    """Stream keys and values [B, A, J, K, H]; values rotated if asked for."""
    shape = (key.shape[0], -1, rows.num_streams, *key.shape[2:])
    key = key[:, rows.num_main :].reshape(shape)
    value = value[:, rows.num_main :].reshape(shape)
    if self.rotation_step:
      # Paper, appendix B: V_tj = V_t e^{i eps j}, pairs as in RoPE.
      angles = self.rotation_step * (1 + jnp.arange(rows.num_streams))
      angles = angles[:, None, None].astype(jnp.float32)
      value = layers.rotate(value, jnp.cos(angles), jnp.sin(angles))
    return KeyValues(key, value)
