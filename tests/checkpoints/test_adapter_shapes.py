# SPDX-License-Identifier: Apache-2.0
"""Shapes of an adapter's weights: those of the module that takes them."""

import dataclasses
import itertools

import model_files
import pytest
import tiny

from specstream_jax import config
from specstream_jax.checkpoints import adapter_shapes, adapters, shipped
from specstream_jax.modeling import build, params

STREAMS = [
  config.StreamConfig(
    num_streams=3,
    num_msa_layers=2,
    mode=mode,
    insertion=insertion,
    embedding=embedding,
    pruning_rank=rank,
    coupling_rank=rank,
  )
  for mode, insertion, embedding, rank in itertools.product(
    ('fine_tuned', 'lossless'),
    ('identity', 'low_rank'),
    ('learned', 'value_rotation'),
    (0, 5),
  )
] + [config.StreamConfig(num_streams=3, num_msa_layers=2, insertion='mask')]
LORA = (
  config.LoraConfig(rank=0),
  config.LoraConfig(rank=4, modules=('query', 'out', 'down')),
)


@pytest.mark.parametrize('lora', LORA)
def test_they_are_those_of_the_module(lora):
  for stream in STREAMS:
    built = build.build(tiny.CONFIG, stream, lora).adapter
    wanted = {p: tuple(x.shape) for p, x in params.flatten(built).items()}
    is_lossless = stream.mode == 'lossless'
    count = stream.num_msa_layers if is_lossless else tiny.CONFIG.num_layers
    found = adapter_shapes.of_streams(tiny.CONFIG, stream)
    found |= dict(adapter_shapes.of_lora(tiny.CONFIG, lora, count))
    assert found == wanted, stream


def test_adapters_that_ship_have_them():
  for name in shipped.shipped_adapters():
    folder = shipped.adapter_folder(name)
    flat, cfg = adapters.load_adapter(folder)
    adapters.check_weights(folder, flat, cfg, model_files.SMOLLM2)
    path = next(iter(flat))
    other = flat | {path: flat[path][..., :1]}
    with pytest.raises(ValueError, match=f'(?s){name}.*{path} has shape'):
      adapters.check_weights(folder, other, cfg, model_files.SMOLLM2)


def test_eos_that_the_base_does_not_have():
  folder = shipped.adapter_folder('instruct_lossless')
  flat, cfg = adapters.load_adapter(folder)
  cfg = dataclasses.replace(cfg, provenance={'eos_ids': [2, 61]})
  small = dataclasses.replace(tiny.CONFIG, vocab_size=61, num_layers=30)
  with pytest.raises(
    ValueError, match=r'(?s)adapter_config\.json.*eos_ids is .2, 61.'
  ):
    adapters.check_weights(folder, flat, cfg, small)
