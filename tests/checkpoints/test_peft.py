# SPDX-License-Identifier: Apache-2.0
"""LoRA folders of PEFT decode as torch does with them; others are refused."""

import dataclasses
import functools
import json
import pathlib
import shutil

import fuzzing
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

import specstream_jax as ss
from specstream_jax import config
from specstream_jax.checkpoints import (
  adapters,
  fitted,
  loading,
  peft,
  peft_config,
)
from specstream_jax.cli import info

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'peft_folders'
BASE = GOLDEN / 'base'
NAMES = ('list', 'regex', 'linear', 'patterns')
DECODE = config.DecodeConfig(max_new_tokens=12, prompt_bucket=8)
PREFIX = 'base_model.model.'


@functools.cache
def base():
  return loading.load_model(BASE)


def test_tokens_are_those_of_torch():
  plain = ss.load(str(BASE))
  for name in ('base', *NAMES):
    model = ss.load(str(BASE), None if name == 'base' else str(GOLDEN / name))
    rows = json.loads((GOLDEN / name / 'answers.json').read_text())
    prompts = [row['prompt'] for row in rows]
    for drafter in ('none', 'prompt_lookup'):
      # What one model has compiled serves all.
      decoder = plain.decoder(drafter, DECODE)
      made = decoder.generate(model.params(drafter), prompts)
      assert made.tokens == [row['tokens'] for row in rows]
    assert model.stream is None and not model.adapter


@pytest.mark.parametrize('name', NAMES)
def test_every_weight_is_base_plus_scale_b_a(name):
  fields = json.loads((GOLDEN / name / peft_config.CONFIG).read_text())
  raw = safetensors_numpy.load_file(GOLDEN / name / peft.WEIGHTS)
  found = peft.read(GOLDEN / name, base().config, base().params)
  with_lora = 0
  for module, stored in peft.linear_modules(base().config).items():
    path = stored.paths[0].removesuffix('/kernel')
    if f'{path}/lora_a' not in found.flat:
      continue
    low, high = (found.flat[f'{path}/lora_{c}'] for c in 'ab')
    made = found.config.scale * low @ high
    wanted = np.zeros_like(made)
    if f'{PREFIX}{module}.lora_A.weight' in raw:
      with_lora += 1
      low, high = (raw[f'{PREFIX}{module}.lora_{c}.weight'] for c in 'AB')
      wanted = scale(fields, module, len(low)) * (high @ low).T
    np.testing.assert_allclose(made, wanted, rtol=1e-5, atol=1e-6)
  assert with_lora == len(raw) / 2


def scale(fields, module, rank):
  """Alpha over rank, or its root, by hand."""
  alpha = fields['lora_alpha']
  if 'down_proj' in module:
    alpha = fields['alpha_pattern'].get('down_proj', alpha)
  return alpha / (rank**0.5 if fields['use_rslora'] else rank)


def copy(folder, name='list', drop=(), tensors=None, **fields):
  """A golden folder with some fields and tensors changed."""
  shutil.copytree(GOLDEN / name, folder)
  path = folder / peft_config.CONFIG
  raw = json.loads(path.read_text()) | fields
  path.write_text(json.dumps({k: v for k, v in raw.items() if k not in drop}))
  if tensors is not None:
    held = safetensors_numpy.load_file(folder / peft.WEIGHTS)
    safetensors_numpy.save_file(tensors(held), folder / peft.WEIGHTS)
  return folder


@pytest.mark.parametrize('field', sorted(peft_config._METHODS))
def test_every_other_way_of_adapting_is_named(tmp_path, field):
  folder = copy(tmp_path / 'a', **{field: {'x': 1}})
  what = peft_config._METHODS[field]
  with pytest.raises(ValueError, match=f'{field} = .*: {what} is not underst'):
    peft_config.read(folder)


