# SPDX-License-Identifier: Apache-2.0
"""Self-distillation: the model's answers, each once, whatever interrupts."""

import dataclasses
import json

import pytest
import tiny_runtime
from tokenizers import Tokenizer, models, pre_tokenizers

from specstream_jax import config, runtime
from specstream_jax.checkpoints import chat_format
from specstream_jax.data import questions, registry
from specstream_jax.outputs import locks
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


@pytest.mark.slow
def test_sampled_answers_do_not_depend_on_batch_or_drafter(model, tmp_path):
  hot = dataclasses.replace(
    OPTIONS, sampling=config.SamplingConfig(temperature=0.9), seed=3
  )
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


def test_chat_prompts_go_through_the_template(model, tmp_path, monkeypatch):
  model = dataclasses.replace(model, bos_id=3)
  asked = []
  encode = runtime.Model.encode_prompt
  monkeypatch.setattr(
    runtime.Model,
    'encode_prompt',
    lambda self, text: asked.append(encode(self, text)) or asked[-1],
  )
  run(model, tmp_path, dataclasses.replace(OPTIONS, is_chat=True))
  first = rows(tmp_path)[0]
  assert first['prompt'] == '<user>w1<assistant>' and first['chat'] is True
  assert asked[0] == model.encode(first['prompt'])
  (example, *_) = registry.get('jsonl').load_split('train', str(tmp_path))
  assert model.encode_prompt(example.inputs) == asked[0]
  run(model, tmp_path / 'plain')
  assert 'chat' not in rows(tmp_path / 'plain')[0]


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


def test_bad_sampling_is_told_before_anything_is_written(model, tmp_path):
  outside = config.SamplingConfig(suppress_tokens=(257,))
  options = dataclasses.replace(OPTIONS, sampling=outside)
  with pytest.raises(ValueError, match='names token id 257; accepted: 0 to 25'):
    run(model, tmp_path / 'out', options)
  assert not (tmp_path / 'out').exists()


def test_provenance_names_every_setting_that_matters(model):
  header = lambda sampling: distill._provenance(
    model, PROMPTS, dataclasses.replace(OPTIONS, sampling=sampling)
  )['options']
  plain = header(config.SamplingConfig())
  assert (plain['temperature'], plain['top_p']) == (0.0, 1.0)
  hot = header(config.SamplingConfig(0.9, repetition_penalty=1.2))
  assert hot == plain | {'temperature': 0.9, 'repetition_penalty': 1.2}


def test_a_file_that_no_run_wrote_is_not_lost(model, tmp_path):
  shard = tmp_path / 'train.shard-00000-of-00001.jsonl'
  shard.write_text('notes of mine\n')
  with pytest.raises(ValueError, match='so no run wrote it'):
    run(model, tmp_path)
  assert shard.read_text() == 'notes of mine\n'


@pytest.mark.parametrize('text', [b'caf\xe9', rb'caf\ud800'])
def test_prompts_that_are_not_text(tmp_path, text):
  path = tmp_path / 'p.jsonl'
  path.write_bytes(b'{"prompt": "%s"}\n' % text)
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


def test_malformed_prompts_are_left_out_if_asked(tmp_path, caplog):
  path = tmp_path / 'p.jsonl'
  path.write_text('{"prompt": "a"}\n{"prompt": 3}\nnonsense\n{"prompt": "b"}\n')
  with pytest.raises(ValueError, match='leave it out with --skip_bad_rows'):
    distill.read_prompts(str(path))
  with caplog.at_level('WARNING'):
    found = distill.read_prompts(str(path), skip_bad_rows=True)
  assert found == ['a', 'b']
  assert 'p.jsonl: 2 rows left out, 2 read' in caplog.text
  (tmp_path / 'train.jsonl').write_text(
    '{"prompt": "c", "completion": "d"}\n{"prompt": "e"}\n'
  )
  found = distill.task_prompts(
    'jsonl', 'train', str(tmp_path), skip_bad_rows=True
  )
  assert found == ['c']


def answers_of(completions):
  """A stand-in for the model, which gives these."""

  def answer(model, todo, options, kept, progress, total):
    for row in todo:
      text = completions[row.index]
      line = {'prompt': row.prompt, 'completion': text, 'num_tokens': 3}
      kept.add((row.index,), line | {'finished': row.index % 2 == 0})

  return answer


def test_what_became_of_the_answers_is_told(model, tmp_path, monkeypatch):
  texts = ['one', 'two\ufffd', ' \n', '', '\ufffd', 'a\ufffdb', 'three']
  monkeypatch.setattr(distill, '_answer', answers_of(texts))
  done = run(model, tmp_path)
  assert done.counts == distill.Counts(kept=3, empty=2, garbled=2, cut=1)
  assert str(done.counts) == '3 kept (1 of them cut), 2 empty, 2 garbled'
  assert [r['completion'] for r in rows(tmp_path)] == ['one', 'two', 'three']
  found = json.loads((tmp_path / 'train.provenance.json').read_text())
  assert found['num_empty_answers'] == found['num_garbled_answers'] == 2


def test_nothing_kept_is_an_error_and_no_file(model, tmp_path, monkeypatch):
  monkeypatch.setattr(distill, '_answer', answers_of([''] * 6 + ['\ufffd']))
  with pytest.raises(
    ValueError,
    match=r'none of 7 answers can be trained on: 0 kept .*, 6 empty, 1 garbled\.'
    r' Look at them in .*train\.shard-00000-of-00001\.jsonl; .*--chat',
  ):
    run(model, tmp_path)
  assert not (tmp_path / 'train.jsonl').exists()


@pytest.mark.parametrize('split', ['../esc', '/tmp/esc', 'a/b', ''])
def test_a_split_that_is_no_file_name(model, tmp_path, split):
  with pytest.raises(ValueError, match=r'split is .*, which names a file'):
    distill.distill(model, PROMPTS, str(tmp_path / 'out'), OPTIONS, split=split)
  assert list(tmp_path.iterdir()) == []


def test_a_run_that_another_process_works_on_is_left_alone(model, tmp_path):
  with locks.hold(tmp_path, 'distill-train', 0, 1):
    with pytest.raises(ValueError, match='is in use by process'):
      run(model, tmp_path)
    distill.distill(
      model, PROMPTS[:1], str(tmp_path), OPTIONS, split='dev', progress=False
    )
  assert run(model, tmp_path).num_decoded == len(PROMPTS)


def test_a_row_that_a_template_wrote_gets_no_second_bos(tmp_path):
  """Whether it is answered for training or for a benchmark."""
  lines = [{'prompt': 'a', 'chat': True}, {'prompt': 'a'}]
  path = tmp_path / 'test.jsonl'
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  asked = questions.load('jsonl', 'test', str(tmp_path))
  for found in (distill.read_prompts(str(path)), [q.turns[0] for q in asked]):
    assert found == ['a', 'a']
    assert [isinstance(p, chat_format.Text) for p in found] == [True, False]
