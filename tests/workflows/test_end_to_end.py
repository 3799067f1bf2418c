# SPDX-License-Identifier: Apache-2.0
"""Prepare, train, checkpoint, load, generate, evaluate: one path, tiny model."""

import dataclasses
import json
import os
import pathlib

import byte_model
import numpy as np
import pytest
import tiny

import specstream_jax as ss
from specstream_jax import config, runtime
from specstream_jax.bench import results
from specstream_jax.checkpoints import (
  adapters as ss_adapters,
  huggingface,
  shipped,
)
from specstream_jax.cli import main as cli
from specstream_jax.data import records
from specstream_jax.modeling import params
from specstream_jax.workflows import train as train_workflow

ROWS = [
  ('colour of sky', ' the sky is blue and the sky is wide'),
  ('hi', ' hello'),
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with model/, records/, task/ and a trained run/."""
  root = tmp_path_factory.mktemp('end_to_end')
  cfg = byte_model.model_config(
    hidden_size=32,
    intermediate_size=48,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
  )
  byte_model.write_model(root / 'model', cfg)
  byte_model.write_records(root / 'records', ROWS * 8)
  os.makedirs(root / 'task')
  with open(root / 'task' / 'test.jsonl', 'w') as file:
    for prompt, completion in ROWS:
      file.write(
        json.dumps({'prompt': prompt, 'completion': completion}) + '\n'
      )
  trained = train_workflow.train(
    str(root / 'model'),
    str(root / 'records'),
    str(root / 'run'),
    eval_data_dir=str(root / 'records'),
    recipe=recipe(),
    progress=False,
  )
  assert trained.step == recipe().train.num_steps and not trained.interrupted
  return root


def recipe():
  return ss.Recipe(
    stream=config.StreamConfig(num_streams=3, num_msa_layers=2, pruning_rank=2),
    lora=config.LoraConfig(rank=4, alpha=8.0),
    objective=config.ObjectiveConfig(anchors_per_sequence=48, chunk_size=128),
    optimizer=config.OptimizerConfig(
      learning_rate=0.02, embedding_learning_rate=0.02, warmup_steps=5
    ),
    train=config.TrainConfig(
      num_steps=60,
      batch_size=2,
      log_every=20,
      eval_every=30,
      eval_batches=1,
      save_every=30,
    ),
    data=config.DataConfig(sequence_length=96, eval_batch_size=4),
    tree=config.TreeConfig(depth=3, branching=2, num_nodes=6),
  )


@pytest.fixture(scope='module')
def model(folder):
  return ss.load(str(folder / 'model'), str(folder / 'run' / 'adapter'))


def test_training_writes_what_it_promises(folder):
  run = folder / 'run'
  for name in (
    'metrics.jsonl',
    'curves.svg',
    'recipe.json',
    'operative_config.gin',
  ):
    assert (run / name).stat().st_size > 0 or name.endswith('.gin'), name
  text = (run / 'metrics.jsonl').read_text()
  lines = [json.loads(line) for line in text.splitlines()]
  train = [line for line in lines if line['split'] == 'train']
  assert train[-1]['loss/main'] < 0.5 * train[0]['loss/main']
  assert train[-1]['top1/stream_1'] > train[0]['top1/stream_1']
  assert {'tokens_per_call', 'top4/stream_3'} <= set(
    [line for line in lines if line['split'] == 'eval'][-1]
  )


def test_training_again_resumes_at_the_end_and_changes_nothing(folder):
  before = (folder / 'run' / 'adapter' / 'adapter.safetensors').read_bytes()
  train_workflow.train(
    str(folder / 'model'),
    str(folder / 'records'),
    str(folder / 'run'),
    recipe=recipe(),
    progress=False,
  )
  after = (folder / 'run' / 'adapter' / 'adapter.safetensors').read_bytes()
  assert before == after


def test_records_of_another_tokenizer_are_refused(folder, tmp_path):
  metadata = {'task': 'x', 'tokenizer_sha256': '0' * 64, 'eos_id': 0}
  one = (np.array([1], np.int32), np.array([2, 0], np.int32))
  records.write([one], str(tmp_path / 'other'), metadata=metadata)
  with pytest.raises(ValueError, match='tokenizer'):
    train_workflow.train(
      str(folder / 'model'),
      str(tmp_path / 'other'),
      str(tmp_path / 'run'),
      recipe=recipe(),
      progress=False,
    )


def test_generate_gives_the_same_text_with_fewer_calls(model):
  prompts = [prompt for prompt, _ in ROWS]
  fast = ss.generate(model, prompts, max_new_tokens=40)
  plain = ss.generate(model, prompts, max_new_tokens=40, drafter='none')
  assert [row.tokens for row in fast] == [row.tokens for row in plain]
  assert sum(r.calls for r in fast) < 0.8 * sum(r.calls for r in plain)
  assert fast[0].tokens_per_call > 1.2
  assert plain[0].tokens_per_call == 1
  assert len(fast[0].tokens) == 1 + fast[0].calls + sum(fast[0].accept_lengths)


def test_stream_yields_the_runs_of_generate(model):
  prompt = ROWS[0][0]
  runs = [new for _, new in ss.stream(model, [prompt], max_new_tokens=40)]
  whole = ss.generate(model, [prompt], max_new_tokens=40)[0]
  assert [token for run in runs for token in run] == whole.tokens
  assert [len(run) - 1 for run in runs[1:]] == whole.accept_lengths


def test_evaluate_writes_results_and_report(folder, model, tmp_path):
  run = ss.evaluate(
    model,
    task='jsonl',
    data_dir=str(folder / 'task'),
    max_new_tokens=40,
    batch=2,
    repeats=1,
    progress=False,
  )
  assert run.equal_fraction == 1.0
  assert run.call_reduction_ratio > 1.2
  assert run.quality['speculative'] == run.quality['autoregressive']
  assert run.num_prompts == 2 and run.calls > 0
  assert sum(run.accept_length_histogram) == run.calls
  np.testing.assert_allclose(
    run.tokens_per_call_micro,
    1 + sum(run.per_depth_acceptance),
    rtol=1e-6,
  )
  from specstream_jax.workflows import evaluate

  page = evaluate.write(
    str(tmp_path), [run], command='test', source=model.source
  )
  assert 'tokens per call' in pathlib.Path(page).read_text().lower()
  assert results.read(str(tmp_path / 'results.json')).runs[0].calls == run.calls


def test_deeper_tree_than_streams_is_refused(model):
  with pytest.raises(ValueError, match='depth 4 but the adapter has 3'):
    ss.generate(model, ['hi'], tree=config.TreeConfig(depth=4))


def test_empty_prompt_is_refused(model):
  with pytest.raises(ValueError, match='prompt 0 is empty'):
    ss.generate(model, [''])


def test_one_text_instead_of_a_list_is_refused(model):
  with pytest.raises(ValueError, match='pass a list of texts'):
    ss.generate(model, 'hi')


def test_streams_without_an_adapter_are_refused(folder):
  bare = ss.load(str(folder / 'model'))
  assert ss.generate(bare, ['hi'], max_new_tokens=3)[0].calls == 2
  with pytest.raises(ValueError, match='no adapter is loaded'):
    ss.generate(bare, ['hi'], drafter='streams')


def test_adapter_of_another_base_is_refused(folder, tmp_path):
  loaded = tiny.model(tiny.CONFIG, None, None)[1]
  huggingface.export(
    tmp_path / 'other',
    tiny.CONFIG,
    {k: np.asarray(v) for k, v in params.flatten(loaded).items()},
  )
  with pytest.raises(ValueError, match='base'):
    runtime.load(str(tmp_path / 'other'), str(folder / 'run' / 'adapter'))


def test_unknown_adapter_lists_those_that_ship():
  with pytest.raises(ValueError, match='neither a folder nor one that ships'):
    shipped.adapter_folder('no_such_adapter')


def test_dry_run_counts_parameters(folder):
  from specstream_jax.workflows import dry_run

  text = dry_run.describe(
    str(folder / 'model'), recipe(), dtype='float32', remat='none'
  )
  # gamma h + 2 r h of the streams: 3 * 32 + 2 * 2 * 32.
  assert f'{3 * 32 + 2 * 2 * 32:,} streams and pruning' in text
  assert 'total' in text and 'MB' in text


def run_cli(*args):
  """Exit status of the program in a fresh interpreter, and its output."""
  import subprocess
  import sys

  done = subprocess.run(
    [sys.executable, '-m', 'specstream_jax.cli.main', *args],
    capture_output=True,
    text=True,
    check=False,
  )
  return done.returncode, done.stdout + done.stderr


def test_training_goes_on_from_an_adapter_with_a_part_of_it(folder, tmp_path):
  before, saved = ss_adapters.load_adapter(folder / 'run' / 'adapter')
  short = dataclasses.replace(
    recipe(),
    # Settings of the adapter win, but for the coupling.
    stream=config.StreamConfig(
      num_streams=3, num_msa_layers=1, coupling_rank=2
    ),
    optimizer=config.OptimizerConfig(trainable='coupling/', warmup_steps=0),
    train=config.TrainConfig(num_steps=3, batch_size=2, eval_every=3),
  )
  run = lambda recipe, name: train_workflow.train(
    str(folder / 'model'),
    str(folder / 'records'),
    str(tmp_path / name),
    init_adapter=str(folder / 'run' / 'adapter'),
    recipe=recipe,
    export='last',
    progress=False,
  )
  after, cfg = ss_adapters.load_adapter(run(short, 'out').adapter_dir)
  new = {'coupling/down', 'coupling/up'}
  assert set(after) == set(before) | new
  for path, value in before.items():
    np.testing.assert_array_equal(after[path], value)
  assert after['coupling/up'].any()
  assert cfg.stream == dataclasses.replace(saved.stream, coupling_rank=2)
  assert cfg.lora == saved.lora
  assert cfg.provenance['init_adapter']['name'] == 'adapter'
  assert cfg.provenance['init_adapter']['provenance']['step'] > 0
  typo = dataclasses.replace(
    short, optimizer=config.OptimizerConfig(trainable='cuopling/')
  )
  with pytest.raises(ValueError, match="'cuopling/', which matches no adapter"):
    run(typo, 'typo')


def test_cli_generates_and_reports_mistakes_in_one_line(folder):
  flags = (f'--model={folder}/model', f'--adapter={folder}/run/adapter')
  wishes = folder / 'model' / 'generation_config.json'
  wishes.write_text('{"do_sample": true, "temperature": 0.4, "num_beams": 2}')
  status, text = run_cli(
    'generate',
    *flags,
    '--prompt=hi',
    '--max_new_tokens=12',
    '--depth=3',
    '--top_k=5',
    '--gin.SamplingConfig.repetition_penalty=1.1',
    '--gin.ObjectiveConfig.chunk_size=3',
  )
  wishes.unlink()
  assert status == 0 and 'tokens per call' in text
  assert 'took temperature=0.4; left out num_beams=2 (not supported)' in text
  assert 'does not read SamplingConfig' not in text
  assert 'does not read ObjectiveConfig.chunk_size' in text
  status, text = run_cli('generate', *flags, '--prompt=hi', '--depth=9')
  assert status == 1 and 'draft tree has depth 9' in text
  assert 'Traceback' not in text
  status, text = run_cli(
    'generate',
    *flags,
    '--prompt=hi',
    '--gin.TreeConfig.depth=9',
  )
  assert status == 1 and 'draft tree has depth 9' in text
  status, text = run_cli('evaluate', *flags, '--task=nonsense')
  assert status == 1 and "task 'nonsense' is not known" in text
  status, text = run_cli(
    'train', '--dry_run', '--data_dir=a=1,b=0', '--output_dir=out'
  )
  assert status == 1 and "'b=0' has no rate above 0" in text


def test_cli_lists_commands_and_refuses_unknown_ones():
  status, text = run_cli('--help')
  assert status == 0 and all(name in text for name in cli.COMMANDS)
  status, text = run_cli('fly')
  assert status == 2 and "unknown command 'fly'" in text
  status, text = run_cli('adpt')
  assert status == 2 and text.strip().endswith("did you mean 'adapt'?")
  status, text = run_cli('--version')
  assert status == 0 and text.strip() == f'specstream_jax {ss.__version__}'


def test_gin_bindings_and_unknown_names():
  rest, bindings = cli.split_gin(
    ['--x=1', '--gin.StreamConfig.num_streams=3', '--gin.TreeConfig.kind=full']
  )
  assert rest == ['--x=1']
  assert bindings == [
    'StreamConfig.num_streams = 3',
    "TreeConfig.kind = 'full'",
  ]
  texts = ('coupling/', "('q', 'v')", '1e-3', '%macro', "'quoted'", 'None')
  _, bindings = cli.split_gin([f'--gin.X.y={text}' for text in texts])
  values = [binding.removeprefix('X.y = ') for binding in bindings]
  assert values == ["'coupling/'", *texts[1:]]
  with pytest.raises(ValueError, match='NoSuchConfig'):
    cli.parse_gin([], ['NoSuchConfig.x = 1'])
  with pytest.raises(ValueError, match='has no value'):
    cli.split_gin(['--gin.TreeConfig.kind'])
  with pytest.raises(ValueError, match=r'no_such\.gin'):
    cli.parse_gin(['no_such.gin'], [])
