# SPDX-License-Identifier: Apache-2.0
"""Fused tensors come apart and go together again, their LoRA too."""

import numpy as np
import pytest

from specstream_jax.checkpoints.families import stored

PATHS = tuple(f'attention/{name}/kernel' for name in ('query', 'key', 'value'))


def fused(layout, widths=(6, 6, 6)):
  shapes = tuple((5, width) for width in widths)
  return stored.Stored('a.qkv.weight', PATHS, shapes, layout, num_heads=3)


@pytest.mark.parametrize(
  ('layout', 'widths'),
  [('out_in', (6, 2, 4)), ('in_out', (6, 2, 4)), ('interleaved', (6, 6, 6))],
)
def test_split_and_join_undo_each_other(layout, widths):
  tensor = fused(layout, widths)
  rng = np.random.default_rng(0)
  flat = {p: rng.normal(size=s) for p, s in zip(tensor.paths, tensor.shapes)}
  whole = tensor.join(flat)
  assert whole.shape == tensor.shape
  found = tensor.split(whole)
  for path in PATHS:
    np.testing.assert_array_equal(found[path], flat[path])


def test_interleaved_parts_stand_head_by_head():
  found = fused('interleaved').split(np.arange(18 * 5).reshape(18, 5))
  rows = lambda path: (found[path].T[:, 0] // 5).tolist()
  assert rows(PATHS[0]) == [0, 1, 6, 7, 12, 13]
  assert rows(PATHS[2]) == [4, 5, 10, 11, 16, 17]


@pytest.mark.parametrize('layout', stored.LAYOUTS)
def test_lora_of_a_fused_module_acts_as_before(layout):
  tensor = fused(layout)
  rng = np.random.default_rng(1)
  low, high = rng.normal(size=(2, 5)), rng.normal(size=(18, 2))
  ours = tensor.split_lora(low, high)
  # The change of the stored module, taken apart, is the change of each part.
  change = (high @ low).T if layout == 'in_out' else high @ low
  for path, part in tensor.split(change).items():
    stem = path.removesuffix('kernel')
    got = ours[f'{stem}lora_a'] @ ours[f'{stem}lora_b']
    np.testing.assert_allclose(got, part, atol=1e-12)
  del ours['attention/key/lora_a'], ours['attention/key/lora_b']
  low, high = tensor.join_lora(ours)
  assert (low.shape, high.shape) == ((4, 5), (18, 4))
  again = tensor.split((high @ low).T if layout == 'in_out' else high @ low)
  want = tensor.split(change)
  np.testing.assert_allclose(again[PATHS[0]], want[PATHS[0]], atol=1e-12)
  np.testing.assert_allclose(again[PATHS[1]], 0 * want[PATHS[1]], atol=1e-12)
