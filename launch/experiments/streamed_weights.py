# SPDX-License-Identifier: Apache-2.0
"""Decoding with weights that are read in every call: speed, bytes, memory.

  reads      how fast a layer's file is read: past the page cache, through it,
             mapped; by size of a request
  model      a model and its adapter, with budgets that are shares of its
             weights; plain decoding and trees of several sizes in turn
  synthetic  random weights of a size named by --size, drafts accepted by chance;
             under `ulimit -d`, say, to hold it to so much memory

Every share runs in a process of its own, whose peak of memory is taken. Files
are read with O_DIRECT, so the page cache holds none of them. Writes
streamed_weights_NAME.json and .svg.
"""

import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import time

from absl import flags
import jax
import jax.numpy as jnp
import measuring
import numpy as np
import script
import streamed_files

from specstream_jax import config, runtime
from specstream_jax.checkpoints import loading, weights as base_weights
from specstream_jax.config import drafting as config_drafting
from specstream_jax.data import questions as questions_lib
from specstream_jax.report import svg
from specstream_jax.streaming import (
  cost,
  decoder as decoder_lib,
  driver as driver_lib,
)

FLAGS = flags.FLAGS
_PEAK = '/proc/self/clear_refs'


def _define():
  measuring.define_model()
  flags.DEFINE_enum(
    'what', 'model', ['reads', 'model', 'synthetic'], 'See above.'
  )
  flags.DEFINE_string('adapter', 'e2e_nlg', 'Adapter of the model.')
  flags.DEFINE_list('shares', ['0.25', '0.5', '1'], 'Budgets, of all weights.')
  flags.DEFINE_list(
    'ways',
    [
      'none:1',
      'parallel:4',
      'parallel:8',
      'likely:16',
      'deferred:16',
      'deferred:32',
    ],
    'Schedule and nodes; none is plain decoding.',
  )
  flags.DEFINE_integer('depth', 8, 'Of the trees.')
  flags.DEFINE_integer('branching', 32, 'Of the trees.')
  flags.DEFINE_integer('num_prompts', 4, 'Of e2e_sample.')
  flags.DEFINE_integer('max_new_tokens', 48, 'Most new tokens a prompt.')
  flags.DEFINE_string('size', '7b', 'Of synthetic weights, see decode_cost.')
  flags.DEFINE_integer('num_layers', 0, 'Of synthetic weights; 0: as the size.')
  flags.DEFINE_enum(
    'weights_dtype', '', ['', 'int8'], 'Of weights; nothing is float32.'
  )
  flags.DEFINE_float('acceptance', 0.7, 'Chance of a synthetic draft.')
  flags.DEFINE_float('seconds', 150.0, 'Of synthetic weights’ timed calls.')
  flags.DEFINE_float('budget_gb', 2.5, 'Of synthetic weights.')
  flags.DEFINE_string('folder', '/tmp/streamed_weights', 'For layers’ files.')
  flags.DEFINE_string('output_dir', 'results/streamed_weights', 'For results.')
  flags.DEFINE_float('child', None, 'A share: this process is a child.')


def main():
  """Measures, or is the child that does."""
  if FLAGS.child is not None:
    print(json.dumps(_child(FLAGS.child)))
  elif FLAGS.what == 'reads':
    _write(streamed_files.rates(FLAGS.folder))
  else:
    _children()


def _write(rows, **texts):
  document = {'machine': measuring.machine(), 'command': sys.argv, 'rows': rows}
  name = f'streamed_weights_{FLAGS.what}'
  measuring.write(FLAGS.output_dir, name, document, **texts)


def _children():
  """Measures every budget, the whole first; writes what there is each time."""
  shares = ['1'] if FLAGS.what == 'synthetic' else FLAGS.shares
  rows = []
  for share in sorted(map(float, shares), reverse=True):
    command = [sys.executable, *sys.argv, f'--child={share}']
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
      raise ValueError(f'share {share}: {done.stderr.strip()[-800:]}')
    rows.append(json.loads(done.stdout.splitlines()[-1]))
    print(_line(rows[-1]), flush=True)
    texts = {}
    if FLAGS.what == 'model':
      _predicted(rows)
      texts = {'svg': _picture(rows)}
    _write(rows, **texts)
  for row in rows:
    print(row['share'], row.get('chosen'), row.get('fastest'))


