# SPDX-License-Identifier: Apache-2.0
"""Adapters side by side draft from the tokens of all of them."""

import dataclasses

import numpy as np
import pytest
import serving_models

from specstream_jax.checkpoints import draft_vocabulary, token_ids, tuning
from specstream_jax.config import drafting
from specstream_jax.serving import (
  engine as engine_lib,
  requests,
  starting,
  vocabularies,
)
from specstream_jax.workflows import tune

_IDS = {'tuned': range(40, 100), 'free': range(90, 130)}


@pytest.fixture
def adapters(tmp_path):
  """Two with vocabularies, and one that has no streams."""
  model = serving_models.base()
  metadata = {'tokenizer_sha256': token_ids.tokenizer_hash(model.tokenizer)}
  found = {'plain': serving_models.peft()}
  for name, ids in _IDS.items():
    folder = tmp_path / name
    draft_vocabulary.save(
      str(folder / draft_vocabulary.FILE),
      np.array(ids, np.int32),
      metadata | {'num_tokens': len(ids)},
    )
    one = serving_models.kinds()[name]
    found[name] = dataclasses.replace(one, folder=str(folder))
  return found


def test_it_is_the_union(adapters):
  ids = vocabularies.together(serving_models.base(), adapters)
  assert ids.tolist() == list(range(40, 130))
  assert ids.dtype == np.int32


def test_nearly_all_tokens_are_all(adapters, tmp_path):
  model = serving_models.base()
  metadata = {'tokenizer_sha256': token_ids.tokenizer_hash(model.tokenizer)}
  folder = tmp_path / 'large'
  ids = np.arange(200, dtype=np.int32)
  path = str(folder / draft_vocabulary.FILE)
  draft_vocabulary.save(path, ids, metadata | {'num_tokens': 200})
  large = dataclasses.replace(adapters['free'], folder=str(folder))
  assert vocabularies.together(model, adapters | {'large': large}) is None


def test_vocabularies_are_taken_where_all_that_draft_have_one(adapters):
  base = serving_models.base()
  taken = starting.drafter(None, base, adapters)
  assert taken.vocabulary == 'adapter'
  without = adapters | {'both': serving_models.kinds()['both']}
  assert starting.drafter(None, base, without).vocabulary == ''
  with pytest.raises(ValueError, match="'both' has no draft"):
    vocabularies.together(base, without)
  # A tree that is wider than the vocabulary cannot draft from it.
  tree = dataclasses.replace(adapters['free'].tree, branching=41)
  wide = adapters | {'free': dataclasses.replace(adapters['free'], tree=tree)}
  assert starting.drafter(None, base, wide).vocabulary == ''
  # Who asks for something gets that.
  assert starting.drafter('streams', base, adapters).vocabulary == ''


def test_a_file_for_all_is_refused(adapters):
  cfg = drafting.parse('streams:vocabulary=x.json', serving_models.TREE)
  with pytest.raises(ValueError, match="vocabulary is 'x"):
    engine_lib.Engine(
      serving_models.base(), serving_models.CFG, drafter=cfg, adapters=adapters
    )


@pytest.mark.slow
def test_drafts_keep_to_it_and_tokens_stay(adapters):
  base = serving_models.base()
  engine = engine_lib.Engine(base, serving_models.CFG, adapters=adapters)
  head = engine._weights._head
  assert head.ids.tolist() == list(range(40, 130))
  whole = serving_models.engine()
  asked = [
    requests.Request((5, 9, seed), adapter=name, max_new_tokens=20)
    for seed in (1, 2, 3)
    for name in ('', *adapters)
  ]
  done = []
  for one in (engine, whole):
    handles = [one.submit(request) for request in asked[:3]]
    while one.step():
      pass
    for request in asked[3:]:
      handles.append(one.submit(request))
      while one.step():
        pass
    done.append([handle.result(0) for handle in handles])
  assert [made.tokens for made in done[0]] == [made.tokens for made in done[1]]
  accepted = sum(made.metrics.num_accepted for made in done[0])
  drafted = engine._decoder._state.tree.tokens[:, 1:]
  used = np.unique(np.asarray(drafted))
  assert set(used.tolist()) <= {-1, *range(40, 130)}
  assert accepted >= 0
  before = engine.stats().num_compilations
  engine.load_adapter('late', serving_models.kinds()['both'])
  handle = engine.submit(requests.Request((7,), 'late', 6))
  while engine.step():
    pass
  assert len(handle.result(0).tokens) == 6 or handle.result(0).finish_reason
  assert engine.stats().num_compilations == before


def test_a_tree_that_was_tuned_comes_before_the_adapters_own(tmp_path):
  base, own = serving_models.base(), serving_models.kinds()['tuned']
  found = dataclasses.replace(own, folder=str(tmp_path))
  assert starting.with_tuned_tree(found, base) is found
  place, text = tune.place(base, 1), 'streams:num_nodes=3,depth=1,branching=2'
  tuned = tuning.Tuned(place, text, 'deferred', 1.5, 'x')
  tuning.keep(str(tmp_path), tuned)
  tree = starting.with_tuned_tree(found, base).tree
  assert (tree.num_nodes, tree.depth, tree.branching) == (3, 1, 2)
  # Plain decoding may be fastest alone, and drafts still pay in a batch.
  tuning.keep(str(tmp_path), dataclasses.replace(tuned, drafter='none'))
  assert starting.with_tuned_tree(found, base).tree == own.tree
  elsewhere = dataclasses.replace(place, machine='another')
  (tmp_path / tuning.FILE).unlink()
  tuning.keep(str(tmp_path), dataclasses.replace(tuned, place=elsewhere))
  assert starting.with_tuned_tree(found, base) is found
