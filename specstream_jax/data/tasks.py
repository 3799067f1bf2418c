# SPDX-License-Identifier: Apache-2.0
"""The task table as seqio tasks: source, preprocessors, vocabulary, metrics.

B rows, T positions. Imports TensorFlow; only `prepare` and seqio users load
it.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import importlib.metadata
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from specstream_jax.checkpoints import chat_format
from specstream_jax.data import (
  features,
  readers,
  records,
  registry,
  vocabulary as vocabulary_lib,
)

PAIRS_SUFFIX = '_pairs'
_SIGNATURE = {
  'inputs': tf.TensorSpec((), tf.string),
  'targets': tf.TensorSpec((), tf.string),
  'references': tf.TensorSpec((None,), tf.string),
  'is_cut': tf.TensorSpec((), tf.bool),
  'is_chat': tf.TensorSpec((), tf.bool),
}


class SeqioVocabulary(seqio.Vocabulary):
  """`Vocabulary` in the form seqio asks for."""

  def __init__(self, vocabulary: vocabulary_lib.Vocabulary):
    super().__init__()
    self.vocabulary = vocabulary

  @property
  def bos_id(self) -> int | None:
    return self.vocabulary.bos_id

  @property
  def eos_id(self) -> int:
    return self.vocabulary.eos_id

  @property
  def unk_id(self) -> int | None:
    return None

  @property
  def _base_vocab_size(self) -> int:
    return self.vocabulary.size

  def _encode(self, s: str) -> list[int]:
    return self.vocabulary.encode(s)

  def _decode(self, ids) -> str:
    return self.vocabulary.decode(ids)

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    def encode(text):
      return np.asarray(self._encode(text.decode('utf-8')), np.int32)

    ids = tf.numpy_function(encode, [s], tf.int32, stateful=False)
    ids.set_shape((None,))
    return ids

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    if ids.shape.rank == 2:
      return tf.map_fn(self._decode_tf, ids, fn_output_signature=tf.string)
    text = tf.numpy_function(self._decode, [ids], tf.string, stateful=False)
    text.set_shape(())
    return text

  def __eq__(self, other) -> bool:
    return (
      isinstance(other, SeqioVocabulary)
      and self.vocabulary.sha256 == other.vocabulary.sha256
      and self.eos_id == other.eos_id
      and self.bos_id == other.bos_id
    )


def _tokenize(dataset, output_features):
  """Prompt and answer as the ids of one text, see `Vocabulary.encode_pair`."""
  vocabulary = output_features['inputs'].vocabulary.vocabulary

  def encode(inputs, targets, is_cut, is_chat):
    prompt, answer = inputs.decode('utf-8'), targets.decode('utf-8')
    if is_chat:
      prompt = chat_format.Text(prompt)
    return tuple(vocabulary.encode_pair(prompt, answer, is_cut=bool(is_cut)))

  def tokenize(example):
    """The example with ids for texts, which it keeps under other names."""
    rest = dict(example)
    texts = rest['inputs'], rest['targets']
    inputs, targets, is_inside = tf.numpy_function(
      encode,
      [*texts, rest.pop('is_cut'), rest['is_chat']],
      (tf.int32, tf.int32, tf.bool),
      stateful=False,
    )
    for ids in (inputs, targets):
      ids.set_shape((None,))
    is_inside.set_shape(())
    return rest | {
      'inputs': inputs,
      'targets': targets,
      'inputs_pretokenized': texts[0],
      'targets_pretokenized': texts[1],
      'is_inside': is_inside,
    }

  return dataset.map(tokenize, num_parallel_calls=tf.data.AUTOTUNE)


def metadata(
  spec: registry.TaskSpec,
  split: str,
  vocabulary: vocabulary_lib.Vocabulary,
  num_skipped: int | None,
) -> dict[str, Any]:
  """What the manifest of a task's records says of where they come from."""
  found = records.of_task(
    spec.name,
    split,
    vocabulary,
    is_chat=is_chat(spec, split),
    num_skipped=num_skipped,
  )
  return found | {'seqio_version': importlib.metadata.version('seqio')}


def boundary(element: Mapping[str, Any]) -> dict[str, str]:
  """Both sides of the place where the prompt of an element ends."""
  prompt, answer = (
    element[f'{name}_pretokenized'].decode('utf-8')
    for name in ('inputs', 'targets')
  )
  return records.boundary(prompt, answer)


