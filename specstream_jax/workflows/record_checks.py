# SPDX-License-Identifier: Apache-2.0
"""Do these records belong to this model? Asked before the first step."""

from collections.abc import Sequence
from typing import Any

from absl import logging

from specstream_jax.checkpoints import eos, loading, token_ids
from specstream_jax.data import mixtures, records


def check(
  loaded: loading.LoadedModel,
  data_dir: str,
  eval_data_dir: str | None = None,
) -> None:
  """Warns where records end otherwise than the model.

  Args:
    loaded: the model; weights are not needed.
    data_dir: records, or a mixture, see `mixtures.parse`.
    eval_data_dir: records as well, or None.

  Raises:
    ValueError: records of another tokenizer, longer than the model has
      positions, or with a token that it has no embedding for; names folder,
      file and record.
  """
  folders = [part.path for part in mixtures.parse(data_dir)]
  if eval_data_dir is not None:
    folders.append(eval_data_dir)
  expected = token_ids.tokenizer_hash(loaded.tokenizer)
  for folder in folders:
    manifest = records.read_manifest(folder)
    records.check_tokenizer(manifest, expected, folder)
    records.check_lengths(manifest, loaded.config.most_positions, folder)
    records.check_ids(folder, loaded.config.vocab_size, loaded.tokenizer)
  for line in eos_lines(loaded, mixtures.manifests(data_dir)):
    logging.warning('%s', line)


def eos_lines(
  loaded: loading.LoadedModel, manifests: Sequence[dict[str, Any]]
) -> list[str]:
  """Where the records' end of an answer is not the model's end of a text."""
  tokenizer = loading.known_tokenizer(loaded.tokenizer)
  lines = []
  for written in dict.fromkeys(m.get('eos_id') for m in manifests):
    found = eos.difference(loaded.eos_said, tokenizer, written)
    if found:
      lines.append(
        f'{found}; decoding with what is trained here stops at all of them'
      )
  return lines
