# SPDX-License-Identifier: Apache-2.0
"""Tasks that others register with seqio: texts, ids, scores, messages."""

import json
import pathlib

from absl import logging
import byte_model
import numpy as np
import pytest

pytest.importorskip('seqio')

import seqio
import tensorflow as tf

from specstream_jax.data import (
  mixtures,
  records,
  registry,
  seqio_records,
  seqio_tasks,
  seqio_vocabulary,
  tasks,
  vocabulary,
)

ROWS = [(f'say {i}:\n', f' {i} {"é" * i}') for i in range(5)]


def own_vocabulary():
  return vocabulary.Vocabulary(byte_model.byte_tokenizer(), 0)


def source(rows):
  """Rows as a function data source with `train` and `validation`."""

  def dataset_fn(split, shuffle_files, seed=None):
    del shuffle_files, seed
    kept = rows if split == 'train' else rows[:3]
    return tf.data.Dataset.from_tensor_slices(
      {'inputs': [a for a, _ in kept], 'targets': [b for _, b in kept]}
    )

  return seqio.FunctionDataSource(dataset_fn, splits=('train', 'validation'))


def equal(targets, predictions):
  """Share of predictions that are their target."""
  return {'equal': np.mean([a == b for a, b in zip(targets, predictions)])}


@pytest.fixture(name='register')
def _register():
  """Registers tasks and mixtures and forgets them afterwards."""
  names = []

  def register(name, rows=ROWS, vocab=None, keep=True, eos=True, **options):
    vocab = vocab or seqio.ByteVocabulary()
    feature = seqio.Feature(vocab, add_eos=True)
    steps = [
      lambda ds, output_features: seqio.preprocessors.tokenize(
        ds, output_features, copy_pretokenized=keep
      )
    ]
    names.append(name)
    return seqio.TaskRegistry.add(
      name,
      source=source(rows),
      preprocessors=steps + [seqio.preprocessors.append_eos] * eos,
      output_features=options.pop(
        'features',
        {'inputs': seqio.Feature(vocab, add_eos=False), 'targets': feature},
      ),
      metric_fns=options.pop('metric_fns', [equal]),
      **options,
    )

  yield register
  for name in names:
    seqio.TaskRegistry.remove(name)


@pytest.fixture(name='said')
def _said(monkeypatch):
  said = []
  monkeypatch.setattr(
    logging, 'warning', lambda text, *values: said.append(text % values)
  )
  return said


def test_texts_of_a_foreign_vocabulary_are_tokenized_as_one(register, tmp_path):
  register('foreign')
  own = own_vocabulary()
  manifest = seqio_records.prepare(
    'foreign', own, str(tmp_path / 'a'), split='train'
  )
  assert manifest['task'] == 'seqio:foreign' and manifest['num_examples'] == 5
  found = list(records.read(str(tmp_path / 'a')))
  for (inputs, targets), row in zip(found, ROWS, strict=True):
    pair = own.encode_pair(*row)
    np.testing.assert_array_equal(inputs, pair.inputs)
    np.testing.assert_array_equal(targets, pair.targets)
  examples = registry.get('seqio:foreign').load_split('validation')
  assert [(e.inputs, e.references) for e in examples] == [
    (a, (b,)) for a, b in ROWS[:3]
  ]


@pytest.mark.parametrize('keep', [True, False])
def test_ids_of_the_models_own_vocabulary_stay(register, tmp_path, keep, said):
  own = own_vocabulary()
  register('own', vocab=tasks.SeqioVocabulary(own), keep=keep, eos=keep)
  seqio_records.prepare('own', own, str(tmp_path / 'a'), split='train')
  for (inputs, targets), row in zip(
    records.read(str(tmp_path / 'a')), ROWS, strict=True
  ):
    assert inputs.tolist() == own.encode(row[0])
    assert targets.tolist() == own.encode(row[1]) + [0] * keep
  # Without text, ids are read back.
  (first, *_) = registry.get('seqio:own').load_split('train')
  assert (first.inputs, first.references) == (ROWS[0][0], (ROWS[0][1],))
  endless = [
    line for line in said if '5 of 5 answers do not end in EOS' in line
  ]
  assert bool(endless) == (not keep)


def test_bos_comes_before_given_ids(register, tmp_path):
  own = vocabulary.Vocabulary(byte_model.byte_tokenizer(), 0, 7)
  register('own', vocab=tasks.SeqioVocabulary(own))
  seqio_records.prepare('own', own, str(tmp_path / 'a'), split='train')
  inputs, _ = next(records.read(str(tmp_path / 'a')))
  assert inputs.tolist() == [7, *own.encode(ROWS[0][0])]


def sentencepiece():
  """The vocabulary that seqio tests itself with, as a folder has it."""
  folder = pathlib.Path(seqio.__file__).parent / 'test_data' / 'sentencepiece'
  return seqio.SentencePieceVocabulary(str(folder / 'sentencepiece.model'))


