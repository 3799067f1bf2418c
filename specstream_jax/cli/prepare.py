# SPDX-License-Identifier: Apache-2.0
"""`specstream prepare`: runs a task once and writes token records.

  specstream prepare --task=seqio:NAME --task_module=my.tasks \\
    --tokenizer=MODEL --output_dir=records/train

A seqio mixture's training split becomes one folder of records for each task,
from which `train --data_dir=FOLDER` draws at the rates of the mixture.
"""

from collections.abc import Sequence
import importlib
import json
import os
import sys

from absl import flags

from specstream_jax.checkpoints import (
  draft_vocabulary,
  eos,
  loading,
  ngram_table,
)
from specstream_jax.cli import task_flags
from specstream_jax.data import (
  mixtures,
  quiet,
  records,
  registry,
  task_modules,
  vocabulary,
)

FLAGS = flags.FLAGS

RESULTS = 'output_dir'


def define_flags() -> None:
  """Defines the flags of this command."""
  task_flags.define(default='e2e_nlg')
  flags.DEFINE_string('split', 'train', 'Split of the task.')
  flags.DEFINE_string(
    'data_dir', None, "Folder with the task's files; none downloads them."
  )
  flags.DEFINE_string(
    'tokenizer',
    None,
    'Model name, tokenizer.json, a folder with one, or a GGUF file.',
    required=True,
  )
  flags.DEFINE_string(
    'eos_token',
    '',
    'Text of the token that ends an answer; default: the one that the GGUF '
    "file or the folder's tokenizer_config.json names.",
  )
  flags.DEFINE_string(
    'output_dir', None, 'Folder of records to create.', required=True
  )
  flags.DEFINE_integer(
    'num_shards', 1, 'Into how many files records are dealt out.', lower_bound=1
  )
  flags.DEFINE_integer(
    'max_length', 0, 'Most tokens of an example; 0 is no limit.', lower_bound=0
  )
  flags.DEFINE_enum(
    'too_long',
    'drop',
    records.TOO_LONG,
    'Longer examples: drop them, or cut the end of the answer or the beginning '
    'of the prompt.',
  )
  flags.DEFINE_integer(
    'num_workers',
    0,
    'Processes of Apache Beam (extra `beam`), which share the files '
    'SPLIT-*.jsonl of --task=jsonl; 0 does without Beam.',
    lower_bound=0,
  )
  flags.DEFINE_multi_string(
    'beam_option',
    [],
    'Flag of Beam, such as --beam_option=--runner=DataflowRunner; may be '
    'repeated, and stands in for --num_workers.',
  )
  flags.DEFINE_bool(
    'skip_bad_rows', False, 'Leave malformed rows out, count them, go on.'
  )
  flags.DEFINE_bool('overwrite', False, 'Replace an existing folder.')
  _define_tables()


def _define_tables() -> None:
  flags.DEFINE_string(
    'ngram_table',
    None,
    'File to write with the n-grams of the answers, for '
    'streams:ngram_table=FILE; replaced if it exists.',
  )
  flags.DEFINE_string(
    'draft_vocabulary',
    None,
    'File to write with the tokens of the answers, for '
    'streams:vocabulary=FILE; replaced if it exists.',
  )


def main(argv: Sequence[str]) -> None:
  """Writes the records and prints the manifest."""
  del argv
  records.check_arguments(  # before TensorFlow is loaded, which takes seconds
    *(FLAGS.output_dir, FLAGS.num_shards, FLAGS.max_length, FLAGS.too_long),
    FLAGS.overwrite,
  )
  task = task_flags.name(default='e2e_nlg')
  spec = registry.get(task)
  path = _tokenizer_path()
  vocab = vocabulary.load(path, eos_token=FLAGS.eos_token)
  said = vocabulary.eos_said(path, vocab.tokenizer)
  differ = eos.difference(said, vocab.tokenizer, vocab.eos_id)
  if differ:
    note = f'note: {differ}; decoding stops at all of them'
    print(note, file=sys.stderr, flush=True)
  is_seqio = task.startswith(task_modules.SEQIO)
  write = _prepare_seqio if is_seqio else _prepare
  manifest = write(spec, vocab, _most_positions(path))
  print(json.dumps(manifest, indent=2, ensure_ascii=False))
  _write_tables()


