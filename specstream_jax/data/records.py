# SPDX-License-Identifier: Apache-2.0
"""Token records on disk: ArrayRecord shards and a manifest.

A folder holds `records-00000-of-00004.array_record` … and `manifest.json`.
One record is one example, little-endian int32 throughout:

    [I, prompt id 1 … prompt id I, answer id 1 … answer id A]

I is the number of prompt tokens (BOS included if the tokenizer asks for one);
the rest are answer tokens, EOS included.
"""

from collections.abc import Iterable, Iterator, Sequence
import contextlib
import importlib.metadata
import json
import os
import resource
import shutil
from typing import Any

from absl import logging
from array_record.python import (
  array_record_module,  # pyright: ignore[reportAttributeAccessIssue] (compiled)
)
import numpy as np

from specstream_jax.checkpoints import fields, files as files_lib, token_ids
from specstream_jax.config import bounds, checks
from specstream_jax.data import manifest_fields, shards
from specstream_jax.outputs import scratch, writing

MANIFEST = 'manifest.json'
FORMAT_VERSION = 1
# Of the manifest: answers that start inside a token of the joined text, and so
# many of them by name.
_NUM_INSIDE = 'num_answers_inside_a_token'
_OTHER_FILES = 100  # that a process has open beside its shards
_INSIDE = 'answers_inside_a_token'
_NUM_SHOWN = 5
_AROUND = 20  # characters of a text that are shown
TOO_LONG = ('drop', 'truncate', 'truncate_prompt')
encode, decode = shards.encode, shards.decode
_PACKAGES = ('array_record', 'grain', 'numpy', 'tokenizers')


def with_source(
  path: str,
) -> tuple[Iterator[tuple[np.ndarray, np.ndarray]], dict[str, Any]]:
  """`read`, and which task, split and tokenizer the records are of.

  Raises:
    ValueError: no records there.
  """
  manifest = read_manifest(path)
  kept = ('task', 'split', 'tokenizer_sha256', 'num_examples')
  return read(path), {name: manifest.get(name) for name in kept}


