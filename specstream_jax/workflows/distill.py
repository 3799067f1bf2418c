# SPDX-License-Identifier: Apache-2.0
"""Self-distillation: the model's own answers as training data.

Lossless streams learn what the untouched model would say, so their targets
are its answers, not a data set's. Every answer is on disk once it is decoded;
a stopped run goes on where it was, and shards of one run meet in one file.
"""

from collections.abc import Sequence
import dataclasses
import hashlib
import json
import os
from typing import Any

from specstream_jax import config, runtime
from specstream_jax.bench import journal as journal_lib, journal_lines, results
from specstream_jax.checkpoints import chat_format, token_ids
from specstream_jax.config import bounds, checks
from specstream_jax.data import chat, readers, registry
from specstream_jax.outputs import (
  locks,
  names,
  progress as progress_lib,
  writing,
)

_NO_CHARACTER = '\N{REPLACEMENT CHARACTER}'


@dataclasses.dataclass(frozen=True)
class Options:
  """What to answer, and how.

  Attributes:
    max_new_tokens: most tokens of an answer; a longer one is cut and marked
      as not finished.
    max_prompt_tokens: longer prompts are left out and counted.
    batch_size: rows per call.
    prompt_bucket: a call holds prompts that are as long up to a multiple of so
      many tokens, and each such length compiles once.
    sampling: how tokens are drawn.
    seed: of the noise; the answer to a row does not depend on its batch.
    is_chat: prompts go through the model's chat template as a user's turn;
      rows say so, and `prepare` adds no BOS to theirs.
    drafter: 'streams' decodes faster, 'none' needs no adapter; the same
      answers.
    shard: this shard's number.
    num_shards: how many runs share the rows.
  """

  max_new_tokens: int = 128
  max_prompt_tokens: int = 1024
  batch_size: int = 8
  prompt_bucket: int = 64
  sampling: config.SamplingConfig = config.SamplingConfig()
  seed: int = 0
  is_chat: bool = False
  drafter: str = 'none'
  shard: int = 0
  num_shards: int = 1

  def __post_init__(self):
    checks.option_types(self)
    for name, most in (
      ('max_new_tokens', bounds.TOKENS),
      ('max_prompt_tokens', bounds.TOKENS),
      ('batch_size', bounds.ROWS),
      ('prompt_bucket', bounds.TOKENS),
    ):
      checks.count(name, getattr(self, name), 1, most)
    checks.shard(self.shard, self.num_shards)
    checks.seed('seed', self.seed)


@dataclasses.dataclass(frozen=True)
class Summary:
  """What a run came to.

  Attributes:
    path: the merged file; empty while other shards lack rows.
    num_rows: answers of this shard.
    num_decoded: those that this run decoded.
    num_unfinished: answers cut at `max_new_tokens`.
    num_too_long: prompts left out.
    missing: rows that other shards still owe.
    counts: of the answers that this shard, or the merged file, took and left
      out, see `Counts`.
  """

  path: str
  num_rows: int
  num_decoded: int
  num_unfinished: int
  num_too_long: int
  missing: int
  counts: 'Counts'


@dataclasses.dataclass(frozen=True)
class Counts:
  """What became of answers.

  Attributes:
    kept: can be trained on.
    empty: left out, without text.
    garbled: left out, not valid UTF-8.
    cut: of those kept, how many end at `max_new_tokens`.
  """

  kept: int
  empty: int
  garbled: int
  cut: int

  def __str__(self) -> str:
    return (
      f'{self.kept} kept ({self.cut} of them cut), {self.empty} empty, '
      f'{self.garbled} garbled'
    )


def read_prompts(path: str, *, skip_bad_rows: bool = False) -> list[str]:
  """Prompts of JSONL rows `{"prompt": …}`; other fields are ignored.

  Args:
    path: of the file.
    skip_bad_rows: leave malformed rows out, with a warning.

  Raises:
    ValueError: no such file or row, or a malformed one (file, line, problem).
  """

  def pair(row: dict[str, object]) -> tuple[str, str] | str:
    text = row.get('prompt', row.get('inputs'))
    is_text = isinstance(text, str)
    if is_text and (_NO_CHARACTER in text or not readers.is_encodable(text)):
      return 'the prompt is not valid UTF-8'
    if is_text and text.strip():
      is_chat = row.get('chat') is True
      return (chat_format.Text(text) if is_chat else text), ''
    return 'has no text under "prompt" or "inputs"'

  if not os.path.isfile(path):
    raise ValueError(f'{path}: no such file')
  rows = readers.read_jsonl(path, skip_bad_rows=skip_bad_rows, pair=pair)
  return [source for source, _ in rows.pairs]


