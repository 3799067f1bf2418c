# SPDX-License-Identifier: Apache-2.0
"""Slow numpy oracle of the stream-augmented transformer, token by token.

Written from the paper's equations: one query at a time, one head at a time,
float64, no masks, no batching. `tests/reference_decoding.py` is its
counterpart for decoding.
"""

import math

import numpy as np


def rope(x, position, theta, scaling=None):
  """Rotates one head vector x [H] to `position`."""
  half = len(x) // 2
  out = np.zeros(len(x))
  for i in range(half):
    frequency = theta ** (-2 * i / len(x))
    frequency = scale_frequency(frequency, scaling)
    c, s = math.cos(position * frequency), math.sin(position * frequency)
    out[i] = x[i] * c - x[i + half] * s
    out[i + half] = x[i + half] * c + x[i] * s
  return out


def scale_frequency(frequency, scaling):
  if scaling is None or scaling.kind == 'default':
    return frequency
  if scaling.kind == 'linear':
    return frequency / scaling.factor
  wavelength = 2 * math.pi / frequency
  original = scaling.original_max_position_embeddings
  if wavelength < original / scaling.high_freq_factor:
    return frequency
  if wavelength > original / scaling.low_freq_factor:
    return frequency / scaling.factor
  smooth = (original / wavelength - scaling.low_freq_factor) / (
    scaling.high_freq_factor - scaling.low_freq_factor
  )
  return (1 - smooth) * frequency / scaling.factor + smooth * frequency


def softmax(x):
  e = np.exp(x - np.max(x))
  return e / e.sum()


def token_terms(logits, main_logits, hidden, main_hidden, target):
  """Terms of a stream's loss at one token, by name, in numpy loops.

  Args:
    logits: [V] of the stream.
    main_logits: [V] of the main stream where it predicts the same token.
    hidden: [D] state of the stream in front of the LM head.
    main_hidden: [D] that of the main stream.
    target: the token.
  """
  law, main = softmax(logits), softmax(main_logits)
  return {
    'stream': -math.log(law[target]),
    'teacher': -sum(m * math.log(p) for m, p in zip(main, law)),
    'total_variation': sum(abs(m - p) for m, p in zip(main, law)) / 2,
    'hidden': sum((h - s) ** 2 for h, s in zip(hidden, main_hidden))
    / sum(s**2 for s in main_hidden),
  }


def attend_one(query, keys, values):
  """Softmax attention of one query [H] over lists of keys and values [H]."""
  scale = 1 / math.sqrt(len(query))
  weights = softmax(np.array([scale * float(query @ k) for k in keys]))
  return sum(w * v for w, v in zip(weights, values))


def norm(x, scale, epsilon):
  return x / np.sqrt(np.mean(x * x) + epsilon) * scale


