# SPDX-License-Identifier: Apache-2.0
"""Many prompts: batches that change nothing, files that a stop does not lose."""

import dataclasses
import json
import os
import types

import pytest
import tiny_runtime

from specstream_jax import config
from specstream_jax.cli import generate as command
from specstream_jax.data import prompt_rows
from specstream_jax.outputs import locks
from specstream_jax.workflows import generate, generate_file

ROWS = [
  {'prompt': 'abcdef', 'id': 'x1'},
  {'inputs': 'b', 'targets': 'wanted'},
  {'prompt': 'ccc', 'completion': 'wanted', 'tags': ['é\u2028']},
  {'prompt': 'dd'},
  {'messages': [{'role': 'user', 'content': 'e'}]},
]
OPTIONS = generate.Options(
  max_new_tokens=5,
  drafter='none',
  sampling=config.SamplingConfig(temperature=0.9),
  seed=3,
)


@pytest.fixture(scope='module')
def model():
  return tiny_runtime.model()


def write(model, path, rows=ROWS, options=OPTIONS, **how):
  return generate_file.write(
    model, rows, str(path), options, progress=False, **how
  )


def read(path):
  return [json.loads(line) for line in path.read_text().split('\n')[:-1]]


@pytest.fixture(scope='module')
def whole(model, tmp_path_factory):
  path = tmp_path_factory.mktemp('whole') / 'out.jsonl'
  assert write(model, path, batch_size=2) == len(ROWS)
  assert os.listdir(path.parent) == ['out.jsonl']
  return read(path)


def test_rows_keep_their_fields(model, whole):
  prompts = list(map(generate_file.prompt_of, ROWS))
  expected = generate.generate(model, prompts, OPTIONS)
  assert [row['completion'] for row in whole] == [r.text for r in expected]
  assert [row['num_tokens'] for row in whole] == [5] * len(ROWS)
  assert {row['finish_reason'] for row in whole} == {'length'}
  assert whole[0]['id'] == 'x1' and whole[2]['tags'] == ['é\u2028']
  references = [row.get('reference') for row in whole]
  assert references == [None, 'wanted', 'wanted', None, None]
  assert whole[4]['messages'] == ROWS[4]['messages']


@pytest.mark.parametrize('batch_size', [1, 3, 99])
def test_completions_do_not_depend_on_the_batch(
  model, whole, tmp_path, batch_size
):
  write(model, tmp_path / 'o', batch_size=batch_size)
  assert read(tmp_path / 'o') == whole


def test_batches_of_one_size_compile_once(model):
  prompts = list(map(generate_file.prompt_of, ROWS))
  batches = generate_file.in_batches(model, prompts, OPTIONS, 2, range(5))
  assert [numbers for numbers, _ in batches] == [[0, 1], [2, 3], [4]]
  decode = config.DecodeConfig(eos_ids=model.eos_ids)
  decoder = model.decoder('none', decode)
  before = decoder.num_compilations
  list(generate_file.in_batches(model, prompts, OPTIONS, 2, [4, 3, 2]))
  assert decoder.num_compilations == before
  with pytest.raises(ValueError, match='batch_size is 0; it must be'):
    list(generate_file.in_batches(model, prompts, OPTIONS, 0, [1]))


