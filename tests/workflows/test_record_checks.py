# SPDX-License-Identifier: Apache-2.0
"""Records that do not belong to a model are named before the first step."""

import dataclasses
import json
import sys
import types

from absl import flags
import byte_model
import numpy as np
import pytest
import tiny_runtime

from specstream_jax import config
from specstream_jax.bench import grid
from specstream_jax.checkpoints import loading, token_ids
from specstream_jax.cli import train as train_command
from specstream_jax.data import questions, records
from specstream_jax.workflows import (
  bench,
  check,
  distill,
  dry_run,
  evaluate,
  record_checks,
  train,
  train_dart,
  train_draft_model,
  train_medusa,
  train_start,
)

BEYOND = 257  # of '<extra>', one more than the model embeds
TREE = config.TreeConfig(depth=2, branching=2, num_nodes=3)
STREAM = config.StreamConfig(num_streams=2, num_msa_layers=1, pruning_rank=0)
TRAIN = config.TrainConfig(num_steps=1, batch_size=1)
DATA = config.DataConfig(sequence_length=32)


def tokenizer():
  """One token more than the model has embeddings."""
  made = byte_model.byte_tokenizer()
  made.add_special_tokens(['<extra>'])
  assert made.token_to_id('<extra>') == BEYOND
  return made


@pytest.fixture(scope='module')
def model_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('model')
  byte_model.write_model(folder, byte_model.model_config(), tokenizer())
  return str(folder)


def write(folder, pairs, *, eos_id=0, has_maximum=True):
  folder = str(folder)
  pairs = [tuple(np.array(ids, np.int32) for ids in pair) for pair in pairs]
  metadata = {
    'task': 'jsonl',
    'split': 'train',
    'tokenizer_sha256': token_ids.tokenizer_hash(tokenizer()),
    'eos_id': eos_id,
  }
  manifest = records.write(pairs, folder, metadata=metadata, num_shards=2)
  if not has_maximum:  # of a version that wrote none
    del manifest['max_token_id']
    with open(f'{folder}/manifest.json', 'w') as file:
      json.dump(manifest, file)
  return folder


GOOD = [([1, 2], [3, 0])] * 4
IN_PROMPT = [*GOOD[:3], ([1, BEYOND], [3, 0])]  # the second of shard 1
IN_ANSWER = [*GOOD[:2], ([1], [BEYOND, 0]), GOOD[0]]  # the second of shard 0


def run_training(model_dir, data_dir, out, eval_data_dir=None):
  recipe = train.Recipe(stream=STREAM, train=TRAIN, data=DATA, tree=TREE)
  train.train(
    model_dir, data_dir, out, eval_data_dir=eval_data_dir, recipe=recipe
  )


def run_medusa(model_dir, data_dir, out, eval_data_dir=None):
  recipe = train_medusa.HeadsRecipe(
    num_heads=2, train=TRAIN, data=DATA, tree=TREE
  )
  train_medusa.train(
    model_dir, data_dir, out, eval_data_dir=eval_data_dir, recipe=recipe
  )


def run_dart(model_dir, data_dir, out, eval_data_dir=None):
  recipe = train_dart.DartRecipe(
    num_drafts=2, train=TRAIN, data=DATA, tree=TREE
  )
  train_dart.train(
    model_dir, data_dir, out, eval_data_dir=eval_data_dir, recipe=recipe
  )


def run_distillation(model_dir, data_dir, out, eval_data_dir=None):
  recipe = train_draft_model.DraftRecipe(
    train=TRAIN, data=DATA, tree=TREE, num_layers=1
  )
  train_draft_model.train(
    model_dir, data_dir, out, eval_data_dir=eval_data_dir, recipe=recipe
  )


def run_dry(model_dir, data_dir, out, eval_data_dir=None):
  del out
  recipe = train.Recipe(train=TRAIN, data=DATA, tree=TREE)
  dry_run.check_records(model_dir, data_dir, eval_data_dir, recipe)


ALL = [run_training, run_medusa, run_dart, run_distillation, run_dry]


