# SPDX-License-Identifier: Apache-2.0
"""A server takes the trees that were tuned for its machine."""

import dataclasses

import serving_models

from specstream_jax.checkpoints import tuning
from specstream_jax.serving import starting
from specstream_jax.workflows import tune


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
  # A server chooses by its load when to draft, and takes no budgets.
  budgets = 'streams:num_nodes=5,depth=1,branching=4,budgets=3:1.2/5:1.4'
  both = dataclasses.replace(tuned, drafter=budgets, fixed=text)
  tuning.keep(str(tmp_path), both)
  assert starting.with_tuned_tree(found, base).tree == tree
  elsewhere = dataclasses.replace(place, machine='another')
  (tmp_path / tuning.FILE).unlink()
  tuning.keep(str(tmp_path), dataclasses.replace(tuned, place=elsewhere))
  assert starting.with_tuned_tree(found, base) is found
