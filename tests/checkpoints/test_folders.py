# SPDX-License-Identifier: Apache-2.0
"""Checkpoint folders as people have them: shards, ties, pickles, quantised."""

import json

import model_files
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from specstream_jax.checkpoints import loading, quantized, shards

HEAD = 'lm_head.weight'
TABLE = 'model.embed_tokens.weight'


def tensors():
  return model_files.hf_tensors(model_files.random_params())


def write_sharded(folder, count=3):
  """A folder whose tensors go round `count` shards."""
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(model_files.HF_CONFIG))
  parts, places = [{} for _ in range(count)], {}
  for i, (name, leaf) in enumerate(tensors().items()):
    parts[i % count][name] = leaf
    places[name] = shard(i % count + 1, count)
  for i, part in enumerate(parts, start=1):
    safetensors_numpy.save_file(part, folder / shard(i, count))
  (folder / shards.INDEX).write_text(json.dumps({'weight_map': places}))
  return folder


def shard(number, count):
  return f'model-{number:05d}-of-{count:05d}.safetensors'


def test_shards_are_one_checkpoint(tmp_path):
  one = loading.load_model(model_files.write_hf(tmp_path / 'one'))
  same = loading.load_model(write_sharded(tmp_path / 'shards'))
  assert same.fingerprint == one.fingerprint


def test_missing_shards_are_all_named(tmp_path):
  folder = write_sharded(tmp_path / 'a')
  for number in (1, 3):
    (folder / shard(number, 3)).unlink()
  names = f'lacks {shard(1, 3)}, {shard(3, 3)}, of the 3 files that'
  with pytest.raises(ValueError, match=names):
    loading.load_model(folder)


def test_many_missing_shards_are_cut(tmp_path):
  folder = write_sharded(tmp_path / 'a', count=7)
  for path in folder.glob('model-*.safetensors'):
    path.unlink()
  with pytest.raises(
    ValueError, match=r'00005-of-00007.safetensors and 2 more'
  ):
    loading.load_model(folder)


def test_shards_that_the_index_does_not_name_are_told(tmp_path, caplog):
  folder = write_sharded(tmp_path / 'a')
  safetensors_numpy.save_file(
    {'x': np.zeros(3, np.float32)}, folder / shard(4, 4)
  )
  loading.load_model(folder)
  assert f'does not name {shard(4, 4)}; not read' in caplog.text


def test_shards_without_an_index(tmp_path):
  folder = write_sharded(tmp_path / 'a')
  (folder / shards.INDEX).unlink()
  with pytest.raises(ValueError, match=r'has model-00001.*but no model\.safe'):
    loading.load_model(folder)


def test_float16_is_read_exactly(tmp_path):
  narrow = {name: leaf.astype(np.float16) for name, leaf in tensors().items()}
  folder = model_files.write_hf(tmp_path / 'a', tensors=narrow)
  loaded = loading.load_model(folder)
  np.testing.assert_array_equal(
    loaded.params['embed/embedding'], narrow[TABLE].astype(np.float32)
  )


def test_a_tie_that_the_files_deny(tmp_path):
  raw = model_files.HF_CONFIG | {'tie_word_embeddings': True}
  folder = model_files.write_hf(tmp_path / 'a', raw)
  text = f'{HEAD} is another than {TABLE}, but tie_word_embeddings is true'
  with pytest.raises(ValueError, match=text):
    loading.load_model(folder)
  same = tensors() | {HEAD: tensors()[TABLE]}
  folder = model_files.write_hf(tmp_path / 'b', raw, same)
  assert 'lm_head/kernel' not in loading.load_model(folder).params


def test_a_head_that_is_not_there(tmp_path):
  headless = {k: v for k, v in tensors().items() if k != HEAD}
  folder = model_files.write_hf(tmp_path / 'a', tensors=headless)
  text = f'missing {HEAD}, as tie_word_embeddings is false; if the head is'
  with pytest.raises(ValueError, match=text):
    loading.load_model(folder)


def test_a_known_model_type_is_enough(tmp_path):
  raw = {k: v for k, v in model_files.HF_CONFIG.items() if k != 'architectures'}
  folder = model_files.write_hf(tmp_path / 'a', raw)
  assert loading.load_config(folder) == model_files.CONFIG


@pytest.mark.parametrize(
  'name', ['pytorch_model.bin', 'consolidated.00.pth', 'model.pt']
)
def test_pickles_are_refused_with_the_command(tmp_path, name):
  folder = model_files.write_hf(tmp_path / 'a')
  (folder / 'model.safetensors').rename(folder / name)
  command = rf"from_pretrained\('{folder}'\)\.save_pretrained\('{folder}-safet"
  with pytest.raises(ValueError, match=f'as pickles.*{command}'):
    loading.load_model(folder)
  with pytest.raises(ValueError, match=f'{name}.* as pickles.*{command}'):
    loading.load_model(folder / name)


@pytest.mark.parametrize(
  ('method', 'name'),
  [
    ('gptq', 'GPTQ'),
    ('awq', 'AWQ'),
    ('bitsandbytes', 'bitsandbytes'),
    ('fp8', 'FP8'),
    ('fbgemm_fp8', 'FP8'),
    ('compressed-tensors', 'compressed-tensors'),
    ('newest', "'newest'"),
  ],
)
def test_quantised_checkpoints_are_refused_in_one_line(tmp_path, method, name):
  raw = model_files.HF_CONFIG | {
    'quantization_config': {'quant_method': method, 'bits': 4}
  }
  folder = model_files.write_hf(tmp_path / 'a', raw)
  text = f'quantised with {name}, which is not read; load the checkpoint in'
  with pytest.raises(ValueError, match=text) as found:
    loading.load_model(folder)
  assert '\n' not in str(found.value)


@pytest.mark.parametrize(
  ('said', 'name'),
  [
    ({'load_in_8bit': True}, 'bitsandbytes'),
    ({'load_in_4bit': True, 'quant_method': None}, 'bitsandbytes'),
    ({'bits': 4}, 'a method that is not named'),
  ],
)
def test_quantised_by_a_method_without_a_name(tmp_path, said, name):
  raw = model_files.HF_CONFIG | {'quantization_config': said}
  with pytest.raises(ValueError, match=f'is quantised with {name}, which'):
    quantized.refuse(raw, tmp_path)


def test_quantised_before_config_json_said_so(tmp_path):
  folder = model_files.write_hf(tmp_path / 'a')
  quantized.refuse(model_files.HF_CONFIG, folder)
  (folder / 'quantize_config.json').write_text('{}')
  with pytest.raises(ValueError, match='is quantised with GPTQ'):
    loading.load_config(folder)
