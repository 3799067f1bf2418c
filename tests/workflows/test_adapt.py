# SPDX-License-Identifier: Apache-2.0
"""One call from rows to a report; what costs time is stood in for here.

`test_adapt_whole.py` does it with a tiny model.
"""

import json
import os
import pathlib
import shutil
import signal

import byte_model
import commands
import evaluation_samples
import pytest

from specstream_jax.bench import results
from specstream_jax.data import records
from specstream_jax.workflows import (
  adapt,
  adapt_plan,
  adapt_stages,
  adapt_task,
  train,
  train_run,
)

ROWS = [{'prompt': f'say {i}:', 'completion': f' {i}'} for i in range(24)]


@pytest.fixture(scope='module', name='root')
def _root(tmp_path_factory):
  """A folder with model/ and rows.jsonl."""
  root = tmp_path_factory.mktemp('adapt')
  byte_model.write_model(root / 'model', byte_model.model_config())
  (root / 'rows.jsonl').write_text('\n'.join(map(json.dumps, ROWS)))
  return root


class Fakes:
  """Stands in for training and benchmarks; knows what was called."""

  def __init__(self, patch):
    self.calls, self.stop, self.steps = [], '', []
    patch.setattr(train, 'train', self.train)
    patch.setattr(adapt_stages.adapt_cost, 'step_cost', self.step_cost)
    for name in ('tune', 'test', 'plain_quality', 'candidates', 'keep_tree'):
      patch.setattr(adapt_stages.adapt_tune, name, getattr(self, name))
    patch.setattr(adapt_stages.adapt_run.Run, 'model', lambda run: None)

  def _count(self, name):
    self.calls.append(name)
    if name == self.stop:
      self.stop = ''
      raise KeyboardInterrupt

  def step_cost(self, base, made, *, dtype, schedule):
    assert made.tree.num_nodes == 8 and schedule == 'deferred'
    return 1.25

  def train(self, base, data_dir, folder, *, recipe, execution, **options):
    is_probe = options.get('export') == 'last'
    is_lora = not recipe.objective.stream_weight
    self._count('probe' if is_probe else 'lora' if is_lora else 'train')
    self.steps.append(recipe.train.num_steps)
    assert execution.step_cost == (0 if is_probe or is_lora else 1.25)
    os.makedirs(os.path.join(folder, 'adapter'))
    for name in ('adapter.safetensors', 'adapter_config.json'):
      pathlib.Path(folder, 'adapter', name).write_text('{}')
    lines = [
      {'step': i, 'split': 'train', 'loss/main': 1.0, 'steps_per_second': pace}
      for i, pace in enumerate((0.1, 2.0, 4.0, 4.0))
    ]
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    pathlib.Path(folder, 'metrics.jsonl').write_text(text)
    return train_run.Trained(folder, recipe.train.num_steps)

  def candidates(self, model):
    return ['streams:num_nodes=4']

  def tune(self, *args, **options):
    self._count('tune')
    return evaluation_samples.run(name='streams:num_nodes=4')

  def keep_tree(self, adapter, drafter):
    assert drafter == 'streams:num_nodes=4'

  def plain_quality(self, base, adapter, setting, *, num_prompts, **options):
    self._count('lora quality' if adapter else 'base')
    return {'rouge1': 34.5 if adapter else 12.5}

  def test(self, model, setting, folder, drafter, *, num_prompts, **options):
    assert num_prompts == 2 and drafter == 'streams:num_nodes=4'
    # A benchmark that is stopped writes what it has.
    results.write(folder, evaluation_samples.document())
    self._count('test')


@pytest.fixture(name='fakes')
def _fakes(monkeypatch):
  return Fakes(monkeypatch)


def run(root, folder, say=lambda line: None, **options):
  return adapt.adapt(
    str(root / 'rows.jsonl'),
    str(root / 'model'),
    str(folder),
    adapt.Options(**options),
    say=say,
    progress=False,
  )


def test_a_run_goes_through_all_stages(root, tmp_path, fakes):
  said = []
  done = run(root, tmp_path / 'run', said.append)
  assert fakes.calls == ['probe', 'train', 'tune', 'base', 'test']
  assert done.run.speedup == 1.79
  page = pathlib.Path(done.report).read_text()
  for text in ('12.50', 'base model', 'Training of the adapter', '20 train'):
    assert text in page, text
  files = {path.name for path in pathlib.Path(done.adapter).iterdir()}
  assert 'draft_vocabulary.json' in files
  manifest = records.read_manifest(str(tmp_path / 'run' / 'records' / 'train'))
  assert manifest['num_examples'] == 20 and manifest['is_chat'] is False
  # Four steps a second were measured; 20 are the fewest.
  (line,) = [line for line in said if line.startswith('estimate')]
  assert line.startswith('estimate: 20 steps of 0.25 s, 0.1 minutes, about ')
  assert any('takes 1.25 times as long as one without' in x for x in said)
  assert '2 of 2 test examples' in said and '2 of 2 test examples' in page
  steps = [line.partition(' ')[0] for line in said if line[1:2] == '/']
  assert steps == ['1/3', '2/3', '3/3']
  assert fakes.steps == [4, 20]
  assert adapt.next_command('m', done) == (
    f'specstream generate --model=m --adapter={done.adapter} '
    "--drafter=streams:num_nodes=4 '--prompt=YOUR PROMPT'"
  )


