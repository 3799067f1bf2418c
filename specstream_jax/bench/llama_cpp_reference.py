# SPDX-License-Identifier: Apache-2.0
"""llama.cpp as rows of our table, by its Python package llama-cpp-python.

Our weights, LoRA folded in, go to it as a GGUF file in the number type that we
compute in, or quantised; its cache keeps its default, float16. One row at a
time, plain or with the package's prompt look-up. A call is one pass after the prompt's.
"""

from collections.abc import Sequence
import time
from typing import Any

from specstream_jax import config, runtime
from specstream_jax.bench import gguf_runner

NAMES = gguf_runner.names('llama_cpp')
_STEP = 256  # cache slots come in so many


class LlamaCppRunner(gguf_runner.GgufRunner):
  """One way of `Llama.generate`."""

  def __init__(self, target: 'Target', name: str, decode: config.DecodeConfig):
    """Wraps what was loaded.

    Args:
      target: weights on disk.
      name: one of `NAMES`.
      decode: most new tokens and EOS.
    """
    self._way = gguf_runner.way(name)
    self._weights = self._way.weights or target.dtype
    super().__init__(
      name,
      decode,
      'llama-cpp-python',
      threads=target.threads,
      weights=self._weights,
    )
    self._target = target
    self._engine: Any = None
    self._num_slots = 0

  def time(self, prompt: list[int], bucket: int) -> gguf_runner.Timed:
    """Decodes a prompt; those of one bucket share a cache's size."""
    most = self._decode.max_new_tokens
    needed = max(bucket, len(prompt)) + most
    self._make_room(needed + gguf_runner.NUM_DRAFTS + 1)
    engine, tokens = self._engine, []
    engine.reset()  # else what prompts have in common is not computed
    engine.num_calls = 0
    start = last = time.perf_counter()
    first = 0.0
    for token in engine.generate(prompt, temp=0.0, repeat_penalty=1.0):
      last = time.perf_counter()
      first = first or last
      tokens.append(int(token))
      if len(tokens) == most or token in self._decode.eos_ids:
        break
    calls = engine.num_calls - 1
    return gguf_runner.Timed(tokens, calls, first - start, last - first)

  def _make_room(self, needed: int) -> None:
    """Loads it anew where the cache is too short."""
    if needed > self._num_slots:
      self._num_slots = -(-needed // _STEP) * _STEP
      self._engine = self._target.engine(
        self._weights,
        num_slots=self._num_slots,
        has_lookup=self._way.has_lookup,
      )


class Target:
  """Our weights as files that it reads; gone with this object.

  Attributes:
    threads: CPUs that it uses.
    dtype: of matrices where a row does not say.
  """

  def __init__(self, model: runtime.Model, threads: int):
    """Looks whether it can be done.

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
    self._files = gguf_runner.GgufFiles(model, 'llama.cpp')

  def engine(self, weights: str, *, num_slots: int, has_lookup: bool) -> Any:
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
        max_ngram_size=gguf_runner.NGRAM, num_pred_tokens=gguf_runner.NUM_DRAFTS
      )
    return Counting(
      self._files.path(weights),
      n_ctx=num_slots,
      n_threads=self.threads,
      n_threads_batch=self.threads,
      draft_model=lookup,
      verbose=False,
    )