def _picture(rows):
  """Tokens a second by budget, a line for each way of drafting."""
  rows = sorted(rows, key=lambda row: row['share'])

  def paint(axes):
    (axis,) = axes[0]
    for way, colour in zip(rows[0]['ways'], svg.COLOURS, strict=False):
      rates = [row['ways'][way]['tokens_per_second'] for row in rows]
      shares = [100 * row['share'] for row in rows]
      axis.plot(shares, rates, marker='o', color=colour, label=way)
    axis.set_xlabel('memory for weights, % of all')
    axis.set_ylabel('tokens a second')
    axis.set_ylim(bottom=0)
    axis.legend()

  title = 'Tokens a second with streamed weights, by budget and way of drafting'
  return svg.draw(paint, title=title, size=(6.4, 3.4))


def _line(row):
  """A row for people."""
  show = lambda one: (
    f'{one["tokens_per_second"]:.2f} t/s, {one["tokens_per_call"]:.2f} a call, '
    f'{one["bytes_per_token"] / 1e6:.0f} MB a token, overlap '
    f'{one["overlap"] or 0:.2f}'
  )
  head = (
    f'share {row["share"]}: {row["resident_layers"]} layers stay, '
    f'{row["buffers"]} buffers, peak {row["peak_while_decoding"] / 1e6:.0f} MB'
  )
  ways = (f'  {way}: {show(one)}' for way, one in row['ways'].items())
  return '\n'.join([head, *ways])


def _layers_of(model):
  """The layers that pass through memory."""
  assert model.streamed is not None
  return model.streamed


def _runs(made):
  """The passes of a decoder."""
  assert isinstance(made, decoder_lib.StreamedDecoder)
  return made.driver.runs.step


def _status(name):
  """Bytes of a line of /proc/self/status."""
  with open('/proc/self/status') as file:
    fields = dict(line.split(':', 1) for line in file)
  return int(fields[name].split()[0]) * 1024


def _forget_peak():
  with open(_PEAK, 'w') as file:
    file.write('5')


def _child(share):
  """Loads with a budget, then decodes every prompt with every tree in turn."""
  jnp.zeros(1).block_until_ready()
  empty = _status('VmRSS')
  is_synthetic = FLAGS.what == 'synthetic'
  model, prompts = (
    streamed_files.random_model() if is_synthetic else _load(share)
  )
  loaded_peak = _status('VmHWM')
  decoders = {way: _decoder(model, way) for way in FLAGS.ways}
  for made in decoders.values() if not is_synthetic else ():  # compiles
    made.generate(made.params, prompts[:1], 12, seed=0)
  _forget_peak()
  if is_synthetic:
    results, texts = _by_call(model, decoders, prompts[0]), {}
  else:
    results, texts = _by_prompt(model, decoders, prompts)
  weights = _layers_of(model)
  row = {
    'share': share,
    'budget': weights.cfg.memory_budget,
    'resident_layers': len(weights.resident),
    'buffers': weights.num_buffers,
    'reads': weights.how,
    'layer_bytes': weights.layout.num_bytes,
    'rss_of_libraries': empty,
    'peak_while_loading': loaded_peak,
    'peak_while_decoding': _status('VmHWM'),
    'limit_of_data': resource.getrlimit(resource.RLIMIT_DATA)[0],
    'data': _status('VmData'),  # what such a limit counts
    'most_addresses': _status('VmPeak'),
    'num_layers': weights.layout.num_layers,
    'first_upper': _runs(decoders[FLAGS.ways[-1]]).first_msa,
    'resident': weights.resident,
    'ways': {way: _summary(found) for way, found in results.items()},
  }
  if not is_synthetic:
    row['compute'] = {
      way: _compute(model, made, way) for way, made in decoders.items()
    }
    row['same_tokens'] = {w: texts[w] == texts['none:1'] for w in texts}
  weights.close()
  return row


