# SPDX-License-Identifier: Apache-2.0
"""A DART layer on disk."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from specstream_jax.checkpoints import dart, weights
from specstream_jax.cli import info
from specstream_jax.modeling import dart as dart_lib, params

J = 3
LAYER = dart_lib.build(tiny.CONFIG, J, dtype='float32')
BASE = params.flatten(tiny.model(tiny.CONFIG, None, None)[1])


def layer():
  """Flat weights that bfloat16 and float16 hold exactly."""
  rng = np.random.default_rng(0)
  return {
    path: rng.integers(-9, 9, leaf.shape).astype(np.float32) / 8
    for path, leaf in params.flatten(LAYER.shapes).items()
  }


def config_of(**fields):
  return dart.DartConfig(
    **{
      'base_model_id': 'tiny',
      'base_config_hash': weights.config_hash(tiny.CONFIG),
      'base_fingerprints': ('0', weights.fingerprint(BASE)),
      'adapter': 'e2e',
      'num_drafts': J,
      'provenance': {'step': 7},
      **fields,
    }
  )


@pytest.mark.parametrize('dtype', dart.DTYPES)
def test_round_trip(tmp_path, dtype):
  flat = layer()
  arrays = {path: jnp.asarray(leaf) for path, leaf in flat.items()}
  dart.save(tmp_path, arrays, config_of(), dtype=dtype)
  names = sorted(p.name for p in tmp_path.iterdir())
  assert names == ['dart.safetensors', 'dart_config.json']
  read, cfg = dart.load(tmp_path)
  assert cfg == config_of() == dart.read_config(tmp_path)
  assert read.keys() == flat.keys()
  for path, leaf in flat.items():
    assert read[path].dtype == dtype
    np.testing.assert_array_equal(read[path].astype(np.float32), leaf)


def test_wrong_base_is_refused():
  dart.check_base(config_of(), BASE, tiny.CONFIG)
  wider = dataclasses.replace(tiny.CONFIG, rope_theta=5.0)
  where = r"trained on 'tiny' with adapter 'e2e', but the model has "
  with pytest.raises(ValueError, match=where + 'other sizes or constants'):
    dart.check_base(config_of(), BASE, wider)
  other = BASE | {'final_norm/scale': 2 * BASE['final_norm/scale']}
  with pytest.raises(ValueError, match=where + 'the same sizes but other'):
    dart.check_base(config_of(), other, tiny.CONFIG)


def test_weights_that_do_not_fit_are_refused(tmp_path):
  flat = layer()
  with pytest.raises(ValueError, match=r'masks has shape \(2, 22\), but num_'):
    dart.save(tmp_path, flat, config_of(num_drafts=4))
  assert not list(tmp_path.iterdir())
  shapes = params.flatten(LAYER.shapes)
  dart.check_shapes('x', flat, shapes)
  flat['fuse/kernel'] = flat['fuse/kernel'][:-1]
  with pytest.raises(ValueError, match=r'fuse/kernel has shape \(43, 22\)'):
    dart.check_shapes('x', flat, shapes)


def test_settings_that_make_no_layer_are_refused():
  with pytest.raises(
    ValueError, match='num_drafts is 1; it must be an integer >= 2'
  ):
    config_of(num_drafts=1)
  with pytest.raises(ValueError, match="dtype is 'int8'; accepted: 'bfloat16'"):
    dart.save('x', layer(), config_of(), dtype='int8')


def test_damage_is_found(tmp_path):
  with pytest.raises(ValueError, match='holds no DART layer'):
    dart.load(tmp_path)
  dart.save(tmp_path, layer(), config_of())
  path = tmp_path / dart.WEIGHTS
  content = path.read_bytes()
  path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
  with pytest.raises(ValueError, match='is not the file that dart_config'):
    dart.load(tmp_path)
  path.write_bytes(content)
  fields = json.loads((tmp_path / dart.CONFIG).read_text())
  for name, change in (
    ('and has unknown', {'x': 1}),
    (': format_version 9', {'format_version': 9}),
  ):
    text = json.dumps(fields | change)
    (tmp_path / dart.CONFIG).write_text(text)
    with pytest.raises(ValueError, match=name):
      dart.load(tmp_path)


def test_info_of_a_folder(tmp_path):
  dart.save(tmp_path, layer(), config_of())
  text = info.describe(str(tmp_path))
  num = dart_lib.count(tiny.CONFIG, J)
  assert f'{num:,} of one layer, with 2 masks, h = 22' in text
  assert 'adapter:           e2e' in text
