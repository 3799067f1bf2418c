# SPDX-License-Identifier: Apache-2.0
"""Rivals of a benchmark behind one call: prompts in, counted tokens out."""

from collections.abc import Sequence
import dataclasses
from typing import Any, Protocol

import jax

from specstream_jax import config, runtime
from specstream_jax.checkpoints import weights as weights_lib
from specstream_jax.config import drafting as config_drafting
from specstream_jax.decoding import decoder as decoder_lib, transformer_fns


class Runner(Protocol):
  """One row of the table.

  Attributes:
    label: name in tables.
    settings: JSON of everything that defines it.
    max_depth: deepest draft, 0 without drafts.
    extra_parameters: weights it adds to the model.
    is_lossy: its output may follow another law than the model's.
    output: 'lossless', 'lossy', 'synthetic' or 'external'.
    is_external: another program's loop.
    fingerprint: hash of the weights and tables it brings along.
  """

  label: str
  settings: dict[str, Any]
  max_depth: int
  extra_parameters: int
  is_lossy: bool
  output: str
  is_external: bool
  fingerprint: str

  def generate(
    self,
    prompts: Sequence[Sequence[int]],
    row_ids: Sequence[int],
    *,
    bucket: int,
    temperature: float,
    seed: int,
  ) -> decoder_lib.DecodeResult:
    """Decodes a batch of prompts of at most `bucket` tokens."""
    ...


class OwnRunner:
  """A drafter in our decode loop."""

  is_external = False

  def __init__(
    self,
    model: runtime.Model,
    drafter: config_drafting.DrafterConfig,
    label: str,
    decode: config.DecodeConfig,
    sampling: config.SamplingConfig = config.SamplingConfig(),
  ):
    """Takes all of `sampling` but the temperature, which each call names.

    Raises:
      ValueError: the drafter does not fit the model.
    """
    self._model, self._drafter, self._decode = model, drafter, decode
    self._sampling = sampling
    self.label = label
    self.settings = config.to_json(drafter)
    self.is_lossy, self.output = drafter.is_lossy, drafter.output
    made = model.decoder(drafter, decode)
    self.max_depth = made.setup.drafter.max_depth
    self.size = made.setup.drafter.size
    tree = drafter.tree or model.tree
    self.extra_parameters = count_extra(
      made.params,
      has_coupling=drafter.coupling and tree.kind == 'best_first',
    )
    self.fingerprint = _fingerprint(made.params.drafter)

  def generate(
    self,
    prompts: Sequence[Sequence[int]],
    row_ids: Sequence[int],
    *,
    bucket: int,
    temperature: float,
    seed: int,
  ) -> decoder_lib.DecodeResult:
    """See `Runner`."""
    decode = dataclasses.replace(self._decode, prompt_bucket=bucket)
    decoder = self._model.decoder(self._drafter, decode)
    return decoder.generate(
      decoder.params,
      prompts,
      seed=seed,
      row_ids=row_ids,
      sampling=dataclasses.replace(self._sampling, temperature=temperature),
    )


def _fingerprint(weights: Any) -> str:
  leaves = jax.tree_util.tree_leaves_with_path(weights)
  flat = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
  return weights_lib.fingerprint(flat, whole=True)[:16]


def count_extra(params: transformer_fns.Params, *, has_coupling: bool) -> int:
  """Numbers that a drafter keeps beside the model's own weights.

  Args:
    params: what decodes.
    has_coupling: an adapter's coupling is used, so it counts.
  """
  adapter = params.adapter
  if not has_coupling:
    adapter = {k: v for k, v in adapter.items() if k != 'coupling'}
  return sum(
    leaf.size
    for leaf in jax.tree.leaves((adapter, params.drafter))
    if hasattr(leaf, 'size')
  )
