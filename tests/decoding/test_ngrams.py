# SPDX-License-Identifier: Apache-2.0
"""The n-gram table: counts, file, look-up, and the trees it re-weights."""

import collections
import functools
import itertools
import types

from hypothesis import given, settings, strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_decoding as reference
import table_lm
import tiny
import tokenizers
from tokenizers import models

from specstream_jax import config, drafters
from specstream_jax.checkpoints import ngram_table
from specstream_jax.config import drafting as config_drafting
from specstream_jax.data import records
from specstream_jax.decoding import (
  decoder as decoder_lib,
  ngrams,
  transformer_fns,
  tree as tree_lib,
)
from specstream_jax.drafters import none, streams

PAIRS = [
  ([9, 8], [1, 2, 3, 2]),
  ([8], [1, 2, 4]),
  ([], [1, 2, 3]),
  ([7, 6, 5], []),
]
# (grandparent, parent, token) -> probability; None is the bigram.
EXPECTED = {
  (None, 8, 1): 1.5 / 2,
  (None, 1, 2): 2.5 / 3,
  (None, 2, 3): 1.5 / 3,
  (None, 2, 4): 0.5 / 3,
  (None, 3, 2): 0.5 / 1,
  (9, 8, 1): 0.5 / 1,
  (8, 1, 2): 1.5 / 2,
  (1, 2, 3): 1.5 / 3,
  (1, 2, 4): 0.5 / 3,
  (2, 3, 2): 0.5 / 1,
}


