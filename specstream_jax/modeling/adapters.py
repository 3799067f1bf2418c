# SPDX-License-Identifier: Apache-2.0
"""Adapters side by side: a batch in which each row has one of its own.

Every adapter leaf gets an axis of rows in front; what acts on a batch [B, T, D]
then is a batched product, and the base is read once for all rows. Adapters are
of one structure when their streams are: as many, in the same layers, made the
same way. LoRA need not be alike. It is brought to one form, which adds up what
an adapter has: LoRA that acts on all tokens (of fine-tuned streams, of PEFT, or
what lossless streams stand on) and LoRA of lossless streams, which spares main
tokens (`layers.RowLora`); where there is less, zeros, which change no number.
So fine-tuned and lossless rows, and rows of the base alone, share a batch.

Axis letters: B rows, R ranks.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from specstream_jax import arrays, config
from specstream_jax.config import checks
from specstream_jax.modeling import build as build_lib, layers, params

_NO_LORA = config.LoraConfig(rank=0)


class Parts(NamedTuple):
  """An adapter in parts; of nothing, the base alone.

  Attributes:
    tuned: flat LoRA that acts on all tokens.
    tuned_lora: its settings.
    stream: settings of the streams; None without.
    rest: flat weights of the streams, LoRA that acts on them alone included.
    stream_lora: settings of that LoRA; None without.
  """

  tuned: Mapping[str, Any] = {}
  tuned_lora: config.LoraConfig = _NO_LORA
  stream: config.StreamConfig | None = None
  rest: Mapping[str, Any] = {}
  stream_lora: config.LoraConfig | None = None

  @property
  def rank(self) -> int:
    """R that its LoRA takes."""
    own = self.stream_lora.rank if self.stream_lora else 0
    return self.tuned_lora.rank + own

  @property
  def modules(self) -> set[str]:
    """Projections that LoRA adapts."""
    cfgs = [self.tuned_lora, self.stream_lora or _NO_LORA]
    return {name for cfg in cfgs if cfg.rank for name in cfg.modules}


@dataclasses.dataclass(frozen=True)
class Structure:
  """What rows of one batch have in common.

  Attributes:
    stream: settings of the streams, whose mode does not count; None without.
    lora: room for LoRA.
  """

  stream: config.StreamConfig | None
  lora: layers.RowLora

  def build(self, cfg: config.ModelConfig, layout: str) -> build_lib.Built:
    """The model with such adapters; their leaves have no axis of rows."""
    return build_lib.build(cfg, self.stream, self.lora, layout)

  def check_fits(self, name: str, parts: Parts) -> None:
    """Raises ValueError if an adapter cannot be a row of such a batch."""
    own = _form(parts.stream)
    if own is not None and own != self.stream:
      differing = _differences(own, self.stream)
      raise ValueError(
        f'adapter {name!r} has streams of another structure than those it '
        f'would share a batch with: {differing}; serve it by itself'
      )
    checks.check(
      parts.rank <= self.lora.rank,
      f'adapter {name!r} has LoRA of rank {parts.rank}, and there is room for '
      f'{self.lora.rank}; serve it from the start, or make more room',
    )
    missing = sorted(parts.modules - set(self.lora.modules))
    checks.check(
      not missing,
      f'adapter {name!r} has LoRA on {", ".join(missing)}, and there is room on '
      f'{", ".join(self.lora.modules) or "nothing"}; serve it from the start',
    )


def _form(stream: config.StreamConfig | None) -> config.StreamConfig | None:
  """Settings of streams without what does not count once they are trained."""
  if stream is None:
    return None
  scale = config.StreamConfig.embedding_init_scale
  return dataclasses.replace(
    stream, mode='fine_tuned', embedding_init_scale=scale
  )


def _differences(own: config.StreamConfig, common: Any) -> str:
  if common is None:
    return 'the others have none'
  return ', '.join(
    f'{field.name} {getattr(own, field.name)!r}, not '
    f'{getattr(common, field.name)!r}'
    for field in dataclasses.fields(own)
    if getattr(own, field.name) != getattr(common, field.name)
  )


def structure(
  named: Mapping[str, Parts],
  *,
  least_rank: int = 0,
  modules: Iterable[str] = (),
) -> Structure:
  """The structure in which all of some adapters fit.

  Args:
    named: adapters by name, at least one.
    least_rank: room for LoRA of others, which may come later.
    modules: projections that those may adapt.

  Raises:
    ValueError: streams of two adapters differ in more than their weights.
  """
  streams = [_form(parts.stream) for parts in named.values() if parts.stream]
  rank = max([least_rank, *(parts.rank for parts in named.values())])
  wanted = set(modules).union(*(parts.modules for parts in named.values()))
  room = layers.RowLora(
    rank=rank if wanted else 0,
    modules=tuple(name for name in config.LORA_MODULES if name in wanted),
  )
  made = Structure(streams[0] if streams else None, room)
  for name, parts in named.items():
    made.check_fits(name, parts)
  return made


def leaves(
  built: build_lib.Built, made: Structure, parts: Parts
) -> dict[Any, Any]:
  """An adapter as a row: nested float32 weights [1, ...].

  Args:
    built: of `made`.
    made: the structure; the adapter fits it.
    parts: the adapter.
  """
  flat = {}
  for path, shape in params.flatten(built.adapter).items():
    stem, _, kind = path.rpartition('/')
    if kind.startswith('lora_'):
      leaf = _lora_leaf(stem, kind, shape.shape, parts)
    else:
      leaf = parts.rest.get(path, np.zeros(shape.shape))
    flat[path] = np.asarray(leaf, np.float32)[None]
  return params.unflatten(flat)


def _lora_leaf(stem, kind, shape, parts):
  """A, B or the gate of one projection, with zeros where there is no LoRA."""
  leaf, first = np.zeros(shape, np.float32), parts.tuned_lora.rank
  if kind == 'lora_gate':
    leaf[:first] = 1.0
    return leaf
  own = parts.stream_lora or _NO_LORA
  for flat, cfg, start in (
    (parts.tuned, parts.tuned_lora, 0),
    (parts.rest, own, first),
  ):
    if f'{stem}/{kind}' not in flat:
      continue
    weights = np.asarray(flat[f'{stem}/{kind}'], np.float32)
    ranks = slice(start, start + cfg.rank)
    if kind == 'lora_a':
      leaf[:, ranks] = weights
    else:
      leaf[ranks] = cfg.scale * weights
  return leaf


@functools.partial(jax.jit, static_argnums=1)
def spread(row: Any, num_rows: int) -> Any:
  """As many rows [B, ...] of the same adapter, [1, ...]."""
  return jax.tree.map(lambda leaf: jnp.repeat(leaf, num_rows, axis=0), row)


@functools.partial(jax.jit, static_argnums=1)
def first(rows: Any, count: int) -> Any:
  """The first `count` of rows [B, ...]."""
  return jax.tree.map(lambda leaf: leaf[:count], rows)


@functools.partial(jax.jit, donate_argnums=0)
def put(rows: Any, row: Any, index: arrays.Array) -> Any:
  """Rows [B, ...], consumed, with another adapter [1, ...] in one of them."""
  return jax.tree.map(
    lambda all_, one: jax.lax.dynamic_update_index_in_dim(
      all_, one[0], index, axis=0
    ),
    rows,
    row,
  )