def task_prompts(
  task: str, split: str, data_dir: str | None, *, skip_bad_rows: bool = False
) -> list[str]:
  """The prompts of a task's split."""
  spec = registry.get(task)
  found = spec.load(split, data_dir, skip_bad_rows=skip_bad_rows)
  return [example.inputs for example in found.examples]


def distill(
  model: runtime.Model,
  prompts: Sequence[str],
  folder: str,
  options: Options = Options(),
  *,
  split: str = 'train',
  progress: bool = True,
) -> Summary:
  """Answers every prompt; writes `folder`/`split`.jsonl and its provenance.

  Args:
    model: what answers.
    prompts: texts, in an order that is the same in every shard and run.
    folder: of the files; `split`.shard-I-of-N.jsonl grow as answers come.
    options: see `Options`.
    split: name of the file, which `--task=jsonl` then reads.
    progress: show a progress bar with the time left.

  Raises:
    ValueError: nothing to answer, no answer that can be trained on, a folder
      of other settings, or one that cannot be written or that another process
      works in.
  """
  names.check('split', split)
  options.sampling.check_fits(model.config.vocab_size)
  rows, num_too_long = _rows(model, prompts, options)
  header = _provenance(model, prompts, options)
  own = rows[options.shard :: options.num_shards]
  shard = options.shard, options.num_shards
  with locks.hold(folder, f'distill-{split}', *shard):
    journal = journal_lib.Journal(
      _shard_path(folder, split, *shard),
      header,
      resume=True,
      problem=journal_lines.answer,
    )
    todo = [row for row in own if (row.index,) not in journal]
    _answer(model, todo, options, journal, progress, len(own))
    missing, found = _collect(folder, split, header, options.num_shards, rows)
    counts = _count([journal[(row.index,)] for row in own])
    path = ''
    if not missing:
      counts = _count([found[(row.index,)] for row in rows])
      path = _merge(folder, split, header, rows, found, num_too_long, counts)
  unfinished = sum(not journal[(row.index,)]['finished'] for row in own)
  return Summary(
    path, len(own), len(todo), unfinished, num_too_long, len(missing), counts
  )


@dataclasses.dataclass(frozen=True)
class _Row:
  index: int
  prompt: str
  tokens: tuple[int, ...]


def _rows(model, prompts, options):
  """Rows short enough, and how many were not."""
  rows = []
  for index, prompt in enumerate(prompts):
    if options.is_chat:
      prompt = chat.prompt(model.chat_template, [prompt])
    tokens = tuple(model.encode_prompt(prompt))
    model.check_ids(tokens, f'prompt {index + 1}')
    if len(tokens) <= options.max_prompt_tokens:
      rows.append(_Row(index, prompt, tokens))
  if not rows:
    raise ValueError(
      f'none of {len(prompts)} prompts has at most '
      f'{options.max_prompt_tokens} tokens; raise --max_prompt_tokens'
    )
  return rows, len(prompts) - len(rows)


