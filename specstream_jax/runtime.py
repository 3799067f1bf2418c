# SPDX-License-Identifier: Apache-2.0
"""A loaded model with its adapter, ready to decode.

LoRA of a fine-tuned adapter is folded into the base weights once, so neither
decoder pays for it. A lossless adapter keeps the base as it is, or as the LoRA
that comes with it has tuned it.
"""

from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import pathlib
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from specstream_jax import assembly, config, config_drafting, partitioning
from specstream_jax.checkpoints import (
  adapters,
  eos,
  loading,
  token_ids,
  tokenizer_errors,
  weights as weights_lib,
)
from specstream_jax.decoding import (
  decoder as decoder_lib,
  stopping,
  transformer_fns,
  verifiers,
)
from specstream_jax.modeling import initialize, lora, params as params_lib
from specstream_jax.text import (
  completion as completion_lib,
  pieces as pieces_lib,
  stops as stops_lib,
)

DRAFTERS = config_drafting.DRAFTERS
_SHIPPED = pathlib.Path(__file__).parent / 'adapters'


@dataclasses.dataclass
class Model:
  """A base model, and perhaps an adapter, on device.

  Attributes:
    config: sizes of the base model.
    base: nested weights that decode, LoRA folded in when fine-tuned; kernels
      lie as [out, in].
    adapter: nested stream weights; empty without an adapter.
    stream: settings of the streams, or None.
    lora: LoRA left unfolded (lossless mode), or None.
    tree: the adapter's default tree.
    source: what was loaded, for reports: base and adapter by name or path.
    tokenizer: `tokenizers.Tokenizer`.
    chat_template: Jinja source, or None.
    eos_ids: token ids that end a text: those of the base, and those at which
      the adapter was trained to end.
    bos_id: token id in front of every prompt, or None.
    layout: of the kernels, see `layers.Linear`.
    adapter_dir: folder of the adapter, empty without.
    partitioner: where the weights lie, and batches go.
  """

  config: config.ModelConfig
  base: dict[Any, Any]
  adapter: dict[Any, Any]
  stream: config.StreamConfig | None
  lora: config.LoraConfig | None
  tree: config.TreeConfig
  source: dict[str, str]
  tokenizer: Any
  chat_template: str | None
  eos_ids: tuple[int, ...]
  bos_id: int | None = None
  layout: str = 'out_in'
  adapter_dir: str = ''
  partitioner: partitioning.Partitioner = dataclasses.field(
    default_factory=partitioning.local, repr=False
  )
  _decoders: dict[Any, decoder_lib.Decoder] = dataclasses.field(
    default_factory=dict, repr=False
  )
  _params: dict[Any, Any] = dataclasses.field(default_factory=dict, repr=False)

  def decoder(
    self,
    drafter: str | config_drafting.DrafterConfig,
    decode: config.DecodeConfig,
    sampling: config.SamplingConfig = config.SamplingConfig(),
    tree: config.TreeConfig | None = None,
  ) -> decoder_lib.Decoder:
    """The compiled decoder for these settings; made once.

    Args:
      drafter: a name of `DRAFTERS` with its defaults, or all its settings.
      decode: sizes and stop conditions.
      sampling: how a token is drawn.
      tree: used where the drafter's settings name none.

    Raises:
      ValueError: unknown drafter, or one that does not fit the model.
    """
    drafter = _settings(drafter, tree)
    key = (drafter, decode, sampling)
    if key not in self._decoders:
      self._decoders[key] = self._make_decoder(drafter, decode, sampling)
    return self._decoders[key]

  def params(
    self, drafter: str | config_drafting.DrafterConfig
  ) -> transformer_fns.Params:
    """What the decoder of `drafter` takes as weights."""
    drafter = _settings(drafter)
    key = _weights_key(drafter)
    if key not in self._params:
      made = assembly.assemble(self, drafter, config.DecodeConfig())
      self._params[key] = made.params
    return self._params[key]

  def _make_decoder(self, drafter, decode, sampling):
    made = assembly.assemble(self, drafter, decode)
    self._params[_weights_key(drafter)] = made.params
    return decoder_lib.Decoder(
      made.model,
      made.drafter,
      decode,
      sampling,
      prompt_model=made.prompt_model,
      verifier=verifiers.make(drafter),
      partitioner=self.partitioner,
    )

  def encode(self, text: str) -> list[int]:
    """Token ids of `text`, no special tokens added.

    Raises:
      ValueError: the tokenizer knows no way to spell it.
    """
    encode = self.tokenizer.encode
    with tokenizer_errors.naming(*tokenizer_errors.AT_USE):
      return encode(text, add_special_tokens=False).ids

  def encode_prompt(self, text: str) -> list[int]:
    """Token ids of a prompt: `encode`, after BOS if the model wants one."""
    return ([] if self.bos_id is None else [self.bos_id]) + self.encode(text)

  def check_ids(self, tokens: Sequence[int], name: str) -> None:
    """Raises ValueError if `name` holds a token without an embedding."""
    token_ids.check(tokens, self.config.vocab_size, name, self.tokenizer)

  def warn_if_long(
    self, prompts: Sequence[Sequence[int]], max_new_tokens: int
  ) -> None:
    """Warns of texts that run past the positions the model was trained on."""
    longest = max(map(len, prompts), default=0) + max_new_tokens
    most = self.config.max_position_embeddings
    if longest > most:
      logging.warning(
        'prompt and new tokens come to %d positions, the model was made for '
        '%d; what lies beyond is not to be trusted',
        longest,
        most,
      )

  @property
  def has_tokenizer(self) -> bool:
    """Whether there is one; without, token ids are all that can be decoded."""
    return not isinstance(self.tokenizer, loading.MissingTokenizer)

  @functools.cached_property
  def pieces(self) -> pieces_lib.Pieces:
    """What tokens spell; raises ValueError without a tokenizer."""
    return pieces_lib.Pieces(self.tokenizer)

  def completion(
    self, prompt: Sequence[int] = (), stops: Sequence[str] = ()
  ) -> completion_lib.Completion:
    """The text of tokens that come after a prompt, up to EOS or a stop."""
    return completion_lib.Completion(
      self.pieces, prompt, eos_ids=self.eos_ids, stops=stops
    )

  def decode_text(
    self,
    tokens: Sequence[int],
    prompt: Sequence[int] = (),
    stops: Sequence[str] = (),
  ) -> str:
    """Text that tokens add to a prompt.

    Args:
      tokens: new ids.
      prompt: ids before them; without, the text of the tokens alone, which for
        SentencePiece has no space in front of its first word.
      stops: texts of which the first to be whole ends the text.

    Returns:
      The text up to the first EOS, which is left out, or the end of a stop.
    """
    text = self.completion(prompt, stops)
    return text.add(tokens) + text.finish()

  def token_texts(
    self, tokens: Sequence[int], prompt: Sequence[int] = ()
  ) -> list[str]:
    """What each token adds to a prompt's text; EOS and its like by name."""
    return completion_lib.token_texts(self.pieces, tokens, prompt, self.eos_ids)

  def stop_texts(self, texts: Sequence[str]) -> stopping.StopTexts | None:
    """What a decoder takes to stop at texts; None for none.

    Raises:
      ValueError: a text is empty or too long, or there is no tokenizer.
    """
    return self._stop_table(tuple(texts)) if texts else None

  @functools.cached_property
  def _stop_table(self):
    """`stops.table` for this model's tokenizer, with the last few results."""
    make = functools.partial(
      stops_lib.table, self.pieces, self.config.vocab_size
    )
    return functools.lru_cache(maxsize=8)(make)


