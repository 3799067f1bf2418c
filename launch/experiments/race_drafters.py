# SPDX-License-Identifier: Apache-2.0
"""Drafters against plain decoding, prompt by prompt in turns, one row.

As `specstream bench`, but of several tasks with one compilation, with shares of
time by round, and prompts that are cut to --prompt_tokens. Every text is held
against plain decoding's. Writes race.json.
"""

import json
import statistics

from absl import flags
import measuring
import numpy as np
import script

from specstream_jax import config, runtime
from specstream_jax.bench import grid, journal
from specstream_jax.config import drafting
from specstream_jax.workflows import bench

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Declares the flags."""
  measuring.define_model()
  flags.DEFINE_string('adapter', 'e2e_nlg', 'Folder or name.')
  flags.DEFINE_multi_string(
    'race', ['e2e_sample/test:0'], 'TASK:TEMPERATURE; may be repeated.'
  )
  flags.DEFINE_multi_string(
    'drafter', ['streams'], 'Settings of a drafter; may be repeated.'
  )
  flags.DEFINE_integer('num_prompts', 6, 'Of each task.', lower_bound=1)
  flags.DEFINE_integer(
    'prompt_tokens', 256, 'At most, the last.', lower_bound=1
  )
  flags.DEFINE_integer('max_new_tokens', 64, 'Per prompt.', lower_bound=2)
  flags.DEFINE_integer('rounds', 2, 'Over all prompts.', lower_bound=1)
  flags.DEFINE_string('output_dir', 'results/race', 'Folder to write.')


def _prompts(model, task) -> list[list[int]]:
  options = bench.Options(tasks=(task,), num_prompts=FLAGS.num_prompts)
  plan = bench.make_plan(options)
  rows = grid.Bench(model, plan, [], journal.Memory())
  batches = rows.batches(plan.cells[0], 0)
  found = [list(row.prompt) for batch in batches for row in batch]
  return [prompt[-FLAGS.prompt_tokens :] for prompt in found]


def _race(decoders, prompts, sampling):
  """name -> (seconds [rounds, prompts], calls, tokens) of each decoder."""
  shape = FLAGS.rounds, len(prompts)
  found = {name: np.zeros((3, *shape)) for name in decoders}
  for decoder in decoders.values():
    decoder.generate(decoder.params, prompts[:1], 9, sampling=sampling)
  for number, index in np.ndindex(shape):
    names = list(decoders)[:: -1 if (number + index) % 2 else 1]
    texts = {}
    for name in names:
      decoder = decoders[name]
      done = decoder.generate(
        decoder.params, [prompts[index]], sampling=sampling
      )
      texts[name] = done.tokens
      found[name][:, number, index] = (
        done.decode_seconds,
        done.calls.sum(),
        len(done.tokens[0]),
      )
    for name in names:
      if texts[name] != texts['none']:
        print(f'{name}: prompt {index} has other tokens than plain decoding')
  return found


def _row(name, side, plain):
  """What a side came to, against plain decoding."""
  seconds, calls, tokens = side
  by_round = plain[0].sum(axis=1) / seconds.sum(axis=1)
  by_prompt = plain[0].sum(axis=0) / seconds.sum(axis=0)
  cost = seconds.sum() / calls.sum() * plain[1].sum() / plain[0].sum()
  return {
    'drafter': name,
    'call_reduction': plain[1].sum() / calls.sum(),
    'step_cost': cost,
    'speedup': plain[0].sum() / seconds.sum(),
    'by_round': by_round.tolist(),
    'by_prompt': by_prompt.tolist(),
    'worst_prompt': float(by_prompt.min()),
    'median_prompt': statistics.median(by_prompt),
    'ms_per_call': 1000 * seconds.sum() / calls.sum(),
    'tokens': tokens.sum(),
  }


def main() -> None:
  """Races, prints and writes race.json."""
  model = runtime.load(FLAGS.model, FLAGS.adapter)
  cfg = config.DecodeConfig(
    max_new_tokens=FLAGS.max_new_tokens,
    eos_ids=model.eos_ids,
    prompt_bucket=FLAGS.prompt_tokens,
  )
  decoders = {
    text: model.decoder(drafting.parse(text, model.tree), cfg)
    for text in dict.fromkeys(['none', *FLAGS.drafter])
  }
  found = {}
  for race in FLAGS.race:
    task, _, temperature = race.rpartition(':')
    sampling = config.SamplingConfig(temperature=float(temperature))
    sides = _race(decoders, _prompts(model, task), sampling)
    found[race] = [_row(n, side, sides['none']) for n, side in sides.items()]
    print(race)
    for row in found[race]:
      print(
        json.dumps(
          {
            k: np.round(v, 3).tolist() if k != 'drafter' else v
            for k, v in row.items()
          }
        ),
        flush=True,
      )
  measuring.write(
    FLAGS.output_dir, 'race', {'machine': measuring.machine(), 'races': found}
  )


if __name__ == '__main__':
  define_flags()
  script.run(main)
