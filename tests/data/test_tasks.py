# SPDX-License-Identifier: Apache-2.0
"""seqio tasks, their evaluation, and records written through them."""

import json
import os

from absl import logging
import data_testing
import numpy as np
import pytest
import tokenizer_kinds

pytest.importorskip('seqio')

from grain import python as grain
import seqio

from specstream_jax.data import (
  features,
  prepare,
  records,
  registry,
  tasks,
  vocabulary,
)

_ROWS = 'mr,ref\nname[A],One.\nname[É],Two £.\nname[A],Three.\n'
_PAIRS = [
  ('name[A]\nDescription:', ' One.'),
  ('name[A]\nDescription:', ' Three.'),
  ('name[É]\nDescription:', ' Two £.'),
]


@pytest.fixture(name='data_dir')
def _data_dir(tmp_path):
  for split in registry.SPLITS:
    (tmp_path / f'{split}.csv').write_text(_ROWS, encoding='utf-8')
  return str(tmp_path)


def _elements(task, split):
  dataset = task.get_dataset(None, split=split, shuffle=False)
  return list(dataset.as_numpy_iterator())


@pytest.mark.parametrize('bos_id', [None, 3])
def test_task_gives_the_ids_of_the_vocabulary(data_dir, bos_id):
  vocab = data_testing.make_vocabulary(bos_id)
  spec = registry.get('e2e_nlg')
  task = tasks.register(spec, vocab, data_dir=data_dir)
  elements = _elements(task, tasks.pairs_split(spec, 'test'))
  assert len(elements) == 3
  for element, (inputs, targets) in zip(elements, _PAIRS, strict=True):
    np.testing.assert_array_equal(
      element['inputs'], vocab.encode_inputs(inputs)
    )
    np.testing.assert_array_equal(
      element['targets'], vocab.encode_targets(targets)
    )
  assert len(_elements(task, 'test')) == 2
  assert len(_elements(task, 'train')) == 3


def test_an_answer_that_was_cut_has_no_eos(tmp_path):
  row = '{"prompt": "name[A]", "completion": "One.", "finished": %s}\n'
  (tmp_path / 'train.jsonl').write_text(row % 'true' + row % 'false')
  vocab = data_testing.make_vocabulary()
  prepare.prepare(
    registry.get('jsonl'),
    vocab,
    str(tmp_path / 'records'),
    split='train',
    data_dir=str(tmp_path),
  )
  name = records.shard_name(0, 1)
  (_, whole), (_, cut) = records.read_file(str(tmp_path / 'records' / name))
  assert whole[-1] == vocab.eos_id
  np.testing.assert_array_equal(cut, whole[:-1])
  (tmp_path / 'train.jsonl').write_text(row % '"no"')
  with pytest.raises(ValueError, match="1: finished is 'no', not true or"):
    registry.get('jsonl').load('train', str(tmp_path))


def _prepared(tmp_path, rows):
  """Manifest and records of (prompt, completion) rows, with a SentencePiece."""
  lines = [{'prompt': a, 'completion': b} for a, b in rows]
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  (tmp_path / 'train.jsonl').write_text(text)
  vocab = vocabulary.Vocabulary(tokenizer_kinds.make('sentencepiece'), 2, 1)
  manifest = prepare.prepare(
    registry.get('jsonl'),
    vocab,
    str(tmp_path / 'records'),
    split='train',
    data_dir=str(tmp_path),
  )
  return manifest, list(records.read(str(tmp_path / 'records')))


def test_joined_ids_are_those_of_the_joined_text(tmp_path):
  rows = [('ab:', ' It is'), ('ab:', 'It is'), ('ab\n', 'the 是')]
  manifest, found = _prepared(tmp_path, rows)
  encode = tokenizer_kinds.make('sentencepiece').encode
  for (prompt, answer), (inputs, targets) in zip(rows, found, strict=True):
    assert inputs.tolist() == [1, *encode(prompt).ids]
    joined = [*inputs[1:], *targets[:-1]]
    assert joined == encode(prompt + answer).ids and targets[-1] == 2
  assert manifest['num_answers_inside_a_token'] == 0
  assert manifest['answers_inside_a_token'] == []


def test_answers_inside_a_token_are_reported(tmp_path, monkeypatch):
  said = []
  monkeypatch.setattr(
    logging, 'warning', lambda text, *values: said.append(text % values)
  )
  rows = [('ab:', ' It')] + [(f'{"a" * 30}: ', 'It')] * 7
  manifest, found = _prepared(tmp_path, rows)
  assert manifest['num_answers_inside_a_token'] == 7
  places = manifest['answers_inside_a_token']
  assert [place['example'] for place in places] == [1, 2, 3, 4, 5]
  assert places[0]['prompt_end'] == 'a' * 18 + ': '
  assert places[0]['answer_start'] == 'It'
  decode = tokenizer_kinds.make('sentencepiece').decode
  inputs, targets = found[-1]
  assert decode([*inputs, *targets]) == f'{"a" * 30}: It'
  (warning,) = said
  assert '7 of 8 answers start inside a token of prompt and answer' in warning
  assert "the first {'example': 1, 'prompt_end': 'aaa" in warning


