# SPDX-License-Identifier: Apache-2.0
"""OpenVINO GenAI as rows of our table: what a CPU user may take instead.

Our weights, LoRA folded in, go to it as a GGUF file in float16, the widest that
it reads, or quantised; it computes in the precision that is asked for. One row at a time,
plain or with prompt look-up. A call is one that streamed tokens.
"""

import time
from typing import Any

import numpy as np

from specstream_jax import config, runtime
from specstream_jax.bench import gguf_runner

NAMES = gguf_runner.names('openvino')
_WIDEST = 'float16'
_HINTS = {'float32': 'f32', 'bfloat16': 'bf16'}


class OpenVinoRunner(gguf_runner.GgufRunner):
  """One way of `LLMPipeline.generate`."""

  def __init__(self, target: 'Target', name: str, decode: config.DecodeConfig):
    """Wraps what was loaded.

    Args:
      target: weights on disk.
      name: one of `NAMES`.
      decode: most new tokens and EOS.
    """
    way = gguf_runner.way(name)
    weights = way.weights or _WIDEST
    super().__init__(
      name,
      decode,
      'openvino-genai',
      threads=target.threads,
      precision=target.hint,
      weights=weights,
    )
    self._has_lookup = way.has_lookup
    self._pipe = target.pipeline(weights, has_lookup=way.has_lookup)

  def time(self, prompt: list[int], bucket: int) -> gguf_runner.Timed:
    """Decodes a prompt; `bucket` means nothing here."""
    del bucket
    tokens, ends = self._streamed(prompt)
    start, first, *rest = ends
    last = (rest or [first])[-1]
    return gguf_runner.Timed(tokens, len(rest), first - start, last - first)

  def _streamed(self, prompt: list[int]) -> tuple[list[int], list[float]]:
    """New tokens, and when it began and each call ended."""
    import openvino  # pyright: ignore[reportMissingImports]
    import openvino_genai  # pyright: ignore[reportMissingImports]

    asked = openvino_genai.GenerationConfig()
    asked.max_new_tokens = self._decode.max_new_tokens
    asked.do_sample = False
    asked.stop_token_ids = set(self._decode.eos_ids)
    if self._has_lookup:
      asked.num_assistant_tokens = gguf_runner.NUM_DRAFTS
      asked.max_ngram_size = gguf_runner.NGRAM
    ids = np.array([prompt], np.int64)
    inputs = openvino_genai.TokenizedInputs(
      openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids))
    )
    ends = [time.perf_counter()]

    class Streamer(openvino_genai.StreamerBase):
      """Notes when tokens come."""

      def write(self, token: Any) -> Any:
        """One token, or those of one call."""
        del token
        ends.append(time.perf_counter())
        return openvino_genai.StreamingStatus.RUNNING

      def end(self) -> None:
        """Nothing to do."""

    done = self._pipe.generate(inputs, asked, Streamer())
    return list(done.tokens[0]), ends


class Target:
  """Our weights as files that it reads; gone with this object.

  Attributes:
    threads: CPUs that it uses.
    hint: precision that it computes in.
  """

  def __init__(self, model: runtime.Model, threads: int):
    """Looks whether it can be done.

    Raises:
      ValueError: openvino-genai is not installed, or the model does not come
        from a GGUF file.
    """
    try:
      import openvino_genai  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
      raise ValueError(
        'openvino references need the package openvino-genai; pip install '
        "'openvino-genai', or leave them out"
      ) from error
    self.threads, self.hint = threads, _HINTS[model.config.dtype]
    self._files = gguf_runner.GgufFiles(model, 'openvino')

  def pipeline(self, weights: str, *, has_lookup: bool) -> Any:
    """What generates."""
    import openvino_genai  # pyright: ignore[reportMissingImports]

    settings = {
      'INFERENCE_PRECISION_HINT': self.hint,
      'INFERENCE_NUM_THREADS': self.threads,
    }
    if has_lookup:
      settings['prompt_lookup'] = True
    path = self._files.path(weights)
    return openvino_genai.LLMPipeline(path, 'CPU', **settings)
