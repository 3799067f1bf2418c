# SPDX-License-Identifier: Apache-2.0
"""What leaves the house decodes to the same tokens outside and when it returns."""

import dataclasses
import json
import pathlib
import shutil

import byte_model
import commands
import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy
import tiny

import specstream_jax as ss
from specstream_jax import config
from specstream_jax.checkpoints import adapters, fitted, loading, sidecar
from specstream_jax.cli import sizes
from specstream_jax.modeling import params
from specstream_jax.workflows import export as workflow

STREAM = config.StreamConfig(num_streams=2, num_msa_layers=1, pruning_rank=2)
LORA = config.LoraConfig(rank=2, alpha=3.0, modules=('query', 'up'))
TREE = config.TreeConfig(depth=2, branching=2, num_nodes=4)
ENDLESS = config.SamplingConfig(ignore_eos=True)
PROMPTS = [[5, 9, 30], [200, 7]]
TEMPLATE = '{{ messages }}'


@pytest.fixture(scope='module', autouse=True)
def _compile_fast():
  """Compiling takes most of the time here; running takes none."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """base/, tuned/ and lossless/ on it, and folded/ on it with LoRA."""
  root = tmp_path_factory.mktemp('export')
  cfg = byte_model.model_config(num_layers=2, tie_word_embeddings=False)
  byte_model.write_model(root / 'base', cfg)
  write_tokenizer_config(root / 'base')
  (root / 'base' / 'generation_config.json').write_text(
    json.dumps({'eos_token_id': 0, 'repetition_penalty': 1.5})
  )
  loaded = loading.load_model(root / 'base')
  write_adapter(root / 'tuned', loaded, STREAM, LORA)
  lossless = dataclasses.replace(STREAM, mode='lossless')
  write_adapter(root / 'lossless', loaded, lossless, LORA)
  write_adapter(root / 'folded', loaded, lossless, LORA, folded=LORA)
  return root


def write_tokenizer_config(folder):
  path = folder / 'tokenizer_config.json'
  fields = json.loads(path.read_text()) | {'chat_template': TEMPLATE}
  path.write_text(json.dumps(fields))


def write_adapter(folder, loaded, stream, lora, folded=None):
  """An adapter of random weights."""
  _, _, adapter = tiny.model(loaded.config, stream, lora)
  flat = params.flatten(adapter)
  if folded:
    _, _, whole = tiny.model(loaded.config, STREAM, folded, seed=3)
    only = {k: v for k, v in params.flatten(whole).items() if 'lora_' in k}
    flat = adapters.with_folded(flat, only)
  cfg = adapters.AdapterConfig(
    base_model_id=loaded.source,
    base_config_hash=loaded.config_hash,
    base_fingerprint=loaded.fingerprint,
    stream=stream,
    lora=lora,
    tree=TREE,
    provenance={'task': 'a|b', 'eos_ids': [3], 'recipe': {'steps': 7}},
    folded_lora=folded or config.LoraConfig(rank=0),
  )
  adapters.save_adapter(folder, flat, cfg, dtype='float32')


def export(root, adapter, folder, **options):
  name = adapter and str(root / adapter)
  return workflow.export(
    str(root / 'base'), name, str(folder), workflow.Options(**options)
  )


def tokens(model, drafter='none'):
  made = ss.generate(
    model, PROMPTS, max_new_tokens=10, drafter=drafter, sampling=ENDLESS
  )
  return [row.tokens for row in made]


def assert_same_base(one, other):
  own, same = params.flatten(one.base), params.flatten(other.base)
  assert own.keys() == same.keys()
  for path, leaf in own.items():
    np.testing.assert_array_equal(leaf, same[path])


@pytest.mark.parametrize('adapter', ['tuned', 'folded'])
def test_merged_folder_is_bit_equal_and_so_are_its_drafts(
  root, tmp_path, adapter
):
  folder = tmp_path / 'out'
  export(root, adapter, folder, max_shard_bytes=10_000)
  before = ss.load(str(root / 'base'), str(root / adapter))
  after = ss.load(str(folder), str(folder / 'streams'))
  assert_same_base(before, after)
  for path, leaf in params.flatten(before.adapter).items():
    np.testing.assert_array_equal(leaf, params.flatten(after.adapter)[path])
  assert (after.stream, after.lora) == (before.stream, before.lora)
  assert after.eos_ids == before.eos_ids == (0, 3)
  assert after.chat_template == TEMPLATE
  assert after.generation['repetition_penalty'] == 1.5
  assert (folder / 'model.safetensors.index.json').is_file()
  assert len(list(folder.glob('model-*.safetensors'))) > 2
  if adapter == 'tuned':
    decode = config.DecodeConfig(max_new_tokens=10, prompt_bucket=8)
    found = [
      before.decoder(drafter, decode)
      .generate(model.params(drafter), PROMPTS)
      .tokens
      for model in (before, after)
      for drafter in ('none', 'streams')
    ]
    assert found == found[:1] * 4


def test_torch_decodes_the_same(root, tmp_path):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  export(root, 'tuned', tmp_path / 'out', max_shard_bytes=10_000)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'out')
  ours = tokens(ss.load(str(root / 'base'), str(root / 'tuned')))
  theirs.generation_config = transformers.GenerationConfig(max_new_tokens=10)
  for prompt, wanted in zip(PROMPTS, ours):
    made = theirs.generate(torch.tensor([prompt]))
    assert made[0, len(prompt) :].tolist() == wanted
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')
  assert tokenizer.eos_token == '<eos>' and tokenizer.chat_template == TEMPLATE


def test_peft_loads_the_lora(root, tmp_path):
  torch = pytest.importorskip('torch')
  peft = pytest.importorskip('peft')
  transformers = pytest.importorskip('transformers')
  export(root, 'tuned', tmp_path / 'out', format='peft')
  export(root, 'tuned', tmp_path / 'merged')
  folders = root / 'base', tmp_path / 'merged'
  load = transformers.AutoModelForCausalLM.from_pretrained
  base, merged = (load(folder) for folder in folders)
  model = peft.PeftModel.from_pretrained(base, tmp_path / 'out')
  with torch.no_grad():
    one, other = (m(torch.tensor([[5, 9]])).logits for m in (model, merged))
  np.testing.assert_allclose(one, other, atol=1e-4)


def test_peft_folder_comes_back_as_it_was(root, tmp_path):
  done = export(root, 'folded', tmp_path / 'out', format='peft')
  assert done.format == 'peft' and done.has_streams
  raw = json.loads((tmp_path / 'out' / 'adapter_config.json').read_text())
  assert raw['target_modules'] == ['q_proj', 'up_proj']
  assert raw['base_model_name_or_path'] == str(root / 'base')
  assert (raw['r'], raw['lora_alpha'], raw['rank_pattern']) == (2, 3, {})
  loaded = loading.load_model(root / 'base')
  before = fitted.read(str(root / 'folded'), loaded)
  after = fitted.read(str(tmp_path / 'out'), loaded)
  assert after.folded_lora == before.folded_lora
  assert after.folded.keys() == before.folded.keys()
  for path, leaf in before.folded.items():
    np.testing.assert_array_equal(leaf, after.folded[path])


def test_lora_of_some_layers_comes_back_as_such(root, tmp_path):
  export(root, 'folded', tmp_path / 'a', format='peft')
  weights_file = tmp_path / 'a' / 'adapter_model.safetensors'
  tensors = safetensors_numpy.load_file(weights_file)
  kept = {k: v for k, v in tensors.items() if 'layers.0.mlp' not in k}
  safetensors_numpy.save_file(kept, weights_file)
  path = tmp_path / 'a' / 'adapter_config.json'
  fields = json.loads(path.read_text())
  fields['exclude_modules'] = ['layers.0.mlp.up_proj']
  path.write_text(json.dumps(fields))
  workflow.export(
    str(root / 'base'),
    str(tmp_path / 'a'),
    str(tmp_path / 'b'),
    workflow.Options(format='peft'),
  )
  raw = json.loads((tmp_path / 'b' / 'adapter_config.json').read_text())
  assert raw['target_modules'] == [
    'model.layers.0.self_attn.q_proj',
    'model.layers.1.mlp.up_proj',
    'model.layers.1.self_attn.q_proj',
  ]
  again = safetensors_numpy.load_file(
    tmp_path / 'b' / 'adapter_model.safetensors'
  )
  assert again.keys() == kept.keys()


def test_lossless_streams_name_the_untouched_base(root, tmp_path):
  done = export(root, 'lossless', tmp_path / 'out')
  assert done.format == 'reference'
  assert not list((tmp_path / 'out').glob('*.safetensors'))
  own = ss.load(str(root / 'base'), str(root / 'lossless'))
  same = ss.load(str(root / 'base'), str(tmp_path / 'out' / 'streams'))
  assert_same_base(own, same)
  for path, leaf in params.flatten(own.adapter).items():
    np.testing.assert_array_equal(leaf, params.flatten(same.adapter)[path])
  assert same.lora == own.lora


def test_ids_of_special_tokens_stay(root, tmp_path):
  shutil.copytree(root / 'base', tmp_path / 'base')
  path = tmp_path / 'base' / 'config.json'
  said = {'bos_token_id': 7, 'pad_token_id': None}
  path.write_text(json.dumps(json.loads(path.read_text()) | said))
  generation = tmp_path / 'base' / 'generation_config.json'
  generation.write_text('{"bos_token_id": 8, "pad_token_id": 9}')
  workflow.export(str(tmp_path / 'base'), None, str(tmp_path / 'out'))
  for file, bos in (('config.json', 7), ('generation_config.json', 8)):
    made = json.loads((tmp_path / 'out' / file).read_text())
    assert (made['bos_token_id'], made['pad_token_id']) == (bos, 9)
  generation.unlink()
  workflow.export(
    str(tmp_path / 'base'),
    None,
    str(tmp_path / 'out'),
    workflow.Options(overwrite=True),
  )
  made = json.loads((tmp_path / 'out' / 'generation_config.json').read_text())
  assert made['bos_token_id'] == 7


def test_the_description_of_streams_is_complete(root, tmp_path):
  export(root, 'lossless', tmp_path / 'out')
  folder = tmp_path / 'out' / sidecar.FOLDER
  said = json.loads((folder / sidecar.DESCRIPTION).read_text())
  held = safetensors_numpy.load_file(folder / said['weights'])
  assert said['tensors'].keys() == held.keys()
  for name, tensor in said['tensors'].items():
    assert tuple(tensor['shape']) == held[name].shape and tensor['meaning']
  inner = said['speculators_config']
  assert inner['algorithm'] == 'speculative_streaming'
  assert inner['proposal_methods'][0]['speculative_tokens'] == 2
  assert inner['verifier']['architectures'] == ['LlamaForCausalLM']
  assert inner['verifier']['name_or_path'] == 'base'
  assert said['streams']['first_msa_layer'] == 1
  assert said['lora']['scale'] == 1.5
  export(root, 'tuned', tmp_path / 'peft', format='peft')
  said = json.loads(
    (tmp_path / 'peft' / sidecar.FOLDER / sidecar.DESCRIPTION).read_text()
  )
  assert said['lora'] is None
  assert said['speculators_config']['verifier']['lora'] == '..'


def test_every_tensor_is_in_the_docs():
  text = (pathlib.Path(__file__).parents[2] / 'docs/EXPORT.md').read_text()
  for name in sidecar.MEANINGS:
    assert f'`{name}`' in text, name


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_half_precision_rounds_once(root, tmp_path, dtype):
  export(root, 'tuned', tmp_path / 'out', dtype=dtype)
  before = ss.load(str(root / 'base'), str(root / 'tuned'))
  after = ss.load(str(tmp_path / 'out'), str(tmp_path / 'out' / 'streams'))
  narrow = np.dtype(dtype)
  for path, leaf in params.flatten(before.base).items():
    np.testing.assert_array_equal(
      np.asarray(leaf).astype(narrow).astype(np.float32),
      params.flatten(after.base)[path],
    )


def test_float16_that_does_not_hold_the_weights(root, tmp_path):
  shutil.copytree(root / 'base', tmp_path / 'base')
  path = tmp_path / 'base' / 'model.safetensors'
  tensors = safetensors_numpy.load_file(path)
  tensors['model.norm.weight'] = tensors['model.norm.weight'] + np.float32(7e4)
  safetensors_numpy.save_file(tensors, path)
  with pytest.raises(ValueError, match=r'model.norm.weight has numbers beyond'):
    workflow.export(
      str(tmp_path / 'base'),
      None,
      str(tmp_path / 'out'),
      workflow.Options(dtype='float16'),
    )
  assert not any((tmp_path / 'out').iterdir())


def test_the_model_alone(root, tmp_path):
  done = export(root, None, tmp_path / 'out')
  assert (done.format, done.has_streams) == ('huggingface', False)
  assert_same_base(ss.load(str(root / 'base')), ss.load(str(tmp_path / 'out')))
  with pytest.raises(ValueError, match='without an adapter there is no LoRA'):
    export(root, None, tmp_path / 'peft', format='peft')
  with pytest.raises(ValueError, match=r"lossless' has no LoRA of the model"):
    export(root, 'lossless', tmp_path / 'peft', format='peft')


def test_card_and_record_say_where_it_comes_from(root, tmp_path):
  export(root, 'tuned', tmp_path / 'out')
  card = (tmp_path / 'out' / 'README.md').read_text()
  assert card.startswith('---\nbase_model: "base"\nlibrary_name: transformers')
  assert 'tuned with the adapter `tuned`' in card
  assert '| task | a\\|b |' in card and '| recipe.steps | 7 |' in card
  assert "ss.load('out', 'out/streams')" in card
  record = json.loads((tmp_path / 'out' / 'export.json').read_text())
  assert record['adapter'] == 'tuned' and record['provenance']['task'] == 'a|b'
  assert set(record['files']) <= {
    str(p.relative_to(tmp_path / 'out')) for p in (tmp_path / 'out').rglob('*')
  }


def test_a_folder_is_replaced_only_when_asked(root, tmp_path):
  folder = tmp_path / 'out'
  export(root, 'tuned', folder, max_shard_bytes=10_000)
  with pytest.raises(ValueError, match='holds an export; pass --overwrite'):
    export(root, 'tuned', folder)
  export(root, 'folded', folder, overwrite=True, format='peft')
  assert not list(folder.glob('model*'))
  assert (folder / 'adapter_config.json').is_file()
  other = tmp_path / 'other'
  other.mkdir()
  (other / 'thesis.txt').write_text('x')
  with pytest.raises(ValueError, match=r'something other than an export.*thes'):
    export(root, 'tuned', other, overwrite=True)


def test_a_record_removes_nothing_outside_its_folder(root, tmp_path):
  folder, outside = tmp_path / 'out', tmp_path / 'kept.txt'
  outside.write_text('x')
  export(root, None, folder)
  record = json.loads((folder / 'export.json').read_text())
  record['files'] = ['../kept.txt', str(outside), 7]
  (folder / 'export.json').write_text(json.dumps(record))
  export(root, None, folder, overwrite=True)
  assert outside.read_text() == 'x'


def test_command(root, tmp_path):
  args = [f'--model={root / "base"}', f'--output_dir={tmp_path / "out"}']
  done = commands.run('export', *args, f'--adapter={root / "lossless"}')
  assert done.status == 0 and 'which they leave as it is' in done.out
  for flag, match in (
    ('--max_shard_size=many', 'is no size; accepted: a number above 0'),
    ('--max_shard_size=0GB', 'is no size'),
    ('--adapter=nowhere', 'is neither a folder nor one that ships'),
  ):
    commands.refusal('export', *args, '--overwrite', flag, match=match)
  assert sizes.num_bytes('2GiB', 'x') == 2**31
  assert sizes.num_bytes('500 MB', 'x') == 5 * 10**8
