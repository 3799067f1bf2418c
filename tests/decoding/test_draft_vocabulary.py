# SPDX-License-Identifier: Apache-2.0
"""Streams that draft from a part of the vocabulary."""

import dataclasses
import json
import shutil

import data_testing
import numpy as np
import pytest
import tiny_runtime

from specstream_jax import config
from specstream_jax.checkpoints import draft_vocabulary, token_ids
from specstream_jax.config import drafting as config_drafting
from specstream_jax.data import records

TREE = config.TreeConfig(num_nodes=6, depth=2, branching=3)


@pytest.fixture(scope='module')
def model():
  return tiny_runtime.model()


@pytest.fixture
def written(model, tmp_path):
  """A file of 40 ids of the model's tokenizer, most frequent first."""
  path = str(tmp_path / 'v.json')
  ids = np.random.default_rng(0).permutation(257)[:40].astype(np.int32)
  metadata = {'tokenizer_sha256': token_ids.tokenizer_hash(model.tokenizer)}
  draft_vocabulary.save(path, ids, metadata)
  return path, ids


def drafter(path, **settings):
  return config_drafting.DrafterConfig(
    'streams', TREE, vocabulary=path, **settings
  )


def decode(model, cfg, temperature=0.0):
  decoder = model.decoder(
    cfg,
    config.DecodeConfig(max_new_tokens=14, eos_ids=model.eos_ids),
  )
  prompts = [model.encode('one two'), model.encode('x')]
  return decoder.generate(
    model.params(cfg),
    prompts,
    seed=3,
    sampling=config.SamplingConfig(temperature=temperature),
  )


@pytest.mark.parametrize(
  ('temperature', 'drafting'),
  [
    (0.0, 'top_k'),
    pytest.param(0.9, 'top_k', marks=pytest.mark.slow),
    pytest.param(0.0, 'gumbel_top_k', marks=pytest.mark.slow),
    (0.9, 'gumbel_top_k'),
  ],
)
def test_tokens_equal_plain_decoding(model, written, temperature, drafting):
  cfg = drafter(written[0])
  if drafting != 'top_k':
    tree = config.TreeConfig('full', depth=2, branching=2)
    cfg = dataclasses.replace(cfg, drafting=drafting, tree=tree)
  plain = decode(model, config_drafting.DrafterConfig('none'), temperature)
  assert decode(model, cfg, temperature).tokens == plain.tokens


def test_the_whole_vocabulary_changes_no_call(model, tmp_path):
  path = str(tmp_path / 'all.json')
  metadata = {'tokenizer_sha256': token_ids.tokenizer_hash(model.tokenizer)}
  draft_vocabulary.save(path, np.arange(257)[::-1], metadata)
  limited = decode(model, drafter(path))
  free = decode(model, config_drafting.DrafterConfig('streams', TREE))
  assert limited.accept_lengths == free.accept_lengths


def test_rivals_with_other_settings_have_other_weights(model, written):
  """Each of these decides what is on the device beside the model."""
  path, _ = written
  sizes = [
    len(model.params(drafter(path, vocabulary_size=size)).drafter.head.ids)
    for size in (7, 11, 0, 7)
  ]
  assert sizes == [7, 11, 40, 7]
  assert model.params(config_drafting.DrafterConfig()).drafter.head == ()


def test_drafts_come_from_the_file(model, written):
  path, ids = written
  params = model.params(drafter(path, vocabulary_size=7))
  head = params.drafter.head
  assert head.ids.tolist() == sorted(ids[:7].tolist())
  embedding = np.asarray(model.base['embed']['embedding'])
  np.testing.assert_array_equal(head.rows, embedding[np.asarray(head.ids)])
  state = np.ones((1, 2, model.config.hidden_size), np.float32)
  whole = state @ embedding.T
  found = np.asarray(
    # The parallel schedule hands over the normalised stream states.
    model.decoder(
      drafter(path, vocabulary_size=7),
      config.DecodeConfig(max_new_tokens=4, schedule='parallel'),
    )
    .setup.model.stream_logits(params, state, None, None)
    .logits
  )
  np.testing.assert_allclose(
    found[..., head.ids], whole[..., head.ids], rtol=1e-5
  )
  others = np.setdiff1d(np.arange(257), head.ids)
  assert (found[..., others] < -1e8).all()


def test_a_file_holds_the_answers_tokens_by_frequency(tmp_path):
  examples, _ = data_testing.write_records(tmp_path / 'r', 31)
  ids, metadata = draft_vocabulary.build(
    *records.with_source(str(tmp_path / 'r'))
  )
  answers = np.concatenate([answer for _, answer in examples])
  counts = np.bincount(answers)
  assert set(ids.tolist()) == set(answers.tolist())
  assert (np.diff(counts[ids]) <= 0).all()
  assert metadata['num_tokens'] == len(ids)
  assert metadata['tokenizer_sha256'] == 'abc'


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'tokenizer_sha256': 'abc'}, 'tokenizer abc… but the model has'),
    ({'format': 'x'}, "format 'x'; accepted"),
    ({'ids': []}, 'accepted'),
    ({'ids': [1, 2, 3, 999]}, 'ids 1 to 999; the model has 0 to 256'),
    ({'ids': [1, 2]}, 'has 2 tokens but the tree branches into 3'),
  ],
)
def test_mistakes_are_named(model, written, change, message):
  path = written[0]
  with open(path) as file:
    value = json.load(file) | change
  with open(path, 'w') as file:
    json.dump(value, file)
  with pytest.raises(ValueError, match=message):
    decode(model, drafter(path))


def test_no_file_and_no_streams(tmp_path, model):
  with pytest.raises(ValueError, match='does not exist'):
    decode(model, drafter(str(tmp_path / 'nothing.json')))
  with pytest.raises(ValueError, match="vocabulary is set for 'medusa'"):
    config_drafting.DrafterConfig('medusa', vocabulary='x')


def test_the_adapters_own_file(model, written, tmp_path):
  cfg = drafter('adapter')
  with pytest.raises(ValueError, match="folder '', which has none"):
    decode(model, cfg)
  folder = tmp_path / 'adapter'
  folder.mkdir()
  there = dataclasses.replace(model, adapter_dir=str(folder))
  with pytest.raises(
    ValueError, match=r'draft_vocabulary\.json in the adapter'
  ):
    decode(there, cfg)
  shutil.copy(written[0], folder / draft_vocabulary.FILE)
  expected = decode(model, drafter(written[0]))
  assert decode(there, cfg).accept_lengths == expected.accept_lengths