def _by_prompt(model, decoders, prompts):
  """What every prompt took and gave, ways in turn."""
  results = {way: [] for way in decoders}
  texts = {way: [] for way in decoders}
  for prompt in prompts:
    for way, made in decoders.items():
      one, tokens = _timed(model, made, prompt)
      results[way].append(one)
      texts[way].append(tokens)
  return results, texts


def _by_call(model, decoders, prompt):
  """What every call took and gave, ways in turn, for so many seconds.

  Each is a line of calls.jsonl at once, for a run that is ended from outside.
  """
  os.makedirs(FLAGS.output_dir, exist_ok=True)
  states, results = {}, {way: [] for way in decoders}
  for way, made in decoders.items():  # the first call compiles
    state = made.start(made.params, [prompt], seed=0)
    states[way] = made.advance(made.params, state, 1)
  end = time.monotonic() + FLAGS.seconds
  while time.monotonic() < end:
    for way, made in decoders.items():
      one, states[way] = _call(model, made, states[way])
      results[way].append(one)
      with open(os.path.join(FLAGS.output_dir, 'calls.jsonl'), 'a') as file:
        more = {'way': way, 'peak': _status('VmHWM'), 'data': _status('VmData')}
        file.write(json.dumps(one | more) + '\n')
  return results


def _call(model, made, state):
  """One call, timed, and the state after it."""
  counts = model.streamed.counts
  tokens, before = int(state.num_tokens[0]), dataclasses.replace(counts)
  begin = time.perf_counter()
  state = jax.block_until_ready(made.advance(made.params, state, 1))
  seconds = time.perf_counter() - begin
  return {
    'seconds': seconds,
    'tokens': int(state.num_tokens[0]) - tokens,
    'calls': 1,
    'bytes': counts.bytes_read - before.bytes_read,
    'reading': counts.read_seconds - before.read_seconds,
    'waiting': counts.wait_seconds - before.wait_seconds,
  }, state


def _load(share):
  """The model with a share of its weights in memory, and prompts."""
  cfg = config.StreamedWeightsConfig(
    memory_budget=int(_total_bytes() * share) if share < 1 else 0,
    resident_layers=0 if share < 1 else 1 << 20,
    folder=FLAGS.folder,
  )
  model = runtime.load(
    FLAGS.model,
    FLAGS.adapter,
    weights_dtype=FLAGS.weights_dtype,
    streamed=cfg,
  )
  asked = questions_lib.load('e2e_sample', 'test', None, FLAGS.num_prompts)
  return model, [model.encode_prompt(one.turns[0]) for one in asked]


def _total_bytes():
  """Of all base weights in float32."""
  return 4 * base_weights.count(loading.load_config(FLAGS.model))


def _decoder(model, way):
  """Plain decoding, or streams with a schedule and so many nodes."""
  schedule, nodes = way.split(':')
  decode = config.DecodeConfig(
    max_new_tokens=FLAGS.max_new_tokens,
    schedule='deferred' if schedule == 'none' else schedule,
    eos_ids=() if FLAGS.what == 'synthetic' else model.eos_ids,
    prompt_bucket=streamed_files.PROMPT if FLAGS.what == 'synthetic' else 64,
  )
  if schedule == 'none':
    return model.decoder('none', decode)
  tree = config.TreeConfig(
    'best_first',
    depth=FLAGS.depth,
    branching=FLAGS.branching,
    num_nodes=int(nodes),
  )
  drafter = config_drafting.parse('streams', tree)
  if FLAGS.what == 'synthetic':
    drafter = dataclasses.replace(
      drafter, synthetic_acceptance=FLAGS.acceptance
    )
  return model.decoder(drafter, decode)


def _timed(model, made, prompt):
  """Times, bytes and waiting of one prompt's calls after the prompt pass."""
  counts = model.streamed.counts
  state = jax.block_until_ready(made.start(made.params, [prompt], seed=0))
  before = dataclasses.replace(counts)
  begin = time.perf_counter()
  state = jax.block_until_ready(made.advance(made.params, state))
  seconds = time.perf_counter() - begin
  tokens = int(state.num_tokens[0])
  return (
    {
      'seconds': seconds,
      'tokens': tokens - 1,  # the prompt pass gives the first
      'calls': int(state.calls[0]),
      'bytes': counts.bytes_read - before.bytes_read,
      'reading': counts.read_seconds - before.read_seconds,
      'waiting': counts.wait_seconds - before.wait_seconds,
    },
    np.asarray(state.tokens)[0, :tokens].tolist(),
  )


