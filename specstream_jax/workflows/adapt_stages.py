# SPDX-License-Identifier: Apache-2.0
"""The stages of an adaptation, each done once its output is whole.

A stage returns the signal that stopped it, or 0.
"""

import json
import os
from typing import Any

from specstream_jax import memory, runtime
from specstream_jax.checkpoints import adapters, files
from specstream_jax.data import prepare_pairs, records, registry
from specstream_jax.outputs import writing
from specstream_jax.workflows import (
  adapt_cost,
  adapt_own,
  adapt_plan,
  adapt_rows,
  adapt_run,
  adapt_tune,
  dry_run,
  train as train_workflow,
)

# Of the time limit; the rest goes to compilers and to the choice of a tree.
_OWN_SHARE, _TRAIN_SHARE, _TEST_SHARE = 0.2, 0.35, 0.15
# Of the time of training, where a LoRA is trained alone as well.
_BESIDE_LORA = 0.6
_OWN_TOKENS = adapt_run.OWN_TOKENS


def split(run: adapt_run.Run) -> int:
  """rows/: the rows by split."""
  if not os.path.isfile(run.path('rows', adapt_rows.DONE)):
    adapt_rows.write(run.path('rows'), run.found)
  return 0


def own(run: adapt_run.Run) -> int:
  """own/: the model's own answers, where they are what drafts learn."""
  if run.mode != 'lossless' or adapt_own.is_done(run.path('own')):
    return 0
  run.step('own', "the model's own answers, which drafts are to foretell")
  model = runtime.load(run.base, run.fold_adapter, dtype=run.options.dtype)
  done = adapt_own.answer(
    model,
    run.found.splits.turns,
    run.path('own'),
    seconds=run.seconds(_OWN_SHARE),
    max_new_tokens=run.options.max_new_tokens or _OWN_TOKENS,
    progress=run.progress,
  )
  run.say(f'answered: {done.num_rows:,} of {done.num_prompts:,} prompts')
  return 0


def prepare(run: adapt_run.Run) -> int:
  """records/: tokens of train and dev."""
  source = run.path('own' if run.mode == 'lossless' else 'rows')
  for split in ('dev', 'train'):
    place = run.path('records', split)
    if os.path.isfile(os.path.join(place, records.MANIFEST)):
      continue
    prepare_pairs.prepare(
      registry.get('jsonl'),
      run.vocabulary,
      place,
      split=split,
      data_dir=source,
      max_length=adapt_plan.longest_example(run.sizes),
      too_long='truncate_prompt',
    )
  return 0


def _lengths(run: adapt_run.Run) -> adapt_plan.Lengths:
  return adapt_plan.of_manifest(
    records.read_manifest(run.path('records', 'train'))
  )


def _plan(run: adapt_run.Run) -> dict[str, Any]:
  """plan.json: steps, rows of a step, what is computed again."""
  path, lengths = run.path('plan.json'), _lengths(run)
  if os.path.isfile(path):
    return files.read_json(path)
  made = run.recipe(lengths, 1)
  remat = adapt_plan.remat(run.base, made, run.options.dtype)
  needed = dry_run.memory_bytes(
    run.base, made, dtype=run.options.dtype, remat=remat
  )
  run.say(
    f'memory: about {memory.size(needed)}; timing a few steps, and a call with '
    'drafts (both compile first: a minute or two for a small model on a CPU)'
  )
  seconds = adapt_plan.measure(
    run.base,
    run.path('records', 'train'),
    run.folder,
    made,
    fold_adapter=run.fold_adapter,
    dtype=run.options.dtype,
    execution=train_workflow.Execution(remat=remat),
  )
  wanted = adapt_plan.wanted_steps(made, lengths)
  share = _TRAIN_SHARE * (_BESIDE_LORA if run.options.compare_lora else 1)
  steps = adapt_plan.steps_in(run.seconds(share), seconds, wanted)
  plan = {
    'num_steps': steps,
    'wanted_steps': wanted,
    'seconds_per_step': seconds,
    'step_cost': adapt_cost.step_cost(
      run.base,
      made,
      dtype=run.options.dtype,
      schedule=adapt_plan.schedule(),
    ),
    'batch_size': made.train.batch_size,
    'remat': remat,
  }
  writing.write_text(path, json.dumps(plan, indent=2) + '\n')
  return plan


def _estimate(plan, made, lengths, time_limit) -> str:
  """Steps and minutes, and what would be better if the time were there."""
  steps, wanted = plan['num_steps'], plan['wanted_steps']
  tokens = made.train.batch_size * made.data.sequence_length
  epochs = steps * tokens / lengths.num_tokens
  text = (
    f'estimate: {steps:,} steps of {plan["seconds_per_step"]:.2g} s, '
    f'{steps * plan["seconds_per_step"] / 60:.1f} minutes, about {epochs:.1f} '
    'times through the rows'
  )
  if steps < wanted:
    text += f'; that is what the time allows, {wanted:,} would be better'
  minutes = steps * plan['seconds_per_step'] / 60
  if minutes > time_limit:
    text += (
      f'; no fewer steps are worth while, so the limit of {time_limit:g} minutes '
      'will not hold'
    )
  return text


