# SPDX-License-Identifier: Apache-2.0
"""The model's own answers to the rows' prompts, as many as there is time for."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import os
import time

from specstream_jax import runtime
from specstream_jax.checkpoints import files
from specstream_jax.data import chat_rows
from specstream_jax.outputs import scratch, writing
from specstream_jax.workflows import distill

_PLAN = 'plan.json'
_BATCH = 8
# So few are answered without asking how long it takes.
_FEW = 48


@dataclasses.dataclass(frozen=True)
class Answered:
  """How many prompts got an answer, of how many."""

  num_rows: int
  num_prompts: int


def is_done(folder: str) -> bool:
  """Whether the answers are all there."""
  return os.path.isfile(os.path.join(folder, 'dev.provenance.json'))


def answer(
  model: runtime.Model,
  turns: Mapping[str, Sequence[chat_rows.Turn]],
  folder: str,
  *,
  seconds: float,
  max_new_tokens: int,
  progress: bool,
) -> Answered:
  """Answers the prompts of train and dev; goes on where it was stopped.

  Args:
    model: what answers.
    turns: by split.
    folder: gets train.jsonl and dev.jsonl.
    seconds: for all of it; so many prompts as fit are answered.
    max_new_tokens: of an answer.
    progress: show a progress bar.
  """
  options = distill.Options(
    max_new_tokens=max_new_tokens,
    max_prompt_tokens=_longest_prompt(model, max_new_tokens),
    batch_size=_BATCH,
  )
  prompts = {
    name: list(dict.fromkeys(turn.prompt for turn in turns[name]))
    for name in ('train', 'dev')
  }
  plan = os.path.join(folder, _PLAN)
  if not os.path.isfile(plan):
    rate = _seconds_per_prompt(model, prompts['train'], folder, options)
    count = max(int(seconds / rate), _FEW) if rate else len(prompts['train'])
    counts = {'train': count, 'dev': max(count // 8, _BATCH)}
    writing.write_text(plan, json.dumps(counts) + '\n')
  counts = files.read_json(plan)
  done = [
    distill.distill(
      model,
      prompts[name][: counts[name]],
      folder,
      options,
      split=name,
      progress=progress,
    )
    for name in ('train', 'dev')
  ]
  return Answered(done[0].num_rows, len(prompts['train']))


def _longest_prompt(model, max_new_tokens) -> int:
  most = model.config.most_positions or model.config.max_position_embeddings
  return max(min(1024, most - max_new_tokens), 1)


def _seconds_per_prompt(model, prompts, folder, options) -> float:
  """Measured on a few prompts of middling length; 0 if there are few anyway."""
  if len(prompts) <= _FEW:
    return 0.0
  middle = len(prompts) // 2
  some = sorted(prompts, key=len)[middle - _BATCH : middle + _BATCH]
  seconds = 0.0
  with scratch.folder(folder, 'measured-answers') as place:
    for number in range(2):  # the first one compiles
      part = some[number::2]
      started = time.perf_counter()
      own = os.path.join(place, str(number))
      try:
        distill.distill(model, part, own, options, progress=False)
      except ValueError:  # none of these few can be trained on
        return 0.0
      seconds = time.perf_counter() - started
  return seconds / _BATCH
