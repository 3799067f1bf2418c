# SPDX-License-Identifier: Apache-2.0
"""What a serving engine costs: adapters side by side, and drafts under load.

  python launch/experiments/serve_cost.py --adapter=dialogsum --prompts=test.jsonl

`gather` serves one adapter folded into the base, then 1, 4 and 16 side by side
(the same weights under other names, which cost as others do): milliseconds of a
step of a full batch, without drafts and with them, and new tokens a second when
all requests, each for the next adapter, come at once. `load` lets 1, 8 and 32
clients ask one after the other of an engine that drafts and of one that cannot,
in turns: time to the first token and per token, p50 / p95. Both go straight to
the engine, without HTTP.

Writes serve_cost.json and serve_cost.md. Run it on a machine that does nothing
else.
"""

from collections.abc import Iterator, Mapping, Sequence
import itertools
import statistics
import sys
import threading
import time
from typing import Any, NamedTuple

from absl import flags
import measuring
import numpy as np
import script

from specstream_jax import config, runtime
from specstream_jax.checkpoints import fitted, loading
from specstream_jax.config import checks, serving
from specstream_jax.decoding import batch_sizes
from specstream_jax.serving import engine as engine_lib, requests
from specstream_jax.workflows import distill

FLAGS = flags.FLAGS
PARTS = ('gather', 'load')
_DRAFTS = {'on': None, 'off': 'none'}  # the drafter of an engine


def define_flags() -> None:
  """Declares the flags."""
  measuring.define_model()
  flags.DEFINE_string('adapter', None, 'Folder or shipped name.', required=True)
  flags.DEFINE_string(
    'prompts', None, 'JSONL of {"prompt": …}; random tokens without.'
  )
  flags.DEFINE_list('parts', list(PARTS), 'What to measure.')
  flags.DEFINE_list('adapters', ['1', '4', '16'], 'Numbers of adapters.')
  flags.DEFINE_list('clients', ['1', '8', '32'], 'Numbers of clients.')
  flags.DEFINE_integer('num_slots', 8, 'Rows that decode together.')
  flags.DEFINE_integer('cache_length', 1024, 'Positions of each.')
  flags.DEFINE_integer('new_tokens', 64, 'Tokens of a completion.')
  flags.DEFINE_integer('prompt_tokens', 128, 'Of random prompts.')
  flags.DEFINE_integer(
    'requests', 64, 'Of a timed round, over all clients.', lower_bound=1
  )
  flags.DEFINE_integer('rounds', 3, 'Timed rounds of each.', lower_bound=1)
  flags.DEFINE_enum(
    'dtype', 'float32', ['float32', 'bfloat16'], 'Of weights and activations.'
  )
  flags.DEFINE_string('output_dir', 'results/serve_cost', 'Folder to write.')


class Models(NamedTuple):
  """What is served.

  Attributes:
    base: the model alone.
    found: the adapter.
    prompts: token ids.
  """

  base: runtime.Model
  found: fitted.Fitted
  prompts: list[list[int]]

  def engine(self, count: int, drafts: str, **sizes: Any) -> engine_lib.Engine:
    """One with so many adapters side by side; none is one that is folded."""
    cfg = serving.EngineConfig(
      num_slots=FLAGS.num_slots,
      cache_length=FLAGS.cache_length,
      max_new_tokens=FLAGS.new_tokens,
      max_waiting=FLAGS.requests,
      prefix_cache_mb=0,
      max_folded=0,
      **sizes,
    )
    model, adapters = self.base, {_name(i): self.found for i in range(count)}
    if not count:
      model = runtime.load(FLAGS.model, FLAGS.adapter, dtype=FLAGS.dtype)
    return engine_lib.Engine(
      model, cfg, drafter=_DRAFTS[drafts], adapters=adapters
    )

  def request(self, number: int, count: int) -> requests.Request:
    """The next of an endless row of requests for so many adapters."""
    return requests.Request(
      tuple(self.prompts[number % len(self.prompts)]),
      adapter=_name(number % count) if count else '',
      max_new_tokens=FLAGS.new_tokens,
      sampling=config.SamplingConfig(ignore_eos=True),
    )


def _name(number: int) -> str:
  return f'adapter-{number}'


def load() -> Models:
  """Model, adapter and prompts of the flags."""
  base = runtime.load(FLAGS.model, None, dtype=FLAGS.dtype)
  outline = loading.load_model(FLAGS.model, dtype=FLAGS.dtype, lazy=True)
  found = fitted.read(FLAGS.adapter, outline)
  if FLAGS.prompts:
    texts = distill.read_prompts(FLAGS.prompts)
    prompts = [list(base.encode_prompt(text)) for text in texts]
  else:
    rng = np.random.default_rng(0)
    shape = 64, FLAGS.prompt_tokens
    prompts = rng.integers(0, base.config.vocab_size, shape).tolist()
  most = FLAGS.cache_length - FLAGS.new_tokens - 64  # room for any tree
  kept = [prompt for prompt in prompts if len(prompt) <= most]
  checks.check(
    bool(kept),
    f'no prompt has at most {most} tokens; use a larger --cache_length',
  )
  return Models(base, found, kept)


