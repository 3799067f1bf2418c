# SPDX-License-Identifier: Apache-2.0
"""Both spellings of RoPE, alone and together: the right values or a refusal."""

import itertools
import json

import model_files
import pytest

from specstream_jax import config
from specstream_jax.checkpoints import huggingface_config

SIZES = model_files.HF_CONFIG | {'hidden_size': 60}
RAW = {k: v for k, v in SIZES.items() if k != 'rope_theta'}
LLAMA3 = {
  'rope_type': 'llama3',
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 16,
}
LINEAR = {'rope_type': 'linear', 'factor': 2.0}
TABLES = (
  None,
  {},
  {'rope_type': 'default'},
  {'rope_type': 'default', 'rope_theta': 10000.0},
  {'rope_type': 'default', 'rope_theta': 5e5},
  {'type': 'linear', 'factor': 2.0},
  LINEAR | {'rope_theta': 5e5},
  LINEAR | {'factor': 1.0},
  LINEAR | {'factor': 3.0},
  LLAMA3,
)


def parse(**fields):
  return huggingface_config.parse(RAW | fields, 'config.json')


@pytest.mark.parametrize('scaling', TABLES[5:])
@pytest.mark.parametrize('other', TABLES[:4])
def test_scaling_of_version_4_holds_beside_a_default_of_version_5(
  scaling, other
):
  alone = parse(rope_scaling=scaling, rope_theta=scaling.get('rope_theta'))
  if scaling.get('rope_theta') and (other or {}).get('rope_theta'):
    return  # Contradict each other, see below.
  assert parse(rope_scaling=scaling, rope_parameters=other) == alone


def test_every_pair_is_what_transformers_reads_or_is_refused():
  transformers = pytest.importorskip('transformers')
  taken = 0
  for scaling, table, theta in itertools.product(
    TABLES, TABLES, (None, 10000.0, 5e5)
  ):
    fields = {
      'rope_scaling': scaling,
      'rope_parameters': table,
      'rope_theta': theta,
    }
    given = {k: v for k, v in fields.items() if v is not None}
    try:
      cfg = parse(**fields)
    except ValueError:
      continue
    taken += 1
    raw = json.loads(json.dumps(RAW | given))
    wanted = transformers.LlamaConfig.from_dict(raw).rope_parameters
    ours = cfg.rope_scaling
    assert cfg.rope_theta == wanted['rope_theta'], given
    if wanted['rope_type'] == 'linear' and wanted['factor'] == 1.0:
      assert ours == config.RopeScaling(), given
      continue
    assert ours.kind == wanted['rope_type'], given
    for key in wanted.keys() - {'rope_type', 'rope_theta', 'type'}:
      if ours.kind == 'llama3' or key == 'factor':
        assert getattr(ours, key) == wanted[key], given
  assert taken > 100


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (
      {'rope_scaling': LINEAR, 'rope_parameters': LINEAR | {'factor': 3.0}},
      'different scalings, linear factor 2 and linear factor 3; accepted: one',
    ),
    (
      {'rope_scaling': {'rope_type': 'default'}, 'rope_parameters': LLAMA3},
      'different scalings, default and llama3 factor 8',
    ),
    (
      {'rope_theta': 1e4, 'rope_parameters': {'rope_theta': 5e5}},
      'rope_theta = 10000, rope_parameters.rope_theta = 500000; accepted: the '
      'same value',
    ),
    (
      {'rope_theta': 1e4, 'rope_scaling': LINEAR | {'rope_theta': 5e5}},
      'rope_theta = 10000, rope_scaling.rope_theta = 500000; accepted',
    ),
    # Both versions would fall back to 10000 and not see the other table.
    (
      {'rope_scaling': LINEAR, 'rope_parameters': {'rope_theta': 5e5}},
      r'rope_parameters.rope_theta = 500000, rope_theta \(left out\) = 10000',
    ),
    (
      {'rope_scaling': {'type': 'linear', 'rope_type': 'llama3', 'factor': 2}},
      "rope_scaling has type 'linear' and rope_type 'llama3'; accepted: one",
    ),
    (
      {'rope_parameters': {'full_attention': LINEAR}},
      'rope_parameters: RoPE full_attention = .* is not understood',
    ),
    (
      {'rope_scaling': LINEAR, 'rope_parameters': {'rope_type': 'odd'}},
      "rope_parameters: rope_type is 'odd'; accepted",
    ),
    (
      {'rope_scaling': {'rope_type': ['linear'], 'factor': 2.0}},
      r"rope_scaling.rope_type is \['linear'\]; accepted: a text",
    ),
    (
      {'rope_scaling': LLAMA3 | {'original_max_position_embeddings': 16.5}},
      'original_max_position_embeddings is 16.5; accepted: an integer above 0',
    ),
    ({'rope_theta': float('inf')}, 'rope_theta is inf; accepted: a number'),
    (
      {'rope_scaling': LLAMA3 | {'high_freq_factor': 1.0}},
      'config.json: RopeScaling.high_freq_factor is 1.0',
    ),
  ],
)
def test_contradictions_are_refused_by_name(fields, message):
  with pytest.raises(ValueError, match=message):
    parse(**fields)


def test_numbers_that_do_not_fit_name_the_file():
  with pytest.raises(ValueError, match=r'config.json: ModelConfig.num_heads'):
    parse(num_key_value_heads=4)


def test_a_text_for_tied_embeddings():
  with pytest.raises(ValueError, match="tie_word_embeddings is 'false'; acc"):
    parse(tie_word_embeddings='false')