def train(run: adapt_run.Run) -> int:
  """run/: training, and its best checkpoint as an adapter."""
  if adapters.is_adapter(run.path('run', 'adapter')):
    return 0
  run.step('train', 'training')
  plan = _plan(run)
  lengths = _lengths(run)
  made = run.recipe(lengths, plan['num_steps'], plan['batch_size'])
  run.say(_estimate(plan, made, lengths, run.options.time_limit))
  cost = plan.get('step_cost', 0.0)  # folders of older versions lack it
  if cost:
    run.say(
      f'a call with drafts takes {cost:.2f} times as long as one without, on '
      'this machine; tokens per call divided by that is the predicted speed-up '
      'below, which the trained drafts and the best tree may beat'
    )
  return _train(run, made, plan, 'run', cost)


def _train(run, made, plan, folder, step_cost=0.0) -> int:
  done = train_workflow.train(
    run.base,
    run.path('records', 'train'),
    run.path(folder),
    eval_data_dir=run.path('records', 'dev'),
    fold_adapter=run.fold_adapter,
    recipe=made,
    dtype=run.options.dtype,
    execution=train_workflow.Execution(
      remat=plan['remat'], step_cost=step_cost
    ),
    progress=run.progress,
  )
  return done.signal


def keep(run: adapt_run.Run) -> int:
  """adapter/: what was trained, with the vocabulary of its answers."""
  if not os.path.isdir(run.path('adapter')):
    with records.new_folder(run.path('adapter')) as place:
      adapt_tune.copy_adapter(run.path('run', 'adapter'), place)
      adapt_tune.write_vocabulary(place, run.path('records', 'train'))
  return 0


def _setting(run: adapt_run.Run, repeats: int = 1) -> adapt_tune.Setting:
  asked, answer = run.options.max_new_tokens, _lengths(run).answer
  count = asked or min(max(-(-answer // 16) * 16, 16), _OWN_TOKENS)
  sources = {
    name: run.found.sources.get(name, f'jsonl/{name}@{run.path("rows")}')
    for name in ('dev', 'test')
  }
  return adapt_tune.Setting(sources, count, repeats)


def tune(run: adapt_run.Run) -> int:
  """tuned.json: the drafter that is fastest here; its tree goes to adapter/."""
  path = run.path('tuned.json')
  if os.path.isfile(path):
    return 0
  run.step(
    'tune', 'choosing the draft tree, by the clock; each one compiles first'
  )
  model = run.model()
  best = adapt_tune.tune(
    model,
    _setting(run),
    run.path('tuning'),
    adapt_tune.candidates(model),
    num_prompts=6,
    command=run.command,
    progress=run.progress,
  )
  adapt_tune.keep_tree(run.path('adapter'), best.name)
  seconds = adapt_tune.seconds_per_prompt(best)
  tuned = {'drafter': best.name, 'seconds_per_prompt': seconds}
  writing.write_text(path, json.dumps(tuned, indent=2) + '\n')
  run.say(f'fastest on dev: {best.name}, {best.speedup:.2f} times as fast')
  return 0


def test(run: adapt_run.Run) -> int:
  """results/: plain against speculative decoding of the held-out rows."""
  # An interrupted benchmark leaves results, too.
  path = run.path('tested.json')
  if os.path.isfile(path):
    return 0
  run.step('test', 'measuring on rows that were held out')
  tuned = files.read_json(run.path('tuned.json'))
  setting = _setting(run, repeats=2)
  has_base = run.mode == 'fine_tuned'
  cost = tuned['seconds_per_prompt'] * (setting.repeats + has_base)
  fits = int(run.seconds(_TEST_SHARE) / max(cost, 1e-9))
  count = min(max(fits, 8), len(run.found.splits.turns['test']))
  held_out = len(run.found.splits.turns['test'])
  run.say(
    f'{count:,} of {held_out:,} test examples'
    + ', as many as the time allows' * (count < held_out)
  )
  base = run.path('base_quality.json')
  if has_base and not os.path.isfile(base):
    _score(run, setting, count, base)
  adapt_tune.test(
    run.model(),
    setting,
    run.path('results'),
    tuned['drafter'],
    num_prompts=count,
    command=run.command,
    progress=run.progress,
  )
  writing.write_text(path, json.dumps({'num_prompts': count}) + '\n')
  return 0


def _score(run, setting, num_prompts, path, adapter=None) -> None:
  """Writes the quality of plain decoding, of the base or with an adapter."""
  scores = adapt_tune.plain_quality(
    run.base,
    adapter,
    setting,
    dtype=run.options.dtype,
    num_prompts=num_prompts,
  )
  writing.write_text(path, json.dumps(scores, indent=2) + '\n')


def lora(run: adapt_run.Run) -> int:
  """lora/: a LoRA without streams, and how well it answers."""
  path = run.path('lora_quality.json')
  if not run.options.compare_lora or os.path.isfile(path):
    return 0
  adapter = run.path('lora', 'adapter')
  if not adapters.is_adapter(adapter):
    run.step(
      'lora', 'a LoRA alone, with as many steps, to compare answers with'
    )
    plan = _plan(run)
    made = run.recipe(_lengths(run), plan['num_steps'], plan['batch_size'])
    if signal := _train(run, adapt_plan.lora_alone(made), plan, 'lora'):
      return signal
  count = files.read_json(run.path('tested.json'))['num_prompts']
  _score(run, _setting(run), count, path, adapter)
  return 0


ALL = (split, own, prepare, train, keep, tune, test, lora)
