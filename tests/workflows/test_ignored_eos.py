# SPDX-License-Identifier: Apache-2.0
"""Where EOS does not end a text, no command cuts the text there."""

import dataclasses
import json

import pytest
import tiny_runtime

from specstream_jax import config
from specstream_jax.data import registry
from specstream_jax.workflows import bench, evaluate, generate, prompts

DEAF = config.SamplingConfig(ignore_eos=True)
NUM_TOKENS = 6


def answer(model, prompt):
  options = generate.Options(
    NUM_TOKENS, 'none', sampling=DEAF, generation_config='none'
  )
  (row,) = generate.generate(model, [prompt], options)
  assert set(model.eos_ids) & set(row.tokens)
  return row.text


@pytest.fixture(scope='module')
def model():
  """A model that writes nothing but its EOS."""
  made = tiny_runtime.model()
  options = generate.Options(NUM_TOKENS, 'none')
  (row,) = generate.generate(made, ['hi'], options)
  return dataclasses.replace(made, eos_ids=(*range(1, 257), *row.tokens))


def test_texts_of_an_evaluation(model):
  options = evaluate.Options(
    num_prompts=2, max_new_tokens=NUM_TOKENS, sampling=DEAF, repeats=1
  )
  run = evaluate.evaluate(model, options, progress=False)
  examples = registry.get('e2e_sample').load_split('test', None)[:2]
  want = [answer(model, example.inputs).strip() for example in examples]
  assert [sample['text'] for sample in run.samples] == want
  assert all(want)


def test_texts_of_a_benchmark_and_what_later_turns_are_told(model, tmp_path):
  question = {'question_id': 7, 'category': 'math', 'turns': ['hi', 'and you']}
  (tmp_path / 'question.jsonl').write_text(json.dumps(question) + '\n')
  options = bench.Options(
    drafters=(),
    tasks=(f'spec_bench@{tmp_path}',),
    max_new_tokens=NUM_TOKENS,
    sampling=DEAF,
  )
  out = tmp_path / 'out'
  (run,) = bench.bench(model, options, str(out), command='', progress=False)
  (path,) = (out / 'answers').iterdir()
  said = json.loads(path.read_text())['choices'][0]['turns']
  turns = [{'role': 'user', 'content': 'hi'}]
  first = answer(model, prompts.Chat(turns))
  turns += [{'role': 'assistant', 'content': first}]
  turns += [{'role': 'user', 'content': 'and you'}]
  assert said == [first, answer(model, prompts.Chat(turns))]
  assert [sample['text'] for sample in run.samples] == [t.strip() for t in said]