def _elements(spec: registry.TaskSpec, load, split: str):
  """Yields raw seqio elements; a `_pairs` split has one per reference."""
  as_pairs = split.endswith(PAIRS_SUFFIX)
  examples = load(split.removesuffix(PAIRS_SUFFIX)).examples
  yield from _raw(spec, examples, as_pairs)


def _raw(spec: registry.TaskSpec, examples, as_pairs: bool):
  for example in examples:
    references = example.references if as_pairs else example.references[:1]
    for reference in references:
      yield {
        'inputs': example.inputs,
        'targets': spec.template.targets(reference),
        'references': [reference] if as_pairs else list(example.references),
        'is_cut': isinstance(reference, readers.CutAnswer),
        'is_chat': isinstance(example.inputs, chat_format.Text),
      }


def _source(spec: registry.TaskSpec, load) -> seqio.FunctionDataSource:
  def dataset_fn(split, shuffle_files, seed=None):
    dataset = tf.data.Dataset.from_generator(
      functools.partial(_elements, spec, load, split),
      output_signature=_SIGNATURE,
    )
    return dataset.shuffle(10_000, seed=seed) if shuffle_files else dataset

  pairs = tuple(s + PAIRS_SUFFIX for s in spec.multi_reference_splits)
  return seqio.FunctionDataSource(dataset_fn, splits=spec.splits + pairs)


class FilesSource(seqio.DataSource):
  """A task in several files, each a shard that a worker reads by itself."""

  def __init__(
    self, spec: registry.TaskSpec, data_dir: str, skip_bad_rows: bool
  ):
    self._spec, self._data_dir = spec, data_dir
    self._skip_bad_rows = skip_bad_rows
    assert spec.files and spec.read_file
    self._files, self._read_file = spec.files, spec.read_file
    super().__init__(spec.splits)

  @property
  def supports_arbitrary_sharding(self) -> bool:
    return False

  def num_input_examples(self, split: str) -> int | None:
    return None

  def list_shards(self, split: str) -> tuple[str, ...]:
    return self._files(split, self._data_dir)

  def get_dataset(
    self,
    split: str,
    shuffle: bool = True,
    seed: int | None = None,
    shard_info: seqio.ShardInfo | None = None,
    *,
    num_epochs: int | None = 1,
    use_cached: bool = False,
  ) -> tf.data.Dataset:
    """Raw elements of the files of a shard, in the order of their names."""
    del use_cached
    paths = self.list_shards(split)
    if shard_info:
      paths = paths[shard_info.index :: shard_info.num_shards]

    def elements():
      for path in paths:
        rows = self._read_file(path, self._skip_bad_rows)
        examples = (
          readers.Example(self._spec.template.inputs(source), (answer,))
          for source, answer in rows.pairs
        )
        yield from _raw(self._spec, examples, as_pairs=False)

    dataset = tf.data.Dataset.from_generator(
      elements, output_signature=_SIGNATURE
    )
    if shuffle:
      dataset = dataset.shuffle(10_000, seed=seed)
    return dataset.repeat(num_epochs)


def _has_files(spec: registry.TaskSpec, data_dir: str) -> bool:
  """Whether some split of the task lies in several files."""
  if not spec.files:
    return False
  for split in spec.splits:
    try:
      if len(spec.files(split, data_dir)) > 1:
        return True
    except ValueError:  # a split that is not there
      continue
  return False


def _postprocess(
  output: Any, *, example: Any = None, is_target: bool = False, **unused: Any
) -> Any:
  """A target becomes its references; a prediction loses outer space."""
  del unused
  if is_target:
    return [text.decode('utf-8') for text in example['references']]
  return output.strip()


def pairs_split(spec: registry.TaskSpec, split: str) -> str:
  """The seqio split with one element per reference."""
  is_multi = split in spec.multi_reference_splits
  return split + PAIRS_SUFFIX if is_multi else split


def is_chat(spec: registry.TaskSpec, split: str) -> bool:
  """Whether a chat template wrote the prompts of a registered task.

  The first one tells; a split is of one kind.
  """
  dataset = seqio.get_mixture_or_task(spec.name).get_dataset(
    sequence_length=None,
    split=pairs_split(spec, split),
    shuffle=False,
    num_epochs=1,
  )
  return any(bool(example['is_chat']) for example in dataset.take(1))