def _answer(model, rows, options, journal, progress, total):
  """Decodes rows in batches of like length; every answer goes to disk."""
  buckets: dict[int, list[_Row]] = {}
  for row in rows:
    size = options.prompt_bucket
    bucket = -(-len(row.tokens) // size) * size
    buckets.setdefault(bucket, []).append(row)
  bar = progress_lib.bar(
    total=total, initial=total - len(rows), unit='row', show=progress
  )
  with bar:
    progress_lib.say(bar, f'each length {progress_lib.COMPILING}')
    for bucket, waiting in sorted(buckets.items()):
      decode = config.DecodeConfig(
        max_new_tokens=options.max_new_tokens,
        prompt_bucket=bucket,
        eos_ids=model.eos_ids,
      )
      decoder = model.decoder(options.drafter, decode)
      for start in range(0, len(waiting), options.batch_size):
        part = waiting[start : start + options.batch_size]
        # One shape per bucket: a short batch repeats its first row.
        full = part + part[:1] * (options.batch_size - len(part))
        result = decoder.generate(
          decoder.params,
          [list(row.tokens) for row in full],
          seed=options.seed,
          row_ids=[row.index for row in full],
          sampling=options.sampling,
        )
        for row, tokens, reason in zip(
          part, result.tokens, result.finish_reasons
        ):
          journal.add(
            (row.index,),
            {
              'prompt': row.prompt,
              'completion': model.decode_text(
                tokens, row.tokens, ignore_eos=options.sampling.ignore_eos
              ),
              'num_tokens': len(tokens),
              'finished': reason == 'eos',
              **_chat_mark(row.prompt),
            },
          )
        bar.update(len(part))
        if not start:  # that batch compiled
          progress_lib.forget_so_far(bar)


def _chat_mark(prompt):
  """What a row says of a prompt that a chat template wrote."""
  return {'chat': True} if isinstance(prompt, chat_format.Text) else {}


def _provenance(model, prompts, options) -> dict[str, Any]:
  """What the answers depend on; shards and resumed runs must agree on it."""
  settings = dataclasses.asdict(options)
  # Same answers whatever these are.
  for name in ('batch_size', 'prompt_bucket', 'shard', 'drafter', 'sampling'):
    del settings[name]
  settings |= {'temperature': 0.0, 'top_p': 1.0} | options.sampling.changes()
  digest = hashlib.sha256()
  for prompt in prompts:
    digest.update(prompt.encode() + b'\0')
  return {
    'source': model.source,
    'base_sha256': runtime.fingerprint(model),
    'tokenizer_sha256': token_ids.tokenizer_hash(model.tokenizer),
    'prompts_sha256': digest.hexdigest(),
    'num_prompts': len(prompts),
    'dtype': model.config.numbers,
    'options': settings,
  }


def _shard_path(folder, split, shard, num_shards):
  name = f'{split}.shard-{shard:05d}-of-{num_shards:05d}.jsonl'
  return os.path.join(folder, name)


def _collect(folder, split, header, num_shards, rows):
  """Rows that no shard has yet, and the answers that there are."""
  found = {}
  for shard in range(num_shards):
    path = _shard_path(folder, split, shard, num_shards)
    found |= journal_lib.read(path, header, journal_lines.answer)
  return [row for row in rows if (row.index,) not in found], found


def _merge(folder, split, header, rows, found, num_too_long, counted):
  """Writes the whole split in the order of the prompts, then provenance."""
  answers = [found[(row.index,)] for row in rows]
  kept = [line for line in answers if _problem(line['completion']) is None]
  if not kept:
    raise ValueError(
      f'none of {len(answers)} answers can be trained on: {counted}. Look at '
      f'them in {_shard_path(folder, split, 0, header["options"]["num_shards"])}'
      '; prompts may want the chat template (--chat), another --model, or more '
      '--max_new_tokens'
    )
  lines = [
    {
      'prompt': line['prompt'],
      'completion': line['completion'].rstrip(_NO_CHARACTER),
      'finished': line['finished'],
      **({'chat': True} if line.get('chat') else {}),
    }
    for line in kept
  ]
  path = os.path.join(folder, f'{split}.jsonl')
  writing.write_text(path, ''.join(json.dumps(x) + '\n' for x in lines))
  counts = {
    'num_rows': len(kept),
    'num_tokens': sum(line['num_tokens'] for line in kept),
    'num_unfinished': sum(not line['finished'] for line in kept),
    'num_empty_or_garbled_answers': len(answers) - len(kept),
    'num_empty_answers': counted.empty,
    'num_garbled_answers': counted.garbled,
    'num_prompts_too_long': num_too_long,
  }
  writing.write_text(
    os.path.join(folder, f'{split}.provenance.json'),
    json.dumps(header | counts | {'versions': results.versions()}, indent=2)
    + '\n',
  )
  return path


def _problem(answer):
  """Why it cannot be trained on, or None.

  A cut may leave half a character behind.
  """
  text = answer.rstrip(_NO_CHARACTER)
  if _NO_CHARACTER in text or (answer and not text):
    return 'garbled'
  return None if text.strip() else 'empty'


def _count(answers) -> Counts:
  """What becomes of answers, as journals keep them."""
  problems = [_problem(line['completion']) for line in answers]
  cut = [
    problem is None and not line['finished']
    for problem, line in zip(problems, answers)
  ]
  kept, empty, garbled = map(problems.count, (None, 'empty', 'garbled'))
  return Counts(kept, empty, garbled, sum(cut))