class Model:
  """Forward passes from flat parameter dicts, in float64."""

  def __init__(self, base, adapter, cfg, streams=None, lora=None):
    self.p = {k: np.asarray(v, np.float64) for k, v in base.items()}
    self.a = {k: np.asarray(v, np.float64) for k, v in adapter.items()}
    self.cfg, self.streams, self.lora = cfg, streams, lora

  def linear(self, path, x, is_stream):
    y = x @ self.p[f'{path}/kernel']
    lossless = self.streams is not None and self.streams.mode == 'lossless'
    if f'{path}/lora_a' in self.a and (is_stream or not lossless):
      delta = x @ self.a[f'{path}/lora_a'] @ self.a[f'{path}/lora_b']
      y = y + self.lora.alpha / self.lora.rank * delta
    return y

  def qkv(self, layer, x, position, is_stream):
    """Per-head q [N, H], k [K, H], v [K, H] of one token."""
    cfg, path = self.cfg, f'layers/{layer}/attention'
    x = norm(
      x, self.p[f'layers/{layer}/attention_norm/scale'], cfg.rms_norm_eps
    )
    heads = lambda name: self.linear(f'{path}/{name}', x, is_stream).reshape(
      -1, cfg.head_dim
    )
    turn = lambda rows: np.stack(
      [rope(r, position, cfg.rope_theta, cfg.rope_scaling) for r in rows]
    )
    return turn(heads('query')), turn(heads('key')), heads('value')

  def mix(self, layer, x, query, keys, values, is_stream):
    """Attention over (keys, values), each a list of [K, H]; then the MLP."""
    cfg, path = self.cfg, f'layers/{layer}'
    group = cfg.num_heads // cfg.num_kv_heads
    outs = [
      attend_one(
        query[n], [k[n // group] for k in keys], [v[n // group] for v in values]
      )
      for n in range(cfg.num_heads)
    ]
    x = x + self.linear(
      f'{path}/attention/out', np.concatenate(outs), is_stream
    )
    y = norm(x, self.p[f'{path}/mlp_norm/scale'], cfg.rms_norm_eps)
    gate = self.linear(f'{path}/mlp/gate', y, is_stream)
    up = self.linear(f'{path}/mlp/up', y, is_stream)
    hidden = gate / (1 + np.exp(-gate)) * up
    return x + self.linear(f'{path}/mlp/down', hidden, is_stream)

  def insert(self, hidden, j):
    """Stream j (1-based) of a token whose main state is `hidden`."""
    if self.streams.insertion == 'mask':
      return self.a['streams/embedding'][j - 1]
    if self.streams.insertion == 'low_rank':
      down = self.a['streams/insertion/down']
      hidden = hidden + hidden @ down @ self.a['streams/insertion/up']
    if self.streams.embedding == 'learned':
      hidden = hidden + self.a['streams/embedding'][j - 1]
    return hidden

  def rotate_value(self, value, j):
    """Value of stream j times e^{i eps j}, pairs as in RoPE."""
    if self.streams.embedding != 'value_rotation':
      return value
    angle, half = self.streams.rotation_step * j, value.shape[-1] // 2
    c, s = math.cos(angle), math.sin(angle)
    a, b = value[:, :half], value[:, half:]
    return np.concatenate([a * c - b * s, b * c + a * s], axis=1)

  def run(self, tokens, anchors=()):
    """Normalised states: main [T, D] and {anchor: [J, D]}."""
    cfg = self.cfg
    main = [self.p['embed/embedding'][t] for t in tokens]
    first_msa = cfg.num_layers - (
      self.streams.num_msa_layers if self.streams else 0
    )
    groups = {}
    for layer in range(cfg.num_layers):
      if self.streams and layer == first_msa:
        groups = {
          t: [
            self.insert(main[t], j + 1) for j in range(self.streams.num_streams)
          ]
          for t in anchors
        }
      qkv = [self.qkv(layer, x, t, False) for t, x in enumerate(main)]
      keys, values = [k for _, k, _ in qkv], [v for _, _, v in qkv]
      groups = {
        t: self.stream_layer(layer, streams, t, keys, values)
        for t, streams in groups.items()
      }
      main = [
        self.mix(layer, x, q, keys[: t + 1], values[: t + 1], False)
        for t, (x, (q, _, _)) in enumerate(zip(main, qkv))
      ]
    final = lambda x: norm(x, self.p['final_norm/scale'], cfg.rms_norm_eps)
    return (
      np.stack([final(x) for x in main]),
      {t: np.stack([final(x) for x in rows]) for t, rows in groups.items()},
    )

  def stream_layer(self, layer, streams, t, keys, values):
    """Paper, eq. 2: main stream up to t, and streams <= j of the same t."""
    out, own_keys, own_values = [], [], []
    for j, x in enumerate(streams, start=1):
      position = t + j if self.streams.position == 'future' else t
      q, k, v = self.qkv(layer, x, position, True)
      own_keys.append(k)
      own_values.append(self.rotate_value(v, j))
      out.append(
        self.mix(
          layer,
          x,
          q,
          keys[: t + 1] + own_keys,
          values[: t + 1] + own_values,
          True,
        )
      )
    return out

  def logits(self, hidden):
    if self.cfg.tie_word_embeddings:
      return hidden @ self.p['embed/embedding'].T
    return hidden @ self.p['lm_head/kernel']


def dart_drafts(target, weights, tokens, t, num_drafts):
  """States [J, D] of a DART layer behind the root tokens[t + 1].

  Args:
    target: a `Model`.
    weights: of the layer by path.
    tokens: the text, at least up to the root.
    t: place of the leaf.
    num_drafts: J.
  """
  p = {k: np.asarray(v, np.float64) for k, v in weights.items()}
  named = {k.replace('layer/', 'layers/0/'): v for k, v in p.items()}
  layer, epsilon = Model(named, {}, target.cfg), target.cfg.rms_norm_eps
  hidden, _ = target.run(tokens[: t + 1])

  def fused(state, token):
    embedding = target.p['embed/embedding'][token]
    parts = [
      norm(state, p['hidden_norm/scale'], epsilon),
      norm(embedding, p['embedding_norm/scale'], epsilon),
    ]
    return np.concatenate(parts) @ p['fuse/kernel']

  keys, values, out = [], [], []
  for s in range(t + 1):
    _, k, v = layer.qkv(0, fused(hidden[s], tokens[s]), s, False)
    keys.append(k)
    values.append(v)
  for j in range(num_drafts):
    x = fused(hidden[t], tokens[t + 1]) if j == 0 else p['masks'][j - 1]
    q, k, v = layer.qkv(0, x, t + 1 + j, False)
    keys.append(k)
    values.append(v)
    y = layer.mix(0, x, q, keys, values, False)
    out.append(norm(y, p['final_norm/scale'], epsilon))
  return np.stack(out)