def register(
  spec: registry.TaskSpec,
  vocabulary: vocabulary_lib.Vocabulary,
  *,
  data_dir: str | None = None,
  skip_bad_rows: bool = False,
  metric_fns: Sequence[Callable] = (),
) -> seqio.Task:
  """Registers the seqio task of `spec`, in place of one of the same name.

  Args:
    spec: the task.
    vocabulary: tokenizes prompt and answer.
    data_dir: folder of the task's files.
    skip_bad_rows: leave malformed rows out.
    metric_fns: metric(targets: list of reference lists, predictions) -> dict.
  """
  load = functools.partial(
    spec.load, data_dir=data_dir, skip_bad_rows=skip_bad_rows
  )
  source: Any = _source(spec, load)
  if data_dir and _has_files(spec, data_dir):
    source = FilesSource(spec, data_dir, skip_bad_rows)
  seqio_vocabulary = SeqioVocabulary(vocabulary)
  if spec.name in seqio.TaskRegistry.names():
    seqio.TaskRegistry.remove(spec.name)
  return seqio.TaskRegistry.add(
    spec.name,
    source=source,
    preprocessors=[
      _tokenize,
      seqio.CacheDatasetPlaceholder(),
    ],
    output_features={
      'inputs': seqio.Feature(seqio_vocabulary, add_eos=False),
      'targets': seqio.Feature(seqio_vocabulary, add_eos=True),
    },
    postprocess_fn=_postprocess,
    metric_fns=list(metric_fns),
  )


def register_tasks(
  vocabulary: vocabulary_lib.Vocabulary,
  metric_fns: Sequence[Callable] = (),
  *,
  data_dir: str | None = None,
) -> None:
  """Registers every task of the table (see `register`)."""
  for name in registry.names():
    register(
      registry.get(name), vocabulary, data_dir=data_dir, metric_fns=metric_fns
    )


class CausalFeatureConverter(seqio.FeatureConverter):
  """{inputs, targets} -> the batch arrays of `features.py`, as seqio does it.

  Prompt and answer share `task_feature_lengths['inputs'] + ['targets'] - 1`
  positions.
  """

  TASK_FEATURES = {
    'inputs': seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
    'targets': seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
  }
  MODEL_FEATURES = {
    name: seqio.FeatureConverter.FeatureSpec(dtype=tf.as_dtype(dtype))
    for name, dtype in features.DTYPES.items()
  }
  PACKING_FEATURE_DTYPES = {}

  def _convert_features(self, ds, task_feature_lengths):
    lengths = self.get_model_feature_lengths(task_feature_lengths)
    names = features.TOKEN_FEATURES
    ds = ds.map(self._segment)
    ds = self._pack_or_pad(ds, {name: lengths[name] for name in names})
    return ds.map(self._finish)

  def _segment(self, example: Mapping[str, tf.Tensor]):
    """Features [I + A - 1], each plus 1: seqio's packing strips zeros."""
    tokens = tf.concat([example['inputs'], example['targets']], axis=0)
    is_answer = tf.range(1, tf.size(tokens)) >= tf.size(example['inputs'])
    return {
      'decoder_input_tokens': tokens[:-1] + 1,
      'decoder_target_tokens': tokens[1:] + 1,
      'decoder_loss_weights': tf.cast(is_answer, tf.int32) + 1,
    }

  def _finish(self, row: Mapping[str, tf.Tensor]):
    """Takes the 1 off again and names segments and positions."""
    name = features.TOKEN_FEATURES[0]
    if self.pack:
      segment_ids = row[f'{name}_segment_ids']
      positions = row[f'{name}_positions']
    else:
      segment_ids = tf.cast(row[name] > 0, tf.int32)
      positions = tf.range(tf.size(segment_ids)) * segment_ids
    finished = {
      feature: tf.maximum(row[feature] - 1, 0)
      for feature in features.TOKEN_FEATURES
    }
    weights = tf.cast(finished['decoder_loss_weights'], tf.float32)
    return {
      **finished,
      'decoder_loss_weights': weights,
      'decoder_positions': positions,
      'decoder_segment_ids': segment_ids,
    }

  def get_model_feature_lengths(
    self, task_feature_lengths: Mapping[str, int]
  ) -> dict[str, int]:
    length = sum(task_feature_lengths.values()) - 1
    return dict.fromkeys(self.MODEL_FEATURES, length)
