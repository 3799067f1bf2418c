# SPDX-License-Identifier: Apache-2.0
"""How often training goes through its records; packed rows are estimated."""

from collections.abc import Sequence
import math
from typing import NamedTuple

from specstream_jax import config
from specstream_jax.data import mixtures

# Beyond so many, a model learns its examples by heart.
MANY = 20
_MOST = 10**6  # more would not fit a counter of steps


class Epochs(NamedTuple):
  """What a number of steps goes through.

  Attributes:
    num_examples: of all folders together.
    total: examples seen / examples there are.
    by_folder: the same of each folder of a mixture.
  """

  num_examples: int
  total: float
  by_folder: dict[str, float]

  def __str__(self) -> str:
    total = _number(self.total)
    parts = [f'about {total} epochs of {self.num_examples:,} examples']
    if len(self.by_folder) > 1:
      parts += [f'{_number(x)} of {name}' for name, x in self.by_folder.items()]
    return ', '.join(parts)

  @property
  def warning(self) -> str:
    """What to say of a run that repeats its examples too often, or ''."""
    most = max(self.by_folder, key=lambda name: self.by_folder[name])
    if self.by_folder[most] <= MANY:
      return ''
    return (
      f'the run goes through {most} {self.by_folder[most]:,.0f} times; beyond '
      f'some {MANY} epochs a model learns examples by heart. Take fewer steps, '
      'such as --epochs=5, or more data'
    )


def count(
  data_dir: str, train: config.TrainConfig, data: config.DataConfig
) -> Epochs:
  """Epochs of `train.num_steps` steps.

  Args:
    data_dir: records or a mixture.
    train: steps and rows.
    data: how records become rows.

  Raises:
    ValueError: no records there.
  """
  sizes, shares, per_row = _folders(data_dir, data)
  seen = train.num_steps * train.batch_size * per_row
  paths = [part.path for part in mixtures.parse(data_dir)]
  by_folder = {
    path: seen * share / size
    for path, share, size in zip(paths, shares, sizes, strict=True)
  }
  return Epochs(sum(sizes), seen / sum(sizes), by_folder)


def _number(value: float) -> str:
  return f'{value:,.0f}' if value >= 10 else f'{value:.2g}'


def steps(
  epochs: float, data_dir: str, batch_size: int, data: config.DataConfig
) -> int:
  """Steps that go through `epochs` times as many examples as there are.

  Raises:
    ValueError: not a number above 0, or no records there.
  """
  if not 0 < epochs <= _MOST:
    raise ValueError(
      f'epochs is {epochs}; accepted: a number above 0, up to {_MOST:,}'
    )
  sizes, _, per_row = _folders(data_dir, data)
  return max(math.ceil(epochs * sum(sizes) / (batch_size * per_row)), 1)


def _folders(
  data_dir: str, data: config.DataConfig
) -> tuple[Sequence[int], Sequence[float], float]:
  """Examples of each folder, its share of what is drawn, examples of a row."""
  manifests = mixtures.manifests(data_dir)
  rates = [part.rate for part in mixtures.parse(data_dir)]
  sizes = [manifest['num_examples'] for manifest in manifests]
  shares = [rate / sum(rates) for rate in rates]
  if not data.packed:
    return sizes, shares, 1.0
  # A token of each is a target only.
  lengths = []
  for manifest in manifests:
    total = manifest.get('lengths', {}).get('total', {})
    lengths.append(total.get('mean', total.get('max', 2)) - 1)
  mean = sum(share * length for share, length in zip(shares, lengths))
  return sizes, shares, max(data.sequence_length / max(mean, 1), 1.0)