def test_registering_again_replaces(data_dir):
  spec = registry.get('e2e_nlg')
  tasks.register_tasks(data_testing.make_vocabulary(), data_dir=data_dir)
  tasks.register(spec, data_testing.make_vocabulary(3), data_dir=data_dir)
  vocab = seqio.TaskRegistry.get('e2e_nlg').output_features['inputs'].vocabulary
  assert vocab.bos_id == 3
  assert set(registry.names()) <= set(seqio.TaskRegistry.names())


@pytest.mark.parametrize('pack', [False, True])
def test_feature_converter_gives_the_arrays_of_features(data_dir, pack):
  vocab = data_testing.make_vocabulary()
  tasks.register(registry.get('e2e_nlg'), vocab, data_dir=data_dir)
  lengths = {'inputs': 60, 'targets': 31}
  dataset = seqio.get_dataset(
    'e2e_nlg',
    task_feature_lengths=lengths,
    dataset_split='test_pairs',
    shuffle=False,
    feature_converter=tasks.CausalFeatureConverter(pack=pack),
  )
  rows = list(dataset.as_numpy_iterator())
  examples = [
    (vocab.encode_inputs(inputs), vocab.encode_targets(targets))
    for inputs, targets in _PAIRS
  ]
  batch = features.convert(examples, sequence_length=90, packed=pack)
  for name, dtype in features.DTYPES.items():
    found = np.stack([row[name] for row in rows])
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, batch[name], err_msg=name)


def test_converter_keeps_token_zero():
  import tensorflow as tf

  example = {'inputs': [0, 5, 0], 'targets': [0, 7]}
  dataset = tf.data.Dataset.from_tensors(
    {name: tf.constant(ids, tf.int32) for name, ids in example.items()}
  )
  lengths = {'inputs': 4, 'targets': 4}
  expected = features.convert(
    [tuple(map(np.array, example.values()))], sequence_length=7, packed=False
  )
  for pack in (False, True):
    converter = tasks.CausalFeatureConverter(pack=pack)
    (row,) = converter(dataset, lengths).as_numpy_iterator()
    for name, values in expected.items():
      np.testing.assert_array_equal(row[name], values[0], err_msg=name)


def test_seqio_evaluator_sees_references_and_text(data_dir):
  vocab = data_testing.make_vocabulary()
  seen = []

  def exact(targets, predictions):
    seen.append((targets, predictions))
    hits = [p in t for t, p in zip(targets, predictions, strict=True)]
    return {'exact': 100.0 * np.mean(hits)}

  tasks.register(
    registry.get('e2e_nlg'), vocab, data_dir=data_dir, metric_fns=[exact]
  )
  evaluator = seqio.Evaluator(
    'e2e_nlg',
    tasks.CausalFeatureConverter(pack=False),
    eval_split='test',
    async_compute_metrics=False,
  )

  def predict(dataset, model_feature_shapes=None):
    del model_feature_shapes
    answers = [vocab.encode_targets(text) for text in (' Three.', ' wrong')]
    length = max(map(len, answers))  # seqio stacks predictions
    return [
      (int(i), np.resize([*answers[int(i)], 5], length).tolist())
      for i, _ in dataset.as_numpy_iterator()
    ]

  metrics, _ = evaluator.evaluate(
    compute_metrics=True, predict_fn=predict, score_fn=None
  )
  assert metrics.result()['e2e_nlg']['exact'] == 50.0
  assert seen == [([['One.', 'Three.'], ['Two £.']], ['Three.', 'wrong'])]


def test_prepare_writes_what_the_task_says(data_dir, tmp_path):
  vocab = data_testing.make_vocabulary()
  output = str(tmp_path / 'records')
  with open(os.path.join(data_dir, 'dev.csv'), 'a', encoding='utf-8') as file:
    file.write('only one column\n')
  with pytest.raises(ValueError, match=r'dev\.csv:5: has 1 columns'):
    prepare.prepare(
      registry.get('e2e_nlg'), vocab, output, split='dev', data_dir=data_dir
    )
  manifest = prepare.prepare(
    registry.get('e2e_nlg'),
    vocab,
    output,
    split='dev',
    data_dir=data_dir,
    skip_bad_rows=True,
  )
  assert manifest['num_skipped_rows'] == 1
  assert manifest['num_examples'] == 3
  assert manifest['tokenizer_sha256'] == vocab.sha256
  source = grain.ArrayRecordDataSource(
    [os.path.join(output, name) for name in manifest['files']]
  )
  for i, (inputs, targets) in enumerate(_PAIRS):
    found = records.decode(source[i])
    np.testing.assert_array_equal(found[0], vocab.encode_inputs(inputs))
    np.testing.assert_array_equal(found[1], vocab.encode_targets(targets))