@pytest.fixture(scope='module', autouse=True)
def _compile_fast():
  """Compiling takes most of the time here; running takes none."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


def on_device(table):
  return jax.tree.map(jnp.asarray, table)


_lookup = jax.jit(ngrams.lookup)


def look_up(table, keys):
  """Probabilities of n-grams (grandparent, parent, token)."""
  keys = [(ngrams.NOTHING if k[0] is None else k[0], *k[1:]) for k in keys]
  columns = jnp.array(keys, jnp.int32).T
  return np.asarray(_lookup(on_device(table), *columns))


def test_every_ngram_has_its_probability_and_no_other():
  table, metadata = ngram_table.from_pairs(PAIRS)
  keys = [
    key
    for key in itertools.product([None, *range(11)], range(11), range(11))
    if key in EXPECTED or key[0] is None or key[0] > 0
  ]
  want = [EXPECTED.get(key, 0.0) for key in keys]
  np.testing.assert_allclose(look_up(table, keys), want, rtol=1e-3)
  assert metadata['num_bigrams'] == metadata['num_trigrams'] == 5
  assert metadata['num_entries'] == 10


@functools.cache
def large():
  """A table of some thousand n-grams, and their counts."""
  rng = np.random.default_rng(0)
  text = rng.zipf(1.3, 4000) % 499
  table, metadata = ngram_table.from_pairs([(text[:2], text[2:])])
  trigrams = collections.Counter(zip(text, text[1:], text[2:], strict=False))
  contexts = collections.Counter(itertools.pairwise(text[:-1]))
  return table, metadata, trigrams, contexts


def test_a_large_table_loses_and_confuses_little():
  table, metadata, trigrams, contexts = large()
  total = metadata['num_bigrams'] + metadata['num_trigrams']
  assert 0.98 * total < metadata['num_entries'] <= total
  assert table.checks.size <= 4 * total
  found = look_up(table, list(trigrams))
  want = np.array([(n - 0.5) / contexts[k[:2]] for k, n in trigrams.items()])
  lost = found == 0
  assert lost.mean() < 0.02
  np.testing.assert_allclose(found[~lost], want[~lost], rtol=1e-3)
  others = [(a + 499, b, c) for a, b, c in trigrams]
  assert (look_up(table, others) == 0).all()


def test_the_rarest_are_left_out():
  table, metadata = ngram_table.from_pairs(PAIRS, max_entries=5)
  assert metadata['num_entries'] == 5
  found = look_up(table, [(None, 1, 2), (None, 2, 4), (2, 3, 2)])
  assert found[0] > 0
  assert found[1:].tolist() == [0, 0]


def test_hashes_are_the_same_for_numpy_and_jax():
  keys = np.random.default_rng(1).integers(-1, 2**31 - 1, (3, 101))
  keys = keys.astype(np.int32)
  here, there = ngrams.hashes(*keys), jax.jit(ngrams.hashes)(*keys)
  np.testing.assert_array_equal(here, there)
  assert len(np.unique(here[0])) == len(np.unique(here[1])) == 101


def test_every_bit_of_a_token_moves_every_bit_of_its_hash():
  tokens = np.random.default_rng(2).integers(0, 2**31, 4001).astype(np.uint32)
  bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
  before = ngrams._mix(tokens)
  moved = np.array([before ^ ngrams._mix(tokens ^ bit) for bit in bits])
  share = np.mean((moved[:, :, None] & bits) > 0, axis=1)  # [bit in, bit out]
  assert share.min() > 0.4 and share.max() < 0.6
  # Different ones stay different.
  assert len(np.unique(before)) == len(np.unique(tokens))


def score(probs, grandparent, parent, token):
  """log S by definition."""
  trigram = probs.get((grandparent, parent, token), 0)
  backed_off = 0.4 * probs.get((None, parent, token), 0)
  return np.log(max(trigram or backed_off, 0.001))


def test_edge_scores_back_off_and_have_a_floor():
  table = on_device(ngram_table.from_pairs(PAIRS)[0])
  scores = ngrams.edge_scores(table, 0.7)(
    1,
    jnp.array([[1, 9], [2, 0]]),
    jnp.array([[2, 2], [3, 10]]),
    jnp.array([[3, 4], [2, 1]]),
    jnp.zeros((2, 2)),
  )
  want = np.log(
    [
      [[1.5 / 3, 0.5 / 3], [0.4 * 1.5 / 3, 0.4 * 0.5 / 3]],
      [[0.5, 0.001], [0.001, 0.001]],
    ]
  )
  np.testing.assert_allclose(scores, 0.7 * want, rtol=1e-3)


LOGITS = st.integers(0, 2**16).map(
  lambda seed: np.random.default_rng(seed).normal(size=(3, 5)) * 2
)


@functools.cache
def tree_builder(weight):
  cfg = config.TreeConfig('best_first', depth=3, branching=4, num_nodes=9)

  def build(logits, root, before, table):
    scores = ngrams.edge_scores(table, weight)
    return tree_lib.from_stream_logits(
      logits, root, cfg, edge_scores=scores, before_root=before
    )

  return jax.jit(build)


@settings(max_examples=25, deadline=None)
@given(LOGITS, st.integers(0, 9), st.integers(0, 9))
def test_the_tree_holds_the_best_joint_scores(logits, before, root):
  table = on_device(ngram_table.from_pairs(PAIRS)[0])
  tree = tree_builder(0.7)(
    jnp.asarray(logits)[None], jnp.array([root]), jnp.array([before]), table
  )
  log_probs = np.asarray(jax.nn.log_softmax(jnp.asarray(logits), axis=-1))
  top = np.argsort(-log_probs, axis=1)[:, :4]
  joint = {}
  for depth in (1, 2, 3):
    for path in itertools.product(*top[:depth]):
      text = (before, root, *map(int, path))
      joint[text[2:]] = sum(
        log_probs[j, token] + 0.7 * score(EXPECTED, *text[j : j + 3])
        for j, token in enumerate(path)
      )
  found = reference.paths(*np.asarray([tree.tokens[0], tree.parents[0]]))
  assert len(set(found)) == 8
  worst = min(joint[path] for path in found)
  best = sorted(joint.values())[-8:]
  np.testing.assert_allclose(sorted(joint[p] for p in found), best, atol=0.01)
  # float16 entries: only near ties may fall either way.
  assert worst >= best[0] - 0.01


def test_the_table_chooses_what_goes_together():
  """The streams prefer 3 and 4 alone; the text has 1 2 3."""
  logits = jnp.log(
    jnp.array([[0.1, 0.1, 0.5, 0.1, 0.2], [0.1, 0.1, 0.1, 0.3, 0.4]])
  )
  cfg = config.TreeConfig('best_first', depth=2, branching=2, num_nodes=3)
  table = on_device(ngram_table.from_pairs(PAIRS)[0])
  args = logits[None], jnp.array([1]), cfg
  alone = tree_lib.from_stream_logits(*args)
  together = tree_lib.from_stream_logits(
    *args,
    edge_scores=ngrams.edge_scores(table, 1.0),
    before_root=jnp.array([8]),
  )
  assert alone.tokens.tolist() == [[1, 2, 4]]
  assert together.tokens.tolist() == [[1, 2, 3]]


def test_the_token_before_the_root():
  prompts = jnp.array([[5, 6, 0], [7, 8, 9], [4, 0, 0]])
  last = ngrams.last_of(prompts, jnp.array([2, 3, 1]))
  context = types.SimpleNamespace(
    tokens=jnp.array([[1, 0, 0], [1, 2, 3], [5, 6, 0]]),
    num_tokens=jnp.array([1, 3, 2]),
  )
  assert ngrams.before_root(context, last).tolist() == [6, 2, 5]


def test_a_table_is_used_where_it_weighs_something():
  used = lambda **named: ngrams.is_used(
    config_drafting.DrafterConfig(tree=TREE, **named)
  )
  assert used(ngram_table='some file', ngram_weight=0.5)
  assert not used(ngram_table='some file', ngram_weight=0.0)
  assert not used(ngram_weight=0.5)


# Decoding

MAX_NEW, BUCKET = 19, 11
CFG = config.DecodeConfig(
  max_new_tokens=MAX_NEW, prompt_bucket=BUCKET, eos_ids=(3,)
)
TREE = config.TreeConfig('best_first', depth=3, branching=4, num_nodes=4)
SAMPLING = {
  'greedy': config.SamplingConfig(),
  'sampled': config.SamplingConfig(temperature=1.0),
}


class TableModelParams(dict):
  """Parameters of the table model that carry a drafter's."""

  drafter = property(lambda self: self['drafter'])


