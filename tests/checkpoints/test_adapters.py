# SPDX-License-Identifier: Apache-2.0
"""Adapters on disk, merged checkpoints, and `specstream info`."""

import dataclasses
import errno
import json
import pathlib

import jax.numpy as jnp
import model_files
import numpy as np
import pytest

from specstream_jax import config, runtime
from specstream_jax.checkpoints import (
  adapters,
  files,
  huggingface,
  loading,
  shipped,
  sidecar,
  weights,
)
from specstream_jax.cli import info
from specstream_jax.workflows import export as export_workflow

J, D, RANK = 3, 22, 2
STREAM = config.StreamConfig(num_streams=J, num_msa_layers=1, pruning_rank=8)
LORA = config.LoraConfig(rank=RANK, alpha=3.0, modules=('query',))
QUERY = 'layers/{}/attention/query/lora_{}'


def weights_of_adapter(seed=0):
  rng = np.random.default_rng(seed)
  shapes = {
    'streams/embedding': (J, D),
    'pruning/down': (D, 8),
    'pruning/up': (8, D),
  }
  for i in range(2):
    shapes |= {
      QUERY.format(i, 'a'): (D, RANK),
      QUERY.format(i, 'b'): (RANK, 60),
    }
  normal = lambda shape: rng.normal(size=shape).astype('bfloat16')
  return {p: normal(shape).astype(np.float32) for p, shape in shapes.items()}


@pytest.fixture
def loaded(tmp_path):
  return loading.load_model(model_files.write_hf(tmp_path / 'base'))


@pytest.fixture
def cfg(loaded):
  return adapters.AdapterConfig(
    base_model_id=loaded.source,
    base_config_hash=loaded.config_hash,
    base_fingerprint=loaded.fingerprint,
    stream=STREAM,
    lora=LORA,
    tree=config.TreeConfig(kind='fixed', choices=((0,), (1,), (0, 0))),
    provenance={'task': 'e2e_nlg', 'step': 7},
  )


def test_round_trip(tmp_path, cfg):
  flat = weights_of_adapter()
  arrays = {path: jnp.asarray(leaf) for path, leaf in flat.items()}
  adapters.save_adapter(tmp_path / 'a', arrays, cfg)
  names = sorted(p.name for p in (tmp_path / 'a').iterdir())
  assert names == ['adapter.safetensors', 'adapter_config.json']
  read, read_cfg = adapters.load_adapter(tmp_path / 'a')
  assert read_cfg == cfg == adapters.read_config(tmp_path / 'a')
  assert read.keys() == flat.keys()
  for path, leaf in flat.items():
    np.testing.assert_array_equal(read[path], leaf)
    assert read[path].dtype == np.float32


ROOT = pathlib.Path(__file__).parents[2]
SAVED = sorted(
  path.parent
  for top in ('adapters', 'specstream_jax/adapters')
  for path in (ROOT / top).rglob('adapter_config.json')
)


@pytest.mark.parametrize('folder', SAVED, ids=lambda path: path.name)
def test_adapters_that_were_saved_long_ago_still_load(folder):
  flat, cfg = adapters.load_adapter(folder)
  # The hash of a base does not change when the language of models grows.
  assert cfg.base_config_hash == weights.config_hash(model_files.SMOLLM2)
  adapters.check_weights(folder, flat, cfg, model_files.SMOLLM2)


def test_mask_streams_are_read_described_and_told_as_such(
  tmp_path, cfg, loaded
):
  stream = dataclasses.replace(STREAM, insertion='mask')
  cfg = dataclasses.replace(cfg, stream=stream)
  folder = tmp_path / 'a'
  adapters.save_adapter(folder, weights_of_adapter(), cfg)
  flat, read = adapters.load_adapter(folder)
  assert read == cfg
  adapters.check_weights(folder, flat, read, loaded.config)
  assert 'insertion mask' in info.describe(str(folder))
  export(tmp_path, 'm')
  said = json.loads(
    (tmp_path / 'm' / sidecar.FOLDER / sidecar.DESCRIPTION).read_text()
  )
  assert said['streams']['insertion'] == 'mask'
  assert runtime.load(str(tmp_path / 'base'), str(folder)).stream == stream


