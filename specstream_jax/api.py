# SPDX-License-Identifier: Apache-2.0
"""The Python interface: `import specstream_jax as ss`.

model = ss.load('smollm2-135m-instruct', adapter='e2e_nlg')
for row in ss.generate(model, prompts):
  print(row.text, row.tokens_per_call)
"""

from specstream_jax.config import (
  SamplingConfig,
  StreamConfig,
  TreeConfig,
)
from specstream_jax.runtime import Model, load
from specstream_jax.workflows import (
  evaluate as _evaluate,
  generate as _generate,
)
from specstream_jax.workflows.train import Execution, Recipe, Trained, train

__all__ = [
  'Execution',
  'Model',
  'Recipe',
  'SamplingConfig',
  'StreamConfig',
  'Trained',
  'TreeConfig',
  'evaluate',
  'generate',
  'load',
  'stream',
  'stream_text',
  'train',
]


def generate(model, prompts, **options):
  """Completes prompts; `options` are the fields of workflows.generate.Options.

  Returns:
    A list of `Generation` (text, tokens, calls, accept_lengths,
    finish_reason), one per prompt. A text ends before EOS, or with the first
    of the `stop` texts to be whole; it is None for a model without tokenizer.
  """
  return _generate.generate(model, prompts, _generate.Options(**options))


def stream(model, prompts, **options):
  """Yields (row, newly accepted token ids); options as for `generate`."""
  return _generate.stream(model, prompts, _generate.Options(**options))


def stream_text(model, prompts, **options):
  """Yields (row, new text), never half a character; options as for `generate`.

  A row's texts together are the text that `generate` gives.
  """
  return _generate.stream_text(model, prompts, _generate.Options(**options))


def evaluate(model, progress=True, folder=None, **options):
  """Compares both ways of decoding on a task.

  `options` are the fields of workflows.evaluate.Options. A stopped run goes on
  from its `folder`, where shards meet. Returns a RunResult, or None while other
  shards owe batches.
  """
  return _evaluate.evaluate(
    model, _evaluate.Options(**options), folder=folder, progress=progress
  )