def gather(models: Models) -> Iterator[dict[str, Any]]:
  """A step of a full batch, and tokens a second, by number of adapters."""
  folded = 0.0
  for count in (0, *map(int, FLAGS.adapters)):
    engine = models.engine(count, 'on', batch_sizes=(FLAGS.num_slots,))
    _round(engine, models, count)
    rate = statistics.median(
      _round(engine, models, count) for _ in range(FLAGS.rounds)
    )
    folded = folded or rate
    cost = engine.costs[batch_sizes.Shape(FLAGS.num_slots)]
    yield {
      'part': 'gather',
      'adapters': count or 'folded',
      'plain_ms': 1e3 * cost.plain,
      'drafting_ms': 1e3 * cost.drafting,
      'tokens_per_second': rate,
      'of_folded': rate / folded,
    }
    del engine


def _round(engine, models, count) -> float:
  """New tokens a second when all requests come at once."""
  start = time.perf_counter()
  for i in range(FLAGS.requests):
    engine.submit(models.request(i, count))
  while engine.step():
    pass
  seconds = time.perf_counter() - start
  return FLAGS.requests * FLAGS.new_tokens / seconds


class _Load:
  """One engine under the load of clients that ask one after the other."""

  def __init__(self, models: Models, drafts: str):
    self._models, self._count = models, int(FLAGS.adapters[-1])
    self._engine = models.engine(self._count, drafts)
    self._engine.start()
    self.rates: list[float] = []
    self.done: list[requests.Metrics] = []

  def once(self, num_clients: int, *, is_timed: bool) -> None:
    """A round."""
    numbers, made = itertools.count(), []

    def client():
      while (number := next(numbers)) < FLAGS.requests:
        request = self._models.request(number, self._count)
        made.append(self._engine.submit(request).result().metrics)

    threads = [threading.Thread(target=client) for _ in range(num_clients)]
    start = time.perf_counter()
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    seconds = time.perf_counter() - start
    if is_timed:
      self.done += made
      self.rates.append(sum(one.num_new_tokens for one in made) / seconds)

  def take(self) -> dict[str, Any]:
    """What the rounds since the last time came to."""
    firsts = [one.first_token or 0.0 for one in self.done]
    rests = [
      (one.total - first) / (one.num_new_tokens - 1)
      for one, first in zip(self.done, firsts, strict=True)
    ]
    drafting = sum(one.num_drafting_calls for one in self.done)
    calls = sum(one.num_calls for one in self.done)
    found = {
      'tokens_per_second': statistics.median(self.rates),
      'first_token_ms': _percentiles(firsts),
      'per_token_ms': _percentiles(rests),
      'drafting_calls': drafting / max(calls, 1),
    }
    self.rates, self.done = [], []
    return found

  def close(self) -> None:
    self._engine.close()


def _percentiles(seconds) -> list[float]:
  """p50 and p95 in milliseconds."""
  return (1e3 * np.percentile(seconds, [50, 95])).tolist()


def under_load(models: Models) -> Iterator[dict[str, Any]]:
  """Clients of an engine that drafts and of one that cannot, in turns."""
  runs = {drafts: _Load(models, drafts) for drafts in _DRAFTS}
  for num_clients in map(int, FLAGS.clients):
    for number in range(1 + FLAGS.rounds):
      for run in runs.values():
        run.once(num_clients, is_timed=number > 0)
    found = {drafts: run.take() for drafts, run in runs.items()}
    off = found['off']['tokens_per_second']
    for drafts, one in found.items():
      yield {
        'part': 'load',
        'clients': num_clients,
        'drafts': drafts,
        **one,
        'of_off': one['tokens_per_second'] / off,
      }
  for run in runs.values():
    run.close()


_WAYS = {'gather': gather, 'load': under_load}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """Rows of one part as markdown."""
  pair = lambda value: ' / '.join(f'{x:.0f}' for x in value)
  text = lambda value: (
    pair(value)
    if isinstance(value, list)
    else f'{value:.3g}'
    if isinstance(value, float)
    else str(value)
  )
  names = [name for name in rows[0] if name != 'part']
  lines = [names, ['---'] * len(names)]
  lines += [[text(row[name]) for name in names] for row in rows]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def main() -> None:
  """Measures what is asked for."""
  for part in FLAGS.parts:
    checks.one_of('--parts', part, PARTS)
  models, rows, tables = load(), [], []
  for part in FLAGS.parts:
    own = []
    for row in _WAYS[part](models):
      own.append(row)
      print(row, flush=True)
    rows += own
    tables.append(table(own))
  command = ' '.join(['python', *sys.argv])
  document = {**measuring.machine(), 'command': command, 'rows': rows}
  text = '\n\n'.join([*tables, f'`{command}`']) + '\n'
  print(text)
  measuring.write(FLAGS.output_dir, 'serve_cost', document, md=text)


if __name__ == '__main__':
  define_flags()
  script.run(main)