def test_the_models_sentencepiece_file_is_its_vocabulary(tmp_path):
  theirs = sentencepiece()
  (tmp_path / 'tokenizer.model').write_bytes(theirs.sp_model)
  own = vocabulary.load(str(tmp_path), eos_token='</s>')
  assert seqio_vocabulary.is_models(theirs, own)
  assert not seqio_vocabulary.is_models(theirs, own_vocabulary())
  assert not seqio_vocabulary.is_models(seqio.ByteVocabulary(), own)


def test_ids_that_cannot_be_read_back_are_refused(register, tmp_path):
  register('lossy', vocab=sentencepiece(), keep=False)
  with pytest.raises(
    ValueError,
    match=r"'lossy', train example \d: '\w+' are ids of "
    r'SentencePieceVocabulary, another .* has kept no text of them',
  ):
    seqio_records.prepare(
      'lossy', own_vocabulary(), str(tmp_path / 'a'), split='train'
    )
  with pytest.raises(ValueError, match='another vocabulary'):
    registry.get('seqio:lossy').load_split('train')


def test_a_mixture_is_trained_at_its_rates(register, tmp_path):
  register('one')
  register('two', rows=ROWS[:3])
  seqio.MixtureRegistry.add('both', [('one', 3.0), ('two', 1)])
  try:
    own, place = own_vocabulary(), str(tmp_path / 'train')
    said = seqio_records.prepare('both', own, place, split='train')
    assert said == {'task': 'seqio:both', 'rates': {'one': 3.0, 'two': 1.0}}
    assert mixtures.parse(place) == (
      mixtures.Part(f'{place}/one', 3.0),
      mixtures.Part(f'{place}/two', 1.0),
    )
    place = str(tmp_path / 'dev')
    manifest = seqio_records.prepare('both', own, place, split='validation')
    assert manifest['num_examples'] == 6
    spec = registry.get('seqio:both')
    prompts = [e.inputs for e in spec.load_split('validation')]
    assert prompts == [a for a, _ in ROWS[:3] for _ in range(2)]  # in turn
    answers = [ROWS[0][1], 'no', ROWS[1][1]]
    scores = spec.score('validation', [0, 1, 2], answers)
    assert scores == {'one/equal': 1.0, 'two/equal': 0.0}
  finally:
    seqio.MixtureRegistry.remove('both')


@pytest.mark.parametrize(
  ('text', 'match'),
  [
    ('[]', 'mixture.json'),
    ('{"rates": {}}', 'names no folders; prepare the records again'),
    ('{"rates": {"../a": 1}}', "a folder is '../a', which names a file"),
    ('{"rates": {"a": 0}}', "the rate of 'a' is 0; accepted: > 0"),
    ('{"rates": 3}', 'rates is 3; accepted: an object'),
  ],
)
def test_a_damaged_mixture_names_what_is_wrong(tmp_path, text, match):
  (tmp_path / 'mixture.json').write_text(text)
  with pytest.raises(ValueError, match=match):
    mixtures.parse(str(tmp_path))


def test_scores_are_those_of_the_tasks_own_metrics(register, said):
  seen = []

  def lengths(targets, predictions):
    seen.append((targets, predictions))
    return {
      'length': seqio.metrics.Scalar(np.mean([len(p) for p in predictions])),
      'shown': seqio.metrics.Text('not a number'),
    }

  def likelihood(targets, scores):
    raise AssertionError('never asked')

  def postprocess(text, example=None, is_target=False):
    assert set(example) >= {'inputs_pretokenized', 'targets_pretokenized'}
    return f'<{text}>' if is_target else f'<{text}>'.upper()

  register(
    'scored',
    rows=[('a', 'x'), ('b', 'y é'), ('c', 'z')],
    metric_fns=[lengths, likelihood],
    postprocess_fn=postprocess,
  )
  spec = registry.get('seqio:scored')
  # The second and third example; space around an answer does not count.
  scores = spec.score('train', [2, 1], [' long ', 'é'])
  assert scores == {'length': 4.5}
  assert seen == [(['<z>', '<y é>'], ['<LONG>', '<É>'])]
  assert any('1 metrics want scores' in line for line in said)
  assert any('shown are no numbers' in line for line in said)
  assert 'specstream_answered' not in seqio.TaskRegistry.names()


def test_a_metric_that_fails_is_named(register):
  def broken(targets, predictions):
    raise KeyError('who')

  register('broken', metric_fns=[broken])
  score = registry.get('seqio:broken').score
  with pytest.raises(ValueError, match=r"seqio task 'broken': .*'who'"):
    score('train', [0], [''])


def test_a_task_without_metrics_says_so(register, said):
  register('plain', metric_fns=[])
  assert registry.get('seqio:plain').score('train', [0], ['']) == {}
  assert any('quality is not measured' in line for line in said)


