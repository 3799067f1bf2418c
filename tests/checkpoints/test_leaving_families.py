# SPDX-License-Identifier: Apache-2.0
"""Every family takes LoRA of PEFT, and leaves with it as it came."""

import family_models
import numpy as np
import pytest

from specstream_jax import config
from specstream_jax.checkpoints import (
  adapter_shapes,
  files,
  fitted,
  huggingface,
  loading,
  peft_export,
)
from specstream_jax.cli import info
from specstream_jax.modeling import lora as lora_lib
from specstream_jax.workflows import export

NAMES = family_models.NAMES
RANK = 2


def random_lora(cfg):
  """LoRA of every module, away from zero, and its settings."""
  lora = config.LoraConfig(rank=RANK, alpha=3.0)
  rng = np.random.default_rng(1)
  flat = {
    path: rng.normal(size=shape).astype(np.float32)
    for path, shape in adapter_shapes.of_lora(cfg, lora, cfg.num_layers)
  }
  return flat, lora


@pytest.mark.parametrize('name', NAMES)
def test_peft_lora_of_every_module(name, tmp_path):
  loaded = loading.load_model(family_models.FOLDER / name)
  flat, lora = random_lora(loaded.config)
  writers = peft_export.writers(flat, lora, loaded.config, base=name)
  files.write_all(str(tmp_path / 'lora'), writers)
  found = fitted.read(str(tmp_path / 'lora'), loaded)
  once, _ = lora_lib.merge(loaded.params, flat, lora)
  again, _ = lora_lib.merge(loaded.params, found.folded, found.folded_lora)
  for path, leaf in once.items():
    np.testing.assert_allclose(again[path], leaf, rtol=1e-5, atol=1e-5)
  changed = {p for p in once if (once[p] != loaded.params[p]).any()}
  assert changed == {f'{p.rpartition("/")[0]}/kernel' for p in flat}


@pytest.mark.parametrize('name', NAMES)
def test_an_exported_model_is_bit_equal(name, tmp_path):
  base, out = str(family_models.FOLDER / name), str(tmp_path / 'out')
  loaded = loading.load_model(base)
  flat, lora = random_lora(loaded.config)
  writers = peft_export.writers(flat, lora, loaded.config, base=name)
  files.write_all(str(tmp_path / 'lora'), writers)
  export.export(base, str(tmp_path / 'lora'), out)
  same = loading.load_model(out)
  assert same.config == loaded.config
  found = fitted.read(str(tmp_path / 'lora'), loaded)
  merged, _ = lora_lib.merge(loaded.params, found.folded, found.folded_lora)
  for path, leaf in merged.items():
    np.testing.assert_array_equal(same.params[path], leaf)


@pytest.mark.parametrize('name', NAMES)
def test_info_names_the_family_and_its_modules(name):
  text = info.describe(str(family_models.FOLDER / name))
  cfg = huggingface.read_config(family_models.FOLDER / name)
  assert f'family:            {cfg.family} (' in text
  assert 'LoRA modules:' in text and 'down' in text
  assert 'missing:           a tokenizer: ' in text
  assert 'Config(' not in text
  assert ('rope_theta:' in text) == (cfg.num_learned_positions == 0)
  most = f'{cfg.most_positions or cfg.max_position_embeddings:,}'
  (line,) = (x for x in text.splitlines() if x.startswith('positions:'))
  refused = ', longer texts are refused' if name == 'phi3' else ''
  assert line.endswith(f'up to {most}{refused}')