@pytest.mark.parametrize('run', ALL)
@pytest.mark.parametrize('has_maximum', [True, False])
def test_a_token_beyond_the_embedding(model_dir, tmp_path, run, has_maximum):
  out = tmp_path / 'out'
  for name, pairs, where in (
    ('a', IN_PROMPT, r'00001-of-00002.array_record, record 2, prompt'),
    ('b', IN_ANSWER, r'00000-of-00002.array_record, record 2, answer'),
  ):
    bad = write(tmp_path / name, pairs, has_maximum=has_maximum)
    with pytest.raises(
      ValueError,
      match=rf"{name}/records-{where}: token 257 \('<extra>'\) has no "
      r'embedding; accepted: 0 to 256; use the model',
    ):
      run(model_dir, bad, str(out))
  good = write(tmp_path / 'good', GOOD, has_maximum=has_maximum)
  with pytest.raises(ValueError, match=r'b/records-.* token 257'):
    run(model_dir, good, str(out), eval_data_dir=bad)
  assert not out.exists()


@pytest.mark.parametrize('run', ALL)
def test_records_of_another_tokenizer(model_dir, tmp_path, run):
  good = write(tmp_path / 'good', GOOD)
  other = str(tmp_path / 'other')
  metadata = {'task': 'x', 'tokenizer_sha256': '0' * 64, 'eos_id': 0}
  records.write([(np.array([1]), np.array([2, 0]))], other, metadata=metadata)
  for data, evaluation in ((other, None), (good, other)):
    with pytest.raises(
      ValueError, match=r"other': records of task 'x' were written with tokeni"
    ):
      run(model_dir, data, str(tmp_path / 'out'), eval_data_dir=evaluation)


@pytest.mark.parametrize('run', ALL)
def test_records_longer_than_the_model(tmp_path, run):
  cfg = byte_model.model_config(
    num_kv_heads=2,
    num_learned_positions=9,
    family='gpt2',
    norm=config.NormConfig('layer'),
    attention=config.AttentionConfig(has_bias=True, has_out_bias=True),
    mlp=config.MlpConfig('gelu_tanh', is_gated=False, has_bias=True),
    tie_word_embeddings=True,
  )
  base = str(tmp_path / 'model')
  byte_model.write_model(base, cfg, tokenizer())
  good = write(tmp_path / 'good', GOOD)
  long = write(tmp_path / 'long', [([1] * 8, [2, 0]), ([1] * 9, [2, 0])])
  for data, evaluation in ((long, None), (good, long)):
    with pytest.raises(
      ValueError,
      match=r"long': the longest example needs 10 positions, but the model has "
      r'only 9; prepare the records with --max_length=10$',
    ):
      run(base, data, str(tmp_path / 'out'), eval_data_dir=evaluation)


@pytest.mark.parametrize('run', ALL)
def test_a_tree_of_more_tokens_than_there_are(
  model_dir, tmp_path, monkeypatch, run
):
  good, out = write(tmp_path / 'good', GOOD), tmp_path / 'out'
  wide = dataclasses.replace(TREE, branching=300)
  monkeypatch.setattr(sys.modules[__name__], 'TREE', wide)
  with pytest.raises(ValueError, match=r'top 300 tokens .* vocabulary has 257'):
    run(model_dir, good, str(out))
  assert not out.exists()


def test_a_dry_run_refuses_what_the_run_would(model_dir, tmp_path):
  long = write(tmp_path / 'long', [([1] * 40, [2, 0])] * 2)
  for path, message in (
    (long, 'the longest example needs 41 positions'),
    (str(tmp_path / 'none'), 'has no manifest.json'),
  ):
    with pytest.raises(ValueError, match=message):
      run_dry(model_dir, path, None)


