# SPDX-License-Identifier: Apache-2.0
"""Writes a model with its adapter as folders that other engines load.

  specstream export --model=BASE --adapter=runs/sql/adapter \\
    --output_dir=exported

A Hugging Face checkpoint with LoRA merged, or with --format=peft the LoRA alone
as PEFT reads it. Streams lie in streams/, described in docs/EXPORT.md. Streams
that leave the base as it is come alone, and name it.
"""

from collections.abc import Sequence

from absl import flags

from specstream_jax.cli import decoding_flags, sizes
from specstream_jax.workflows import export as workflow

RESULTS = 'output_dir'


def define_flags() -> None:
  """Defines the flags of this command."""
  decoding_flags.define_model()
  flags.DEFINE_string(
    'adapter',
    '',
    'Folder of an adapter or a PEFT LoRA, or one that ships; empty writes the '
    'model alone.',
  )
  flags.DEFINE_string(
    'output_dir', None, 'Folder to write; gets README.md and export.json, too.'
  )
  flags.DEFINE_enum(
    'format',
    'huggingface',
    workflow.FORMATS,
    'A checkpoint with LoRA merged, or LoRA as a PEFT folder.',
  )
  flags.DEFINE_enum(
    'dtype',
    'float32',
    workflow.DTYPES,
    'Number type of weights on disk; float32 reads back exactly.',
  )
  flags.DEFINE_string(
    'max_shard_size', '5GB', 'Largest file of weights: 500MB, 2GiB or bytes.'
  )
  flags.DEFINE_bool(
    'overwrite', False, 'Replace an export that is there already.'
  )
  flags.mark_flag_as_required('output_dir')


def main(argv: Sequence[str]) -> None:
  """Writes the folder and says what is in it."""
  del argv
  args = flags.FLAGS
  options = workflow.Options(
    format=args.format,
    dtype=args.dtype,
    max_shard_bytes=sizes.num_bytes(args.max_shard_size, 'max_shard_size'),
    overwrite=args.overwrite,
  )
  done = workflow.export(
    args.model, args.adapter or None, args.output_dir, options
  )
  if done.format == 'reference':
    print(
      f'{done.folder}: streams of {done.base}, which they leave as it is; '
      'load it from where it lies'
    )
  else:
    print(f'{done.folder}: {len(done.files)} files, {done.format}')
    if done.has_streams:
      print(f'{done.folder}/streams: its streams')
