# SPDX-License-Identifier: Apache-2.0
"""Transformers `generate` as rows of our table: same weights, same prompts.

Plain, with prompt look-up, and assisted by a draft model. Float32 on the CPU,
one row at a time. A call is a forward pass of the target after its first. The
time of the prompt pass is that of a call for one token, and is taken off.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import tempfile
import time
from typing import Any

import numpy as np

from specstream_jax import config, runtime
from specstream_jax.checkpoints import huggingface, weights as weights_lib
from specstream_jax.decoding import decoder as decoder_lib
from specstream_jax.modeling import fused, int8, params as params_lib

NAMES = ('hf', 'hf_prompt_lookup', 'hf_assisted')


class TransformersRunner:
  """One way of `generate`."""

  max_depth = 0
  is_lossy = False
  output = 'external'
  is_external = True

  def __init__(
    self,
    target: Any,
    name: str,
    decode: config.DecodeConfig,
    assistant: Any = None,
  ):
    """Wraps a loaded transformers model.

    Args:
      target: the model, float32, in evaluation mode.
      name: one of `NAMES`.
      decode: most new tokens and EOS.
      assistant: draft model for `hf_assisted`.
    """
    self._target, self._decode = target, decode
    self.label = name
    self._options = {
      'hf': {},
      'hf_prompt_lookup': {'prompt_lookup_num_tokens': 4},
      'hf_assisted': {'assistant_model': assistant},
    }[name]
    self.settings = {'name': name} | {
      k: v for k, v in self._options.items() if k != 'assistant_model'
    }
    self.extra_parameters, self.fingerprint = 0, ''
    if assistant is not None:
      self.fingerprint = weights_lib.fingerprint(
        {k: v.numpy() for k, v in assistant.state_dict().items()}
      )[:16]
      self.extra_parameters = sum(p.numel() for p in assistant.parameters())

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
    import torch  # pyright: ignore[reportMissingImports] of Python 3.11

    del row_ids, bucket
    if len(prompts) != 1:
      raise ValueError(
        f'{self.label} decodes one row at a time; use --batch_sizes=1'
      )
    torch.manual_seed(seed)
    first, _, prefill = self._timed(prompts[0], 1, temperature)
    torch.manual_seed(seed)
    tokens, calls, total = self._timed(
      prompts[0], self._decode.max_new_tokens, temperature
    )
    del first
    return decoder_lib.DecodeResult(
      [tokens],
      np.array([max(calls - 1, 0)]),
      [[]],
      ['eos' if tokens[-1] in self._decode.eos_ids else 'length'],
      prefill,
      max(total - prefill, 1e-9),
    )

  def _timed(self, prompt, max_new, temperature):
    """(new tokens, forward passes, seconds)."""
    import torch  # pyright: ignore[reportMissingImports] of Python 3.11
    import transformers

    cfg = transformers.GenerationConfig(
      do_sample=temperature > 0,
      **({'temperature': temperature, 'top_k': 0} if temperature else {}),
      max_new_tokens=max_new,
      eos_token_id=list(self._decode.eos_ids) or None,
      pad_token_id=0,
    )
    ids = torch.tensor([list(prompt)])
    with _counting(self._target) as count, torch.inference_mode():
      start = time.perf_counter()
      out = self._target.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        generation_config=cfg,
        **self._options,
      )
      seconds = time.perf_counter() - start
    return out[0, len(prompt) :].tolist(), len(count), seconds


@contextlib.contextmanager
def _counting(module):
  """A list that grows by one with each forward pass of `module`."""
  calls: list[None] = []
  handle = module.register_forward_pre_hook(lambda *_: calls.append(None))
  try:
    yield calls
  finally:
    handle.remove()


def load_target(model: runtime.Model, threads: int) -> Any:
  """Our weights, LoRA folded in, as a transformers model on `threads` CPUs.

  Raises:
    ValueError: torch or transformers is not installed.
  """
  _libraries()[0].set_num_threads(threads)
  flat = plain_weights(model)
  with tempfile.TemporaryDirectory() as folder:
    cfg = dataclasses.replace(model.config, weights_dtype='')
    huggingface.export(folder, cfg, flat)
    return load_folder(folder)


def plain_weights(model: runtime.Model) -> dict[str, Any]:
  """Flat base weights, kernels [in, out], as numbers of the model's dtype."""
  apart = fused.split(params_lib.flatten(model.base), model.config)
  flat = params_lib.transpose_kernels(apart)
  return int8.dequantize(flat, model.config)


def load_folder(folder: str) -> Any:
  """A Hugging Face folder as a float32 transformers model.

  Raises:
    ValueError: as `load_target`.
  """
  torch, transformers = _libraries()
  return transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32
  ).eval()


def _libraries():
  try:
    import torch  # pyright: ignore[reportMissingImports] of Python 3.11
    import transformers
  except ImportError as error:
    raise ValueError(
      f"external references need {error.name}; pip install 'specstream-jax"
      "[test]' on Python 3.11, or leave them out"
    ) from error
  return torch, transformers
