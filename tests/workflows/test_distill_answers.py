# SPDX-License-Identifier: Apache-2.0
"""Self-distillation: the model's answers, each once, whatever interrupts."""

import dataclasses
import json

import pytest
import tiny_runtime
from tokenizers import Tokenizer, models, pre_tokenizers

from specstream_jax.data import registry
from specstream_jax.workflows import distill, generate

PROMPTS = [f'{"w200 " * (i % 3)}w{i + 1}' for i in range(7)]
OPTIONS = distill.Options(max_new_tokens=9, batch_size=2)


@pytest.fixture(scope='module')
def byte_model():
  return tiny_runtime.model()


@pytest.fixture(scope='module')
def model(byte_model):
  """The same model over words, so that any answer is text."""
  words = {'<eos>': 0} | {f'w{i}': i for i in range(1, 257)}
  tokenizer = Tokenizer(models.WordLevel(words, unk_token='w1'))
  tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  return dataclasses.replace(
    byte_model, tokenizer=tokenizer, source={'base': 'tiny'}
  )


def run(model, folder, options=OPTIONS, prompts=PROMPTS):
  return distill.distill(model, prompts, str(folder), options, progress=False)


def rows(folder):
  text = (folder / 'train.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope='module')
def whole(model, tmp_path_factory):
  """Rows of a run that nothing disturbed."""
  folder = tmp_path_factory.mktemp('whole')
  done = run(model, folder)
  assert done.path == str(folder / 'train.jsonl')
  assert (done.num_rows, done.num_decoded, done.missing) == (7, 7, 0)
  return rows(folder)


def test_answers_are_those_of_the_model(model, whole):
  plain = generate.Options(max_new_tokens=9, drafter='none')
  answers = generate.generate(model, PROMPTS, plain)
  assert [row['prompt'] for row in whole] == PROMPTS
  assert [row['completion'] for row in whole] == [a.text for a in answers]
  # The space after the prompt is of the answer.
  assert all(row['completion'].startswith(' w') for row in whole)
  finished = [a.finish_reason == 'eos' for a in answers]
  assert [row['finished'] for row in whole] == finished


def test_the_file_is_a_task(model, whole, tmp_path):
  run(model, tmp_path)
  examples = registry.get('jsonl').load_split('train', str(tmp_path))
  assert [e.inputs for e in examples] == PROMPTS
  assert [e.references[0] for e in examples] == [r['completion'] for r in whole]


@pytest.mark.parametrize('torn', [False, True])
def test_a_stopped_run_loses_and_repeats_nothing(
  model, whole, tmp_path, monkeypatch, torn
):
  add, count = distill.journal_lib.Journal.add, iter(range(100))

  def stop_at_the_fifth(self, key, values):
    if next(count) == 4:
      raise KeyboardInterrupt
    add(self, key, values)

  with monkeypatch.context() as patch:
    patch.setattr(distill.journal_lib.Journal, 'add', stop_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
      run(model, tmp_path)
  assert not (tmp_path / 'train.jsonl').exists()
  if torn:
    shard = tmp_path / 'train.shard-00000-of-00001.jsonl'
    shard.write_bytes(shard.read_bytes()[:-7])
  done = run(model, tmp_path)
  assert done.num_decoded == (4 if torn else 3)
  assert rows(tmp_path) == whole
  assert run(model, tmp_path).num_decoded == 0


def test_shards_meet_in_one_file(model, whole, tmp_path):
  shard = lambda i: dataclasses.replace(OPTIONS, shard=i, num_shards=3)
  for i in (2, 0):
    assert run(model, tmp_path, shard(i)).path == ''
  done = run(model, tmp_path, shard(1))
  assert (done.num_rows, done.missing) == (2, 0)
  assert rows(tmp_path) == whole


def test_sampled_answers_do_not_depend_on_batch_or_drafter(model, tmp_path):
  hot = dataclasses.replace(OPTIONS, temperature=0.9, seed=3)
  run(model, tmp_path / 'a', hot)
  run(model, tmp_path / 'b', dataclasses.replace(hot, batch_size=3))
  run(model, tmp_path / 'c', dataclasses.replace(hot, drafter='streams'))
  assert rows(tmp_path / 'a') == rows(tmp_path / 'b') == rows(tmp_path / 'c')
  other = dataclasses.replace(hot, seed=4)
  run(model, tmp_path / 'd', other)
  assert rows(tmp_path / 'd') != rows(tmp_path / 'a')


def test_provenance_names_what_the_answers_depend_on(model, tmp_path):
  run(model, tmp_path)
  found = json.loads((tmp_path / 'train.provenance.json').read_text())
  assert found['source'] == {'base': 'tiny'}
  assert found['options']['max_new_tokens'] == 9
  assert found['num_rows'] == 7 and found['num_tokens'] >= 7
  assert {'base_sha256', 'prompts_sha256', 'tokenizer_sha256'} <= set(found)


def test_chat_prompts_go_through_the_template(model, tmp_path):
  run(model, tmp_path, dataclasses.replace(OPTIONS, is_chat=True))
  assert rows(tmp_path)[0]['prompt'] == '<user>w1<assistant>'


def test_answers_that_are_not_text_are_left_out(byte_model, tmp_path):
  prompts = [f'number {i}' for i in range(20)]
  run(byte_model, tmp_path, prompts=prompts)
  plain = generate.Options(max_new_tokens=9, drafter='none')
  answers = generate.generate(byte_model, prompts, plain)
  texts = [a.text.rstrip('\ufffd') for a in answers]
  expected = [text for text in texts if text.strip() and '\ufffd' not in text]
  found = json.loads((tmp_path / 'train.provenance.json').read_text())
  assert found['num_empty_or_garbled_answers'] == 20 - len(expected) > 0
  path = tmp_path / 'train.jsonl'
  assert [json.loads(x)['completion'] for x in path.open()] == expected


def test_long_prompts_are_left_out_and_counted(model, tmp_path):
  done = run(model, tmp_path, dataclasses.replace(OPTIONS, max_prompt_tokens=1))
  assert done.num_too_long == 4
  assert [r['prompt'] for r in rows(tmp_path)] == PROMPTS[::3]


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'seed': 1}, r"options.seed '0' -> '1'; give another folder"),
    ({'is_chat': True}, 'none of 7 prompts has at most 2 tokens'),
  ],
)
def test_mistakes_are_named(model, tmp_path, changes, message):
  options = dataclasses.replace(OPTIONS, max_prompt_tokens=2)
  run(model, tmp_path, options)
  if 'is_chat' in changes:
    model = dataclasses.replace(model, chat_template='w1 w1 w1')
  with pytest.raises(ValueError, match=message):
    run(model, tmp_path, dataclasses.replace(options, **changes))


