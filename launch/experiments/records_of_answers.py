# SPDX-License-Identifier: Apache-2.0
"""Token records of `specstream distill`'s answers, without seqio and TensorFlow.

For machines that have neither, such as one with an accelerator and no network.
The records are those of `specstream prepare --task=jsonl`.
"""

from collections.abc import Iterator, Sequence
import os

from absl import flags
import numpy as np
import script

from specstream_jax.checkpoints import draft_vocabulary, loading
from specstream_jax.data import readers, records, vocabulary as vocabulary_lib

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Declares the flags."""
  flags.DEFINE_list('answers', None, 'JSONL files.', required=True)
  flags.DEFINE_string(
    'tokenizer', 'smollm2-135m-instruct', 'Known model, folder or file.'
  )
  flags.DEFINE_integer('max_length', 0, 'Most tokens; 0 is no limit.')
  flags.DEFINE_enum(
    'too_long', 'truncate_prompt', list(records.TOO_LONG), 'Longer examples.'
  )
  flags.DEFINE_string('draft_vocabulary', '', 'Also writes this file.')
  flags.DEFINE_string('output_dir', None, 'Folder to create.', required=True)


def pairs(
  paths: Sequence[str], vocabulary: vocabulary_lib.Vocabulary
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Prompt and answer ids of all rows; a cut answer has no EOS."""
  for path in paths:
    for prompt, answer in readers.read_jsonl(path).pairs:
      is_cut = isinstance(answer, readers.CutAnswer)
      pair = vocabulary.encode_pair(prompt, answer, is_cut=is_cut)
      yield pair.inputs, pair.targets


def main() -> None:
  """Writes the records."""
  vocabulary = vocabulary_lib.load(loading.resolve(FLAGS.tokenizer))
  manifest = records.write(
    pairs(FLAGS.answers, vocabulary),
    FLAGS.output_dir,
    metadata={
      'task': 'jsonl',
      'split': os.path.basename(FLAGS.answers[0]).partition('.')[0],
      'tokenizer_sha256': vocabulary.sha256,
      'eos_id': vocabulary.eos_id,
      'bos_id': vocabulary.bos_id,
      'num_skipped_rows': 0,
    },
    max_length=FLAGS.max_length,
    too_long=FLAGS.too_long,
  )
  if FLAGS.draft_vocabulary:
    ids, metadata = draft_vocabulary.build(
      *records.with_source(FLAGS.output_dir)
    )
    draft_vocabulary.save(FLAGS.draft_vocabulary, ids, metadata)
  print(f'{FLAGS.output_dir}: {manifest["num_examples"]} examples')


if __name__ == '__main__':
  define_flags()
  script.run(main)
