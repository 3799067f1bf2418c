# SPDX-License-Identifier: Apache-2.0
"""Names to models, and hashes that tell bases apart."""

import dataclasses
import pathlib

import model_files
import numpy as np
import pytest

from specstream_jax.checkpoints import fetch, loading, weights


def test_both_formats_of_one_model_are_the_same_base(tmp_path):
  path = model_files.write_gguf(tmp_path / 'm.gguf')
  folder = model_files.write_hf(tmp_path / 'hf')
  one, other = loading.load_model(path), loading.load_model(str(folder))
  assert one.config == other.config == loading.load_config(folder)
  assert loading.load_config(path, dtype='bfloat16').dtype == 'bfloat16'
  assert one.config_hash == other.config_hash
  assert one.fingerprint == other.fingerprint
  assert (one.source, other.source) == ('m.gguf', 'hf')
  assert other.eos_ids == (2,)


def test_hashes_depend_on_the_model_but_not_on_dtype(tmp_path):
  folder = model_files.write_hf(tmp_path)
  one = loading.load_model(folder)
  narrow = loading.load_model(folder, dtype='bfloat16')
  assert narrow.params['embed/embedding'].dtype == 'bfloat16'
  assert narrow.config_hash == one.config_hash
  assert narrow.fingerprint == one.fingerprint
  longer = dataclasses.replace(one.config, max_position_embeddings=31)
  assert weights.config_hash(longer) != one.config_hash
  other = one.params | {'final_norm/scale': one.params['final_norm/scale'] + 1}
  assert weights.fingerprint(other) != one.fingerprint


def test_a_hash_of_any_bytes(recwarn):
  signalling = np.array([0x7F800001, 0xFFC00000], np.uint32).view(np.float32)
  assert len(weights.fingerprint({'a': signalling})) == 64
  assert not recwarn.list


def test_folder_with_one_gguf_file(tmp_path):
  path = model_files.write_gguf(tmp_path / 'm.gguf')
  assert loading.resolve(tmp_path) == path
  model_files.write_gguf(tmp_path / 'n.gguf')
  with pytest.raises(ValueError, match=r'no config.json and 2 GGUF files'):
    loading.resolve(tmp_path)


def test_unknown_name_lists_what_is_accepted(tmp_path):
  message = (
    "'smol' is not found; accepted: a known name .*smollm2-135m-instruct"
  )
  with pytest.raises(ValueError, match=message):
    loading.load_model('smol')
  with pytest.raises(ValueError, match=r"'a/b.gguf' is not found"):
    loading.load_model('a/b.gguf')
  (tmp_path / 'model.safetensors').write_bytes(b'12345')
  with pytest.raises(ValueError, match='is not a GGUF file; accepted'):
    loading.load_model(tmp_path / 'model.safetensors')


def test_hub_id_is_downloaded(tmp_path, monkeypatch):
  folder = model_files.write_hf(tmp_path / 'snapshot')
  asked = []

  def download(name, *, allow_patterns, **_):
    asked.append((name, allow_patterns))
    return str(folder)

  monkeypatch.setattr(fetch.huggingface_hub, 'snapshot_download', download)
  assert loading.load_config('owner/model') == model_files.CONFIG
  assert asked == [('owner/model', ['config.json'])]
  assert loading.load_model('owner/model').source == 'owner/model'
  assert 'model*.safetensors' in asked[1][1]


def test_hub_failure_names_the_id(monkeypatch):
  def download(*_, **__):
    raise ConnectionError('no route')

  monkeypatch.setattr(fetch.huggingface_hub, 'snapshot_download', download)
  message = "'owner/model' is no folder here, and as a hub id: .*no route"
  with pytest.raises(ValueError, match=message):
    loading.load_model('owner/model')


def test_known_name_goes_through_fetch(tmp_path, monkeypatch):
  path = model_files.write_gguf(tmp_path / 'm.gguf')
  monkeypatch.setattr(fetch, 'fetch', lambda name: pathlib.Path(path))
  loaded = loading.load_model('smollm2-135m-instruct')
  assert loaded.source == 'm.gguf'
  known = dataclasses.replace(
    fetch.KNOWN['smollm2-135m-instruct'], fingerprint=loaded.fingerprint
  )
  monkeypatch.setitem(fetch.KNOWN, 'smollm2-135m-instruct', known)
  assert loading.load_model(path).source == 'smollm2-135m-instruct'


def test_missing_tokenizer_waits_for_its_use(tmp_path):
  loaded = loading.load_model(model_files.write_hf(tmp_path))
  assert loaded.bos_id is None
  with pytest.raises(ValueError, match=r'has no tokenizer.json'):
    loaded.tokenizer.encode('a')


def test_bos_that_the_tokenizer_asks_for():
  folder = model_files.shared('models', 'tiny_random_llama_gguf')
  loaded = loading.load_model(folder)
  assert (loaded.bos_id, loaded.eos_ids) == (1, (2,))
  assert np.isfinite(loaded.params['embed/embedding']).all()