@pytest.mark.parametrize(
  'fields, text',
  [
    ({'peft_type': 'IA3'}, "peft_type is 'IA3'; accepted: 'LORA'"),
    ({'use_dora': True}, 'use_dora = True: DoRA is not understood'),
    ({'layer_replication': [[0, 1]]}, 'replicated layers is not understood'),
    ({'trainable_token_indices': [1]}, 'embeddings of single tokens'),
    ({'init_lora_weights': 'pissa'}, "= 'pissa': it began by changing"),
    ({'bias': 'all'}, "bias is 'all'; accepted: 'none'"),
    ({'task_type': 'SEQ_CLS'}, "task_type is 'SEQ_CLS'; accepted"),
    ({'r': 0}, 'r is 0; accepted: an integer'),
    ({'r': '8'}, "r is '8'; accepted: an integer"),
    ({'lora_alpha': -1}, 'lora_alpha is -1; accepted: a number above 0'),
    ({'rank_pattern': {'q_proj': 0}}, 'rank_pattern is .*integers above 0'),
    ({'rank_pattern': {'(': 1}}, r"'\(\(\)' is no regular expression"),
    ({'rank_pattern': {'x(?i)': 1}}, r"x\(\?i\)\)' is no regular expression"),
    ({'target_modules': '('}, r"'\(' is no regular expression"),
    ({'target_modules': None}, 'missing target_modules'),
    ({'target_modules': ['c_attn']}, 'names no module of the model; there are'),
    ({'something_new': 3}, 'something_new = 3 is not understood'),
    ({'r': 4}, r'lora_A.weight has shape \(3, 20\), not \(4, 20\)'),
    ({'target_modules': ['q_proj']}, 'unexpected model.*v_proj.lora_A'),
    ({'target_modules': ['q_proj', 'v_proj', 'o_proj']}, 'missing .*o_proj'),
    ({'layers_to_transform': [1]}, 'unexpected model.layers.0'),
    ({'layers_to_transform': 'x'}, "layers_to_transform is 'x'; accepted"),
  ],
)
def test_what_is_not_understood_is_named(tmp_path, fields, text):
  folder = copy(tmp_path / 'a', **fields)
  with pytest.raises(ValueError, match=text):
    fitted.read(folder, base())


def test_lora_on_the_head_is_told_in_one_line(tmp_path):
  def on_head(tensors):
    names = 'base_layer.weight', 'lora_A.weight', 'lora_B.weight'
    extra = {f'{PREFIX}lm_head.{n}': np.ones((2, 2), np.float32) for n in names}
    return tensors | extra

  targets = ['q_proj', 'v_proj', 'lm_head']
  folder = copy(tmp_path / 'a', tensors=on_head, target_modules=targets)
  text = 'LoRA on lm_head is not read; on these it is: down_proj, gate_proj, '
  with pytest.raises(ValueError, match=text) as found:
    fitted.read(folder, base())
  assert '(2)' not in str(found.value)


def test_lora_of_another_family_is_told_in_one_line(tmp_path):
  folder = copy(tmp_path / 'a', target_modules=['c_attn'])
  count = len(safetensors_numpy.load_file(folder / peft.WEIGHTS))
  text = rf'names no module .*tensors of others: {count}\)'
  with pytest.raises(ValueError, match=text) as found:
    fitted.read(folder, base())
  assert 'unexpected' not in str(found.value)


def test_defaults_are_those_of_peft(tmp_path):
  folder = copy(
    tmp_path / 'a', 'linear', exclude_modules=None, drop=['bias', 'use_dora']
  )
  same = fitted.read(folder, base())
  for path, leaf in fitted.read(GOLDEN / 'linear', base()).folded.items():
    np.testing.assert_array_equal(leaf, same.folded[path])


def with_head(tensors, leaf):
  return tensors | {f'{PREFIX}lm_head.weight': np.ascontiguousarray(leaf)}


