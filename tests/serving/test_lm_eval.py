# SPDX-License-Identifier: Apache-2.0
"""lm-eval through the server gets our own numbers."""

import json
import pathlib
import shutil

import pytest
import served_address
import serving_models

lm_eval = pytest.importorskip(
  'lm_eval', reason="pip install 'specstream-jax[serve-test]'"
)
TASKS = pathlib.Path(__file__).parent / 'lm_eval_tasks'
pytestmark = pytest.mark.slow


@pytest.fixture(name='evaluate')
def _evaluate(tmp_path, monkeypatch):
  """A function that runs a task of lm_eval_tasks; its samples."""
  from lm_eval import tasks

  monkeypatch.setenv('HF_HOME', str(tmp_path / 'cache'))
  monkeypatch.setenv('HF_DATASETS_OFFLINE', '1')
  monkeypatch.setenv('OPENAI_API_KEY', 'none')
  folder = shutil.copytree(TASKS, tmp_path / 'tasks')
  for path in folder.glob('*.yaml'):
    rows = str(folder / 'rows.jsonl')
    path.write_text(path.read_text().replace('rows.jsonl', rows))
  manager = tasks.TaskManager(include_path=str(folder), include_defaults=False)

  def run(model, task, **options):
    found = lm_eval.simple_evaluate(
      model=model, tasks=[task], task_manager=manager, **options
    )
    return found['samples'][task]

  engine = serving_models.engine(max_waiting=32)
  engine.model = serving_models.with_template(engine.model)
  with served_address.served(engine) as address:
    yield f'{address}/v1', run


ROWS = [json.loads(line) for line in (TASKS / 'rows.jsonl').open()]


def _own(question, end):
  """Log-likelihood of the end of a text, and whether it is the likeliest."""
  model = serving_models.base()
  before, whole = model.encode(question), model.encode(question + end)
  logprobs = serving_models.forward('tuned')(whole)
  places = range(len(before) - 1, len(whole) - 1)
  ids = whole[len(before) :]
  best = logprobs[list(places)].argmax(-1).tolist() == ids
  return float(logprobs[list(places), ids].sum()), best


def test_likelihoods_are_our_own(evaluate):
  address, run = evaluate
  samples = run(
    'local-completions',
    'specstream_likely',
    model_args={
      'model': 'tuned',
      'base_url': f'{address}/completions',
      'max_length': 50,
      'batch_size': 3,
    },
  )
  assert len(samples) == len(ROWS)
  for row, sample in zip(ROWS, samples):
    found = [(float(n), bool(b)) for n, b in sample['filtered_resps']]
    for end, (number, is_best) in zip(row['choices'], found, strict=True):
      want, best = _own(row['question'], end)
      assert number == pytest.approx(want, abs=1e-4)
      assert is_best == best


def test_chats_run_through(evaluate):
  address, run = evaluate
  samples = run(
    'local-chat-completions',
    'specstream_said',
    model_args={
      'model': 'tuned',
      'base_url': f'{address}/chat/completions',
    },
    apply_chat_template=True,
  )
  model = serving_models.with_template(serving_models.alone(None))
  assert len(samples) == len(ROWS)
  for row, sample in zip(ROWS, samples):
    [[said]] = sample['resps']
    text = f'<user>{row["question"]}<assistant>'
    tokens = model.encode(text)
    for _ in range(8):
      last = serving_models.forward('tuned')([*tokens, 0])[-1]
      tokens.append(int(last.argmax()))
      if tokens[-1] == 0:
        break
    want = model.decode_text(tokens)[len(text) :]
    assert said == want