def test_a_limit_that_will_not_hold_is_told(root, tmp_path, fakes):
  said = []
  run(root, tmp_path / 'run', said.append, time_limit=0.05)
  (line,) = [line for line in said if line.startswith('estimate')]
  assert line.endswith('so the limit of 0.05 minutes will not hold')


def test_an_adapter_that_is_not_there_is_told_before_anything_is_written(
  root, tmp_path, fakes
):
  with pytest.raises(ValueError, match="adapter 'nope' is neither a folder"):
    run(root, tmp_path / 'run', on_adapter='nope')
  assert not (tmp_path / 'run').exists()
  with pytest.raises(ValueError, match="adapter 'nope' is neither a folder"):
    adapt.describe(
      str(root / 'rows.jsonl'),
      str(root / 'model'),
      adapt.Options(on_adapter='nope'),
    )


@pytest.mark.parametrize('stop', ['probe', 'train', 'tune', 'base', 'test'])
def test_a_run_that_was_stopped_goes_on(root, tmp_path, fakes, stop):
  fakes.stop = stop
  with pytest.raises(KeyboardInterrupt):
    run(root, tmp_path / 'run')
  assert not (tmp_path / 'run' / 'report.html').exists()
  assert run(root, tmp_path / 'run').run is not None
  order = ['probe', 'train', 'tune', 'base', 'test']
  place = order.index(stop)
  assert fakes.calls == order[: place + 1] + order[place:]
  before, fakes.calls = list(fakes.calls), []
  assert run(root, tmp_path / 'run').run is not None and fakes.calls == []
  assert before


@pytest.mark.parametrize('stop', ['lora', 'lora quality', ''])
def test_a_lora_alone_may_be_asked_for_later(root, tmp_path, fakes, stop):
  done = run(root, tmp_path / 'run')
  assert 'LoRA alone' not in pathlib.Path(done.report).read_text()
  fakes.calls, fakes.stop = [], stop
  if stop:
    with pytest.raises(KeyboardInterrupt):
      run(root, tmp_path / 'run', compare_lora=True)
  done = run(root, tmp_path / 'run', compare_lora=True)
  assert (
    fakes.calls
    == {
      'lora': ['lora', 'lora', 'lora quality'],
      'lora quality': ['lora', 'lora quality', 'lora quality'],
      '': ['lora', 'lora quality'],
    }[stop]
  )
  page = pathlib.Path(done.report).read_text()
  assert '34.50' in page and '12.50' in page and 'LoRA alone' in page
  assert run(root, tmp_path / 'run') == done


def test_a_lora_alone_is_none_where_answers_stay(root, tmp_path, fakes):
  with pytest.raises(ValueError, match='which --mode=lossless does not learn'):
    run(root, tmp_path / 'run', compare_lora=True, mode='lossless')


def test_a_task_in_place_of_rows(root, tmp_path, fakes, monkeypatch):
  rows = ''.join(json.dumps(row) + '\n' for row in ROWS)
  for name in ('train', 'test'):
    (tmp_path / f'{name}.jsonl').write_text(rows)
  (tmp_path / 'dev.jsonl').write_text(rows.partition('\n')[0])
  said, seen = [], []
  test = lambda model, setting, *args, **options: (
    seen.append(setting.sources)
    or fakes.test(model, setting, *args, num_prompts=2)
  )
  monkeypatch.setattr(adapt_stages.adapt_tune, 'test', test)
  options = adapt.Options(task='jsonl', data_dir=str(tmp_path))
  call = lambda options: adapt.adapt(
    '',
    str(root / 'model'),
    str(tmp_path / 'run'),
    options,
    say=said.append,
    progress=False,
  )
  assert call(options).run is not None
  assert seen == [
    {'dev': f'jsonl/dev@{tmp_path}', 'test': f'jsonl/test@{tmp_path}'}
  ]
  assert any(
    line.startswith('splits of the task, dev is jsonl/dev@')
    and line.endswith(': 24 train, 1 dev, 24 test examples')
    for line in said
  )
  with pytest.raises(ValueError, match="task was 'jsonl', now 'e2e_sample'"):
    call(adapt.Options(task='e2e_sample'))


