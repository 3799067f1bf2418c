# SPDX-License-Identifier: Apache-2.0
"""llama.cpp as rows of our table, by its Python package llama-cpp-python.

Our weights, LoRA folded in, go to it as a GGUF file in the number type that we
compute in; its cache keeps its default, float16. One row at a time, plain or
with the package's prompt look-up. A call is one pass after the prompt's.
"""

from collections.abc import Sequence
import importlib.metadata
import os
import tempfile
import time
from typing import Any

import numpy as np

from specstream_jax import config, runtime
from specstream_jax.bench import gguf_weights
from specstream_jax.decoding import decoder as decoder_lib

NAMES = ('llama_cpp', 'llama_cpp_prompt_lookup')
_DRAFTS = 4  # of prompt look-up, as with the other references
_NGRAM = 3
_STEP = 256  # cache slots come in so many


class LlamaCppRunner:
  """One way of `Llama.generate`; see `runners.Runner`."""

  max_depth = 0
  extra_parameters = 0
  is_lossy = False
  output = 'external'
  is_external = True
  fingerprint = ''

  def __init__(self, target: 'Target', name: str, decode: config.DecodeConfig):
    """Wraps what was loaded.

    Args:
      target: weights on disk.
      name: one of `NAMES`.
      decode: most new tokens and EOS.
    """
    self.label, self._decode, self._target = name, decode, target
    self._has_lookup = name == 'llama_cpp_prompt_lookup'
    self._engine: Any = None
    self._num_slots = 0
    self.settings = {
      'name': name,
      'version': importlib.metadata.version('llama-cpp-python'),
      'threads': target.threads,
      'weights': target.dtype,
    }

  def generate(
    self,
    prompts: Sequence[Sequence[int]],
    row_ids: Sequence[int],
    *,
    bucket: int,
    temperature: float,
    seed: int,
  ) -> decoder_lib.DecodeResult:
    """See `runners.Runner`; prompts of one bucket share a cache's size."""
    del row_ids, seed
    if len(prompts) != 1 or temperature:
      raise ValueError(
        f'{self.label} decodes one row at a time, greedily; use --batch_sizes=1 '
        'and --temperatures=0'
      )
    needed = max(bucket, len(prompts[0])) + self._decode.max_new_tokens
    self._make_room(needed + _DRAFTS + 1)
    tokens, calls, start, first, last = self._timed(list(prompts[0]))
    return decoder_lib.DecodeResult(
      [tokens],
      np.array([calls]),
      [[]],
      ['eos' if tokens[-1] in self._decode.eos_ids else 'length'],
      first - start,
      max(last - first, 1e-9),
    )

  def _make_room(self, needed: int) -> None:
    """Loads it anew where the cache is too short."""
    if needed > self._num_slots:
      self._num_slots = -(-needed // _STEP) * _STEP
      self._engine = self._target.engine(
        num_slots=self._num_slots, has_lookup=self._has_lookup
      )

  def _timed(self, prompt: list[int]):
    """(new tokens, calls, when it began, the first token came, and the last)."""
    engine, tokens = self._engine, []
    engine.reset()  # else what prompts have in common is not computed
    engine.num_calls = 0
    start = last = time.perf_counter()
    first = 0.0
    for token in engine.generate(prompt, temp=0.0, repeat_penalty=1.0):
      last = time.perf_counter()
      first = first or last
      tokens.append(int(token))
      is_full = len(tokens) == self._decode.max_new_tokens
      if is_full or token in self._decode.eos_ids:
        break
    return tokens, engine.num_calls - 1, start, first, last


class Target:
  """Our weights as a file that it reads; gone with this object.

  Attributes:
    threads: CPUs that it uses.
    dtype: of the file's matrices.
  """

  def __init__(self, model: runtime.Model, threads: int):
    """Writes the file.

    Raises:
      ValueError: llama-cpp-python is not installed, or the model does not come
        from a GGUF file.
    """
    try:
      import llama_cpp  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
      raise ValueError(
        'llama.cpp references need the package llama-cpp-python; pip install '
        "'llama-cpp-python', which compiles for minutes, or leave them out"
      ) from error
    self.threads, self.dtype = threads, model.config.dtype
    self._folder = tempfile.TemporaryDirectory()
    self._path = os.path.join(self._folder.name, 'model.gguf')
    gguf_weights.write(self._path, model, 'llama.cpp', self.dtype)

  def engine(self, *, num_slots: int, has_lookup: bool) -> Any:
    """What generates, and counts its passes in `num_calls`."""
    import llama_cpp  # pyright: ignore[reportMissingImports]
    from llama_cpp import (  # pyright: ignore[reportMissingImports]
      llama_speculative,
    )

    class Counting(llama_cpp.Llama):
      """Counts passes."""

      num_calls = 0

      def eval(self, tokens: Sequence[int]) -> None:
        """One pass."""
        self.num_calls += 1
        super().eval(tokens)

    lookup = None
    if has_lookup:
      lookup = llama_speculative.LlamaPromptLookupDecoding(
        max_ngram_size=_NGRAM, num_pred_tokens=_DRAFTS
      )
    return Counting(
      self._path,
      n_ctx=num_slots,
      n_threads=self.threads,
      n_threads_batch=self.threads,
      draft_model=lookup,
      verbose=False,
    )
