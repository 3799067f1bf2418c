# SPDX-License-Identifier: Apache-2.0
"""The weights of a decoder whose top layers also carry speculative streams.

The ways through it are in `forward`.

Axis letters: B rows, T positions, W parents, D model width, V vocabulary.
"""

from flax import nnx
import jax.numpy as jnp

from specstream_jax import arrays, config
from specstream_jax.modeling import (
  blocks,
  fused,
  layers,
  norms,
  params,
  streams as streams_lib,
)


class Table(nnx.Module):
  """Rows [N, D] by number: of tokens (also the tied LM head), of positions."""

  def __init__(
    self, num_rows: int, cfg: config.ModelConfig, weights_dtype: str = ''
  ):
    shape = (num_rows, cfg.hidden_size)
    self.dtype = cfg.dtype
    self.embedding = params.BaseParam(
      jnp.zeros(shape, weights_dtype or cfg.dtype)
    )
    self.is_scaled = bool(weights_dtype)  # see `int8`
    if self.is_scaled:
      self.embedding_scale = params.BaseParam(jnp.zeros((num_rows,)))

  def __call__(self, index: arrays.Array) -> arrays.Array:
    return plain_rows(*self.rows(index), self.dtype)

  def rows(
    self, index: arrays.Array
  ) -> tuple[arrays.Array, arrays.Array | None]:
    """Rows [..., D] as they are stored, and their scales [...] or None."""
    take = lambda leaf: jnp.take(leaf[...], index, axis=0, mode='clip')
    scale = take(self.embedding_scale) if self.is_scaled else None
    return take(self.embedding), scale


def plain_rows(
  rows: arrays.Array, scale: arrays.Array | None, dtype: str
) -> arrays.Array:
  """Rows [..., D] times their scales [...], as `dtype`."""
  if scale is None:
    return rows
  return (rows.astype(jnp.float32) * scale[..., None]).astype(dtype)