def _summary(found):
  """Of all prompts together."""
  total = {name: sum(one[name] for one in found) for name in found[0]}
  rates = [one['tokens'] / one['seconds'] for one in found if one['tokens']]
  calls, reading = max(total['calls'], 1), total['reading']
  return total | {
    'tokens_per_second': total['tokens'] / total['seconds'],
    'rates': rates,
    'tokens_per_call': total['tokens'] / calls,
    'seconds_per_call': total['seconds'] / calls,
    'bytes_per_token': total['bytes'] / max(total['tokens'], 1),
    'bandwidth': total['bytes'] / reading if reading else None,
    'overlap': 1 - total['waiting'] / reading if reading else None,
  }


def _compute(model, made, way):
  """Seconds that a layer of each group computes, weights at hand."""
  schedule, nodes = way.split(':')
  nodes, runs = int(nodes), _runs(made)
  shell, adapters = driver_lib.apart(made.params)
  cache = made.driver.empty(1, 256)
  length = jnp.full((1,), 100, jnp.int32)
  tokens = jnp.ones((1, nodes), jnp.int32)
  positions = jnp.full((1, nodes), 101, jnp.int32)
  mask = jnp.tri(nodes, dtype=bool)[None]
  way = runs._enter(shell, tokens, positions, mask, length, 256)
  scores = -jnp.arange(nodes, dtype=jnp.float32)[None]
  upper, _ = runs._insert(shell, way, tokens, mask, scores, nodes > 1)
  ways = {'lower': (0, way), 'upper': (runs.num_layers - 1, upper)}
  if schedule == 'deferred':
    again = runs._enter_streams(
      shell, way.x[:, 0], positions[:, 0], length, 256
    )
    ways['again'] = runs.num_layers - 1, again
  return {
    name: _layer_seconds(model.streamed, runs, adapters, cache, *one)
    for name, one in ways.items()
  }


def _layer_seconds(weights, runs, adapters, cache, layer, way):
  """Median time that a layer computes."""
  weights.expect([layer])
  taken, keeps = weights.take(layer), way.start is not None
  run, seconds = runs.parts.layer(layer, keeps=keeps), []
  keys, values = map(jnp.copy, (cache.keys[layer], cache.values[layer]))
  for _ in range(11):
    begin = time.perf_counter()
    out = run(taken.params, adapters.get(layer, {}), way, keys, values)
    x, *new = jax.block_until_ready(out)
    seconds.append(time.perf_counter() - begin)
    keys, values = new if keeps else (keys, values)
  weights.give_back(taken, x)
  return statistics.median(seconds)


def _predicted(rows):
  """Adds what the cost model says of every budget, from the whole one's row."""
  whole = rows[0]
  said = {}
  for way, compute in whole['compute'].items():
    none = cost.Compute(**compute, other=0.0)
    layers = _layers(whole, 0.0)
    other = whole['ways'][way]['seconds_per_call'] - cost.call_seconds(
      none, layers
    )
    said[way] = none._replace(other=max(other, 0.0))
  tokens = {w: one['tokens_per_call'] for w, one in whole['ways'].items()}
  for row in rows:
    plain = row['ways'][FLAGS.ways[0]]['bandwidth']
    layers = _layers(row, row['layer_bytes'] / plain if plain else 0.0)
    row['predicted_seconds_per_call'] = {
      way: cost.call_seconds(one, layers) for way, one in said.items()
    }
    row['chosen'] = cost.best(tokens, said, layers)
    rates = {w: one['tokens_per_second'] for w, one in row['ways'].items()}
    row['fastest'] = max(rates, key=lambda way: rates[way])


def _layers(row, read_seconds):
  return cost.Layers(
    row['num_layers'],
    row['first_upper'],
    tuple(row['resident']),
    read_seconds,
    row['buffers'],
  )


if __name__ == '__main__':
  _define()
  script.run(main)
