# SPDX-License-Identifier: Apache-2.0
"""OpenVINO GenAI as rows of our table: what a CPU user may take instead.

Our weights, LoRA folded in, go to it as a GGUF file in float16, the widest that
it reads; it computes in the precision that is asked for. One row at a time,
plain or with prompt look-up. A call is one that streamed tokens.
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

NAMES = ('openvino', 'openvino_prompt_lookup')
_HINTS = {'float32': 'f32', 'bfloat16': 'bf16'}
_DRAFTS = 4  # of prompt look-up, as with transformers
_NGRAM = 3


class OpenVinoRunner:
  """One way of `LLMPipeline.generate`; see `runners.Runner`."""

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
    self.label, self._decode = name, decode
    self._has_lookup = name == 'openvino_prompt_lookup'
    self._pipe = target.pipeline(has_lookup=self._has_lookup)
    self.settings = {
      'name': name,
      'version': importlib.metadata.version('openvino-genai'),
      'threads': target.threads,
      'precision': target.hint,
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
    """See `runners.Runner`; `bucket` means nothing here."""
    del row_ids, bucket, seed
    if len(prompts) != 1 or temperature:
      raise ValueError(
        f'{self.label} decodes one row at a time, greedily; use --batch_sizes=1 '
        'and --temperatures=0'
      )
    tokens, ends = self._timed(list(prompts[0]))
    start, first, *rest = ends
    total = (rest or [first])[-1] - start
    return decoder_lib.DecodeResult(
      [tokens],
      np.array([len(rest)]),
      [[]],
      ['eos' if tokens[-1] in self._decode.eos_ids else 'length'],
      first - start,
      max(total - (first - start), 1e-9),
    )

  def _timed(self, prompt: list[int]) -> tuple[list[int], list[float]]:
    """New tokens, and when it began and each call ended."""
    import openvino  # pyright: ignore[reportMissingImports]
    import openvino_genai  # pyright: ignore[reportMissingImports]

    asked = openvino_genai.GenerationConfig()
    asked.max_new_tokens = self._decode.max_new_tokens
    asked.do_sample = False
    asked.stop_token_ids = set(self._decode.eos_ids)
    if self._has_lookup:
      asked.num_assistant_tokens = _DRAFTS
      asked.max_ngram_size = _NGRAM
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
  """Our weights as a file that it reads; gone with this object.

  Attributes:
    threads: CPUs that it uses.
    hint: precision that it computes in.
  """

  def __init__(self, model: runtime.Model, threads: int):
    """Writes the file.

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
    self._folder = tempfile.TemporaryDirectory()
    self._path = os.path.join(self._folder.name, 'model.gguf')
    gguf_weights.write(self._path, model, 'openvino', 'float16')

  def pipeline(self, *, has_lookup: bool) -> Any:
    """What generates."""
    import openvino_genai  # pyright: ignore[reportMissingImports]

    settings = {
      'INFERENCE_PRECISION_HINT': self.hint,
      'INFERENCE_NUM_THREADS': self.threads,
    }
    if has_lookup:
      settings['prompt_lookup'] = True
    return openvino_genai.LLMPipeline(self._path, 'CPU', **settings)
