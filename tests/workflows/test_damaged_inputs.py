# SPDX-License-Identifier: Apache-2.0
"""Damaged files through the command line: one message, no traceback."""

import json
import shutil

import byte_model
import commands
import compare_answers
import data_testing
import evaluation_samples
import fuzzing
from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from specstream_jax import config
from specstream_jax.bench import results
from specstream_jax.checkpoints import adapters, huggingface, loading
from specstream_jax.data import records
from specstream_jax.modeling import initialize, params
from specstream_jax.workflows import distill

CONFIG = 'config.json'
INDEX = huggingface.INDEX


@pytest.fixture(scope='module')
def good(tmp_path_factory):
  """A folder with model/, sharded/, adapter/, records/ and results.json."""
  import jax

  root = tmp_path_factory.mktemp('inputs')
  cfg = byte_model.model_config()
  byte_model.write_model(root / 'model', cfg)
  loaded = loading.load_model(root / 'model')
  huggingface.export(
    root / 'sharded', cfg, dict(loaded.params), max_shard_bytes=30000
  )
  stream = config.StreamConfig(num_streams=2, num_msa_layers=1, pruning_rank=0)
  lora = config.LoraConfig(rank=2)
  flat = initialize.init_adapter(jax.random.key(0), cfg, stream, lora)
  adapters.save_adapter(
    root / 'adapter',
    {k: np.asarray(v) for k, v in params.flatten(flat).items()},
    adapters.AdapterConfig(
      'model',
      loaded.config_hash,
      loaded.fingerprint,
      stream,
      lora,
      config.TreeConfig(depth=2, num_nodes=4),
    ),
  )
  data_testing.write_records(root / 'records', 20)
  results.write(str(root), evaluation_samples.document())
  return root


@pytest.fixture
def folder(good, tmp_path):
  """A copy that a test may damage."""
  shutil.copytree(good, tmp_path / 'copy')
  return tmp_path / 'copy'


def change(path, **fields):
  """Other values of fields of a JSON file."""
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def generate(model, adapter, message):
  """`generate` must refuse this model and adapter."""
  flags = (f'--model={model}', f'--adapter={adapter}', '--prompt=a')
  commands.refusal('generate', *flags, '--max_new_tokens=2', match=message)


@pytest.mark.parametrize(
  ('file', 'fields', 'message'),
  [
    (CONFIG, {'eos_token_id': {'id': 2}}, 'eos_token_id is .*accepted: a tok'),
    (CONFIG, {'eos_token_id': 257}, 'eos_token_id is 257; accepted: .* to 256'),
    (CONFIG, {'eos_token_id': [0, -1]}, 'eos_token_id is .*accepted'),
    (CONFIG, {'num_hidden_layers': 10**9}, 'num_layers is 1000000000; it must'),
    (CONFIG, {'num_hidden_layers': 999}, '999 layers, but only'),
    (CONFIG, {'rms_norm_eps': None}, 'missing rms_norm_eps'),
    (CONFIG, {'rope_theta': 10**400}, 'rope_theta is 1'),
    (CONFIG, {'vocab_size': 2**40}, 'vocab_size is 1099511627776; it must'),
    (CONFIG, {'rope_scaling': {'rope_type': []}}, 'rope_type is .*accepted'),
  ],
)
def test_a_config_that_is_none(folder, file, fields, message):
  change(folder / 'model' / file, **fields)
  message = f'{folder}/model.*{message}'
  generate(folder / 'model', '', message)