def _weights_key(drafter):
  """What decides the weights that a drafter brings."""
  return (
    drafter.name,
    drafter.path,
    drafter.ngram_table,
    drafter.vocabulary,
    drafter.vocabulary_size,
  )


def _settings(drafter, tree=None):
  """All settings of a drafter given by name or by settings."""
  if isinstance(drafter, str):
    drafter = config_drafting.DrafterConfig(drafter)
  if drafter.tree is None and drafter.name != 'none':
    drafter = dataclasses.replace(drafter, tree=tree)
  return drafter


def load(
  base: str,
  adapter: str | None = None,
  *,
  dtype: str = 'float32',
  partitioner: partitioning.Partitioner | None = None,
  streams: bool = True,
) -> Model:
  """Loads a base model and, if given, an adapter trained on it.

  Args:
    base: a known name, a Hugging Face folder or hub id, or a GGUF file.
    adapter: folder of an adapter, or the name of one that ships.
    dtype: of weights and activations.
    partitioner: the devices to decode on; None takes those of `MeshConfig`,
      by default the first one of this process.
    streams: False takes of the adapter only what is folded into the base.

  Raises:
    ValueError: something cannot be read, or the adapter is of another base.
  """
  part = partitioner or partitioning.local()
  loaded = loading.load_model(base, dtype=dtype, lazy=not part.is_single)
  part.check_fits(loaded.config.num_heads, loaded.config.num_kv_heads)
  source = {'base': str(loaded.source), 'dtype': dtype}
  rest, folded, folded_lora = {}, {}, config.LoraConfig(rank=0)
  stream, kept_lora, tree = None, None, config.TreeConfig()
  eos_ids = loaded.eos_ids
  folder = adapter_folder(adapter) if adapter is not None else ''
  if folder:
    flat, cfg = adapters.load_adapter(folder)
    adapters.check_base(cfg, loaded)
    adapters.check_weights(folder, flat, cfg, loaded.config)
    folded, folded_lora, rest = adapters.split(flat, cfg)
    stream, tree = cfg.stream, cfg.tree
    source['adapter'] = str(adapter)
    eos_ids = eos.union(eos_ids, cfg.eos_ids)
    kept_lora = cfg.lora if stream.mode == 'lossless' else None
  if not streams:
    rest, stream, kept_lora = {}, None, None
  return Model(
    config=loaded.config,
    base=params_lib.unflatten(
      part.put(lora.Folded(loaded.params, folded, folded_lora), transposed=True)
    ),
    adapter=params_lib.unflatten(
      part.put({k: np.asarray(v, np.float32) for k, v in rest.items()})
    ),
    stream=stream,
    lora=kept_lora,
    tree=tree,
    source=source,
    tokenizer=loaded.tokenizer,
    chat_template=loaded.chat_template,
    eos_ids=tuple(eos_ids),
    bos_id=loaded.bos_id,
    adapter_dir=folder,
    partitioner=part,
  )


