# SPDX-License-Identifier: Apache-2.0
"""What an engine takes, and what it refuses, with the numbers."""

import numpy as np

from specstream_jax import runtime, sampling as sampling_lib
from specstream_jax.config import checks, serving
from specstream_jax.decoding import (
  decoder as decoder_lib,
  edits,
  interface,
  loop,
)
from specstream_jax.serving import requests, rows, weights
from specstream_jax.text import stops as stops_lib


def limit(
  request: requests.Request,
  model: runtime.Model,
  cfg: serving.EngineConfig,
  tree_size: int,
) -> int:
  """Most new tokens of a request.

  Args:
    request: what is asked for.
    model: what decodes.
    cfg: of the engine.
    tree_size: nodes of a draft tree.

  Raises:
    ValueError: there is no room for prompt and new tokens.
  """
  num_prompt = len(request.prompt)
  room = cfg.cache_length - tree_size - num_prompt
  positions = model.config.most_positions
  if positions:
    room = min(room, positions - num_prompt)
  asked = request.max_new_tokens
  if asked is None:
    asked = max(1, min(room, cfg.max_new_tokens))
  checks.check(
    asked <= cfg.max_new_tokens,
    f'max_new_tokens is {asked}; accepted: 1 to {cfg.max_new_tokens}',
  )
  decoder_lib.check_positions(num_prompt + asked, positions)
  checks.check(
    asked <= room,
    f'the prompt has {num_prompt} tokens and {asked} new ones are asked for, '
    f'which with a draft tree of {tree_size} come to '
    f'{num_prompt + asked + tree_size} positions, but there are '
    f'{cfg.cache_length} for each request; use a shorter prompt or fewer new '
    'tokens',
  )
  return asked


def room_to_guess(drafter: interface.Drafter, cfg: serving.EngineConfig) -> int:
  """Most tokens of a prediction; 0 if nobody copies from one."""
  return cfg.max_new_tokens if isinstance(drafter, interface.Copier) else 0


def check(
  request: requests.Request, model: runtime.Model, most: int, num_guessed: int
) -> None:
  """Raises ValueError if a request does not fit the model, or itself.

  Args:
    request: what is asked for.
    model: what decodes.
    most: new tokens that it may have.
    num_guessed: room for a prediction.
  """
  model.check_ids(request.prompt, 'the prompt')
  _check_prediction(request, model, num_guessed)
  model.check_ids(request.stop_ids, 'stop_ids')
  request.sampling.check_fits(model.config.vocab_size)
  least = request.sampling.min_new_tokens
  checks.check(
    least <= most,
    f'min_new_tokens is {least} but at most {most} new tokens are asked for; '
    f'use min_new_tokens <= {most}, or allow more',
  )
  biases = len(request.sampling.biases)
  checks.check(
    biases <= edits.ROOM,
    f'{biases} tokens are biased or suppressed; accepted: at most {edits.ROOM} '
    'together',
  )
  checks.check(
    not request.stop or model.pieces.is_exact,
    "stop texts need a tokenizer that decodes token by token, and this one's "
    'decoder does not; leave stop out',
  )


def _check_prediction(request, model, num_guessed) -> None:
  """Raises ValueError if there is a prediction that cannot be used."""
  prediction = request.prediction
  if not prediction:
    return
  checks.check(
    num_guessed > 0,
    'prediction is not supported: the drafts here are not copied; start the '
    "server with drafter 'mix' or 'prompt_lookup', or leave it out",
  )
  checks.check(
    len(prediction) <= num_guessed,
    f'prediction has {len(prediction)} tokens; accepted: at most {num_guessed}, '
    'as many as a completion may have',
  )
  model.check_ids(prediction, 'prediction')


def end_ids(
  request: requests.Request,
  model: runtime.Model,
  served: weights.Served,
  most: int,
) -> tuple[list[int], list[int]]:
  """Token ids that end a request: those of the model, and those it asks for.

  Raises:
    ValueError: there are more than `most`.
  """
  own = [] if request.sampling.ignore_eos else list(served.eos_ids)
  asked = list(request.stop_ids)
  if request.stop:
    asked += stops_lib.special_ids(model.pieces, request.stop)
  count = len({*own, *asked})
  checks.check(
    count <= most,
    f'{count} token ids would end the completion, those of the model included; '
    f'accepted: at most {most}',
  )
  return own, asked


def as_arrays(
  request: requests.Request,
  *,
  most: int,
  ids: list[int],
  num_ids: int,
  num_guessed: int,
  has_drafts: bool,
) -> loop.Rows:
  """A request as a batch of one row.

  Args:
    request: what is asked for.
    most: new tokens that it may have.
    ids: token ids that end it.
    num_ids: E, room for them.
    num_guessed: R, room for a prediction, 0 for none.
    has_drafts: whether the row drafts.
  """
  unique = sorted(set(ids))
  eos_ids = np.full((1, num_ids), -1, np.int32)
  eos_ids[0, : len(unique)] = unique
  cfgs = [request.sampling]
  guesses = None
  if num_guessed:
    guesses = np.full((1, num_guessed), -1, np.int32)
    guesses[0, : len(request.prediction)] = request.prediction
  return loop.Rows(
    limits=np.array([most], np.int32),  # pyright: ignore[reportArgumentType]
    eos_ids=eos_ids,  # pyright: ignore[reportArgumentType]
    keys=sampling_lib.row_keys(request.seed, [0]),
    settings=sampling_lib.row_settings(cfgs),
    edits=edits.request(cfgs),
    has_drafts=np.array([has_drafts]),  # pyright: ignore[reportArgumentType]
    guesses=guesses,  # pyright: ignore[reportArgumentType]
  )


def row(
  request: requests.Request,
  served: weights.Served,
  model: runtime.Model,
  setup: interface.DecodeSetup,
  cfg: serving.EngineConfig,
) -> rows.Row:
  """A request as it stands in the queue.

  Args:
    request: what is asked for.
    served: its adapter.
    model: what decodes.
    setup: drafter and sizes.
    cfg: of the engine.

  Raises:
    ValueError: it does not fit.
  """
  most = limit(request, model, cfg, setup.drafter.size)
  guessed = room_to_guess(setup.drafter, cfg)
  check(request, model, most, guessed)
  own, asked = end_ids(request, model, served, cfg.max_end_ids)
  has_drafts = request.has_drafts and served.has_drafts
  arrays = as_arrays(
    request,
    most=most,
    ids=[*own, *asked],
    num_ids=cfg.max_end_ids,
    num_guessed=guessed,
    has_drafts=has_drafts,
  )
  return rows.Row(
    requests.Handle(request),
    model,
    served,
    arrays,
    eos_ids=own,
    stop_ids=asked,
    drafts_per_call=served.num_drafts * has_drafts,
  )