@pytest.mark.parametrize(
  ('index', 'message'),
  [
    ({}, 'has no weight_map; accepted: an object that gives the file'),
    ({'weight_map': None}, 'weight_map is None; accepted: an object'),
    ({'weight_map': ['a']}, 'weight_map is .*accepted: an object'),
    ({'weight_map': {'a': 1}}, 'weight_map is .*accepted: an object'),
    ({'weight_map': {'a': 'b'}}, 'lacks b, of the 1 files that'),
    ({'weight_map': {}}, r'weight_map is \{\}; accepted: an object'),
  ],
)
def test_an_index_that_is_none(folder, index, message):
  (folder / 'sharded' / INDEX).write_text(json.dumps(index))
  generate(folder / 'sharded', '', message)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'stream': None}, 'stream is None; accepted: an object'),
    ({'lora': [1]}, r'lora is \[1\]; accepted: an object'),
    (
      {'stream': {'num_streams': 10**5}},
      'num_streams is 100000; it must be <=',
    ),
    ({'tree': {'depth': 10**9}}, 'depth of TreeConfig is 1000000000; it must'),
    ({'tree': {'kind': 'full', 'depth': 99}}, 'number of nodes of TreeConfig'),
    ({'weights_sha256': 5}, 'weights_sha256 is 5; accepted: a text'),
  ],
)
def test_an_adapter_that_is_none(folder, fields, message):
  change(folder / 'adapter' / adapters.CONFIG, **fields)
  message = f'{folder}/adapter.*{message}'
  commands.refusal('info', f'{folder}/adapter', match=message)
  generate(folder / 'model', folder / 'adapter', message)


@pytest.mark.parametrize('content', [b'', b'garbage', b'{}', b'\xff', b'[]'])
def test_a_tokenizer_that_is_none(folder, content):
  (folder / 'model' / 'tokenizer.json').write_bytes(content)
  message = r"tokenizer.json' cannot be read"
  generate(folder / 'model', '', message)


@pytest.mark.slow
@pytest.mark.parametrize('content', [b'', b'garbage', b'{}'])
def test_prepare_with_a_tokenizer_that_is_none(folder, content):
  pytest.importorskip('seqio')
  path = folder / 'model' / 'tokenizer.json'
  path.write_bytes(content)
  commands.refusal(
    'prepare',
    '--task=e2e_sample',
    f'--tokenizer={folder}/model',
    '--eos_token=<eos>',
    f'--output_dir={folder}/new',
    match=r"tokenizer.json' cannot be read",
  )


def test_results_and_records_that_are_none(folder):
  (folder / 'results.json').write_text('{"schema_version": 2}')
  message = r'results\.json.*required'
  commands.refusal('results', f'--rivals={folder}', match=message)
  results.write(str(folder), evaluation_samples.document())
  (folder / 'page.md').write_bytes(b'\xff')
  flags = (f'--rivals={folder}', f'--output={folder}/page.md')
  message = r"page\.md' is not UTF-8 text"
  commands.refusal('results', *flags, match=message)
  change(folder / 'records' / records.MANIFEST, lengths=5)
  message = r'records/manifest\.json: lengths is 5; accepted'
  commands.refusal('info', f'{folder}/records', match=message)


# Command, and the file that is damaged under it.
COMMANDS = {
  'info model': 'model/config.json',
  'info adapter': 'adapter/adapter_config.json',
  'info records': 'records/manifest.json',
  'results --rivals=.': 'results.json',
}


@pytest.mark.parametrize('line', list(COMMANDS))
@fuzzing.modes
def test_commands(folder, mode, line, monkeypatch):
  path = folder / COMMANDS[line]
  monkeypatch.chdir(folder)
  name, *args = line.split()
  assert commands.run(name, *args).status == 0
  damages = fuzzing.json_damage(json.loads(path.read_text()))

  @given(st.one_of(damages, damages, damages, fuzzing.places))
  def ends_in_a_message(damage):
    with fuzzing.inflicted(path, damage), fuzzing.limits():
      done = commands.run(name, *args)
    if done.status:
      assert done.status == 1
      commands.assert_message(name, done.err)
    else:
      assert done.out and not done.err, done.err

  settings(mode, max_examples=mode.max_examples // 2)(ends_in_a_message)()


ROWS = [{'prompt': 'a', 'completion': ' b'}, {'prompt': 'c', 'completion': 'd'}]


def compared(path):
  """The answers as launch/experiments/compare_answers.py reads them."""
  return compare_answers.read(path, {'a': [], 'c': []})


@pytest.mark.parametrize('read', [compared, distill.read_prompts])
@fuzzing.modes
def test_answers_and_prompts(tmp_path, mode, read):
  path = tmp_path / 'a.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in ROWS))
  damages = fuzzing.lines_damage(ROWS)
  fuzzing.attempt(mode, damages, path, lambda: read(str(path)), is_named=False)
