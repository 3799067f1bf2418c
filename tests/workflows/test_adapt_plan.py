# SPDX-License-Identifier: Apache-2.0
"""Settings, steps and time of an adaptation, by hand."""

import dataclasses
import json
import types

import byte_model
import gin
import numpy as np
import pytest

from specstream_jax import config
from specstream_jax.checkpoints import adapters, draft_vocabulary
from specstream_jax.data import chat_rows, records, vocabulary
from specstream_jax.workflows import adapt_own, adapt_plan, adapt_tune, distill

SIZES = byte_model.model_config(num_layers=6, max_position_embeddings=1000)
LENGTHS = adapt_plan.Lengths(300, 50.0, 130, 20)


def recipe(mode='fine_tuned', steps=100, **sizes):
  return adapt_plan.recipe(
    dataclasses.replace(SIZES, **sizes), mode, LENGTHS, num_steps=steps
  )


def test_streams_take_half_of_the_layers():
  for mode, scale in (('fine_tuned', 2.0), ('lossless', 16.0)):
    made = recipe(mode)
    assert made.stream.mode == mode and made.stream.num_msa_layers == 3
    assert made.lora.scale == scale
    assert made.tree.depth == made.stream.num_streams == 4
  assert recipe(num_layers=1).stream.num_msa_layers == 1


def test_rows_hold_the_longest_example_and_the_model_bounds_them():
  assert recipe().data.sequence_length == 256
  assert recipe().train.batch_size == 1
  long = dataclasses.replace(LENGTHS, longest=300)
  made = adapt_plan.recipe(SIZES, 'lossless', long, num_steps=9)
  assert made.data.sequence_length == 320
  assert adapt_plan.longest_example(SIZES) == 512
  short = dataclasses.replace(SIZES, max_position_embeddings=100)
  assert adapt_plan.longest_example(short) == 100


def test_what_gin_sets_comes_first():
  gin.parse_config('LoraConfig.rank = 3\nTrainConfig.num_steps = 7')
  made = recipe()
  gin.clear_config()
  assert (made.lora.rank, made.lora.alpha) == (3, 32.0)
  assert made.train.num_steps == 7


def test_steps_go_through_the_rows_as_the_time_allows():
  # Six times 15,000 tokens, 256 a step.
  assert adapt_plan.wanted_steps(recipe(), LENGTHS) == 351
  assert adapt_plan.wanted_steps(recipe('lossless'), LENGTHS) == 878
  assert adapt_plan.steps_in(60, 0.5, 351) == 120
  assert adapt_plan.steps_in(600, 0.5, 351) == 351
  assert adapt_plan.steps_in(1, 0.5, 351) == 20


def test_lengths_of_rows_are_those_of_their_records(tmp_path):
  vocab = vocabulary.Vocabulary(byte_model.byte_tokenizer(), 0)
  turns = [chat_rows.Turn('ab', 'cde'), chat_rows.Turn('abcd', None)]
  found = adapt_plan.of_turns(turns, vocab, longest=10, own_tokens=7)
  # 2 + 3 + EOS, and 4 + 7, cut at 10.
  assert found == adapt_plan.Lengths(2, 8, 10, 4)
  byte_model.write_records(tmp_path / 'records', [('ab', 'cde')] * 3)
  manifest = records.read_manifest(str(tmp_path / 'records'))
  found = adapt_plan.of_manifest(manifest)
  assert found == adapt_plan.Lengths(3, 6.0, 6, 4) and found.num_tokens == 18


def test_what_does_not_fit_is_computed_again(monkeypatch):
  needed = {'none': 900, 'minimal': 500}
  monkeypatch.setattr(
    adapt_plan.dry_run,
    'memory_bytes',
    lambda base, made, *, dtype, remat: needed[remat],
  )
  free = [2000]
  monkeypatch.setattr(adapt_plan.memory, 'available', lambda _: free[0])
  choose = lambda: adapt_plan.remat('m', recipe(), 'float32')
  assert choose() == 'none'
  free[0] = 1000
  assert choose() == 'minimal'
  free[0] = 600
  assert choose() == 'full'
  free[0] = None
  assert choose() == 'none'


def adapter(folder, num_tokens=40, vocab_size=400):
  """A model with an adapter's folder and vocabulary, as far as it is asked."""
  path = folder / draft_vocabulary.FILE
  path.write_text(json.dumps({'ids': list(range(num_tokens))}))
  return types.SimpleNamespace(
    adapter_dir=str(folder),
    tree=config.TreeConfig(branching=32),
    config=types.SimpleNamespace(vocab_size=vocab_size),
  )


def test_a_vocabulary_is_tried_where_it_is_much_smaller(tmp_path):
  plain = [f'streams:num_nodes={n}' for n in (4, 8, 16)]
  small = [f'{one},vocabulary=adapter' for one in plain]
  find = lambda **sizes: adapt_tune.candidates(adapter(tmp_path, **sizes))
  assert find() == [*small, plain[1]]
  assert find(num_tokens=101) == plain  # more than a quarter
  assert find(num_tokens=31) == plain  # fewer than a tree has candidates


def test_the_tree_that_was_chosen_stays_with_the_adapter(tmp_path):
  stream = config.StreamConfig(num_streams=4, pruning_rank=0)
  cfg = adapters.AdapterConfig(
    *('base', 'a', 'b'),
    stream=stream,
    lora=config.LoraConfig(rank=0),
    tree=config.TreeConfig(num_nodes=8, branching=5),
  )
  flat = {'streams/embedding': np.ones((4, 6), np.float32)}
  adapters.save_adapter(tmp_path / 'a', flat, cfg)
  adapt_tune.keep_tree(
    str(tmp_path / 'a'), 'streams:num_nodes=4,vocabulary=adapter'
  )
  found, kept = adapters.load_adapter(tmp_path / 'a')
  assert kept.tree == config.TreeConfig(num_nodes=4, branching=5)
  np.testing.assert_array_equal(found['streams/embedding'], 1)


class Answers:
  """Stands in for `distill`: remembers prompts, takes a second for each."""

  def __init__(self, patch):
    self.asked, self.now = [], 0.0
    patch.setattr(distill, 'distill', self)
    patch.setattr(adapt_own.time, 'perf_counter', lambda: self.now)

  def __call__(self, model, prompts, folder, options, *, split='x', **rest):
    self.asked.append((split, len(prompts)))
    self.now += len(prompts)
    return types.SimpleNamespace(num_rows=len(prompts))


@pytest.mark.parametrize(('count', 'kept'), [(40, 40), (500, 60)])
def test_so_many_prompts_are_answered_as_there_is_time(
  tmp_path, monkeypatch, count, kept
):
  answers = Answers(monkeypatch)
  model = types.SimpleNamespace(config=SIZES)
  turns = {
    'train': [chat_rows.Turn(f'{i}', None) for i in range(count)] * 2,
    'dev': [chat_rows.Turn(f'dev {i}', None) for i in range(30)],
  }
  for _ in range(2):  # the plan stays for a run that goes on
    found = adapt_own.answer(
      model,
      turns,
      str(tmp_path),
      seconds=60.0,
      max_new_tokens=9,
      progress=False,
    )
    assert found == adapt_own.Answered(kept, count)
  measured = [('x', 8), ('x', 8)] if count > 48 else []
  both = [('train', kept), ('dev', 8)]
  assert answers.asked == [*measured, *both, *both]