def read(path: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields (prompt ids, answer ids) of every record of a folder.

  Raises:
    ValueError: no records there.
  """
  for name in read_manifest(path)['files']:
    yield from read_file(os.path.join(path, name))


def read_file(path: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields (prompt ids, answer ids) of every record of a shard."""
  source = shards.Shards([path])
  for i in range(len(source)):
    yield decode(source[i])


class Lengths:
  """Counts examples and their tokens, and shortens those too long."""

  def __init__(self, max_length: int, too_long: str, num_kept: int = 0):
    """`num_kept` leading prompt tokens (BOS) stay when its beginning goes."""
    self._max_length = max_length
    self._num_kept = num_kept
    self._too_long = too_long
    self.num_dropped = 0
    self.num_truncated = 0
    self.inputs = []
    self.targets = []
    self.max_id = 0

  def fit(
    self, inputs: np.ndarray, targets: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray] | None:
    """The example, shortened to max_length tokens, or None if dropped."""
    excess = len(inputs) + len(targets) - self._max_length
    if self._max_length and excess > 0:
      inputs, targets = self._shorten(inputs, targets, excess)
      if not len(targets):
        self.num_dropped += 1
        return None
      self.num_truncated += 1
    self.count(inputs, targets)
    return inputs, targets

  def count(self, inputs: np.ndarray, targets: np.ndarray) -> None:
    """Takes the lengths and ids of an example that is kept."""
    self.inputs.append(len(inputs))
    self.targets.append(len(targets))
    for ids in (inputs, targets):
      self.max_id = max(self.max_id, int(np.max(ids, initial=0)))

  def _shorten(self, inputs, targets, excess):
    """The example without `excess` tokens; no targets if that cannot be."""
    if self._too_long == 'truncate':
      return inputs, targets[: max(len(targets) - excess, 0)]
    kept = self._num_kept
    # A prompt keeps a token of its own.
    if self._too_long == 'drop' or len(inputs) - kept - excess < 1:
      return inputs, targets[:0]
    return np.concatenate([inputs[:kept], inputs[kept + excess :]]), targets

  def summary(self) -> dict[str, Any]:
    """Counts and length statistics, as the manifest holds them."""
    totals = np.add(self.inputs, self.targets)
    return {
      'num_examples': len(self.inputs),
      'num_dropped_too_long': self.num_dropped,
      'num_truncated': self.num_truncated,
      'max_length': self._max_length,
      'too_long': self._too_long,
      'max_token_id': self.max_id,
      'lengths': {
        'inputs': _statistics(self.inputs),
        'targets': _statistics(self.targets),
        'total': _statistics(totals),
      },
    }


def _statistics(lengths) -> dict[str, float]:
  return {
    'mean': round(float(np.mean(lengths)), 2),
    'p95': float(np.percentile(lengths, 95)),
    'max': int(np.max(lengths)),
  }


def shard_name(shard: int, num_shards: int) -> str:
  """File name of a shard."""
  return f'records-{shard:05d}-of-{num_shards:05d}.array_record'


def _write_shards(pairs, folder: str, num_shards: int, lengths: Lengths):
  """Deals the records out to the shards, one after the other."""
  _check_open_files(num_shards)
  names = [shard_name(i, num_shards) for i in range(num_shards)]
  paths = [os.path.join(folder, name) for name in names]
  writers = []
  try:
    for path in paths:
      with writing.readable(path):
        writers.append(
          array_record_module.ArrayRecordWriter(path, 'group_size:1')
        )
    count = 0
    for pair in pairs:
      fitted = lengths.fit(*pair)
      if fitted is not None:
        with writing.readable(paths[count % num_shards]):
          writers[count % num_shards].write(encode(*fitted))
        count += 1
  finally:
    for path, writer in zip(paths, writers):
      with writing.readable(path):
        writer.close()
  if count < num_shards:
    raise ValueError(
      f'{count} examples cannot fill num_shards={num_shards}; use '
      f'num_shards <= {max(count, 1)} and check the task and max_length '
      f'({lengths.num_dropped} examples were too long)'
    )
  return names


def _check_open_files(num_shards):
  """Raises ValueError if so many files cannot be open at once."""
  limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
  most = limit - _OTHER_FILES
  if limit != resource.RLIM_INFINITY and num_shards > most:
    raise ValueError(
      f'num_shards is {num_shards}, but no more than {most} can be open at once '
      f'here; use num_shards <= {most}, or allow more: ulimit -n '
      f'{num_shards + _OTHER_FILES}'
    )


def check_arguments(
  output_dir: str,
  num_shards: int,
  max_length: int,
  too_long: str,
  overwrite: bool,
) -> None:
  """Raises ValueError if `write` would refuse these arguments."""
  checks.count('num_shards', num_shards, 1, bounds.SHARDS)
  if max_length < 0:
    raise ValueError(f'max_length is {max_length}; it must be >= 0 (0: off)')
  if too_long not in TOO_LONG:
    raise ValueError(
      f'too_long is {too_long!r}; accepted: {", ".join(map(repr, TOO_LONG))}'
    )
  if os.path.exists(output_dir) and not overwrite:
    raise ValueError(
      f'output_dir {output_dir!r} exists; pass overwrite to replace it or '
      'choose another'
    )
  is_records = os.path.exists(os.path.join(output_dir, MANIFEST))
  if os.path.exists(output_dir) and os.listdir(output_dir) and not is_records:
    raise ValueError(
      f'output_dir {output_dir!r} holds something other than records; '
      'overwrite replaces folders of records only, choose another'
    )


def write(
  pairs: Iterable[tuple[np.ndarray, np.ndarray]],
  output_dir: str,
  *,
  metadata: dict[str, Any],
  num_shards: int = 1,
  max_length: int = 0,
  too_long: str = 'drop',
  overwrite: bool = False,
  most_positions: int = 0,
) -> dict[str, Any]:
  """Writes records and manifest; the folder appears only when complete.

  Args:
    pairs: (prompt ids [I], answer ids [A]), consumed once.
    output_dir: the folder to create.
    metadata: what the caller knows: task, split, tokenizer_sha256, ….
    num_shards: ArrayRecord files.
    max_length: most tokens of an example; 0 is no limit.
    too_long: `drop` such examples, `truncate` their answer, or cut the
      beginning of their prompt (`truncate_prompt`; BOS stays).
    overwrite: replace an existing folder of records.
    most_positions: of the model that they are for; 0 is any number.

  Returns:
    The manifest.

  Raises:
    ValueError: the folder exists, no examples, one that is longer than the
      model, or a bad argument.
  """
  check_arguments(output_dir, num_shards, max_length, too_long, overwrite)
  with new_folder(output_dir) as place:
    has_bos = metadata.get('bos_id') is not None
    lengths = Lengths(max_length, too_long, num_kept=int(has_bos))
    files = _write_shards(pairs, place, num_shards, lengths)
    summary = lengths.summary()
    check_lengths(summary, most_positions)
    return write_manifest(place, metadata, files, summary)


@contextlib.contextmanager
def new_folder(output_dir: str) -> Iterator[str]:
  """A folder to write to, which takes the place of `output_dir` at the end."""
  output_dir = os.path.abspath(output_dir)
  with contextlib.ExitStack() as stack:
    with writing.readable(output_dir):
      place = stack.enter_context(scratch.folder(*os.path.split(output_dir)))
    yield place
    with writing.readable(output_dir):
      os.chmod(place, 0o755)
      scratch.release(place)
      if os.path.exists(output_dir):
        shutil.rmtree(output_dir)
      os.rename(place, output_dir)


def write_manifest(
  folder: str,
  metadata: dict[str, Any],
  files: Sequence[str],
  summary: dict[str, Any],
) -> dict[str, Any]:
  """Writes and returns the manifest of records that lie in a folder.

  Args:
    folder: of the records.
    metadata: see `write`.
    files: names of its shards, in order.
    summary: of the lengths, see `Lengths.summary`.
  """
  manifest = {
    'format_version': FORMAT_VERSION,
    'dtype': 'int32',
    **metadata,
    **summary,
    'files': list(files),
    'versions': {name: importlib.metadata.version(name) for name in _PACKAGES},
  }
  writing.write_text(
    os.path.join(folder, MANIFEST),
    json.dumps(manifest, indent=2, ensure_ascii=False) + '\n',
  )
  return manifest


def read_manifest(path: str) -> dict[str, Any]:
  """The manifest of a folder of records.

  Raises:
    ValueError: no manifest, a missing shard, or another format version.
  """
  manifest_path = os.path.join(path, MANIFEST)
  if not os.path.isfile(manifest_path):
    raise ValueError(
      f'{path!r} has no {MANIFEST}; write records with `specstream prepare`'
    )
  manifest = files_lib.read_json(manifest_path)
  if manifest.get('format_version') != FORMAT_VERSION:
    version = fields.shown(manifest.get('format_version'))
    raise ValueError(
      f'{manifest_path} has format_version {version}; accepted: '
      f'{FORMAT_VERSION}; prepare the records again'
    )
  manifest_fields.check(manifest, manifest_path)
  for name in manifest['files']:
    if not os.path.isfile(os.path.join(path, name)):
      raise ValueError(f'{path!r} lacks {name}; prepare the records again')
  return manifest


def of_task(
  task: str,
  split: str,
  vocabulary: Any,
  *,
  is_chat: bool,
  num_skipped: int | None,
) -> dict[str, Any]:
  """Metadata of a task's records: where they come from.

  Args:
    task: name of it.
    split: of the task.
    vocabulary: a `vocabulary.Vocabulary`.
    is_chat: a chat template wrote the prompts.
    num_skipped: bad rows that were left out; None if nobody counted.
  """
  return {
    'task': task,
    'split': split,
    'tokenizer_sha256': vocabulary.sha256,
    'eos_id': vocabulary.eos_id,
    'bos_id': vocabulary.bos_id,
    'is_chat': is_chat,
    'num_skipped_rows': num_skipped,
    **none_inside(),
  }


def boundary(prompt: str, answer: str) -> dict[str, str]:
  """Both sides of the place where a prompt ends, for `note_inside`."""
  return {'prompt_end': prompt[-_AROUND:], 'answer_start': answer[:_AROUND]}


def none_inside() -> dict[str, Any]:
  """Metadata for `note_inside`."""
  return {_NUM_INSIDE: 0, _INSIDE: []}


def note_inside(
  metadata: dict[str, Any], where: dict[str, Any], count: int = 1
) -> None:
  """Counts answers that start inside a token, and keeps the first places."""
  metadata[_NUM_INSIDE] += count
  if len(metadata[_INSIDE]) < _NUM_SHOWN:
    metadata[_INSIDE].append(where)


def warn_of_inside(manifest: dict[str, Any]) -> None:
  """Tells of answers that start inside a token, what became of them, and how
  a prompt avoids it."""
  if manifest[_NUM_INSIDE]:
    logging.warning(
      '%d of %d answers start inside a token of prompt and answer together, '
      'the first %s; their prompts keep the ids that generation gives them, '
      'and the answers are encoded from there on. A prompt that ends without '
      'a space, before an answer that begins with it, avoids this',
      manifest[_NUM_INSIDE],
      manifest['num_examples'],
      manifest[_INSIDE][0],
    )


def check_ids(path: str, vocab_size: int, tokenizer: Any = None) -> None:
  """Raises ValueError if a record holds a token that the model does not embed.

  Args:
    path: folder of records; one whose manifest lacks `max_token_id` is read.
    vocab_size: V of the model.
    tokenizer: of the model, for the token's text.
  """
  manifest = read_manifest(path)
  most = manifest.get('max_token_id')
  if isinstance(most, int) and most < vocab_size:
    return
  for name in manifest['files']:
    file = os.path.join(path, name)
    for number, (inputs, targets) in enumerate(read_file(file), start=1):
      for part, ids in (('prompt', inputs), ('answer', targets)):
        what = f'{file}, record {number}, {part}'
        token_ids.check(ids, vocab_size, what, tokenizer)


def check_lengths(
  manifest: dict[str, Any], most_positions: int, path: str = ''
) -> None:
  """Raises ValueError if the longest example leaves the model's positions.

  Args:
    manifest: of the records, or its summary of lengths.
    most_positions: `ModelConfig.most_positions`; 0 is any number.
    path: of the folder, if there is one.
  """
  longest = manifest['lengths']['total']['max'] - 1  # the last is not read
  if 0 < most_positions < longest:
    place = f'{path!r}: ' if path else ''
    raise ValueError(
      f'{place}the longest example needs {longest} positions, but the model '
      f'has only {most_positions}; prepare the records with '
      f'--max_length={most_positions + 1}'
    )


def check_tokenizer(
  manifest: dict[str, Any], tokenizer_sha256: str, path: str = ''
) -> None:
  """Raises ValueError if the records, at `path`, are another tokenizer's."""
  written = manifest.get('tokenizer_sha256')
  if written != tokenizer_sha256:
    place = f'{path!r}: ' if path else ''
    raise ValueError(
      f'{place}records of task {manifest.get("task")!r} were written with '
      f'tokenizer {str(written)[:12]}… but the model has {tokenizer_sha256[:12]}…; prepare '
      "them again with the model's tokenizer"
    )
