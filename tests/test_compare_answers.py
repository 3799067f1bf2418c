# SPDX-License-Identifier: Apache-2.0
"""launch/experiments/compare_answers.py: two models' answers, scored prompt by prompt."""

import json

import experiments
import pytest

MEANINGS = ('name[Aromi], area[riverside]', 'name[Zizzi], food[Thai]')
REFERENCES = ('Aromi is by the river.', 'Zizzi serves Thai food.')


@pytest.fixture(name='compare')
def fixture_compare(tmp_path):
  rows = [f'"{mr}","{ref}"' for mr, ref in zip(MEANINGS, REFERENCES)]
  (tmp_path / 'test.csv').write_text('\n'.join(['"mr","ref"', *rows]) + '\n')

  def run(*sides):
    paths = []
    for number, answers in enumerate(sides):
      path = tmp_path / f'{number}.jsonl'
      path.write_text(''.join(json.dumps(row) + '\n' for row in answers))
      paths.append(str(path))
    flags = ['--task=e2e_nlg', f'--data_dir={tmp_path}']
    return experiments.run(
      'compare_answers.py', *flags, f'--answers={",".join(paths)}'
    )

  return run


def answers(*texts):
  return [
    {'prompt': f'{mr}\nDescription:', 'completion': text}
    for mr, text in zip(MEANINGS, texts)
  ]


def test_difference_and_its_interval(compare):
  done = compare(answers(*REFERENCES), answers(' ' + REFERENCES[0], 'no'))
  assert done.returncode == 0, done.stderr
  assert '2 of 2 prompts of the task' in done.stdout
  row = '| rouge1 | 100.00 | 50.00 | -50.00 (-100.00 to +0.00) |'
  assert row in done.stdout
  (bleu,) = [x for x in done.stdout.splitlines() if x.startswith('| bleu')]
  assert bleu.startswith('| bleu | 100.00 | ') and '(' not in bleu


def test_a_missing_answer_is_an_empty_one(compare):
  done = compare(answers(*REFERENCES), answers(REFERENCES[0]))
  assert '2 of 2 prompts of the task' in done.stdout
  assert '1.jsonl lacks 1 of them, which count as empty' in done.stdout
  row = '| rouge1 | 100.00 | 50.00 | -50.00 (-100.00 to +0.00) |'
  assert row in done.stdout


def test_answers_of_another_task(compare):
  other = [{'prompt': 'Name a colour.', 'completion': 'red'}]
  done = compare(answers(*REFERENCES), other)
  assert done.returncode
  assert "1.jsonl:1: not a prompt of the task: 'Name a colour.'" in done.stderr
  done = compare(answers(*REFERENCES), [{'prompt': 'x'}])
  assert '1.jsonl:1: has no texts under "prompt"' in done.stderr
  assert 'takes two files' in compare(answers(*REFERENCES)).stderr


@pytest.mark.parametrize('flag', ['--help', '--helpfull'])
def test_help_is_no_error(flag):
  done = experiments.run('compare_answers.py', flag)
  assert done.returncode == 0 and '--answers' in done.stdout
