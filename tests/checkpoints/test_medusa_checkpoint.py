# SPDX-License-Identifier: Apache-2.0
"""Medusa heads on disk."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from specstream_jax import config
from specstream_jax.checkpoints import medusa, weights
from specstream_jax.cli import info
from specstream_jax.modeling import heads as heads_lib, params

J = 2
CHOICES = ((0,), (1,), (0, 0))
BASE = params.flatten(tiny.model(tiny.CONFIG, None, None)[1])


def heads(seed=0):
  """Flat weights that bfloat16 and float16 hold exactly."""
  rng = np.random.default_rng(seed)
  shapes = params.flatten(heads_lib.build(tiny.CONFIG, J).shapes)
  return {
    path: rng.integers(-9, 9, leaf.shape).astype(np.float32) / 8
    for path, leaf in shapes.items()
  }


def config_of(**fields):
  return medusa.MedusaConfig(
    **{
      'base_model_id': 'tiny',
      'base_config_hash': weights.config_hash(tiny.CONFIG),
      'base_fingerprints': ('0', weights.fingerprint(BASE)),
      'adapter': 'e2e',
      'num_heads': J,
      'choices': CHOICES,
      'provenance': {'step': 7},
      **fields,
    }
  )


@pytest.mark.parametrize('dtype', medusa.DTYPES)
def test_round_trip(tmp_path, dtype):
  flat = heads()
  arrays = {path: jnp.asarray(leaf) for path, leaf in flat.items()}
  medusa.save_heads(tmp_path, arrays, config_of(), dtype=dtype)
  names = sorted(p.name for p in tmp_path.iterdir())
  assert names == ['medusa.safetensors', 'medusa_config.json']
  read, cfg = medusa.load_heads(tmp_path)
  assert cfg == config_of() == medusa.read_config(tmp_path)
  assert read.keys() == flat.keys()
  for path, leaf in flat.items():
    assert read[path].dtype == dtype
    np.testing.assert_array_equal(read[path].astype(np.float32), leaf)


def test_half_precision_takes_half_the_bytes(tmp_path):
  sizes = {}
  for dtype in medusa.DTYPES:
    medusa.save_heads(tmp_path / dtype, heads(), config_of(), dtype=dtype)
    sizes[dtype] = (tmp_path / dtype / medusa.WEIGHTS).stat().st_size
  num = heads_lib.count(tiny.CONFIG, J)
  assert sizes['float32'] - sizes['bfloat16'] == pytest.approx(2 * num, abs=64)
  with pytest.raises(ValueError, match="dtype is 'int8'; accepted: 'bfloat16'"):
    medusa.save_heads(tmp_path, heads(), config_of(), dtype='int8')


def test_default_tree_is_the_calibrated_one():
  assert config_of().tree == config.TreeConfig('fixed', choices=CHOICES)
  assert config_of(choices=()).tree == config.TreeConfig(depth=J)


def test_wrong_base_is_refused():
  medusa.check_base(config_of(), BASE, tiny.CONFIG)
  wider = dataclasses.replace(tiny.CONFIG, rope_theta=5.0)
  where = r"trained on 'tiny' with adapter 'e2e', but the model has "
  with pytest.raises(ValueError, match=where + 'other sizes or constants'):
    medusa.check_base(config_of(), BASE, wider)
  other = BASE | {'final_norm/scale': 2 * BASE['final_norm/scale']}
  with pytest.raises(ValueError, match=where + 'the same sizes but other'):
    medusa.check_base(config_of(), other, tiny.CONFIG)


def test_weights_that_do_not_fit_are_refused(tmp_path):
  flat = heads()
  with pytest.raises(ValueError, match='missing heads/2/bias'):
    medusa.save_heads(tmp_path, flat, config_of(num_heads=3))
  flat['heads/1/kernel'] = flat['heads/1/kernel'][:-1]
  with pytest.raises(ValueError, match=r'kernel has shape \(21, 22\)'):
    medusa.save_heads(tmp_path, flat, config_of())
  assert not list(tmp_path.iterdir())


def test_damage_is_found(tmp_path):
  with pytest.raises(ValueError, match='holds no Medusa heads'):
    medusa.load_heads(tmp_path)
  medusa.save_heads(tmp_path, heads(), config_of())
  path = tmp_path / medusa.WEIGHTS
  content = path.read_bytes()
  path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
  with pytest.raises(ValueError, match='is not the file that medusa_config'):
    medusa.load_heads(tmp_path)
  path.write_bytes(content)
  fields = json.loads((tmp_path / medusa.CONFIG).read_text())
  for name, change in (
    ('and has unknown', {'x': 1}),
    (': format_version 9', {'format_version': 9}),
  ):
    text = json.dumps(fields | change)
    (tmp_path / medusa.CONFIG).write_text(text)
    with pytest.raises(ValueError, match=name):
      medusa.load_heads(tmp_path)


def test_info_of_a_folder(tmp_path):
  medusa.save_heads(tmp_path, heads(), config_of())
  text = info.describe(str(tmp_path))
  num = heads_lib.count(tiny.CONFIG, J)
  assert f'{num:,} = γ(h² + hV) + γh biases, γ = 2, h = 22, V = 53' in text
  assert f'{18 * 22} = γh + 16h' in text
  assert 'choices ((0,), (1,), (0, 0))' in text
