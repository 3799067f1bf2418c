# SPDX-License-Identifier: Apache-2.0
"""Programs that read our weights as a GGUF file, as rows of our table.

They decode one row at a time, greedily. What differs is in `openvino_reference`
and `llama_cpp_reference`.
"""

from collections.abc import Sequence
import importlib.metadata
import os
import tempfile
from typing import Any, NamedTuple

import numpy as np

from specstream_jax import config, runtime
from specstream_jax.bench import gguf_weights
from specstream_jax.decoding import decoder as decoder_lib

# What prompt look-up copies, and after how many tokens that match.
NUM_DRAFTS, NGRAM = 4, 3


# Weights smaller than those that we compute in, by the formats' own names.
QUANTISED = ('q8_0', 'q4_0')
_LOOKUP = '_prompt_lookup'


class Way(NamedTuple):
  """What the name of a row says.

  Attributes:
    weights: one of `QUANTISED`, or None for the number type of the run.
    has_lookup: drafts are copied from the prompt.
  """

  weights: str | None
  has_lookup: bool


def names(program: str) -> tuple[str, ...]:
  """Names of a program's rows: plain, with look-up, and both quantised."""
  weights = ('', *(f'_{kind}' for kind in QUANTISED))
  return tuple(
    program + kind + lookup for kind in weights for lookup in ('', _LOOKUP)
  )


def way(name: str) -> Way:
  """What one of `names` means."""
  plain = name.removesuffix(_LOOKUP)
  kinds = [kind for kind in QUANTISED if plain.endswith(f'_{kind}')]
  return Way(kinds[0] if kinds else None, plain != name)


class Timed(NamedTuple):
  """What came of a prompt.

  Attributes:
    tokens: new ones, at least one.
    num_calls: passes after the prompt's.
    first: seconds to the first token.
    rest: seconds from there to the last.
  """

  tokens: list[int]
  num_calls: int
  first: float
  rest: float


class GgufRunner:
  """One way of decoding; see `runners.Runner`."""

  max_depth = 0
  extra_parameters = 0
  is_lossy = False
  output = 'external'
  is_external = True
  fingerprint = ''

  def __init__(
    self, name: str, decode: config.DecodeConfig, package: str, **settings: Any
  ):
    """Names it.

    Args:
      name: of the row.
      decode: most new tokens and EOS.
      package: whose version belongs to the settings.
      **settings: that the row's results keep.
    """
    self.label, self._decode = name, decode
    version = importlib.metadata.version(package)
    self.settings = {'name': name, 'version': version, **settings}

  def time(self, prompt: list[int], bucket: int) -> Timed:
    """Decodes a prompt of at most `bucket` tokens."""
    raise NotImplementedError

  def generate(
    self,
    prompts: Sequence[Sequence[int]],
    row_ids: Sequence[int],
    *,
    bucket: int,
    temperature: float,
    seed: int,
  ) -> decoder_lib.DecodeResult:
    """See `runners.Runner`."""
    del row_ids, seed
    if len(prompts) != 1 or temperature:
      raise ValueError(
        f'{self.label} decodes one row at a time, greedily; use --batch_sizes=1 '
        'and --temperatures=0'
      )
    made = self.time(list(prompts[0]), bucket)
    ends = made.tokens[-1] in self._decode.eos_ids
    return decoder_lib.DecodeResult(
      [made.tokens],
      np.array([made.num_calls]),
      [[]],
      ['eos' if ends else 'length'],
      made.first,
      max(made.rest, 1e-9),
    )


class GgufFiles:
  """Our weights as files, which are gone with this object."""

  def __init__(self, model: runtime.Model, reader: str):
    """Writes nothing yet.

    Args:
      model: from a GGUF file.
      reader: what will read them, for errors.

    Raises:
      ValueError: the model does not come from a GGUF file.
    """
    gguf_weights.source(model, reader)
    self._model, self._reader = model, reader
    self._folder = tempfile.TemporaryDirectory()

  def path(self, dtype: str) -> str:
    """The file with matrices in `dtype`, written where it is not there yet."""
    path = os.path.join(self._folder.name, f'{dtype}.gguf')
    if not os.path.exists(path):
      gguf_weights.write(path, self._model, self._reader, dtype)
    return path