def test_saved_modules_must_be_those_of_the_base(tmp_path):
  head = base().params['lm_head/kernel'].T
  fields = {'modules_to_save': ['lm_head']}
  folder = copy(
    tmp_path / 'same', tensors=lambda t: with_head(t, head), **fields
  )
  assert fitted.read(folder, base()).folded_lora.rank == 3
  folder = copy(
    tmp_path / 'other', tensors=lambda t: with_head(t, head + 1), **fields
  )
  with pytest.raises(ValueError, match=r'lm_head.weight was trained, too'):
    fitted.read(folder, base())


def test_saved_head_of_a_tied_model(tmp_path):
  cfg = dataclasses.replace(base().config, tie_word_embeddings=True)
  table = base().params['embed/embedding']
  params = {p: v for p, v in base().params.items() if p != 'lm_head/kernel'}
  folder = copy(tmp_path / 'a', tensors=lambda t: with_head(t, table))
  assert peft.read(folder, cfg, params).config.rank == 3


def test_pickles_are_refused_with_the_command(tmp_path):
  folder = copy(tmp_path / 'a')
  (folder / peft.WEIGHTS).rename(folder / 'adapter_model.bin')
  with pytest.raises(ValueError, match=r'is a pickle.*weights_only=True'):
    fitted.read(folder, base())
  (folder / 'adapter_model.bin').unlink()
  with pytest.raises(ValueError, match=r'has no adapter_model.safetensors'):
    fitted.read(folder, base())


def test_streams_are_missed_by_name():
  model = ss.load(str(BASE), str(GOLDEN / 'list'))
  with pytest.raises(
    ValueError, match=r'brings no streams; use.*--fold_adapter='
  ):
    ss.generate(model, [[1, 2]], max_new_tokens=2, drafter='streams')
  with pytest.raises(ValueError, match='is a PEFT LoRA, which has no streams'):
    adapters.load_adapter(GOLDEN / 'list')


def test_another_base_by_name_is_told(tmp_path, caplog):
  own = copy(tmp_path / 'a', base_model_name_or_path='/models/Base/')
  fitted.read(own, base())
  assert not caplog.records
  other = copy(tmp_path / 'b', base_model_name_or_path='org/other')
  fitted.read(other, base())
  assert 'was trained on org/other, the base is base' in caplog.text


@fuzzing.modes
def test_damaged_configs(tmp_path, mode):
  folder = copy(tmp_path / 'a', 'patterns')
  path = folder / peft_config.CONFIG
  damages = fuzzing.json_damage(json.loads(path.read_text()))
  read = functools.partial(fitted.read, folder, base())
  fuzzing.attempt(mode, damages, path, read, is_named=False)


@fuzzing.modes
def test_damaged_weights(tmp_path, mode):
  folder = copy(tmp_path / 'a', 'patterns')
  path = folder / peft.WEIGHTS
  damages = fuzzing.tensor_damage(path.read_bytes())
  read = functools.partial(fitted.read, folder, base())
  fuzzing.attempt(mode, damages, path, read, is_named=False)


def test_info_describes_it():
  text = info.describe(str(GOLDEN / 'patterns'))
  assert 'rank 3, alpha 4' in text and 'down_proj, k_proj, q_proj' in text
  raw = safetensors_numpy.load_file(GOLDEN / 'patterns' / peft.WEIGHTS)
  assert f'{sum(leaf.size for leaf in raw.values()):,}' in text
  assert '--fold_adapter=' in text
  fields = json.loads((GOLDEN / 'patterns' / peft_config.CONFIG).read_text())
  for kind in ('rank', 'alpha'):
    for pattern, value in fields[f'{kind}_pattern'].items():
      row = next(r for r in text.splitlines() if r.startswith(f'{kind} by'))
      assert f'{pattern} {value}' in row


def test_info_names_the_scale(tmp_path):
  assert 'α/√r' in info.describe(str(copy(tmp_path / 'a', use_rslora=True)))
  assert 'α/√r' not in info.describe(
    str(copy(tmp_path / 'b', use_rslora=False))
  )
