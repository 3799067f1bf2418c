# SPDX-License-Identifier: Apache-2.0
"""What the tokenizers library raises, as errors that say where.

It knows no class of its own but `Exception`, and some damaged files make its
Rust code panic, which is no `Exception` at all.
"""

from collections.abc import Iterator
import contextlib
import os

# What `naming` says of a text that a tokenizer without an unknown token meets.
AT_USE = ('the tokenizer cannot encode the text', 'use words that it knows')
_STDERR = 2


@contextlib.contextmanager
def naming(source: str, fix: str) -> Iterator[None]:
  """Turns whatever the library raises into a ValueError.

  Args:
    source: what failed, for the message.
    fix: what to do about it.
  """
  try:
    yield
  except BaseException as error:
    is_panic = type(error).__name__ == 'PanicException'
    if not (is_panic or isinstance(error, Exception)):
      raise
    raise ValueError(f'{source} ({error}); {fix}') from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Holds stderr back: a panic prints a report of its own."""
  kept = os.dup(_STDERR)
  with open(os.devnull, 'w', encoding='utf-8') as nowhere:
    os.dup2(nowhere.fileno(), _STDERR)
  try:
    yield
  finally:
    os.dup2(kept, _STDERR)
    os.close(kept)