def export(root, name):
  """Writes base/ and a/ of a folder as a checkpoint beside them."""
  base, adapter = (str(root / part) for part in ('base', 'a'))
  export_workflow.export(base, adapter, str(root / name))


def test_decoding_stops_where_its_answers_ended(tmp_path, cfg, loaded):
  cfg = dataclasses.replace(cfg, provenance={'eos_ids': [5]})
  adapters.save_adapter(tmp_path / 'a', weights_of_adapter(), cfg)
  assert adapters.read_config(tmp_path / 'a').eos_ids == (5,)
  model = runtime.load(str(tmp_path / 'base'), str(tmp_path / 'a'))
  assert model.eos_ids == (2, 5)
  assert runtime.load(str(tmp_path / 'base')).eos_ids == (2,)
  export(tmp_path, 'm')
  assert loading.load_model(tmp_path / 'm').eos_ids == (2, 5)
  assert 'EOS of its answers: 5' in info.describe(str(tmp_path / 'a'))


def test_a_field_of_another_type_names_the_file(tmp_path, cfg):
  adapters.save_adapter(tmp_path / 'a', weights_of_adapter(), cfg)
  path = tmp_path / 'a' / 'adapter_config.json'
  fields = json.loads(path.read_text())
  for change, message in (
    ({'stream': None}, 'stream is None; accepted: an object of its'),
    (
      {'stream': fields['stream'] | {'num_streams': '3'}},
      "StreamConfig.num_streams is the text '3'; accepted: an integer",
    ),
    (
      {'stream': fields['stream'] | {'mode': 'odd'}},
      "StreamConfig.mode is 'odd'; accepted: .*",
    ),
    ({'tree': fields['tree'] | {'odd': 1}}, r"TreeConfig does not know \['odd"),
    ({'base_model_id': 7}, 'base_model_id is 7; accepted: a text'),
    ({'provenance': []}, r'provenance is \[\]; accepted: a dict'),
    ({'provenance': {'eos_ids': 'x'}}, "eos_ids is 'x'; accepted: a token id"),
  ):
    path.write_text(json.dumps(fields | change))
    with pytest.raises(
      ValueError, match=rf"^adapter '.*a': adapter_config.json: .*{message}"
    ) as error:
      adapters.read_config(tmp_path / 'a')
    assert 'In call' not in str(error.value)


def test_full_disk_leaves_the_old_adapter(tmp_path, cfg, monkeypatch):
  flat = weights_of_adapter()
  adapters.save_adapter(tmp_path / 'a', flat, cfg)

  def full(path, value):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(files, 'write_json', full)
  with pytest.raises(
    ValueError, match=r'No space left.*is untouched; free some'
  ):
    adapters.save_adapter(tmp_path / 'a', weights_of_adapter(1), cfg)
  read, _ = adapters.load_adapter(tmp_path / 'a')
  np.testing.assert_array_equal(read['pruning/up'], flat['pruning/up'])
  assert len(list((tmp_path / 'a').iterdir())) == 2


def test_another_base_is_refused(tmp_path, cfg, loaded):
  adapters.check_base(cfg, loaded)
  changed = loaded.params | {'final_norm/scale': np.ones(D, np.float32)}
  other = dataclasses.replace(loaded, params=changed, source='other')
  message = (
    "trained on base 'base', but the base is 'other', which has the same"
  )
  with pytest.raises(ValueError, match=message):
    adapters.check_base(cfg, other)
  namesake = dataclasses.replace(other, source='base')
  message = (
    "trained on base 'base', but the base is another of that name, which has "
    r"the same sizes but other weights \(\w{12}…, not \w{12}…\); load the 'base' of"
  )
  with pytest.raises(ValueError, match=message):
    adapters.check_base(cfg, namesake)
  resized = dataclasses.replace(loaded, config_hash='0')
  with pytest.raises(
    ValueError, match=r'other sizes or constants \(config 0…, not'
  ):
    adapters.check_base(cfg, resized)


