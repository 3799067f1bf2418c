# SPDX-License-Identifier: Apache-2.0
"""Commands on a task that a user's module registers with seqio."""

import json
import sys
import textwrap

import byte_model
import commands
import pytest

pytest.importorskip('seqio')

import seqio

from specstream_jax.data import records, task_modules

MODULE = """
import seqio
import tensorflow as tf

def rows(split, shuffle_files, seed=None):
  count = {'train': 12, 'validation': 2}[split]
  return tf.data.Dataset.from_tensor_slices({
    'inputs': [f'say {i}:\\n' for i in range(count)],
    'targets': [f'{i}' for i in range(count)],
  })

def longest(targets, predictions):
  assert targets == ['0', '1'], targets
  return {'longest': max(map(len, predictions))}

seqio.TaskRegistry.add(
  'says',
  source=seqio.FunctionDataSource(rows, splits=('train', 'validation')),
  preprocessors=[
    seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
  output_features={
    name: seqio.Feature(seqio.ByteVocabulary())
    for name in ('inputs', 'targets')
  },
  postprocess_fn=lambda text, **unused: text if text in '01' else 'four',
  metric_fns=[longest],
)
"""


@pytest.fixture(scope='module', name='root')
def _root(tmp_path_factory):
  """A folder with model/ and said_tasks/tasks.py."""
  root = tmp_path_factory.mktemp('seqio')
  byte_model.write_model(root / 'model', byte_model.model_config())
  (root / 'said_tasks').mkdir()
  (root / 'said_tasks' / '__init__.py').write_text('')
  (root / 'said_tasks' / 'tasks.py').write_text(textwrap.dedent(MODULE))
  path = list(sys.path)
  yield root
  sys.path[:] = path
  for name in [n for n in sys.modules if n.startswith('said_tasks')]:
    del sys.modules[name]
  if 'says' in seqio.TaskRegistry.names():
    seqio.TaskRegistry.remove('says')


@pytest.fixture(autouse=True)
def here(root, monkeypatch):
  monkeypatch.chdir(root)


TASK = ('--task=seqio:says', '--task_module=said_tasks.tasks')


def training(root, folder, *more):
  """A command line that trains on the task, by the names of t5x."""
  return (
    *('train', f'--model={root / "model"}', '--recipe=seqio', '--recipe=tiny'),
    *(TASK[1], '--gin.MIXTURE_OR_TASK_NAME=seqio:says', '--steps=2'),
    *(f'--output_dir={folder}', *more),
  )


def test_training_writes_the_records_of_its_task(root, tmp_path):
  done = commands.run(*training(root, tmp_path, '--dry_run'))
  assert done.status == 0, done.err
  manifest = records.read_manifest(str(tmp_path / 'records' / 'train'))
  assert (manifest['task'], manifest['num_examples']) == ('seqio:says', 12)
  dev = records.read_manifest(str(tmp_path / 'records' / 'dev'))
  assert dev['split'] == 'validation' and dev['num_examples'] == 2
  commands.refusal(
    *('train', f'--model={root / "model"}', '--task=e2e_sample'),
    f'--output_dir={tmp_path}',
    match='holds records of seqio:says/train, not of e2e_sample/train',
  )


@pytest.mark.slow
def test_training_and_evaluation_of_a_task(root, tmp_path):
  for _ in range(2):  # records and checkpoints stay
    done = commands.run(*training(root, tmp_path))
    assert done.status == 0, done.err
  done = commands.run(
    *('evaluate', f'--model={root / "model"}', *TASK, '--split=validation'),
    *(f'--adapter={tmp_path / "adapter"}', '--max_new_tokens=4'),
    *('--repeats=1', '--num_nodes=3', f'--results_dir={tmp_path / "results"}'),
  )
  assert done.status == 0, done.err
  results = json.loads((tmp_path / 'results' / 'results.json').read_text())
  (run,) = results['runs']
  assert run['task'] == 'seqio:says/validation' and run['num_prompts'] == 2
  scores = {'longest': 4.0}
  assert run['quality'] == {'autoregressive': scores, 'speculative': scores}


def test_records_and_what_does_not_go_with_them(root, tmp_path):
  args = ('prepare', *TASK, f'--tokenizer={root / "model"}')
  place = f'--output_dir={tmp_path / "records"}'
  done = commands.run(*args, place, '--draft_vocabulary=' + str(tmp_path / 'v'))
  assert done.status == 0 and '"task": "seqio:says"' in done.out, done.err
  assert (tmp_path / 'v').is_file()
  other = f'--output_dir={tmp_path / "other"}'
  for flag in ('--data_dir=d', '--num_workers=2'):
    commands.refusal(*args, other, flag, match='takes no --data_dir, --num_wo')
  commands.refusal(*args, other, '--split=no', match='accepted: train, valid')


def test_modules_that_cannot_be_imported(root, tmp_path):
  prepare = ('prepare', '--tokenizer=t', '--output_dir=o', '--task=seqio:says')
  refuse = lambda module, match: commands.refusal(
    *prepare, f'--task_module={module}', match=match
  )
  refuse('said_tasks.task', "there is no module 'said_tasks.task' in .*seqio")
  refuse('nowhere.tasks', "there is no module 'nowhere' in")
  for name, text, match in (
    ('raises', '1 / 0', 'cannot be imported: ZeroDivisionError: division'),
    ('lacks', 'import not_there', "cannot be imported: .*named 'not_there'"),
    ('writes', 'x = ', 'cannot be imported: SyntaxError'),
  ):
    (root / 'said_tasks' / f'{name}.py').write_text(text)
    refuse(f'said_tasks.{name}', match)


def test_without_seqio_the_extra_is_named(root, monkeypatch):
  (root / 'said_tasks' / 'needs.py').write_text('import seqio')
  for name in ('seqio', 'specstream_jax.data.seqio_spec'):
    monkeypatch.setitem(sys.modules, name, None)
  with pytest.raises(
    ValueError, match=r'needs seqio; .*specstream-jax\[data\]'
  ):
    task_modules.load(['said_tasks.needs'])
  commands.refusal(
    *('evaluate', '--model=m', '--task=seqio:says'),
    match='task seqio:says needs .*pip install',
  )


def test_training_on_nothing(tmp_path):
  commands.refusal(
    *('train', f'--output_dir={tmp_path}'), match='nothing to train on; give'
  )
