# SPDX-License-Identifier: Apache-2.0
"""Multi-stream attention: the one softmax attention of the package.

Paper, eqs. 1 and 2: the main stream attends to the main stream; stream j of
anchor t attends to the main stream up to t and to streams <= j of the same t,
with one softmax over both.

Axis letters: B rows, T query positions, N main tokens of the pass, S cache
slots, A anchors, J streams, K KV heads, G query heads per KV head, H head dim,
D model width.
"""

from collections.abc import Sequence
import functools
import operator
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from specstream_jax import arrays, config
from specstream_jax.modeling import (
  fused,
  layers,
  norms,
  rope,
  streams as streams_lib,
)


class Rows(NamedTuple):
  """What a layer needs to know of its tokens: main tokens, then streams.

  Attributes:
    cos: RoPE table [B, T, H/2] float32, T = num_main + A * J; None without.
    sin: like `cos`.
    mask: [B, T, N] bool, True = may attend to that main token of the pass. Two
      main tokens and the two streams of the second, N = 2:
          1 0    main 0
          1 1    main 1
          1 1    stream 1 of main 1
          1 1    stream 2 of main 1   (and, by group, stream 1)
    num_main: static; N.
    num_streams: static; J.
    lora_start: static; first token that LoRA acts on.
    cache_mask: [B, T, S] bool, the same of the cache's slots, or None without.
    start: [B] int32 cache slot of the first main token; None if their keys and
      values are not kept.
    numbers: [B, A, J] int32, which streams they are, see `streams.Slots`; None
      if every anchor has all.
  """

  cos: arrays.Array | None
  sin: arrays.Array | None
  mask: arrays.Array
  num_main: int
  num_streams: int
  lora_start: int = 0
  cache_mask: arrays.Array | None = None
  start: arrays.Array | None = None
  numbers: arrays.Array | None = None

  def tables(self) -> dict[str, arrays.Array | None]:
    """What differs between kinds of layers."""
    names = ('cos', 'sin', 'mask', 'cache_mask')
    return {name: getattr(self, name) for name in names}


class KeyValues(NamedTuple):
  """Keys and values [B, K, S, H] of the main stream."""

  keys: arrays.Array
  values: arrays.Array


class New(NamedTuple):
  """Keys and values [B, N, K, H] of a pass's main tokens, as projected."""

  keys: arrays.Array
  values: arrays.Array

  def by_head(self) -> KeyValues:
    """In the cache's layout."""
    return KeyValues(self.keys.swapaxes(1, 2), self.values.swapaxes(1, 2))


class Seen(NamedTuple):
  """Keys and values, and who may attend to them.

  Attributes:
    main: [B, K, S, H].
    mask: bool [B, T, S].
  """

  main: KeyValues
  mask: arrays.Array


def attend(
  query: arrays.Array,
  seen: Sequence[Seen],
  streams: KeyValues | None = None,
  softcap: float = 0.0,
  own_mask: arrays.Array | None = None,
) -> arrays.Array:
  """One softmax over main slots, part by part, and the own stream group.

  Args:
    query: [B, T, K, G, H], already scaled.
    seen: parts of the main stream; a query that none of the masks lets see
      anything attends to nothing meaningful.
    streams: keys and values [B, A, J, K, H] with T = A * J; stream j sees
      streams <= j of its own anchor.
    softcap: see `config.AttentionConfig`.
    own_mask: [B, A, J, J] bool, which streams of its group a stream sees; None
      for those up to itself.

  Returns:
    [B, T, K, G, H] in the dtype of `query`; logits and softmax are float32.
  """
  logits = [_logits(query, part, softcap) for part in seen]
  if streams is not None:
    logits.append(_own_logits(query, streams, softcap, own_mask))
  weights = jax.nn.softmax(jnp.concatenate(logits, axis=-1), axis=-1)
  weights = weights.astype(query.dtype)
  outs, first = [], 0
  for part in seen:
    last = first + part.main.keys.shape[2]
    outs.append(_mix(weights[..., first:last], part.main.values))
    first = last
  if streams is not None:
    own = weights[..., first:]
    own = own.reshape(*own.shape[:3], *streams.keys.shape[1:3], own.shape[-1])
    extra = jnp.einsum('BKGAJL,BALKH->BAJKGH', own, streams.values)
    outs.append(extra.reshape(query.shape))
  return functools.reduce(operator.add, outs)


