# SPDX-License-Identifier: Apache-2.0
"""launch/measure_accelerator.* on a tiny model and a CPU."""

import json
import os
import pathlib
import string
import subprocess
import sys
import tarfile

import byte_model
import pytest

LAUNCH = pathlib.Path(__file__).parents[1] / 'launch'
MR = 'name[Aromi], area[riverside]'


def call(*words, **env):
  return subprocess.run(
    list(map(str, words)),
    capture_output=True,
    text=True,
    env=os.environ | env,
    check=False,
  )


@pytest.fixture(name='data', scope='module')
def fixture_data(tmp_path_factory):
  """A model, and the folders that the script reads."""
  folder = tmp_path_factory.mktemp('accelerator')
  # Letters alone, or a random model's answers would be no text.
  letters = [*string.ascii_letters, *string.digits, *'[],:.', 'Ċ', 'Ġ']
  tokenizer = byte_model.byte_tokenizer(alphabet=letters)
  cfg = byte_model.model_config(vocab_size=tokenizer.get_vocab_size())
  byte_model.write_model(folder / 'model', cfg, tokenizer)
  rows = [(f'{MR}\nDescription:', f' Aromi is {i}.') for i in range(6)]
  prompts, tasks = (
    folder / 'data' / 'prompts',
    folder / 'data' / 'tasks' / 'e2e',
  )
  prompts.mkdir(parents=True)
  tasks.mkdir(parents=True)
  lines = ''.join(json.dumps({'prompt': prompt}) + '\n' for prompt, _ in rows)
  for name in ('e2e.jsonl', 'e2e_dev.jsonl'):
    (prompts / name).write_text(lines)
  pairs = [{'prompt': a, 'completion': b} for a, b in rows]
  (prompts / 'e2e_references.jsonl').write_text(
    ''.join(json.dumps(pair) + '\n' for pair in pairs)
  )
  (tasks / 'test.csv').write_text(f'mr,ref\n"{MR}",Aromi is nice.\n')
  return folder


@pytest.mark.slow
def test_a_part_that_is_done_is_not_done_again(tmp_path):
  words = (
    *(sys.executable, LAUNCH / 'measure_accelerator.py', '--tiny'),
    *(f'--output_dir={tmp_path}', '--parts=device'),
  )
  first, second = call(*words), call(*words)
  assert first.returncode == second.returncode == 0, first.stderr
  assert 'device: done' in first.stdout and not second.stdout
  found = json.loads((tmp_path / 'device.json').read_text())
  assert found['bytes_per_second'] > 0 < found['bfloat16_flops_per_second']


@pytest.mark.slow
def test_a_part_that_fails_says_so_and_is_tried_again(tmp_path):
  words = (
    *(sys.executable, LAUNCH / 'measure_accelerator.py', '--tiny'),
    *(f'--output_dir={tmp_path}', '--parts=train_step', '--model=nowhere'),
  )
  for _ in range(2):
    done = call(*words)
    assert 'train_step: 1, ' in done.stdout and 'nowhere' in done.stdout
  assert not (tmp_path / 'done' / 'train_step').exists()


@pytest.mark.parametrize('flag', ['--parts=none', '--tasks=e2e'])
def test_unknown_names_are_refused(flag):
  done = call(sys.executable, LAUNCH / 'measure_accelerator.py', flag)
  assert done.returncode == 1 and 'accepted: ' in done.stderr


@pytest.mark.slow
def test_everything_runs(data, tmp_path):
  """The shell script, on what `--pack` would have packed."""
  parts = tmp_path / 'parts'
  (parts / 'wheels').mkdir(parents=True)
  whole = parts / 'whole.tar.xz'
  with tarfile.open(whole, 'w:xz') as tar:
    tar.add(data / 'data', 'data')
  block = whole.read_bytes()
  (parts / 'part-000').write_bytes(block[:1000])
  (parts / 'part-001').write_bytes(block[1000:])
  work, out = tmp_path / 'work', tmp_path / 'out'
  work.mkdir()
  (work / 'wheels').mkdir()
  wheel = call(
    *(sys.executable, '-m', 'pip', 'download', '-q', '--no-deps'),
    *('-d', work / 'wheels', 'portpicker'),
  )
  assert wheel.returncode == 0, wheel.stderr
  done = call(
    *(LAUNCH / 'measure_accelerator.sh', f'--unpack={parts}'),
    *(f'--work_dir={work}', f'--output_dir={out}', '--tiny', '--num_prompts=2'),
    *(f'--model={data / "model"}', '--tasks=e2e_nlg', '--dtype=float32'),
    '--parts=device,decode,adapters,train_step,trained,large,buffers',
    PYTHON=sys.executable,
  )
  assert done.returncode == 0, done.stderr
  logs = {p.name: p.read_text()[-2000:] for p in (out / 'logs').iterdir()}
  marks = {path.name for path in (out / 'done').iterdir()}
  assert marks >= {
    'device',
    'decode',
    'train_step',
    'e2e_nlg_lora',
    'e2e_nlg_streams',
    'e2e_nlg_export',
    'trained_e2e_nlg_parallel',
    'trained_e2e_nlg_deferred',
    'large_tiny',
    'buffers',
  }, (done.stdout, logs)
  costs = json.loads((out / 'decode' / 'decode_cost.json').read_text())['rows']
  names = {row['drafter'] for row in costs if row['part'] == 'decode'}
  assert {'none', 'streams, 4 nodes, parallel'} <= names
  runs = json.loads(
    (out / 'trained_e2e_nlg_parallel' / 'results.json').read_text()
  )
  assert all(run['equal_rows'] == run['num_prompts'] for run in runs['runs'])
