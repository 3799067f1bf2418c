# SPDX-License-Identifier: Apache-2.0
"""The estimate of a training step on chips that nobody compiled for."""

import pytest

from specstream_jax.tpu import programs, scaling

CHIP = scaling.Chip(flops=1000.0, ici=10.0, dcn=2.0, slice_size=4)


def step(**collectives):
  moved = {kind.replace('_', '-'): size for kind, size in collectives.items()}
  # On 4 chips, 5 tokens each, 400 FLOPs a token.
  return programs.Compiled(
    'train step', 1.0, flops=2000.0, tokens=5.0, collectives=moved
  )


def estimate(compiled, chips, **options):
  (found,) = scaling.estimate(compiled, CHIP, 4, 60, [chips], **options)
  return found


def test_compute_follows_tokens_and_utilization():
  assert estimate(step(), 4).compute == 2000 / (1000 * 0.5)
  more = estimate(step(), 4, tokens_per_chip=10, utilization=1.0)
  assert (more.compute, more.tokens) == (4.0, 40)


@pytest.mark.parametrize(
  'collectives, bytes_moved',
  [
    ({'all_gather': 80}, 80),
    ({'all_reduce': 80}, 160),
    ({'reduce_scatter': 80}, 320),  # the result is a quarter of what goes in
    ({'all_gather': 80, 'all_to_all': 20}, 100),
    ({'collective_permute': 60}, 80),  # three steps of a quarter
  ],
)
def test_collectives_move_what_others_hold(collectives, bytes_moved):
  found = estimate(step(**collectives), 4)
  assert found.ici == pytest.approx(bytes_moved * 3 / 4 / 10)
  assert estimate(step(**collectives), 2).ici == pytest.approx(
    bytes_moved / 2 / 10
  )
  assert estimate(step(**collectives), 1).ici == 0


def test_slices_exchange_gradients_alone():
  within, across = (estimate(step(all_gather=80), n) for n in (4, 16))
  assert (within.dcn, across.ici) == (0, within.ici)
  # Four slices: 2 * 60 * 3/4 bytes over the network of four chips.
  assert across.dcn == pytest.approx(90 / 8)
  assert across.ici > across.compute
  assert across.overlapped == across.ici + across.dcn
  assert across.serial == pytest.approx(across.overlapped + across.compute)


def test_at_break_even_compute_equals_ici():
  compiled = step(all_gather=80)
  tokens = scaling.break_even(compiled, CHIP, 4)
  many = scaling.Chip(1000.0, 10.0, 2.0, 10**9)
  (found,) = scaling.estimate(
    compiled, many, 4, 60, [10**8], tokens_per_chip=tokens
  )
  assert found.compute == pytest.approx(found.ici)


def test_table_has_a_row_for_each_number_of_chips():
  found = scaling.estimate(step(all_gather=80), CHIP, 4, 60, [4, 4096])
  text = scaling.table(found)
  assert '| 4 | 20 | 4000 | 6000 | 0.0 | 3 | 2 |' in text
  assert '| 4,096 | 20,480 |' in text


def test_rates_of_an_unknown_chip():
  with pytest.raises(ValueError, match=r"no rates for 'v2'; known: .*v5p"):
    scaling.chip('v2:2x2')
  assert scaling.chip('v5e:4x4').slice_size == 256
