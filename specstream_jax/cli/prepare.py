# SPDX-License-Identifier: Apache-2.0
"""`specstream prepare`: runs a task once and writes token records."""

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
from specstream_jax.data import quiet, records, registry, vocabulary

FLAGS = flags.FLAGS

RESULTS = 'output_dir'


def define_flags() -> None:
  """Defines the flags of this command."""
  flags.DEFINE_enum('task', 'e2e_nlg', registry.names(), 'Task to prepare.')
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
  use_beam = bool(FLAGS.num_workers or FLAGS.beam_option)
  prepare = _module('beam_prepare' if use_beam else 'prepare')
  path = _tokenizer_path()
  vocab = vocabulary.load(path, eos_token=FLAGS.eos_token)
  said = vocabulary.eos_said(path, vocab.tokenizer)
  differ = eos.difference(said, vocab.tokenizer, vocab.eos_id)
  if differ:
    note = f'note: {differ}; decoding stops at all of them'
    print(note, file=sys.stderr, flush=True)
  manifest = prepare.prepare(
    registry.get(FLAGS.task),
    vocab,
    FLAGS.output_dir,
    split=FLAGS.split,
    data_dir=FLAGS.data_dir,
    skip_bad_rows=FLAGS.skip_bad_rows,
    num_shards=FLAGS.num_shards,
    max_length=FLAGS.max_length,
    too_long=FLAGS.too_long,
    overwrite=FLAGS.overwrite,
    most_positions=_most_positions(path),
    **(
      {'num_workers': FLAGS.num_workers, 'options': FLAGS.beam_option}
      if use_beam
      else {}
    ),
  )
  print(json.dumps(manifest, indent=2, ensure_ascii=False))
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