jax.tree_util.register_pytree_node(
  TableModelParams,
  lambda x: (list(x.values()), tuple(x)),
  lambda keys, values: TableModelParams(zip(keys, values, strict=True)),
)


@functools.cache
def make_decoder(how, weight):
  drafter = none.NoDraft()
  if weight is not None:
    options = config_drafting.DrafterConfig(
      tree=TREE, ngram_table='some file', ngram_weight=weight
    )
    drafter = streams.Streams(TREE, table_lm.NUM_STREAMS, options)
  return decoder_lib.Decoder(table_lm.MODEL, drafter, CFG, SAMPLING[how])


def run(how, weight, seed, drafter):
  rng = np.random.default_rng(seed)
  prompts = [rng.integers(0, 13, n).tolist() for n in (11, 5, 1)]
  params = table_lm.make_params(seed, quality=0.4)
  return make_decoder(how, weight).generate(
    TableModelParams(params, drafter=transformer_fns.StreamExtras(drafter)),
    prompts,
    [MAX_NEW, 1 + seed % MAX_NEW, MAX_NEW],
    seed=seed,
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  ('how', 'weights'), [('greedy', (0.0, 1.0)), ('sampled', (0.5,))]
)
def test_tokens_stay_and_calls_fall(how, weights):
  """The table is of the very texts that are decoded."""
  calls = collections.Counter()
  for seed in range(6):
    plain = run(how, None, seed, ())
    rows = [(row[:1], row[1:]) for row in plain.tokens if len(row) > 1]
    table = on_device(padded(ngram_table.from_pairs(rows)[0]))
    for weight in weights:
      result = run(how, weight, seed, table)
      assert result.tokens == plain.tokens
      assert result.finish_reasons == plain.finish_reasons
      calls[weight] += int(result.calls.sum())
  if how == 'greedy':
    assert calls[1.0] < 0.9 * calls[0.0]
  assert make_decoder(how, weights[-1]).num_compilations == 2