def test_a_cached_task_is_read_from_its_cache(register, tmp_path):
  """Its source may be out of reach."""

  def unreachable(split, shuffle_files, seed=None):
    raise AssertionError('not asked for')

  seqio.add_global_cache_dirs([str(tmp_path)])
  try:
    folder = tmp_path / 'kept'
    folder.mkdir()
    feature = lambda values: tf.train.Feature(
      int64_list=tf.train.Int64List(value=values)
    )
    texts = lambda text: tf.train.Feature(
      bytes_list=tf.train.BytesList(value=[text])
    )
    row = {
      'inputs': feature([100, 101]),
      'targets': feature([102, 1]),
      'inputs_pretokenized': texts(b'ab'),
      'targets_pretokenized': texts(b'c'),
    }
    example = tf.train.Example(features=tf.train.Features(feature=row))
    path = folder / 'train.tfrecord-00000-of-00001'
    with tf.io.TFRecordWriter(str(path)) as writer:
      writer.write(example.SerializeToString())
    info = {
      'num_shards': 1,
      'features': {
        name: {'dtype': kind, 'shape': shape}
        for names, kind, shape in (
          (('inputs', 'targets'), 'int32', [None]),
          (('inputs_pretokenized', 'targets_pretokenized'), 'string', []),
        )
        for name in names
      },
      'seqio_version': '0',
    }
    (folder / 'info.train.json').write_text(json.dumps(info))
    (folder / 'stats.train.json').write_text(json.dumps({'examples': 1}))
    (folder / 'COMPLETED').write_text('')
    seqio.TaskRegistry.add(
      'kept',
      source=seqio.FunctionDataSource(unreachable, splits=('train',)),
      preprocessors=[seqio.CacheDatasetPlaceholder(required=True)],
      output_features={
        name: seqio.Feature(seqio.ByteVocabulary())
        for name in ('inputs', 'targets')
      },
    )
    (example,) = registry.get('seqio:kept').load_split('train')
    assert (example.inputs, example.references) == ('ab', ('c',))
    seqio.set_global_cache_dirs([])
    other = seqio.TaskRegistry.get('kept').replace(name='other')
    with pytest.raises(ValueError, match='from a cache that is not found: let'):
      next(seqio_tasks.elements(other, 'train'))
  finally:
    seqio.set_global_cache_dirs([])
    seqio.TaskRegistry.remove('kept')


def test_names_that_are_not_registered(register):
  register('summarize')
  for name in ('sumarize', 'summarise'):
    with pytest.raises(
      ValueError,
      match=f"mixture '{name}' is registered; did you mean 'summarize'\\?.*"
      '--task_module=my.tasks imports',
    ):
      registry.get(f'seqio:{name}')


def test_tasks_without_prompts_and_answers(register, tmp_path):
  targets = seqio.Feature(seqio.ByteVocabulary())
  register('alone', features={'targets': targets})
  with pytest.raises(
    ValueError,
    match=r"'alone' has the output features 'targets'; .* 'inputs' missing",
  ):
    registry.get('seqio:alone')
  flat = {
    'inputs': seqio.Feature(seqio.ByteVocabulary(), rank=2),
    'targets': targets,
  }
  register('square', features=flat)
  with pytest.raises(ValueError, match="'inputs' has rank 2; accepted: 1"):
    registry.get('seqio:square')
  # Declared, but not made.
  register(
    'unmade', features={'inputs': targets, 'targets': targets, 'more': targets}
  )
  with pytest.raises(ValueError, match=r"'unmade': ValueError: .*more"):
    registry.get('seqio:unmade').load_split('train')


def test_splits_bad_examples_and_folders(register, tmp_path):
  register('mine', rows=[('a', 'b'), ('', 'c')])
  spec = registry.get('seqio:mine')
  with pytest.raises(ValueError, match='accepted: train, validation'):
    spec.load_split('test')
  with pytest.raises(
    ValueError, match=r"'mine', train example 1: inputs is empty; .*--skip_bad"
  ):
    spec.load_split('train')
  assert spec.load('train', skip_bad_rows=True).num_skipped == 1
  with pytest.raises(ValueError, match='--data_dir=d: the seqio task'):
    spec.load_split('train', 'd')
  manifest = seqio_records.prepare(
    'mine',
    own_vocabulary(),
    str(tmp_path / 'a'),
    split='train',
    settings=seqio_records.Settings(skip_bad_rows=True),
  )
  assert manifest['num_skipped_rows'] == 1 and manifest['num_examples'] == 1


def test_answers_that_stick_to_their_prompts_are_told(register, tmp_path, said):
  register('glued', rows=[('a', 'b'), ('c', 'd')])
  seqio_records.prepare(
    'glued', own_vocabulary(), str(tmp_path / 'a'), split='train'
  )
  assert any('2 of 2 answers follow their prompts' in line for line in said)
