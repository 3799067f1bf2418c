# SPDX-License-Identifier: Apache-2.0
"""The benchmark on a tiny model: grid, journal, resume, outputs."""

import dataclasses
import json
import os

import jax
import jsonschema
import numpy as np
import pytest
import tiny_runtime

from specstream_jax import config, runtime
from specstream_jax.bench import (
  external,
  journal as journal_lib,
  runners,
  schema,
)
from specstream_jax.config import drafting as config_drafting
from specstream_jax.data import chat, questions
from specstream_jax.drafters import prompt_lookup
from specstream_jax.report import table
from specstream_jax.workflows import bench

QUESTIONS = [
  {'question_id': 7, 'category': 'writing', 'turns': ['hi', 'and you']},
  {'question_id': 8, 'category': 'math', 'turns': ['one and two']},
  {'question_id': 9, 'category': 'math', 'turns': ['a ' * 50]},
]


@pytest.fixture(scope='module')
def model():
  return tiny_runtime.model()


@pytest.fixture
def options(tmp_path):
  with open(tmp_path / 'question.jsonl', 'w') as file:
    file.writelines(json.dumps(row) + '\n' for row in QUESTIONS)
  return bench.Options(
    drafters=('streams:num_nodes=3,depth=2,branching=2',),
    tasks=(f'spec_bench@{tmp_path}',),
    num_prompts=0,
    max_new_tokens=6,
    max_prompt_tokens=64,
  )


def run(model, options, folder):
  return bench.bench(
    model, options, str(folder), command='test', progress=False
  )


def test_a_coupling_counts_where_it_is_used(model):
  stream = dataclasses.replace(model.stream, coupling_rank=3)
  coupled = runtime.with_random_streams(model, stream)
  text = 'streams:depth=2,branching=2'
  counts = [
    runners.OwnRunner(
      coupled, config_drafting.parse(text + more), 'x', config.DecodeConfig()
    ).extra_parameters
    for more in ('', ',coupling=False', ',kind=full')
  ]
  assert counts == [2 * 16 + 2 * 3 * 16, 2 * 16, 2 * 16]