@pytest.mark.parametrize(
  'values', [{'batch_size': 0}, {'shard': 2, 'num_shards': 2}]
)
def test_bad_options(values):
  with pytest.raises(ValueError, match=r'(shard|batch_size) is'):
    distill.Options(**values)


@pytest.mark.parametrize('values', [{'temperature': -1.0}, {'top_p': 0.0}])
def test_bad_sampling_is_told_before_anything_is_written(values):
  with pytest.raises(
    ValueError, match=r'SamplingConfig\.(temperature|top_p) is'
  ):
    distill.Options(**values)


def test_a_file_that_no_run_wrote_is_not_lost(model, tmp_path):
  shard = tmp_path / 'train.shard-00000-of-00001.jsonl'
  shard.write_text('notes of mine\n')
  with pytest.raises(ValueError, match='so no run wrote it'):
    run(model, tmp_path)
  assert shard.read_text() == 'notes of mine\n'


def test_prompts_that_are_not_text(tmp_path):
  path = tmp_path / 'p.jsonl'
  path.write_bytes(b'{"prompt": "caf\xe9"}\n')
  with pytest.raises(ValueError, match='the prompt is not valid UTF-8'):
    distill.read_prompts(str(path))


def test_prompt_files(tmp_path):
  path = tmp_path / 'p.jsonl'
  path.write_text('{"prompt": "a"}\n{"inputs": "b", "completion": "x"}\n')
  assert distill.read_prompts(str(path)) == ['a', 'b']
  path.write_text('{"prompt": "a"}\n{"prompt": 3}\n')
  with pytest.raises(
    ValueError, match=r'p.jsonl:2: has no text under "prompt"'
  ):
    distill.read_prompts(str(path))
  with pytest.raises(ValueError, match='no such file'):
    distill.read_prompts(str(tmp_path / 'q.jsonl'))
