# SPDX-License-Identifier: Apache-2.0
"""A server under load: clients that ask one after the other, over HTTP.

  specstream serve --adapter=sql=sql_create_context --adapter=chat=instruct_lossless
  python launch/experiments/serve_load.py --prompts=sql=sql.jsonl \\
    --prompts=chat=chat.jsonl --clients=1,8,32 --seconds=60 --rounds=3

Each client streams completions of an adapter in turn, of prompts and lengths in
turn. Phases with drafts and phases whose requests say `"drafts": false` follow
each other, so that a drift of the machine favours none. For each number of
clients: requests, errors, new tokens per second, time to the first token and per
token (p50 / p95), and the rate with drafts as a share of the rate without. At the
end: whether slots and queue are empty again, and the server's memory before and
after (`--pid`). Writes serve_load.json and serve_load.md.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import http.client
import itertools
import json
import pathlib
import statistics
import sys
import threading
import time
from typing import Any
import urllib.parse

from absl import flags
import measuring
import numpy as np
import script

from specstream_jax.config import checks
from specstream_jax.workflows import distill

FLAGS = flags.FLAGS
_DRAFTS = {'on': True, 'off': False}
_TIMEOUT = 600  # seconds that a client waits for anything


def define_flags() -> None:
  """Declares the flags."""
  flags.DEFINE_string('url', 'http://127.0.0.1:8000', 'Where the server is.')
  flags.DEFINE_multi_string(
    'prompts',
    None,
    'MODEL=FILE, JSONL of {"prompt": …} for a model of the server; may be '
    'repeated.',
    required=True,
  )
  flags.DEFINE_list('clients', ['1', '8', '32'], 'Numbers of clients.')
  flags.DEFINE_float('seconds', 60.0, 'Of a phase.', lower_bound=0.1)
  flags.DEFINE_integer('rounds', 3, 'Phases of each kind.', lower_bound=1)
  flags.DEFINE_list('new_tokens', ['16', '64', '40'], 'Of requests, in turn.')
  flags.DEFINE_float(
    'temperature', 0.0, 'Of requests; drafts are right less often above 0.',
    lower_bound=0.0,
  )  # fmt: skip
  flags.DEFINE_integer('pid', 0, 'Process of the server, for its memory.')
  flags.DEFINE_string('output_dir', 'results/serve_load', 'Folder to write.')


@dataclasses.dataclass(frozen=True)
class Answer:
  """What a client saw of a request.

  Attributes:
    num_tokens: new ones.
    first: seconds to the first piece.
    total: seconds to the end.
    error: what went wrong; empty if nothing did.
  """

  num_tokens: int = 0
  first: float = 0.0
  total: float = 0.0
  error: str = ''


class Load:
  """Requests without end, for whoever asks next."""

  def __init__(self, prompts: Mapping[str, Sequence[str]]):
    self._where = urllib.parse.urlsplit(FLAGS.url)
    self._prompts, self._numbers = prompts, itertools.count()
    self._lengths = [int(count) for count in FLAGS.new_tokens]

  def phase(
    self, num_clients: int, *, drafts: bool
  ) -> tuple[float, list[Answer]]:
    """(seconds that it took, answers) of so many clients for a while."""
    # Every phase asks the same, from the first on.
    self._numbers = itertools.count()
    end, answers = time.monotonic() + FLAGS.seconds, []

    def client():
      while time.monotonic() < end:
        answers.append(self._ask(self._body(next(self._numbers), drafts)))

    threads = [threading.Thread(target=client) for _ in range(num_clients)]
    start = time.monotonic()
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    return time.monotonic() - start, answers

  def _body(self, number, drafts) -> dict[str, Any]:
    names = list(self._prompts)
    name, place = names[number % len(names)], number // len(names)
    texts = self._prompts[name]
    return {
      'model': name,
      'prompt': texts[place % len(texts)],
      'max_tokens': self._lengths[number % len(self._lengths)],
      'temperature': FLAGS.temperature,
      'stream': True,
      'stream_options': {'include_usage': True},
      'drafts': drafts,
    }

  def _ask(self, body) -> Answer:
    """One request; what fails is an answer, too."""
    made = http.client.HTTPConnection(
      self._where.hostname or '', self._where.port, timeout=_TIMEOUT
    )
    start = time.monotonic()
    try:
      made.request(
        'POST',
        '/v1/completions',
        json.dumps(body),
        {'Content-Type': 'application/json'},
      )
      found = made.getresponse()
      if found.status != 200:
        return Answer(error=f'{found.status} {found.read()[:200]!r}')
      return _read(found, start)
    except (OSError, ValueError, http.client.HTTPException) as error:
      return Answer(error=f'{type(error).__name__}: {error}')
    finally:
      made.close()

  def metrics(self) -> dict[str, float]:
    """Gauges and counters of the server, summed over labels."""
    made = http.client.HTTPConnection(
      self._where.hostname or '', self._where.port, timeout=_TIMEOUT
    )
    made.request('GET', '/metrics')
    text = made.getresponse().read().decode()
    made.close()
    found: dict[str, float] = {}
    for line in text.splitlines():
      if line and not line.startswith('#'):
        name, _, value = line.rpartition(' ')
        name = name.partition('{')[0]
        found[name] = found.get(name, 0.0) + float(value)
    return found


def _read(found, start) -> Answer:
  """An answer from its server-sent events."""
  first, num_tokens, is_whole = 0.0, 0, False
  for line in found:
    if not line.startswith(b'data: '):
      continue
    data = line[6:].strip()
    if data == b'[DONE]':
      is_whole = True
      break
    event = json.loads(data)
    if 'error' in event:
      return Answer(error=str(event['error'])[:200])
    first = first or time.monotonic() - start
    if event.get('usage'):
      num_tokens = event['usage']['completion_tokens']
  total = time.monotonic() - start
  return Answer(num_tokens, first, total, '' if is_whole else 'it broke off')


def measure(load: Load) -> Iterator[dict[str, Any]]:
  """Rows of the table: clients, with drafts and without."""
  for num_clients in map(int, FLAGS.clients):
    rates: dict[str, list[float]] = {drafts: [] for drafts in _DRAFTS}
    seen: dict[str, list[Answer]] = {drafts: [] for drafts in _DRAFTS}
    for number in range(FLAGS.rounds):
      order = list(_DRAFTS)[:: -1 if number % 2 else 1]
      for drafts in order:
        seconds, answers = load.phase(num_clients, drafts=_DRAFTS[drafts])
        tokens = sum(one.num_tokens for one in answers)
        rates[drafts].append(tokens / seconds)
        seen[drafts] += answers
    off = statistics.mean(rates['off'])
    for drafts in _DRAFTS:
      yield {
        'clients': num_clients,
        'drafts': drafts,
        **_summary(seen[drafts]),
        'tokens_per_second': statistics.mean(rates[drafts]),
        'of_off': statistics.mean(rates[drafts]) / off if off else 0.0,
        'of_off_by_round': [
          on / plain if plain else 0.0
          for on, plain in zip(rates[drafts], rates['off'], strict=True)
        ],
      }


def _summary(answers) -> dict[str, Any]:
  """Requests, errors, times of one kind of phase."""
  good = [one for one in answers if not one.error]
  errors = sorted({one.error for one in answers if one.error})
  rests = [
    (one.total - one.first) / (one.num_tokens - 1)
    for one in good
    if one.num_tokens > 1
  ]
  return {
    'requests': len(answers),
    'errors': len(answers) - len(good),
    **({'said': errors[:5]} if errors else {}),
    'first_token_ms': _percentiles([one.first for one in good]),
    'per_token_ms': _percentiles(rests),
  }


def _percentiles(seconds) -> list[float]:
  """p50 and p95 in milliseconds."""
  if not seconds:
    return [0.0, 0.0]
  return (1e3 * np.percentile(seconds, [50, 95])).tolist()


def memory_mb() -> float:
  """Resident memory of --pid; 0 without."""
  if not FLAGS.pid:
    return 0.0
  status = pathlib.Path(f'/proc/{FLAGS.pid}/status').read_text()
  [line] = [one for one in status.splitlines() if one.startswith('VmRSS')]
  return int(line.split()[1]) / 1e3


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """Rows as markdown."""
  lines = [
    '| clients | drafts | requests | errors | tokens/s | of those without, by '
    'round | first token, ms p50 / p95 | per token, ms p50 / p95 |',
    '|---|---|---|---|---|---|---|---|',
  ]
  pair = lambda value: ' / '.join(f'{x:.0f}' for x in value)
  for row in rows:
    rounds = ' '.join(f'{x:.2f}' for x in row['of_off_by_round'])
    lines.append(
      f'| {row["clients"]} | {row["drafts"]} | {row["requests"]} | '
      f'{row["errors"]} | {row["tokens_per_second"]:.1f} | '
      f'{row["of_off"]:.2f} ({rounds}) | {pair(row["first_token_ms"])} | '
      f'{pair(row["per_token_ms"])} |'
    )
  return '\n'.join(lines)


def _prompts() -> dict[str, list[str]]:
  """Model -> its prompts."""
  found = {}
  for text in FLAGS.prompts:
    name, equals, path = text.partition('=')
    checks.check(
      bool(name and equals and path),
      f'--prompts={text}: accepted: MODEL=FILE, such as sql=sql.jsonl',
    )
    found[name] = list(distill.read_prompts(path))
  return found


def main() -> None:
  """Measures, and looks whether the server is as it was."""
  load = Load(_prompts())
  load.phase(1, drafts=True)  # what is slow only once
  before, rows = memory_mb(), []
  for row in measure(load):
    rows.append(row)
    print(row, flush=True)
  time.sleep(2)
  left = load.metrics()
  busy = ('vllm:num_requests_running', 'vllm:num_requests_waiting')
  end = {
    'memory_mb': [before, memory_mb()],
    'left': {name: left.get(name) for name in busy},
  }
  command = ' '.join(['python', *sys.argv])
  document = {**measuring.machine(), 'command': command, 'rows': rows, **end}
  text = '\n\n'.join([table(rows), json.dumps(end), f'`{command}`']) + '\n'
  print(text)
  measuring.write(FLAGS.output_dir, 'serve_load', document, md=text)


if __name__ == '__main__':
  define_flags()
  script.run(main)