@pytest.mark.parametrize('layers', [0, 1])
def test_the_command_line_dry_run(model_dir, tmp_path, monkeypatch, layers):
  args = types.SimpleNamespace(
    model=model_dir,
    task=None,
    data_dir=write(tmp_path / 'bad', IN_PROMPT),
    eval_data_dir=None,
    draft_model_layers=layers,
    adapter='',
    scan_layers=False,
    profile_steps='',
    steps=None,
    epochs=None,
    batch_size=None,
    learning_rate=None,
    dry_run=True,
  )
  monkeypatch.setattr(flags, 'FLAGS', args)
  with pytest.raises(ValueError, match=r"token 257 \('<extra>'\)"):
    train_command.main([])


# Prompts


@pytest.fixture(scope='module')
def model():
  made = tiny_runtime.model()
  made.tokenizer.add_special_tokens(['<extra>'])
  return made


def task_folder(tmp_path):
  rows = [{'prompt': text, 'completion': 'b'} for text in ('a', 'a <extra>')]
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (tmp_path / 'test.jsonl').write_text(text)
  return str(tmp_path)


PROBLEM = r": token 257 \('<extra>'\) has no embedding; accepted: 0 to 256"


def test_evaluate(model, tmp_path):
  options = evaluate.Options(task='jsonl', data_dir=task_folder(tmp_path))
  with pytest.raises(ValueError, match=rf"task 'jsonl', prompt 2{PROBLEM}"):
    evaluate.evaluate(model, options)


def test_distill(model, tmp_path):
  out = tmp_path / 'out'
  with pytest.raises(ValueError, match=f'prompt 2{PROBLEM}'):
    distill.distill(model, ['a', 'a <extra>'], str(out))
  assert not out.exists()


def test_check(model, tmp_path):
  options = check.Options(
    ('none',), task=f'jsonl/test@{task_folder(tmp_path)}', laws=False
  )
  with pytest.raises(ValueError, match=f'jsonl, question 1{PROBLEM}'):
    list(check.check(model, options))


def test_bench(model, tmp_path):
  options = bench.Options(tasks=(f'jsonl@{task_folder(tmp_path)}',))
  out = tmp_path / 'out'
  with pytest.raises(ValueError, match=f'jsonl, question 1{PROBLEM}'):
    bench.bench(model, options, str(out), command='')
  assert not out.exists()


def test_bench_looks_at_later_turns_too(model):
  turns = ('a', 'b <extra>')
  asked = [questions.Question(7, 'x', turns, is_chat=True)]
  plan = grid.Plan({'t': asked}, (), 1, 0, 99)
  with pytest.raises(ValueError, match=f't, question 7{PROBLEM}'):
    grid.check_ids(model, plan)


# Where answers end


def said(caplog):
  return [r.getMessage() for r in caplog.records if 'EOS' in r.getMessage()]


def test_training_says_where_records_end_otherwise(model_dir, tmp_path, caplog):
  outline = loading.load_outline(model_dir)
  record_checks.check(outline, write(tmp_path / 'same', GOOD))
  assert not said(caplog)
  record_checks.check(outline, write(tmp_path / 'other', GOOD, eos_id=5))
  (line,) = said(caplog)
  assert line.startswith("EOS differs: the records 5 '%'; tokenizer_config")
  assert 'decoding with what is trained here stops at all of them' in line


def start(mode='fine_tuned', **origins):
  stream = dataclasses.replace(STREAM, mode=mode)
  recipe = train.Recipe(stream=stream, tree=TREE)
  origins = {
    name: {'name': 'x', 'provenance': provenance}
    for name, provenance in origins.items()
  }
  return train_start.Start(recipe, origins=origins | {'fold_adapter': None})


def test_an_adapter_keeps_where_its_answers_end():
  ends = lambda begin: train._eos_ids([{'eos_id': 5}, {'eos_id': 0}, {}], begin)
  assert ends(start()) == [5, 0]
  # What it was trained on before counts as well, if that was kept.
  assert ends(start(init_adapter={'eos_ids': [7]})) == [5, 0, 7]
  assert ends(start(init_adapter={})) == [5, 0]
  # Lossless streams change no answer: only what they stand on does.
  assert ends(start('lossless')) == []
  assert ends(start('lossless', init_adapter={'eos_ids': [7]})) == [7]