def _prepare(spec, vocab, most_positions):
  """Runs a task of the table."""
  use_beam = bool(FLAGS.num_workers or FLAGS.beam_option)
  prepare = _module('beam_prepare' if use_beam else 'prepare')
  workers = {'num_workers': FLAGS.num_workers, 'options': FLAGS.beam_option}
  return prepare.prepare(
    spec,
    vocab,
    FLAGS.output_dir,
    split=FLAGS.split,
    data_dir=FLAGS.data_dir,
    skip_bad_rows=FLAGS.skip_bad_rows,
    num_shards=FLAGS.num_shards,
    max_length=FLAGS.max_length,
    too_long=FLAGS.too_long,
    overwrite=FLAGS.overwrite,
    most_positions=most_positions,
    **(workers if use_beam else {}),
  )


def _prepare_seqio(spec, vocab, most_positions):
  """Runs a task or mixture that is registered with seqio."""
  if FLAGS.num_workers or FLAGS.beam_option or FLAGS.data_dir:
    raise ValueError(
      f'--task={spec.name} takes no --data_dir, --num_workers or --beam_option: '
      'a seqio task knows its data; seqio_cache_tasks runs one in Beam, and '
      'what it has cached is read here'
    )
  prepare = _module('seqio_records')
  return prepare.prepare(
    spec.name.removeprefix(task_modules.SEQIO),
    vocab,
    FLAGS.output_dir,
    split=FLAGS.split,
    settings=prepare.Settings(
      num_shards=FLAGS.num_shards,
      max_length=FLAGS.max_length,
      too_long=FLAGS.too_long,
      overwrite=FLAGS.overwrite,
      most_positions=most_positions,
      skip_bad_rows=FLAGS.skip_bad_rows,
    ),
  )


def _write_tables() -> None:
  """Files that help drafts, of the answers in the records."""
  if not (FLAGS.ngram_table or FLAGS.draft_vocabulary):
    return
  if len(mixtures.parse(FLAGS.output_dir)) > 1:
    raise ValueError(
      '--ngram_table and --draft_vocabulary are of one folder of records, and '
      f'{FLAGS.output_dir} holds several; prepare the tasks of the mixture one '
      'by one'
    )
  if FLAGS.ngram_table:
    table, metadata = ngram_table.build(*records.with_source(FLAGS.output_dir))
    ngram_table.save(FLAGS.ngram_table, table, metadata)
    print(json.dumps(metadata, indent=2, ensure_ascii=False))
  if FLAGS.draft_vocabulary:
    ids, metadata = draft_vocabulary.build(
      *records.with_source(FLAGS.output_dir)
    )
    draft_vocabulary.save(FLAGS.draft_vocabulary, ids, metadata)
    print(json.dumps(metadata, indent=2, ensure_ascii=False))


def _module(name: str):
  """A module of `data` that imports TensorFlow: this command only."""
  try:
    with quiet.filtered():
      module = importlib.import_module(f'specstream_jax.data.{name}')
      # It would take all memory of a GPU, for nothing.
      tensorflow = importlib.import_module('tensorflow')
      tensorflow.config.set_visible_devices([], 'GPU')
    return module
  except ImportError as error:
    extra = 'data,beam' if name == 'beam_prepare' else 'data'
    raise ValueError(
      f'`specstream prepare` needs {error.name}; install the extra: '
      f"pip install 'specstream-jax[{extra}]'"
    ) from error


def _most_positions(path: str) -> int:
  """`ModelConfig.most_positions` of the model whose tokenizer it is.

  0 where the tokenizer lies alone, or with a model that is not read.
  """
  try:
    return loading.load_config(path).most_positions
  except ValueError:
    return 0


def _tokenizer_path() -> str:
  """The file or folder that --tokenizer names; a model name is resolved."""
  name = FLAGS.tokenizer
  if os.path.isfile(name) and not name.endswith('.gguf'):
    return name
  if os.path.isdir(name):
    return name
  return str(loading.resolve(name))
