# SPDX-License-Identifier: Apache-2.0
"""The support table of docs/FAMILIES.md says what the tests run, and no more.

A cell is `yes` where every test of its column runs for that family.
"""

import pathlib

import family_models
import test_families
import test_family_drafters
import test_family_training
import test_gguf_families
import test_leaving_families

DOCS = pathlib.Path(__file__).parents[2] / 'docs' / 'FAMILIES.md'
COLUMNS = {
  'read': [
    test_families.test_both_spellings_and_our_own_give_the_same_config,
    test_families.test_logits_and_greedy_tokens_are_those_of_transformers,
  ],
  'train': [
    test_family_training.test_a_step_moves_every_weight_and_saves_them,
    test_family_training.test_scan_and_remat_train_alike,
  ],
  'decode': [
    test_families.test_drafts_leave_greedy_tokens_as_they_are,
    test_families.test_streams_are_the_same_in_every_pass,
    test_family_drafters.test_a_trained_adapter_decodes_as_plain_decoding,
    test_family_drafters.test_medusa_heads_leave_tokens_as_they_are,
    test_family_drafters.test_a_dart_layer_leaves_tokens_as_they_are,
    test_family_drafters.test_a_draft_model_of_the_family,
  ],
  'PEFT LoRA': [test_leaving_families.test_peft_lora_of_every_module],
  'export': [
    test_families.test_a_saved_model_reads_back,
    test_leaving_families.test_an_exported_model_is_bit_equal,
  ],
  'GGUF': [test_gguf_families.test_gguf_of_a_family],
}


def runs_for(test):
  """Names of the checkpoints that a test is run with."""
  (mark,) = [m for m in test.pytestmark if m.name == 'parametrize']
  return {getattr(one, 'values', (one,))[0] for one in mark.args[1]}


def table():
  """The lines of the table."""
  yield f'| family | {" | ".join(COLUMNS)} |'
  yield '|---' * (len(COLUMNS) + 1) + '|'
  for name in family_models.NAMES:
    is_covered = (
      all(name in runs_for(test) for test in tests)
      for tests in COLUMNS.values()
    )
    cells = ('yes' if covered else '–' for covered in is_covered)
    yield f'| `{name}` | {" | ".join(cells)} |'


def test_the_table_in_the_docs_is_what_the_tests_run():
  wanted = '\n'.join(table())
  assert wanted in DOCS.read_text(), (
    f'put this into docs/FAMILIES.md:\n{wanted}'
  )