def test_the_folder_of_a_run_is_not_its_adapter(tmp_path, cfg, loaded):
  adapters.save_adapter(tmp_path / 'run' / 'adapter', weights_of_adapter(), cfg)
  (tmp_path / 'run' / 'a_file').write_text('')
  with pytest.raises(ValueError, match=r"holds no adapter.*run/adapter'$"):
    adapters.load_adapter(tmp_path / 'run')


def test_whether_it_was_trained_on_chats(tmp_path, cfg):
  for value, expected in ((True, True), (False, False), ('x', False)):
    given = dataclasses.replace(cfg, provenance={'is_chat': value})
    adapters.save_adapter(tmp_path, weights_of_adapter(), given)
    assert adapters.read_config(tmp_path).is_chat is expected
  assert not dataclasses.replace(cfg, provenance={}).is_chat


def test_damaged_adapters(tmp_path, cfg):
  with pytest.raises(ValueError, match='holds no adapter: it has no adapter_c'):
    adapters.load_adapter(tmp_path)
  folder = tmp_path / 'a'
  adapters.save_adapter(folder, weights_of_adapter(), cfg)
  weights_file = folder / 'adapter.safetensors'
  weights_file.write_bytes(weights_file.read_bytes()[:-1])
  with pytest.raises(ValueError, match='is not the file that adapter_config'):
    adapters.load_adapter(folder)
  weights_file.unlink()
  with pytest.raises(ValueError, match=r'has no adapter.safetensors'):
    adapters.load_adapter(folder)


def test_unknown_versions_and_fields(tmp_path, cfg):
  adapters.save_adapter(tmp_path, weights_of_adapter(), cfg)
  path = tmp_path / 'adapter_config.json'
  fields = json.loads(path.read_text())
  path.write_text(json.dumps(fields | {'format_version': 99}))
  with pytest.raises(ValueError, match='format_version 99; accepted: 1'):
    adapters.load_adapter(tmp_path)
  path.write_text(json.dumps(fields | {'color': 'red'}))
  with pytest.raises(ValueError, match=r"has unknown \['color'\]"):
    adapters.load_adapter(tmp_path)
  path.write_text(json.dumps(fields | {'tree': {'shape': 1}}))
  with pytest.raises(ValueError, match=r"TreeConfig does not know \['shape'\]"):
    adapters.load_adapter(tmp_path)


def test_weights_must_fit_the_config(tmp_path, cfg):
  flat = weights_of_adapter()
  flat['streams/embedding'] = np.ones((J + 1, D), np.float32)
  flat['head/kernel'] = np.ones(2, np.float32)
  del flat['pruning/up'], flat['pruning/down']
  with pytest.raises(ValueError, match='do not fit its config') as error:
    adapters.save_adapter(tmp_path, flat, cfg)
  for text in (
    'pruning/ is missing',
    'head/kernel is unexpected',
    'streams/embedding has 4 in axis 0, not 3',
  ):
    assert text in str(error.value)


def test_parameter_counts_are_those_of_the_paper():
  counts = adapters.parameter_counts(weights_of_adapter())
  assert counts['embedding'] == J * D
  assert counts['pruning'] == 16 * D
  assert counts['streams'] == J * D + 16 * D
  assert counts['lora'] == 2 * RANK * (D + 60)
  assert counts['total'] == counts['streams'] + counts['lora']


def test_those_that_ship_are_among_the_saved_ones():
  names = {folder.name for folder in SAVED}
  assert {*shipped.shipped_adapters(), 'dialogsum'} == names


@pytest.mark.parametrize('folder', SAVED, ids=lambda path: path.name)
def test_adapters_of_the_tasks_cost_what_the_paper_says(folder):
  flat, cfg = adapters.load_adapter(str(folder))
  size = lambda *starts: sum(
    leaf.size for path, leaf in flat.items() if path.startswith(starts)
  )
  streams, width = cfg.stream, 576
  assert size('streams/', 'pruning/') == (streams.num_streams + 16) * width
  num_maps = {'bilinear': 2, 'mlp': 3}[streams.coupling]
  assert size('coupling/') == num_maps * streams.coupling_rank * width
  assert (folder / 'adapter.safetensors').stat().st_size <= 12_000_000
  assert (folder / 'README.md').is_file()