class Transformer(nnx.Module):
  """Weights of the base model and, if given, of streams and LoRA."""

  def __init__(
    self,
    cfg: config.ModelConfig,
    streams: config.StreamConfig | None = None,
    lora: config.LoraConfig | None = None,
    layout: str = 'in_out',
    is_stacked: bool = False,
  ):
    self.cfg, self.stream_cfg = cfg, streams
    self.layout = fused.of_kernels(layout)
    self.is_stacked = is_stacked
    self.is_by_row = isinstance(lora, layers.RowLora)
    first_msa = cfg.num_layers - (streams.num_msa_layers if streams else 0)
    self.first_msa = first_msa
    step = 0.0
    if streams is not None and streams.embedding == 'value_rotation':
      step = streams.rotation_step
    adapts_lower = streams is None or streams.mode == 'fine_tuned'
    is_head = cfg.tie_word_embeddings
    self.embed = Table(
      cfg.vocab_size, cfg, cfg.weights_dtype if is_head else ''
    )
    if cfg.num_learned_positions:
      self.positions = Table(cfg.num_learned_positions, cfg)
    lower = lambda: blocks.DecoderLayer(
      cfg, lora if adapts_lower else None, step, layout
    )
    upper = lambda: blocks.DecoderLayer(cfg, lora, step, layout)
    counts = first_msa, cfg.num_layers - first_msa
    if is_stacked:
      if counts[0]:
        self.lower_layers = blocks.stacked(counts[0], lower())
      if counts[1]:
        self.msa_layers = blocks.stacked(counts[1], upper())
    else:
      made = (lower,) * counts[0] + (upper,) * counts[1]
      self.layers = nnx.List(make() for make in made)
    self.final_norm = norms.Norm(cfg.hidden_size, cfg)
    if not cfg.tie_word_embeddings:
      shape = (cfg.hidden_size, cfg.vocab_size)
      self.lm_head = layers.Linear(
        *shape,
        dtype=cfg.dtype,
        layout=self.layout,
        has_bias=cfg.has_head_bias,
        weights_dtype=cfg.weights_dtype,
      )
    if streams:
      self.streams = streams_lib.StreamInsertion(cfg.hidden_size, streams)
      if streams.pruning_rank:
        self.pruning = streams_lib.LowRank(
          cfg.hidden_size,
          streams.pruning_rank,
          is_residual=streams.pruning_residual,
        )
      if streams.coupling_rank:
        self.coupling = streams_lib.Coupling(
          cfg.hidden_size, streams.coupling_rank, streams.coupling
        )

  @property
  def stream_settings(self) -> config.StreamConfig:
    """Settings of the streams, which the model must have."""
    assert self.stream_cfg is not None
    return self.stream_cfg

  @property
  def is_lossless(self) -> bool:
    """Whether the main stream is the base model's own."""
    return bool(self.stream_cfg) and self.stream_cfg.mode == 'lossless'

  def lora_start(self, num_main: int) -> int:
    """First token LoRA acts on, `num_main` main tokens coming first.

    Where LoRA differs by row: the first that all of its ranks act on.
    """
    return num_main if self.is_lossless or self.is_by_row else 0

  def inputs(
    self, tokens: arrays.Array, positions: arrays.Array
  ) -> arrays.Array:
    """Hidden states [B, T, D] that the first layer reads."""
    x, cfg = self.embed(tokens), self.cfg
    if cfg.embedding_scale != 1.0:
      x *= jnp.asarray(cfg.embedding_scale, x.dtype)
    if cfg.num_learned_positions:
      x += self.positions(positions + cfg.position_offset)
    return x

  def logits(self, hidden: arrays.Array) -> arrays.Array:
    """Normalised hidden states [..., D] -> float32 logits [..., V]."""
    is_tied, f32 = self.cfg.tie_word_embeddings, jnp.float32
    kernel = self.embed.embedding[...] if is_tied else self.lm_head.kernel[...]
    bias = self.lm_head.bias[...] if self.cfg.has_head_bias else None
    if self.cfg.weights_dtype:
      scale = (
        self.embed.embedding_scale if is_tied else self.lm_head.kernel_scale
      )
      layout = 'out_in' if is_tied else self.layout
      logits = layers.scaled(hidden, kernel, scale[...], layout)
      return finish_logits(self.cfg, logits, bias)
    if self.layout == 'out_in':
      return finish_logits(self.cfg, layers.project(hidden, kernel, f32), bias)
    axes = 'VD' if is_tied else 'DV'
    logits = jnp.einsum(
      f'...D,{axes}->...V', hidden, kernel, preferred_element_type=f32
    )
    return finish_logits(self.cfg, logits, bias)

  def coupled(
    self, hidden: arrays.Array, parents: arrays.Array
  ) -> arrays.Array:
    """Stream states [..., D] that know their token's parent [...]."""
    correction = self.coupling(self.embed(parents), hidden)
    return hidden + correction.astype(hidden.dtype)

  def coupling_logits(
    self,
    hidden: arrays.Array,
    parents: arrays.Array,
    candidates: arrays.Array,
  ) -> arrays.Array:
    """What parents [B, W] add to the logits of candidates [B, k], [B, W, k].

    Only the candidates' rows of the LM head are read.

    Args:
      hidden: [B, D] normalised state of the stream that drafts.
      parents: int32 [B, W].
      candidates: int32 [B, k].
    """
    correction = self.coupling(self.embed(parents), hidden[:, None])
    rows = self.head_rows(candidates).astype(jnp.float32)
    change = jnp.einsum('BWD,BkD->BWk', correction, rows)
    if not self.cfg.logit_softcap:
      return change / self.cfg.logit_divisor
    # A cap is not linear: what it makes of both, less what of the stream alone.
    own = jnp.einsum('BD,BkD->Bk', hidden.astype(jnp.float32), rows)[:, None]
    bias = self.head_bias(candidates)
    bias = None if bias is None else bias[:, None]
    finish = lambda logits: finish_logits(self.cfg, logits, bias)
    return finish(own + change) - finish(own)

  def head_rows(self, tokens: arrays.Array) -> arrays.Array:
    """Rows [..., D] of the LM head that give the logits of `tokens`."""
    return plain_rows(*self.stored_head_rows(tokens), self.cfg.dtype)

  def stored_head_rows(
    self, tokens: arrays.Array
  ) -> tuple[arrays.Array, arrays.Array | None]:
    """As `head_rows`, as they are stored, and their scales [...] or None."""
    if self.cfg.tie_word_embeddings:
      return self.embed.rows(tokens)
    head, axis = self.lm_head, 0 if self.layout == 'out_in' else 1
    rows = jnp.take(head.kernel[...], tokens, axis=axis, mode='clip')
    scale = None
    if head.is_scaled:
      scale = jnp.take(head.kernel_scale[...], tokens, mode='clip')
    return rows if axis == 0 else jnp.moveaxis(rows, 0, -1), scale

  def head_bias(self, tokens: arrays.Array) -> arrays.Array | None:
    """The LM head's bias [...] of `tokens`; None if it has none."""
    if not self.cfg.has_head_bias:
      return None
    return jnp.take(self.lm_head.bias[...], tokens, mode='clip')

  def early_hidden(self, hidden: arrays.Array) -> arrays.Array:
    """Early-exit state for pruning: norm(o_theta(M)), ready for `logits`."""
    return self.final_norm(self.pruning(hidden))


def finish_logits(
  cfg: config.ModelConfig,
  logits: arrays.Array,
  bias: arrays.Array | None = None,
) -> arrays.Array:
  """Products of hidden states and rows of the LM head -> logits, float32.

  Args:
    cfg: divisor and cap of the logits.
    logits: [..., V] float32.
    bias: of the LM head, [V] or as many dims as `logits`; None without.
  """
  if bias is not None:
    bias = bias.astype(jnp.float32)
    logits += layers.along_last(bias, logits) if bias.ndim == 1 else bias
  if cfg.logit_divisor != 1.0:
    logits /= cfg.logit_divisor
  return layers.softcap(logits, cfg.logit_softcap)