def test_without_a_folder_nothing_is_kept_but_the_results(
  model, options, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  before = sorted(os.listdir())
  (result,) = bench.bench(model, options, None, command='', progress=False)
  assert result.num_prompts == 4 and result.equal_fraction == 1.0
  assert sorted(os.listdir()) == before


def test_bench_writes_table_report_answers_and_journal(
  model, options, tmp_path
):
  out = tmp_path / 'out'
  (result,) = run(model, options, out)
  assert result.equal_fraction == 1.0 and not result.lossy
  assert result.num_prompts == 4  # three questions, one with two turns
  assert result.num_truncated == 1
  assert set(result.by_category) == {'writing', 'math'}
  assert set(result.by_prompt_length) == {'128'}
  assert result.prompts_by_length == {'128': 4}
  assert result.extra_parameters == 2 * 16
  with open(out / 'results.json') as file:
    document = json.load(file)
  jsonschema.validate(document, schema.load())
  assert 'step cost' in (out / 'table.md').read_text()
  assert '<svg' in (out / 'report.html').read_text()
  answers = sorted(os.listdir(out / 'answers'))
  assert len(answers) == 2
  text = (out / 'answers' / answers[0]).read_text()
  rows = [json.loads(line) for line in text.splitlines()]
  assert [r['question_id'] for r in rows] == [7, 8, 9]
  assert len(rows[0]['choices'][0]['turns']) == 2
  choice = rows[1]['choices'][0]
  assert choice['new_tokens'] == [1 + sum(choice['accept_lengths'])]


def test_interrupted_bench_keeps_what_it_has_and_resumes(
  model, options, tmp_path, monkeypatch
):
  out, seen = tmp_path / 'out', []
  add = journal_lib.Journal.add

  def add_then_stop(self, key, values):
    add(self, key, values)
    seen.append(key)
    if len(seen) == 3:
      raise KeyboardInterrupt

  monkeypatch.setattr(journal_lib.Journal, 'add', add_then_stop)
  with pytest.raises(KeyboardInterrupt):
    run(model, options, out)
  assert (out / 'results.json').is_file()
  # A stop in the middle of a line.
  with open(out / 'journal.jsonl', 'a') as file:
    file.write('{"key": ["cut')
  with pytest.raises(KeyboardInterrupt):
    seen[:] = seen[:2]
    run(model, bench.dataclasses.replace(options, resume=True), out)
  monkeypatch.setattr(journal_lib.Journal, 'add', add)
  resumed = bench.dataclasses.replace(options, resume=True)
  (result,) = run(model, resumed, out)
  assert result.num_prompts == 4 and result.equal_fraction == 1.0
  lines = (out / 'journal.jsonl').read_text().splitlines()
  keys = [tuple(json.loads(line)['key']) for line in lines[1:]]
  assert len(keys) == len(set(keys)) == 8


def test_resume_with_other_settings_is_refused(model, options, tmp_path):
  out = tmp_path / 'out'
  run(model, options, out)
  other = bench.dataclasses.replace(options, max_new_tokens=5, resume=True)
  with pytest.raises(ValueError, match='written with other settings: options'):
    run(model, other, out)


def test_resume_with_another_default_tree_is_refused(
  model, options, tmp_path, monkeypatch
):
  asked = bench.dataclasses.replace(options, drafters=('prompt_lookup',))
  run(model, asked, tmp_path)
  monkeypatch.setattr(prompt_lookup, 'DEFAULT_DEPTH', 3)
  other = bench.dataclasses.replace(model, _decoders={})
  resumed = bench.dataclasses.replace(asked, resume=True)
  with pytest.raises(ValueError, match='written with other settings: trees'):
    run(other, resumed, tmp_path)


def test_folder_that_cannot_be_written(model, options, tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match=r'cannot write .*give a folder'):
    run(model, options, tmp_path / 'file' / 'out')


def test_synthetic_acceptance_is_labelled_and_near_its_rate(
  model, options, tmp_path
):
  changed = bench.dataclasses.replace(
    options,
    drafters=('streams:kind=chain,depth=2',),
    synthetic_acceptance=0.8,
    max_new_tokens=60,
  )
  (result,) = run(model, changed, tmp_path / 'out')
  assert result.synthetic and result.lossy
  # Chains of two: 1 + 0.8 + 0.64 tokens per call, less where rows end.
  assert 2.1 < result.tokens_per_call_micro < 2.7
  assert 'synthetic' in (tmp_path / 'out' / 'table.md').read_text()


def test_a_drafter_may_have_a_label(model, options, tmp_path):
  drafters = ('few nodes=streams:num_nodes=3,depth=2',)
  named = bench.dataclasses.replace(options, drafters=drafters)
  (found,) = run(model, named, tmp_path / 'out')
  assert found.label == 'few nodes'
  assert found.drafter == 'streams' and found.tree['num_nodes'] == 3


@pytest.mark.slow
def test_grid_of_temperatures_and_batches(model, options, tmp_path):
  grid = bench.dataclasses.replace(
    options, temperatures=(0.0, 0.7), batch_sizes=(1, 2), repeats=2
  )
  runs = run(model, grid, tmp_path / 'out')
  assert [(r.temperature, r.batch) for r in runs] == [
    (0.0, 1),
    (0.0, 2),
    (0.7, 1),
    (0.7, 2),
  ]
  assert all(r.equal_fraction == 1.0 and r.num_prompts == 4 for r in runs)
  # The same rows draw the same tokens in any batch.
  assert runs[2].new_tokens == runs[3].new_tokens


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'drafters': ('medua',)}, 'DrafterConfig.name is .medua.; accepted'),
    ({'drafters': ('streams:depht=2',)}, 'depht=2.* is no setting; accepted'),
    (
      {'drafters': ('streams:kind=fixed,choices=((0,),)',)},
      r"'choices=\(\(0' is no setting; accepted: ((?!choices).)*$",
    ),
    ({'tasks': ('e2e',)}, "task 'e2e' is not known"),
    ({'tasks': ('spec_bench',)}, 'needs --data_dir'),
    ({'drafters': ('draft_model',)}, 'draft_model'),
    ({'drafters': ('A=lookahead', 'A=prompt_lookup')}, "are called 'A'"),
    ({'drafters': ('none=lookahead',)}, "are called 'none'"),
    ({'drafters': ('streams:path=x',)}, "'streams' has no folder"),
    (
      {'drafters': ('streams:couple_noise=no',)},
      "couple_noise is the text 'no'",
    ),
    ({'drafters': ('streams:ngram_weight=x',)}, "ngram_weight is the text 'x'"),
    (
      {'drafters': ('streams:synthetic_acceptance=7',)},
      'synthetic_acceptance is 7.0; accepted: 0 to 1',
    ),
  ],
)
def test_mistakes_are_named(model, options, tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    run(model, bench.dataclasses.replace(options, **changes), tmp_path / 'out')


def test_settings_of_sampling_are_used_and_recorded(model, options, tmp_path):
  sampling = config.SamplingConfig(0.3, repetition_penalty=1.7)
  options = dataclasses.replace(
    options, sampling=sampling, temperatures=(0.0, 0.7)
  )
  runs = run(model, options, tmp_path / 'out')
  assert [r.sampling for r in runs] == [
    {'repetition_penalty': 1.7},  # the grid's temperatures hold
    {'temperature': 0.7, 'repetition_penalty': 1.7},
  ]
  assert [r.equal_fraction for r in runs] == [1.0, 1.0]
  plain = dataclasses.replace(options, sampling=config.SamplingConfig())
  header = lambda options: bench._header(model, options, [])['options']
  assert header(options)['sampling'] == sampling.changes()
  assert 'sampling' not in header(plain)
  with pytest.raises(ValueError, match=r"know nothing of \['repetition_pen"):
    dataclasses.replace(options, external=('hf',))


@pytest.mark.parametrize(
  'changes',
  [
    {'max_new_tokens': 1},
    {'batch_sizes': (0,)},
    {'temperatures': (-1.0,)},
    {'max_prompt_tokens': 0},
    {'repeats': 0},
    {'external': ('foo',)},
  ],
)
def test_options_out_of_range_are_named(changes):
  name = next(iter(changes))
  with pytest.raises(ValueError, match=rf'{name} is '):
    bench.Options(**changes)


@pytest.mark.parametrize('name', ['tasks', 'temperatures', 'batch_sizes'])
def test_a_grid_without_cells_is_no_benchmark(name):
  with pytest.raises(ValueError, match=f'{name} is empty, so nothing would be'):
    bench.Options(**{name: ()})


def test_a_tree_takes_from_the_adapter_what_it_leaves_out(model, options):
  assert model.stream.num_streams == 2
  texts = ('streams', 'streams:num_nodes=3', 'streams:kind=full,branching=2')
  made = bench.make_runners(
    model, bench.dataclasses.replace(options, drafters=texts)
  )
  assert [runner.max_depth for runner in made[1:]] == [2, 2, 2]
  assert [runner.size for runner in made[1:]] == [16, 3, 7]


@pytest.mark.slow
def test_task_on_two_folders_is_two_tasks(model, tmp_path):
  for name, text in (('one', 'ab'), ('two', 'cdef')):
    (tmp_path / name).mkdir()
    # A benchmark needs no completions.
    row = json.dumps({'prompt': text})
    (tmp_path / name / 'test.jsonl').write_text(row + '\n')
  tasks = tuple(f'jsonl/test@{tmp_path / name}' for name in ('one', 'two'))
  options = bench.Options(
    drafters=('prompt_lookup',), tasks=tasks, max_new_tokens=4
  )
  runs = run(model, options, tmp_path / 'out')
  assert [r.task for r in runs] == ['jsonl/test@one', 'jsonl/test@two']
  assert [r.samples[0]['prompt'] for r in runs] == ['ab', 'cdef']
  assert runs[0].quality['speculative'] == {}
  with pytest.raises(ValueError, match='is asked for twice'):
    run(
      model,
      bench.dataclasses.replace(options, tasks=tasks[:1] * 2),
      tmp_path / 'again',
    )


def test_answers_of_like_and_long_labels_have_their_own_files(
  model, options, tmp_path
):
  labels = ('a b', 'a_b', 'x' * 300)
  drafters = tuple(f'{label}=prompt_lookup' for label in labels)
  changed = bench.dataclasses.replace(options, drafters=drafters)
  run(model, changed, tmp_path / 'out')
  assert len(os.listdir(tmp_path / 'out' / 'answers')) == 4


def test_what_is_there_is_not_lost_by_accident(model, options, tmp_path):
  out = tmp_path / 'out'
  run(model, options, out)
  before = (out / 'journal.jsonl').read_text()
  with pytest.raises(ValueError, match=r'holds 8 measurements; add --resume'):
    run(model, options, out)
  assert (out / 'journal.jsonl').read_text() == before
  run(model, bench.dataclasses.replace(options, overwrite=True), out)


@pytest.mark.parametrize('where', ['layers', 'adapter'])
def test_resume_with_other_weights_is_refused(model, options, tmp_path, where):
  run(model, options, tmp_path)
  triple = lambda tree: jax.tree.map(lambda leaf: 3 * leaf, tree)
  changes = {'adapter': triple(model.adapter)}
  if where == 'layers':
    changes = {'base': {**model.base, 'layers': triple(model.base['layers'])}}
  other = bench.dataclasses.replace(model, **changes)
  resumed = bench.dataclasses.replace(options, resume=True)
  with pytest.raises(ValueError, match='written with other settings: weights'):
    run(other, resumed, tmp_path)


def test_every_entry_of_a_drafters_tables_is_in_its_fingerprint():
  ids = np.arange(1000, 100_000)
  other = ids.copy()
  other[77_777] += 1  # no sample, and bfloat16 would not tell
  found = {runners._fingerprint({'ids': x}) for x in (ids, other, ids + 0)}
  assert len(found) == 2


def test_drafter_setting_makes_a_row_synthetic(model, options, tmp_path):
  drafters = (
    'streams:kind=chain,depth=2,synthetic_acceptance=0.5',
    'lookahead',
  )
  changed = bench.dataclasses.replace(options, drafters=drafters)
  found = run(model, changed, tmp_path / 'out')
  assert [r.output for r in found] == ['synthetic', 'lossless']
  assert '(synthetic)' in (tmp_path / 'out' / 'report.html').read_text()
  marks = {
    path.name.partition('-b1-')[2][:5]: json.loads(
      path.read_text().splitlines()[0]
    ).get('output')
    for path in (tmp_path / 'out' / 'answers').iterdir()
  }
  assert marks == {'none.': None, 'strea': 'synthetic', 'looka': None}
  assert 'synthetic' in table.format_table(found)


def test_draft_model_of_the_external_row_is_a_draft_model(monkeypatch):
  folders = []
  monkeypatch.setattr(external, 'load_folder', folders.append)
  decode = bench.config.DecodeConfig()
  rivals = ['m=medusa:path=M', 'd=draft_model:path=D']
  bench._external(None, 'hf_assisted', decode, rivals)
  assert folders == ['D']
  with pytest.raises(ValueError, match='hf_assisted needs a draft model'):
    bench._external(None, 'hf_assisted', decode, rivals[:1])


def test_malformed_question_names_file_and_line(tmp_path):
  (tmp_path / 'question.jsonl').write_text('{"question_id": 1}\n')
  with pytest.raises(ValueError, match=r'question.jsonl:1 has no category'):
    questions.load('spec_bench', '', str(tmp_path))


def test_later_turns_carry_the_conversation():
  messages = chat.conversation(('hi', 'why'), ('hello',))
  text = chat.render(tiny_runtime.TEMPLATE, messages)
  assert text == '<user>hi<assistant>hello<user>why<assistant>'
  with pytest.raises(ValueError, match='no chat template'):
    chat.render(None, messages)
  with pytest.raises(ValueError, match='chat template: no system'):
    chat.render("{{ raise_exception('no system') }}", messages)


def test_baseline_alone_gives_one_row_for_its_metric(model, options, tmp_path):
  changed = bench.dataclasses.replace(options, drafters=('none',))
  (result,) = run(model, changed, tmp_path / 'out')
  assert (result.drafter, result.call_reduction_ratio) == ('none', 1.0)
  assert result.equal_fraction == 1.0 and result.extra_parameters == 0
  table = (tmp_path / 'out' / 'table.md').read_text()
  assert table.count('| `none` | 1.00 | 1.00 | 1.00 | 1.00 |') == 1


@pytest.mark.slow
def test_tokens_per_call_are_grouped_by_prompt_length(model, options, tmp_path):
  with open(tmp_path / 'question.jsonl', 'a') as file:
    row = {'question_id': 10, 'category': 'math', 'turns': ['b ' * 80]}
    file.write(json.dumps(row) + '\n')
  changed = bench.dataclasses.replace(options, max_prompt_tokens=200)
  (result,) = run(model, changed, tmp_path / 'out')
  assert list(result.by_prompt_length) == ['128', '256']
  rates = list(result.by_prompt_length.values())
  assert min(rates) <= result.tokens_per_call_micro <= max(rates)


def test_first_whole_pass_counts_when_stopped_in_the_second(
  model, options, tmp_path, monkeypatch
):
  out, add, seen = tmp_path / 'out', journal_lib.Journal.add, []

  def add_then_stop(self, key, values):
    add(self, key, values)
    seen.append(key)
    if len(seen) == 9:  # 8 make the first pass of the first turn and more
      raise KeyboardInterrupt

  monkeypatch.setattr(journal_lib.Journal, 'add', add_then_stop)
  changed = bench.dataclasses.replace(options, repeats=3)
  with pytest.raises(KeyboardInterrupt):
    run(model, changed, out)
  with open(out / 'results.json') as file:
    (found,) = json.load(file)['runs']
  assert found['repeats'] == 1 and found['num_prompts'] == 3
  table_text = (out / 'table.md').read_text()
  assert '- `none`: compiled in' in table_text


def test_transformers_rows_decode_the_same(model):
  pytest.importorskip('torch')
  pytest.importorskip('transformers')
  target = external.load_target(model, 1)
  decode = bench.config.DecodeConfig(max_new_tokens=9, eos_ids=model.eos_ids)
  prompt = model.encode_prompt('abcabcabc')
  decoder = model.decoder('none', decode)
  plain = decoder.generate(model.params('none'), [prompt])
  for name in ('hf', 'hf_prompt_lookup'):
    runner = external.TransformersRunner(target, name, decode)
    result = runner.generate([prompt], [0], bucket=64, temperature=0, seed=0)
    assert result.tokens == plain.tokens
    assert 0 < result.calls[0] <= plain.calls[0]
    assert (result.calls[0] == plain.calls[0]) or name != 'hf'
  with pytest.raises(ValueError, match='decodes one row at a time'):
    runner.generate([prompt] * 2, [0, 1], bucket=64, temperature=0, seed=0)
