# SPDX-License-Identifier: Apache-2.0
"""launch/experiments/general_prompts.py: prompts of many kinds that are nobody's benchmark."""

import json

import experiments
import pytest

SENTENCES = [
  'Die Seite wurde noch nicht gespeichert.',
  'Bitte geben Sie eine gültige Adresse ein, sonst geht es nicht.',
  'Zu kurz.',
]
PASSAGES = [
  ' '.join(f'word{i}' for i in range(50)),
  'too short',
  ' '.join(['long'] * 200),
  '```python\n' + ' '.join(['code'] * 50),
]


@pytest.fixture(name='sources', scope='module')
def fixture_sources(tmp_path_factory):
  folder = tmp_path_factory.mktemp('sources')
  write = lambda name, text: (folder / name).write_text(text, encoding='utf-8')
  lines = lambda rows: ''.join(json.dumps(row) + '\n' for row in rows)
  instructions = [
    {'instruction': 'Sort the words.', 'input': 'b, a'},
    {'instruction': 'Name a colour.', 'input': ''},
  ]
  questions = [
    {'question': 'Who won the race in Turin?'},
    {'question': 'List the winners'},
    {'question': 'Which film has the title "A"?'},
  ]
  benchmark = {
    'turns': ['GEBEN Sie eine gueltige', 'Sie eine gültige Adresse ein sonst']
  }
  write('instructions.json', json.dumps(instructions))
  write('questions.jsonl', lines(questions))
  write('german.txt', '\n'.join(SENTENCES))
  write('passages.jsonl', lines({'completion': text} for text in PASSAGES))
  write('benchmark.jsonl', lines([benchmark]))
  return folder


def write(sources, output, *more):
  flags = [
    f'--instructions={sources}/instructions.json',
    f'--questions={sources}/questions.jsonl',
    f'--german={sources}/german.txt',
    f'--passages={sources}/passages.jsonl',
    f'--output={output}',
    '--per_kind=30',
  ]
  done = experiments.run('general_prompts.py', *flags, *more)
  rows = []
  if done.returncode == 0:
    rows = [json.loads(x) for x in output.read_text('utf-8').splitlines()]
  return done, rows


def of_kind(rows, kind):
  return [row['prompt'] for row in rows if row['kind'] == kind]


def test_every_source_gives_its_prompts(sources, tmp_path):
  done, rows = write(sources, tmp_path / 'prompts.jsonl')
  assert done.returncode == 0, done.stderr
  assert set(of_kind(rows, 'instructions')) == {
    'Sort the words.\n\nb, a',
    'Name a colour.',
  }
  assert of_kind(rows, 'questions') == ['Who won the race in Turin?']
  assert set(of_kind(rows, 'translation')) == {
    f'Translate German to English: {text}' for text in SENTENCES[:2]
  }
  assert of_kind(rows, 'summary') == [f'Summarize: {PASSAGES[0]}']
  (asked,) = of_kind(rows, 'documents')
  assert asked.startswith(f'{PASSAGES[0]}\n\n')
  for kind in ('arithmetic', 'open'):
    assert len(of_kind(rows, kind)) == 30
  assert len({row['prompt'] for row in rows}) == len(rows)
  assert not any('{' in text for text in of_kind(rows, 'arithmetic'))
  _, again = write(sources, tmp_path / 'again.jsonl')
  assert again == rows
  _, other = write(sources, tmp_path / 'other.jsonl', '--seed=1')
  assert of_kind(other, 'open') != of_kind(rows, 'open')


def test_given_prompts_are_taken_as_they_are(sources, tmp_path):
  path = tmp_path / 'given.jsonl'
  texts = ['Geben Sie eine gültige Adresse ein', 'What is a\nlighthouse?']
  path.write_text(''.join(json.dumps({'prompt': t}) + '\n' for t in texts))
  _, rows = write(
    sources,
    tmp_path / 'prompts.jsonl',
    '--kinds=given',
    f'--given={path}',
    f'--exclude={sources}/benchmark.jsonl',
    '--overlap=4',
  )
  assert rows == [{'prompt': texts[1], 'kind': 'given'}]


@pytest.mark.parametrize('overlap,near', [(6, 1), (7, 0)])
def test_what_a_benchmark_shares_is_left_out(sources, tmp_path, overlap, near):
  done, rows = write(
    sources,
    tmp_path / 'prompts.jsonl',
    '--kinds=translation',
    f'--exclude={sources}/benchmark.jsonl',
    f'--overlap={overlap}',
  )
  assert f'translation: {2 - near} prompts, {near} too near' in done.stdout
  assert any(SENTENCES[1] in row['prompt'] for row in rows) == (not near)


def test_a_short_prompt_of_a_benchmark_is_left_out(sources, tmp_path):
  benchmark = tmp_path / 'benchmark.jsonl'
  benchmark.write_text('{"turns": "name a colour"}\n')
  done, rows = write(
    sources,
    tmp_path / 'prompts.jsonl',
    '--kinds=instructions,instructions',
    f'--exclude={benchmark}',
  )
  assert 'instructions: 1 prompts, 1 too near' in done.stdout
  assert [row['prompt'] for row in rows] == ['Sort the words.\n\nb, a']


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('[{"input": "x"}]', 'has no text under "instruction"'),
    ('[{"instruction": 3}]', 'has no text under "instruction"'),
    (None, 'No such file'),
  ],
)
def test_instructions_that_are_none(sources, tmp_path, text, message):
  path = tmp_path / 'instructions.json'
  if text:
    path.write_text(text)
  done, _ = write(
    sources,
    tmp_path / 'prompts.jsonl',
    '--kinds=instructions',
    f'--instructions={path}',
  )
  assert done.returncode and message in done.stderr
  assert 'Traceback' not in done.stderr


def test_a_kind_that_is_unknown_or_lacks_its_source(sources, tmp_path):
  output = tmp_path / 'prompts.jsonl'
  done, _ = write(sources, output, '--kinds=riddles')
  assert "kinds ['riddles']; accepted: ['instructions'" in done.stderr
  done, _ = write(sources, output, '--given=a', '--kinds=summary,open')
  assert '--given=a is read for the kind given, which --k' in done.stderr
  done, _ = write(sources, output, '--kinds=summary', '--passages=')
  assert '--passages is needed for these --kinds' in done.stderr
  exclude = f'--exclude={sources}/passages.jsonl'
  done, _ = write(sources, output, '--kinds=translation', exclude)
  assert (
    "passages.jsonl:1: has no text under 'turns' or 'prompt'" in done.stderr
  )
  assert not output.exists()