def padded(table):
  """The table twice, thrice, …, so that all have 64 buckets."""
  copies = 64 // len(table.checks)
  return ngrams.NgramTable(
    np.tile(table.checks, (copies, 1)), np.tile(table.probs, (copies, 1))
  )


# Files and settings


@pytest.fixture
def written(tmp_path):
  """Path of a table made of records."""
  records.write(
    [tuple(map(np.array, pair)) for pair in PAIRS],
    str(tmp_path / 'records'),
    metadata={'task': 'few', 'split': 'train', 'tokenizer_sha256': 'abc'},
    num_shards=2,
  )
  table, metadata = ngram_table.build(
    *records.with_source(str(tmp_path / 'records'))
  )
  path = str(tmp_path / 'deep' / 'e2e.ngrams')
  ngram_table.save(path, table, metadata)
  return path


def test_records_become_a_file_and_come_back(written, tmp_path):
  table, metadata = ngram_table.load(written)
  want, sizes = ngram_table.from_pairs(PAIRS)
  np.testing.assert_array_equal(
    np.sort(table.checks, axis=None), np.sort(want.checks, axis=None)
  )
  np.testing.assert_array_equal(
    np.sort(table.probs, axis=None), np.sort(want.probs, axis=None)
  )
  assert metadata == sizes | {
    'task': 'few',
    'split': 'train',
    'tokenizer_sha256': 'abc',
    'num_examples': 4,
  }
  assert [p.name for p in (tmp_path / 'deep').iterdir()] == ['e2e.ngrams']


def make_model(tokenizer=None):
  _, base, adapter = tiny.model(lora=None)
  return types.SimpleNamespace(
    config=tiny.CONFIG,
    base=base,
    adapter=adapter,
    stream=tiny.STREAMS,
    lora=None,
    layout='in_out',
    tree=TREE,
    tokenizer=tokenizer,
  )


def assemble(path, model=None, **options):
  cfg = config_drafting.DrafterConfig(ngram_table=path, **options)
  return drafters.load(model or make_model(), cfg, config.DecodeConfig())


def test_the_table_is_the_drafters_weights(written):
  made = assemble(written)
  table, _ = ngram_table.load(written)
  np.testing.assert_array_equal(made.params.drafter.ngrams.checks, table.checks)
  assert isinstance(made.params.drafter.ngrams.probs, jax.Array)
  assert assemble('').params.drafter.ngrams == ()


def test_what_does_not_fit_is_refused(written, tmp_path):
  with pytest.raises(ValueError, match='is no file; write one with'):
    assemble(str(tmp_path / 'nothing'))
  (tmp_path / 'junk').write_bytes(b'junk')
  with pytest.raises(ValueError, match=r'junk.*write one with'):
    assemble(str(tmp_path / 'junk'))
  model = make_model(tokenizers.Tokenizer(models.BPE()))
  with pytest.raises(ValueError, match='tokenizer abc… but the model has'):
    assemble(written, model)
  with pytest.raises(ValueError, match="the tree is of kind 'chain'"):
    assemble(written, tree=config.TreeConfig('chain', depth=2))
  with pytest.raises(
    ValueError, match=r'ngram_weight is -1.0; it must be a number >='
  ):
    assemble(written, ngram_weight=-1)
  with pytest.raises(ValueError, match=r"is set for 'medusa'; only the trees"):
    config_drafting.DrafterConfig('medusa', ngram_table=written)
  with pytest.raises(ValueError, match='no n-grams to count'):
    ngram_table.from_pairs([([1, 2], [])])


def test_a_table_of_another_format_is_refused(written, monkeypatch):
  monkeypatch.setattr(ngram_table, 'FORMAT', 'specstream n-gram table 2')
  with pytest.raises(ValueError, match=r"table 1' and arrays .*accepted"):
    ngram_table.load(written)