def _logits(query, part, softcap):
  """Logits [B, K, G, T, S] against one part of the main stream."""
  f32 = jnp.float32
  # One product over G * T rows per KV head, batch axes in front: the cache is
  # read where it lies. The einsum with five letters makes XLA copy it.
  flat = query.transpose(0, 2, 3, 1, 4)  # [B, K, G, T, H]
  flat = flat.reshape(*part.main.keys.shape[:2], -1, query.shape[-1])
  logits = jnp.einsum(
    'BKXH,BKSH->BKXS', flat, part.main.keys, preferred_element_type=f32
  )
  logits = layers.softcap(logits, softcap)
  batch, length, heads, groups, _ = query.shape
  logits = logits.reshape(batch, heads, groups, length, -1)
  return jnp.where(part.mask[:, None, None], logits, jnp.finfo(f32).min)


def _mix(weights, values):
  """Values [B, K, S, H] by weights [B, K, G, T, S], as [B, T, K, G, H]."""
  flat = weights.reshape(*weights.shape[:2], -1, weights.shape[-1])
  out = jnp.einsum('BKXS,BKSH->BKXH', flat, values)
  return out.reshape(*weights.shape[:4], -1).transpose(0, 3, 1, 2, 4)


def _own_logits(query, streams, softcap, own_mask):
  """Logits [B, K, G, T, J] of streams against those they see of their group."""
  f32 = jnp.float32
  grouped = query.reshape(*streams.keys.shape[:3], *query.shape[2:])
  own = jnp.einsum(
    'BAJKGH,BALKH->BKGAJL', grouped, streams.keys, preferred_element_type=f32
  )
  own = layers.softcap(own, softcap)
  seen = jnp.tri(own.shape[-1], dtype=bool)
  if own_mask is not None:
    seen = own_mask[:, None, None]
  own = jnp.where(seen, own, jnp.finfo(f32).min)
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
      is_out = name == 'out'
      return layers.Linear(
        *shape,
        dtype=cfg.dtype,
        lora=adapted,
        layout=fused.of_kernels(layout),
        has_bias=own.has_out_bias if is_out else own.has_bias,
        weights_dtype=cfg.weights_dtype,
      )

    own = cfg.attention
    width, kv_width = (
      cfg.num_heads * cfg.head_dim,
      cfg.num_kv_heads * cfg.head_dim,
    )
    self.is_fused = layout == fused.LAYOUT
    widths = width, kv_width, kv_width
    if self.is_fused:
      self.query_key_value = linear('', (cfg.hidden_size, sum(widths)))
    self.query, self.key, self.value = (
      fused.part(lora, name, (cfg.hidden_size, features))
      if self.is_fused
      else linear(name, (cfg.hidden_size, features))
      for name, features in zip(('query', 'key', 'value'), widths, strict=True)
    )
    self.out = linear('out', (width, cfg.hidden_size))
    if own.qk_norm != 'none':
      is_full = own.qk_norm == 'full'
      widths = (width, kv_width) if is_full else (cfg.head_dim,) * 2
      self.query_norm, self.key_norm = (
        norms.Norm(features, cfg, 'rms') for features in widths
      )
    self.cfg = cfg
    self.rotation_step = rotation_step

  def __call__(
    self, x: arrays.Array, rows: Rows, cached: KeyValues | None
  ) -> tuple[arrays.Array, New | None]:
    """Attention output for x [B, T, D], and K/V of its main tokens.

    The caller writes those to the cache, after all layers: a cache that is
    written before it is read makes the TPU compiler carry each layer to VMEM
    and back (docs/SCALE.md).

    Args:
      x: main tokens, then streams.
      rows: what the layer needs to know of them.
      cached: the main stream before this pass; None if it starts here.
    """
    query, key, value = self._project(x, rows)
    num_main, softcap = rows.num_main, self.cfg.attention.softcap
    new = New(key[:, :num_main], value[:, :num_main])
    parts = []
    if cached is not None and rows.cache_mask is not None:
      parts.append((cached, rows.cache_mask))
    if num_main:
      parts.append((new.by_head(), rows.mask))
    outs = []
    if num_main:
      seen = [Seen(main, mask[:, :num_main]) for main, mask in parts]
      outs.append(attend(query[:, :num_main], seen, None, softcap))
    if x.shape[1] > num_main:
      seen = [Seen(main, mask[:, num_main:]) for main, mask in parts]
      streams = self._stream_keys(key, value, rows)
      own = rows.numbers
      own = None if own is None else streams_lib.own_mask(own)
      outs.append(attend(query[:, num_main:], seen, streams, softcap, own))
    out = outs[0] if len(outs) == 1 else jnp.concatenate(outs, axis=1)
    out = self.out(out.reshape(*x.shape[:2], -1), rows.lora_start)
    return out, None if rows.start is None else new

  def keys_and_values(self, x: arrays.Array, rows: Rows) -> New:
    """K/V of main tokens x [B, N, D] alone, for others to attend to."""
    return New(*self._project(x, rows)[1:])

  def _project(self, x, rows):
    """q [B, T, K, G, H] scaled, k and v [B, T, K, H]; RoPE applied."""
    cfg, own = self.cfg, self.cfg.attention
    split = lambda y: y.reshape(*x.shape[:2], -1, cfg.head_dim)
    query, key, value = self._products(x, rows.lora_start)
    if own.qk_norm == 'full':
      query, key = self.query_norm(query), self.key_norm(key)
    query, key = split(query), split(key)
    if own.qk_norm == 'head':
      query, key = self.query_norm(query), self.key_norm(key)
    if rows.cos is not None:
      tables = (rows.cos[:, :, None], rows.sin[:, :, None])
      query, key = (
        rope.rotate_leading(y, *tables, cfg.num_rotated) for y in (query, key)
      )
    value = split(value)
    query *= own.query_scale or cfg.head_dim**-0.5
    query = query.reshape(
      *x.shape[:2], cfg.num_kv_heads, cfg.group_size, cfg.head_dim
    )
    return query, key, value

  def _products(self, x, lora_start):
    """Queries, keys and values [B, T, features] as they are multiplied."""
    parts = self.query, self.key, self.value
    if not self.is_fused:
      return [part(x, lora_start) for part in parts]
    width = self.cfg.num_heads * self.cfg.head_dim
    ends = (width, width + self.cfg.num_kv_heads * self.cfg.head_dim)
    made = jnp.split(self.query_key_value(x), ends, axis=-1)
    return [
      part.add(y, x, lora_start) for part, y in zip(parts, made, strict=True)
    ]

  def _stream_keys(self, key, value, rows):
    """Stream keys and values [B, A, J, K, H]; values rotated if asked for."""
    shape = (key.shape[0], -1, rows.num_streams, *key.shape[2:])
    key = key[:, rows.num_main :].reshape(shape)
    value = value[:, rows.num_main :].reshape(shape)
    if self.rotation_step:
      # Paper, appendix B: V_tj = V_t e^{i eps j}, pairs as in RoPE.
      numbers = jnp.arange(rows.num_streams)[None, None]
      if rows.numbers is not None:
        numbers = rows.numbers
      angles = self.rotation_step * (1 + numbers)
      angles = angles[..., None, None].astype(jnp.float32)
      value = rope.rotate(value, jnp.cos(angles), jnp.sin(angles))
    return KeyValues(key, value)