def test_merged_checkpoint_with_sidecar(tmp_path, cfg, loaded):
  flat, folder = weights_of_adapter(), tmp_path / 'merged'
  adapters.save_adapter(tmp_path / 'a', flat, cfg, dtype='float32')
  export(tmp_path, 'merged')
  plain = loading.load_model(folder)
  path = 'layers/1/attention/query/kernel'
  delta = 1.5 * flat[QUERY.format(1, 'a')] @ flat[QUERY.format(1, 'b')]
  np.testing.assert_allclose(
    plain.params[path], loaded.params[path] + delta, rtol=1e-5, atol=1e-5
  )
  streams, sidecar = adapters.load_adapter(folder / 'streams')
  adapters.check_base(sidecar, plain)
  assert sidecar.lora.rank == 0
  assert sidecar.base_model_id == 'merged'
  assert not any('lora' in name for name in streams)
  with pytest.raises(ValueError, match='same sizes but other weights'):
    adapters.check_base(sidecar, loaded)
  assert not (folder / 'tokenizer.json').exists()
  assert huggingface.read_config(folder) == loaded.config


def test_info_on_an_adapter(tmp_path, cfg):
  adapters.save_adapter(tmp_path / 'a', weights_of_adapter(), cfg)
  text = info.describe(str(tmp_path / 'a'))
  assert 'streams:           3 (γ), mode fine_tuned' in text
  assert 'MSA layers:        1 (N_s)' in text
  assert '418 = 66 embeddings (γh) + 352 pruning (2·8·h)' in text
  assert 'rank 2, alpha 3, on query' in text
  assert 'LoRA parameters:   328' in text
  assert 'prompts:           plain' in text


def test_what_info_says_of_the_training(tmp_path, cfg):
  origin = {'step': 7, 'task': 'x', 'recipe': {'train': {'num_steps': 8}}}
  provenance = {
    'step': 1500,
    'task': 'jsonl',
    'is_chat': True,
    'init_adapter': None,
    'fold_adapter': {'name': 'f', 'provenance': origin},
    'recipe': {
      'train': {'num_steps': 2000, 'seed': 0},
      'optimizer': {'learning_rate': 2e-5, 'trainable': ''},
      'lora': {'modules': ['query', 'key']},
    },
  }
  cfg = dataclasses.replace(cfg, provenance=provenance)
  adapters.save_adapter(tmp_path / 'run' / 'a', weights_of_adapter(), cfg)
  text = info.describe(str(tmp_path / 'run' / 'a'))
  lines = [' '.join(line.split()) for line in text.splitlines()]
  assert lines[-7:] == [
    "prompts: chats, by the model's template",
    'trained: step 1,500, task jsonl, is_chat yes',
    'fold_adapter: name f',
    'fold_adapter: step 7, task x',
    'recipe train: num_steps 2,000, seed 0',
    'recipe optimizer: learning_rate 2e-05',
    'recipe lora: modules query key',
  ]
  assert '{' not in text
  assert info.describe(str(tmp_path / 'run')) == text  # the folder of a run
  (tmp_path / 'run' / 'config.json').write_text('{}')  # a model, and a sidecar
  with pytest.raises(ValueError, match='config'):
    info.describe(str(tmp_path / 'run'))


def test_info_breaks_lines_for_a_terminal(monkeypatch, capsys):
  monkeypatch.setenv('COLUMNS', '60')
  monkeypatch.setattr(info.sys.stdout, 'isatty', lambda: True, raising=False)
  info.main(['info', 'e2e_nlg'])
  lines = capsys.readouterr().out.splitlines()
  assert all(len(line) <= 64 + 24 for line in lines) and len(lines) > 30
  assert any(line.startswith(' ' * 19) for line in lines)


def test_info_on_a_model_and_on_nothing(tmp_path, loaded, capsys):
  info.main(['info', str(tmp_path / 'base')])
  assert 'coupling' in info.describe('e2e_nlg')  # one that ships, by name
  text = capsys.readouterr().out
  count = sum(leaf.size for leaf in loaded.params.values())
  assert f'parameters:        {count:,}' in text
  assert 'num_kv_heads:      2' in text
  assert loaded.config_hash in text
  with pytest.raises(
    ValueError, match='name an adapter folder, a folder of Med'
  ):
    info.main(['info'])