def test_a_task_without_dev_gets_it_from_train():
  found = adapt_task.read('e2e_sample', None)
  assert found.sources == {'test': 'e2e_sample/test'}
  turns = found.splits.turns
  prompts = {name: {t.prompt for t in turns[name]} for name in turns}
  assert len(turns['dev']) >= 20 and len(turns['train']) > 200
  assert not prompts['dev'] & prompts['train']
  assert len(prompts['test']) == 64 < len(turns['test'])  # all references
  with pytest.raises(ValueError, match="did you mean 'e2e_sample'"):
    adapt_task.read('e2e_sampel', None)


def test_training_that_a_signal_stopped_is_told(root, tmp_path, monkeypatch):
  Fakes(monkeypatch)
  stopped = train_run.Trained(None, 3, signal=signal.SIGTERM)
  monkeypatch.setattr(adapt_plan, 'measure', lambda *args, **options: 1.0)
  monkeypatch.setattr(train, 'train', lambda *args, **options: stopped)
  done = run(root, tmp_path / 'run')
  assert done.run is None and done.signal == signal.SIGTERM


def test_other_settings_or_rows_are_refused_by_name(root, tmp_path, fakes):
  run(root, tmp_path / 'run')
  with pytest.raises(ValueError, match=r'time_limit was 15\.0, now 5\.0'):
    run(root, tmp_path / 'run', time_limit=5.0)
  with pytest.raises(ValueError, match="mode was 'fine_tuned', now 'lossless'"):
    run(root, tmp_path / 'run', mode='lossless')
  with pytest.raises(ValueError, match='content of the rows was'):
    adapt.adapt(
      _written(tmp_path, ROWS[1:]),
      str(root / 'model'),
      str(tmp_path / 'run'),
      say=lambda line: None,
    )


def _written(folder, rows):
  path = folder / 'rows.jsonl'
  path.write_text('\n'.join(map(json.dumps, rows)))
  return str(path)


def test_bad_rows_leave_no_folder(root, tmp_path, fakes):
  path = _written(tmp_path, [*ROWS, {'prompt': 1}])
  with pytest.raises(ValueError, match=r'rows\.jsonl:25: the prompt is int'):
    adapt.adapt(path, str(root / 'model'), str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()


def test_a_model_whose_tokenizer_names_no_end(root, tmp_path):
  shutil.copytree(root / 'model', tmp_path / 'model')
  path = tmp_path / 'model' / 'tokenizer_config.json'
  fields = json.loads(path.read_text())
  del fields['eos_token']
  path.write_text(json.dumps(fields))
  text = adapt.describe(str(root / 'rows.jsonl'), str(tmp_path / 'model'))
  assert '20 train' in text


def test_a_dry_run_says_what_would_be(root):
  text = adapt.describe(str(root / 'rows.jsonl'), str(root / 'model'))
  for words in (
    '20 train, 2 dev, 2 test',
    'mode: fine_tuned, as the rows have answers',
    'training: up to 20 steps, fewer if they do not fit into 15 minutes',
    'adapter, gradient, 2 moments',
  ):
    assert words in text, words


def test_the_command_says_what_is_missing(root, tmp_path):
  rows, model = str(root / 'rows.jsonl'), f'--model={root / "model"}'
  commands.refusal('adapt', match='got 0 sources of rows; give one')
  both = (rows, '--task=e2e_sample')
  commands.refusal('adapt', *both, match='got 2 sources of rows; give one')
  commands.refusal('adapt', rows, model, match='--output_dir is missing')
  commands.refusal(
    'adapt',
    '/nowhere.csv',
    model,
    f'--output_dir={tmp_path}',
    match=r'/nowhere\.csv.*not found; accepted: a file',
  )
  done = commands.run('adapt', rows, model, '--dry_run')
  assert done.status == 0 and 'split by what a prompt says' in done.out


def test_the_command_ends_with_the_next_one(root, tmp_path, fakes):
  rows, folder = str(root / 'rows.jsonl'), tmp_path / 'run'
  args = (rows, f'--model={root / "model"}', f'--output_dir={folder}')
  fakes.stop = 'tune'
  done = commands.run('adapt', *args)
  assert done.status == 130 and 'the same command to go on' in done.out
  done = commands.run('adapt', *args)
  assert done.status == 0, done.err
  assert f'results will be in {folder}' in done.err
  assert f'report: {folder}/report.html\nnext:\n  specstream' in done.out
