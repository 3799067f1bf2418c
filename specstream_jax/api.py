# SPDX-License-Identifier: Apache-2.0
"""The Python interface: `import specstream_jax as ss`.

model = ss.load('smollm2-135m-instruct', adapter='e2e_nlg')
for row in ss.generate(model, prompts):
  print(row.text, row.tokens_per_call)
"""

import dataclasses

from specstream_jax import config_checks as checks, runtime
from specstream_jax.config import (
  SamplingConfig,
  StreamConfig,
  TreeConfig,
)
from specstream_jax.config_drafting import DrafterConfig
from specstream_jax.runtime import Model
from specstream_jax.workflows import (
  evaluate as _evaluate,
  generate as _generate,
  train as _train,
)
from specstream_jax.workflows.train import Execution, Recipe, Trained

__all__ = [
  'DrafterConfig',
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

load = checks.names_options(runtime.load)
train = checks.names_options(_train.train)


def generate(model, prompts, **options):
  """Completes prompts; `options` are the fields of workflows.generate.Options.

  A prompt is a text, a list of token ids, or a chat: a list of messages
  {role, content}. With `chat=True` a text is what a user says in a chat.

  Returns:
    A list of `Generation` (text, tokens, calls, accept_lengths,
    finish_reason), one per prompt. A text ends before EOS, or with the first
    of the `stop` texts to be whole; it is None for a model without tokenizer.
  """
  _check_model(model)
  return _generate.generate(
    model, prompts, _options('generate', _generate.Options, options)
  )


def stream(model, prompts, **options):
  """Yields (row, newly accepted token ids); options as for `generate`."""
  _check_model(model)
  return _generate.stream(
    model, prompts, _options('stream', _generate.Options, options)
  )


def stream_text(model, prompts, **options):
  """Yields (row, new text), never half a character; options as for `generate`.

  A row's texts together are the text that `generate` gives.
  """
  _check_model(model)
  return _generate.stream_text(
    model, prompts, _options('stream_text', _generate.Options, options)
  )


def evaluate(model, progress=True, folder=None, **options):
  """Compares both ways of decoding on a task.

  `options` are the fields of workflows.evaluate.Options. A stopped run goes on
  from its `folder`, where shards meet. Returns a RunResult, or None while other
  shards owe batches.
  """
  _check_model(model)
  return _evaluate.evaluate(
    model,
    _options('evaluate', _evaluate.Options, options),
    folder=folder,
    progress=progress,
  )


def _check_model(model):
  """Raises ValueError unless it is a loaded model."""
  checks.check(
    isinstance(model, Model),
    f'the model is {model!r:.80}; load one first: ss.load(…)',
  )


def _options(name, cls, given):
  """The options given, each a field of `cls`.

  Raises:
    ValueError: one is not; says which it may be, or which config it is in.
  """
  for config, holder in ((SamplingConfig, 'sampling'), (TreeConfig, 'tree')):
    fields = {field.name for field in dataclasses.fields(config)}
    for option in fields & set(given):
      raise ValueError(
        f'{name} has no option {option!r}; it is a field of {config.__name__}: '
        f'pass {holder}=ss.{config.__name__}({option}={given[option]!r})'
      )
  checks.known(name, given, [field.name for field in dataclasses.fields(cls)])
  return cls(**given)