@pytest.mark.parametrize('torn', [False, True])
def test_a_stopped_run_goes_on(model, whole, tmp_path, monkeypatch, torn):
  add, count = generate_file.journal_lib.Journal.add, iter(range(100))

  def stop_at_the_fourth(self, key, values):
    if next(count) == 3:
      raise KeyboardInterrupt
    add(self, key, values)

  path = tmp_path / 'o'
  with monkeypatch.context() as patch:
    patch.setattr(generate_file.journal_lib.Journal, 'add', stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
      write(model, path, batch_size=2)
  journal = tmp_path / 'o.journal'
  assert not path.exists()
  if torn:
    journal.write_bytes(journal.read_bytes()[:-7])
  changed = dataclasses.replace(OPTIONS, seed=4)
  with pytest.raises(ValueError, match=r"options.seed '3' -> '4'"):
    write(model, path, options=changed)
  with pytest.raises(ValueError, match='other settings: rows_sha256'):
    write(model, path, rows=ROWS[:2])
  assert write(model, path, batch_size=2) == (3 if torn else 2)
  assert read(path) == whole and not journal.exists()


def test_a_file_that_is_there_stays(model, whole, tmp_path):
  path = tmp_path / 'o'
  path.write_text('mine')
  with pytest.raises(ValueError, match='exists; pass --overwrite to replace'):
    write(model, path)
  assert path.read_text() == 'mine'
  write(model, path, batch_size=2, overwrite=True)
  assert read(path) == whole
  with pytest.raises(ValueError, match=r'cannot write .*: File exists'):
    write(model, path / 'below')


def test_two_runs_do_not_write_one_file(model, tmp_path):
  path = tmp_path / 'o'
  with (
    locks.hold(tmp_path, 'generate-o'),
    pytest.raises(ValueError, match='is in use by '),
  ):
    write(model, path, rows=ROWS[:1])
  assert not path.exists()


def test_rows_that_a_template_wrote(model):
  with_bos = dataclasses.replace(model, bos_id=9)
  row = {'prompt': 'a', 'chat': True}
  encode = generate_file.prompts_lib.encode
  for is_chat in (False, True):
    ids = encode(with_bos, [generate_file.prompt_of(row)], is_chat=is_chat)
    assert ids == [model.encode('a')]
  row = {'messages': [{'role': 'user', 'content': 'a'}], 'tools': [{'n': 1}]}
  with_tools = '{{ tools | tojson }}{{ messages[0].content }}'
  model = dataclasses.replace(model, chat_template=with_tools)
  ids = encode(model, [generate_file.prompt_of(row)])
  assert ids == [model.encode('[{"n": 1}]a')]


@pytest.mark.parametrize(
  ('line', 'problem'),
  [
    (
      '{"text": "a"}',
      r"has no 'prompt', 'inputs' or 'messages', only \['text'",
    ),
    ('{"prompt": 3}', 'prompt is int, not text'),
    ('{"prompt": " "}', 'prompt is empty'),
    (r'{"prompt": "\ud800"}', 'prompt is not valid UTF-8'),
    ('{"messages": "a"}', "messages is 'a', not a list of objects"),
    ('{"messages": ["a"]}', 'messages is .*, not a list of objects'),
    ('{"messages": []}', 'messages is empty'),
    ('{"messages": [{}], "tools": {}}', "tools is '{}', not a list of objects"),
    ('[3]', 'is a JSON list, not an object'),
    ('{"prompt"', 'not JSON'),
  ],
)
def test_rows_that_are_none(tmp_path, line, problem):
  path = tmp_path / 'in.jsonl'
  path.write_text('\ufeff{"prompt": "a"}\n\n' + line)
  with pytest.raises(ValueError, match=rf'in.jsonl:3: {problem}'):
    prompt_rows.read(str(path))


def test_files_that_are_none(tmp_path):
  path = tmp_path / 'in.jsonl'
  with pytest.raises(ValueError, match=r'in.jsonl: no such file'):
    prompt_rows.read(str(path))
  path.write_text('\n')
  with pytest.raises(ValueError, match=r'in.jsonl has no rows'):
    prompt_rows.read(str(path))


@pytest.fixture(name='run')
def _run(model, monkeypatch):
  """The command with some flags, on a model of chats."""
  model = dataclasses.replace(model, is_chat=True)

  def run(**given):
    values = dict(
      prompt=[],
      prompt_file=None,
      input=None,
      output=None,
      overwrite=False,
      batch_size=2,
      chat=None,
      drafter='none',
      stop=[],
      stream=False,
      seed=0,
      escapes=None,
    )
    fake = types.SimpleNamespace(FLAGS=types.SimpleNamespace(**values | given))
    for module in (command, command.text_flags):
      monkeypatch.setattr(module, 'flags', fake)
    return command.main([])

  for name, value in (
    ('load_model', model),
    ('decode', config.DecodeConfig(max_new_tokens=5)),
    ('tree', model.tree),
    ('sampling', config.SamplingConfig()),
  ):
    monkeypatch.setattr(
      command.decoding_flags, name, lambda *_, value=value: value
    )
  return run


def test_the_command_writes_what_it_would_print(run, tmp_path, capsys):
  odd = b'\xef\xbb\xbfone\xe2\x80\xa8still one\r\n\ngrad \\nabla\n'
  (tmp_path / 'p').write_bytes(odd)
  (tmp_path / 'i').write_text('{"prompt": "x", "id": 7}')
  given = dict(
    prompt=['\\nb'],
    prompt_file=str(tmp_path / 'p'),
    input=str(tmp_path / 'i'),
    chat=False,
    stop=['\\n'],
  )
  run(**given)
  printed, notes = capsys.readouterr()
  run(**given, output=str(tmp_path / 'o'))
  rows = read(tmp_path / 'o')
  prompts = ['\\nb', 'one\u2028still one', 'grad \\nabla', 'x']
  assert [row['prompt'] for row in rows] == prompts and rows[3]['id'] == 7
  found = [printed.find(row['prompt'] + row['completion']) for row in rows]
  assert found == sorted(found) and found[0] == 0
  assert 'left out blank line 2\n' in notes and 'chat template' not in notes
  assert '--prompt holds \\n' in notes and '--stop holds \\n' in notes
  said = capsys.readouterr().out
  assert f'4 rows in {tmp_path / "o"}, 4 completed now\n' in said


def test_a_prompt_is_a_turn_of_a_chat_by_default(run, tmp_path, capsys):
  run(prompt=['a'], output=str(tmp_path / 'chat'))
  note = capsys.readouterr().err.splitlines()[0]
  assert '--nochat continues them as they are' in note
  run(prompt=['a'], chat=True)
  run(prompt=['<user>a<assistant>'], chat=False, output=str(tmp_path / 'plain'))
  printed, notes = capsys.readouterr()
  (row,), (same,) = read(tmp_path / 'chat'), read(tmp_path / 'plain')
  assert row['completion'] == same['completion']
  assert printed.startswith(
    f'a\n{row["completion"]}\n[{row["num_tokens"]} tokens'
  )
  assert 'note: prompts go' not in notes
  run(prompt=['a'], stream=True)
  assert capsys.readouterr().out.startswith('a\n')


def test_a_chat_is_shown_by_what_was_said_last(run, tmp_path, capsys):
  (tmp_path / 'i').write_text(
    '{"messages": [{"role": "user", "content": "who?"}]}'
  )
  run(input=str(tmp_path / 'i'), chat=False)
  assert capsys.readouterr().out.startswith('who?\n')


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({}, 'no prompt; pass --prompt=TEXT, --prompt_file=FILE or --input'),
    ({'stream': True, 'output': 'o'}, '--stream prints, --output writes'),
    ({'prompt': ['\udcff']}, '--prompt is not valid UTF-8'),
    ({'prompt': ['a'], 'stop': ['\udcff']}, '--stop is not valid UTF-8'),
    (
      {'prompt': ['\\q'], 'escapes': True},
      r'--prompt holds \\q, which is no esc',
    ),
  ],
)
def test_mistakes_on_the_command_line(run, given, message):
  with pytest.raises(ValueError, match=message):
    run(**given)
