# SPDX-License-Identifier: Apache-2.0
"""What a call with drafts costs here, in calls without: measured once.

Streams of random weights cost what trained ones do. Tokens per call divided by
the step cost is the speed-up that training may show before there is one.
"""

import dataclasses

from specstream_jax import config, runtime
from specstream_jax.workflows import train as train_workflow

_NEW_TOKENS = 24
_PASSES = 5
_PROMPT = 16


def step_cost(
  base: str, made: train_workflow.Recipe, *, dtype: str, schedule: str
) -> float:
  """Time of a call with drafts / time of a call without.

  The shortest of a few passes of each, as other work on the machine only ever
  adds.

  Args:
    base: model.
    made: settings, of which streams and tree count.
    dtype: of weights and activations.
    schedule: of the streams.
  """
  model = runtime.with_random_streams(
    runtime.load(base, None, dtype=dtype), made.stream
  )
  model = dataclasses.replace(model, tree=made.tree)
  decode = config.DecodeConfig(max_new_tokens=_NEW_TOKENS, schedule=schedule)
  sides = [model.decoder(name, decode) for name in ('none', 'streams')]
  seconds: list[list[float]] = [[], []]
  prompt = [1 % model.config.vocab_size] * _PROMPT
  for _ in range(1 + _PASSES):
    for side, found in zip(sides, seconds):
      done = side.generate(side.params, [prompt])
      found.append(done.decode_seconds / int(done.calls.sum()))
  # The first pass compiles.
  plain, drafted = (min(found[1:]) for found in seconds)
  return drafted / plain
