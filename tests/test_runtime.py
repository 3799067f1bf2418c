# SPDX-License-Identifier: Apache-2.0
"""Loading: which adapter goes with a model, and whether a prompt is a chat."""

import dataclasses
import json
import types

import byte_model
import jax
import numpy as np
import pytest

from specstream_jax import config, partitioning, runtime
from specstream_jax.bench import external
from specstream_jax.checkpoints import adapters, chat_format, loading, shipped
from specstream_jax.cli import bench
from specstream_jax.modeling import fused, initialize, params
from specstream_jax.workflows import check

STREAM = config.StreamConfig(num_streams=2, num_msa_layers=1, pruning_rank=0)
NO_LORA = config.LoraConfig(rank=0)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """Two models, and adapters of the first one."""
  root = tmp_path_factory.mktemp('models')
  byte_model.write_model(root / 'one', byte_model.model_config())
  byte_model.write_model(root / 'two', byte_model.model_config(num_layers=2))
  loaded = loading.load_model(root / 'one')
  flat = params.flatten(
    initialize.init_adapter(
      jax.random.key(0), loaded.config, STREAM, NO_LORA, hidden_rms=1.0
    )
  )
  for name in ('e2e_nlg', 'chats'):
    cfg = adapters.AdapterConfig(
      base_model_id='one',
      base_config_hash=loaded.config_hash,
      base_fingerprint=loaded.fingerprint,
      stream=STREAM,
      lora=NO_LORA,
      tree=config.TreeConfig(depth=2),
      provenance={'is_chat': name == 'chats'},
    )
    adapters.save_adapter(root / 'shipped' / name, flat, cfg)
  return root


@pytest.fixture(autouse=True)
def fixture_shipped(folders, monkeypatch):
  monkeypatch.setattr(shipped, 'FOLDER', folders / 'shipped')


def with_template(root):
  path = root / 'one' / 'chat_template.jinja'
  path.write_text('{{ messages[0].content }}')
  return path


def test_the_default_adapter_goes_with_its_model_only(folders):
  one = runtime.load(str(folders / 'one'), runtime.AUTO)
  assert one.source['adapter'] == 'e2e_nlg' and one.stream == STREAM
  two = runtime.load(str(folders / 'two'), runtime.AUTO)
  assert 'adapter' not in two.source and two.stream is None
  with pytest.raises(ValueError, match="trained on base 'one'"):
    runtime.load(str(folders / 'two'), 'e2e_nlg')


def test_chats_have_a_default_adapter_of_their_own(folders, monkeypatch):
  monkeypatch.setitem(runtime._OWN, runtime.AUTO_CHAT, 'chats')
  one = runtime.load(str(folders / 'one'), runtime.AUTO_CHAT)
  assert one.source['adapter'] == 'chats'
  two = runtime.load(str(folders / 'two'), runtime.AUTO_CHAT)
  assert 'adapter' not in two.source


def test_drafters_that_a_command_takes_by_itself(folders):
  one = runtime.load(folders / 'one', runtime.AUTO)
  two = runtime.load(folders / 'two', runtime.AUTO)
  unset = types.SimpleNamespace(
    drafters=None, batch_sizes=['1'], schedule='deferred', weights='resident'
  )
  assert bench._drafters(unset, one) == ('streams',)
  assert bench._drafters(unset, two) == ('prompt_lookup',)
  given = types.SimpleNamespace(drafters=['none; lookahead', 'streams'])
  assert bench._drafters(given, two) == ('none', 'lookahead', 'streams')
  assert check.default_drafters(two) == ('prompt_lookup', 'lookahead')
  assert 'streams:kind=chain,depth=2' in check.default_drafters(one)


def test_whether_a_prompt_is_a_turn_of_a_chat(folders):
  is_chat = lambda adapter: runtime.load(str(folders / 'one'), adapter).is_chat
  assert not any(map(is_chat, (None, 'e2e_nlg', 'chats')))
  template = with_template(folders)
  assert [is_chat(a) for a in (None, 'e2e_nlg', 'chats')] == [True, False, True]
  template.unlink()


def test_adapters_that_ship_say_whether_they_are_of_chats(monkeypatch):
  monkeypatch.undo()
  found = {
    name: adapters.read_config(shipped.adapter_folder(name)).is_chat
    for name in shipped.shipped_adapters()
  }
  assert found == {
    'e2e_nlg': False,
    'instruct_lossless': True,
    'sql_create_context': False,
  }


def test_a_model_hands_its_chat_format_on(folders):
  path = with_template(folders)
  config_file = folders / 'one' / 'tokenizer_config.json'
  fields = json.loads(config_file.read_text())
  config_file.write_text(json.dumps(fields | {'bos_token': '<eos>'}))
  model = runtime.load(str(folders / 'one'))
  path.unlink()
  assert model.chat_template == '{{ messages[0].content }}'
  assert model.chat_template.tokens['bos_token'] == '<eos>'
  model = dataclasses.replace(model, bos_id=7)
  assert model.encode_prompt('a') == [7, *model.encode('a')]
  assert model.encode_prompt(chat_format.Text('a')) == model.encode('a')


def test_a_copy_shares_what_is_compiled_but_no_weights(folders):
  model = runtime.load(str(folders / 'one'))
  asked = 'none', config.DecodeConfig()
  first = model.decoder(*asked)
  assert dataclasses.replace(model, bos_id=7).decoder(*asked) is first
  doubled = jax.tree.map(lambda leaf: 2 * leaf, model.base)
  other = dataclasses.replace(model, base=doubled).decoder(*asked)
  assert other is not first
  pairs = zip(*map(jax.tree.leaves, (other.params.base, first.params.base)))
  assert all((a == 2 * b).all() for a, b in pairs)
  assert model.decoder(*asked) is first


@pytest.mark.parametrize('weights_dtype', ['', 'int8'])
def test_kernels_are_fused_where_one_cpu_holds_them(folders, weights_dtype):
  path = str(folders / 'one')
  apart = runtime.load(path, 'e2e_nlg', weights_dtype=weights_dtype)
  whole = runtime.load(path, 'e2e_nlg', weights_dtype=weights_dtype, fuse=True)
  assert (apart.layout, whole.layout) == ('out_in', fused.LAYOUT)
  want, found = (external.plain_weights(one) for one in (apart, whole))
  assert want.keys() == found.keys()
  for name, leaf in want.items():
    np.testing.assert_array_equal(leaf, found[name])
  assert runtime.fingerprint(apart) == runtime.fingerprint(whole)
  # No weight is there twice.
  size = lambda one: sum(leaf.nbytes for leaf in jax.tree.leaves(one.base))
  assert size(apart) == size(whole)


@pytest.mark.parametrize(
  ('platforms', 'is_one'),
  [(['cpu'], True), (['cpu', 'cpu'], False), (['gpu'], False)],
)
def test_one_cpu_is_what_it_says(platforms, is_one):
  devices = np.array([types.SimpleNamespace(platform=p) for p in platforms])
  mesh = types.SimpleNamespace(devices=devices, size=len(platforms))
  part = partitioning.Partitioner.__new__(partitioning.Partitioner)
  part.mesh = mesh
  assert part.is_one_cpu == is_one