def with_random_streams(
  model: Model, stream: config.StreamConfig = config.StreamConfig()
) -> Model:
  """The model with streams of random weights: right in cost, not in drafts."""
  lora_cfg = config.LoraConfig(rank=0)
  flat = initialize.init_adapter(
    jax.random.key(0), model.config, stream, lora_cfg, hidden_rms=1.0
  )
  return dataclasses.replace(
    model,
    adapter=jax.tree.map(jnp.asarray, flat),
    stream=stream,
    tree=config.TreeConfig(depth=min(4, stream.num_streams)),
    source=model.source | {'adapter': 'random streams'},
    _decoders={},
    _params={},
  )


def adapter_folder(name: str) -> str:
  """`name` if it is a folder, else the adapter of that name that ships.

  Raises:
    ValueError: it is neither.
  """
  shipped = _SHIPPED / name
  if pathlib.Path(name).is_dir():
    return name
  if shipped.is_dir():
    return str(shipped)
  raise ValueError(
    f'adapter {name!r} is neither a folder nor one that ships; those are '
    f'{shipped_adapters()}'
  )


def shipped_adapters() -> list[str]:
  """Names of the adapters that come with the package."""
  if not _SHIPPED.is_dir():
    return []
  return sorted(path.name for path in _SHIPPED.iterdir())


def fingerprint(model: Model) -> str:
  """A hash of the weights that decode: a sample of each tensor of the base, LoRA
  folded in, and the adapter whole."""
  parts = (
    weights_lib.fingerprint(params_lib.flatten(model.base)),
    weights_lib.fingerprint(params_lib.flatten(model.adapter), whole=True),
  )
  return hashlib.sha256(''.join(parts).encode()).hexdigest()[:16]
