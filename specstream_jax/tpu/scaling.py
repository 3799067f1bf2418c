# SPDX-License-Identifier: Apache-2.0
"""What a compiled training step would take on more chips: arithmetic, no run.

Of a step on n chips, with t tokens a chip:

    compute  = F t / (peak * utilization)       F FLOPs a token, as compiled
    ici      = C w(m) / bandwidth               w(m) = (m - 1) / m
    dcn      = 2 A w(s) / (bandwidth * m)       s slices of m = n / s chips

C are the bytes of the compiled slice's collectives: what an all-gather returns
or a reduce-scatter takes, twice what an all-reduce does; permutes are gathers in
steps. With rows and weights split over all chips (`fsdp`) they are weights on
their way to layers, so they depend neither on the tokens nor, but for w, on the
number of chips. A are the bytes of the adapter's gradient, which is all that
slices exchange, for the base is frozen and each slice holds all of it. A step
takes the longer of compute and ici if the two overlap, else their sum; dcn comes
on top.
"""

from collections.abc import Sequence
import dataclasses
import math

from specstream_jax.tpu import programs


@dataclasses.dataclass(frozen=True)
class Chip:
  """Peak rates of a chip, per second. Source: Cloud TPU documentation.

  Attributes:
    flops: bfloat16.
    ici: bytes into a chip from its neighbours; half the bidirectional figure.
    dcn: bytes out of a chip's share of its host's network.
    slice_size: most chips that share ICI in one job.
  """

  flops: float
  ici: float
  dcn: float
  slice_size: int


CHIPS = {
  'v5e': Chip(197e12, 200e9, 25e9 / 8, 256),
  'v5p': Chip(459e12, 600e9, 50e9 / 8, 6144),
  'v6e': Chip(918e12, 400e9, 100e9 / 8, 256),
}


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A step on `chips` chips; seconds.

  Attributes:
    chips: of the job.
    tokens: of a step, all chips together.
    compute: time of the products.
    ici: time of the collectives within a slice.
    dcn: time of the adapter's gradient between slices.
    overlapped: the step if compute hides ici.
    serial: the step if nothing is hidden.
  """

  chips: int
  tokens: float
  compute: float
  ici: float
  dcn: float

  @property
  def overlapped(self) -> float:
    return max(self.compute, self.ici) + self.dcn

  @property
  def serial(self) -> float:
    return self.compute + self.ici + self.dcn


def chip(topology: str) -> Chip:
  """The chip of 'v5e:4x4'.

  Raises:
    ValueError: its rates are not in `CHIPS`.
  """
  kind = topology.partition(':')[0]
  if kind not in CHIPS:
    raise ValueError(f'no rates for {kind!r}; known: {sorted(CHIPS)}')
  return CHIPS[kind]


def estimate(
  compiled: programs.Compiled,
  where: Chip,
  num_compiled: int,
  gradient_bytes: int,
  chips: Sequence[int],
  *,
  tokens_per_chip: float = 0,
  utilization: float = 0.5,
) -> list[Estimate]:
  """The step on each number of chips.

  Args:
    compiled: a training step.
    where: rates of a chip.
    num_compiled: chips it was compiled for.
    gradient_bytes: of the adapter.
    chips: numbers of chips.
    tokens_per_chip: 0 keeps those of the compiled step.
    utilization: share of the peak FLOP/s that products reach; assumed.
  """
  tokens = tokens_per_chip or compiled.tokens
  moved = _moved(compiled, num_compiled)
  found = []
  for count in chips:
    slices = math.ceil(count / where.slice_size)
    within = min(count, where.slice_size)
    between = 2 * gradient_bytes * _away(slices)
    found.append(
      Estimate(
        count,
        tokens * count,
        compiled.flops * tokens / compiled.tokens / (where.flops * utilization),
        moved * _away(within) / where.ici,
        between / (where.dcn * within),
      )
    )
  return found


def _away(count: int) -> float:
  """Share of a thing in `count` equal parts that the others hold."""
  return (count - 1) / count


def _moved(compiled, num_compiled):
  """C of the module's formulas; collectives come as the sizes of results."""
  factors = {
    'all-reduce': 2,
    'reduce-scatter': num_compiled,
    # An all-gather in steps, each of what one other chip holds.
    'collective-permute': 1 / _away(num_compiled) if num_compiled > 1 else 0,
  }
  return sum(
    factors.get(kind, 1) * size for kind, size in compiled.collectives.items()
  )


def break_even(
  compiled: programs.Compiled,
  where: Chip,
  num_compiled: int,
  utilization: float = 0.5,
) -> float:
  """Tokens a chip, on many chips, for which compute and ici take equally long.

  With fewer, collectives set the pace.
  """
  per_token = compiled.flops / compiled.tokens / (where.flops * utilization)
  return _moved(compiled, num_compiled) / where.ici / per_token


def table(found: Sequence[Estimate], utilization: float = 0.5) -> str:
  """Markdown: a row per number of chips."""
  lines = [
    f'| chips | tokens a step | compute at {utilization:.0%} of peak, ms '
    '| ICI, ms | DCN, ms | tokens/s, overlapped | serial |',
    '|---|---|---|---|---|---|---|',
  ]
  for one in found:
    lines.append(
      f'| {one.chips:,} | {one.tokens:,.0f} | {1e3 * one.compute:.0f} '
      f'| {1e3 * one.ici:.0f} | {1e3 * one.dcn:.1f} '
      f'| {one.tokens / one.overlapped:,.0f} '
      f'| {one.tokens / one.serial:,.0f} |'
    )
  return '\n'.join(lines)
