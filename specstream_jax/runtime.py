# SPDX-License-Identifier: Apache-2.0
"""A loaded model with its adapter, ready to decode.

LoRA of a fine-tuned adapter is folded into the base weights once, so neither
decoder pays for it. A lossless adapter keeps the base as it is, or as the LoRA
that comes with it has tuned it.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import hashlib
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from specstream_jax import config, drafters, partitioning
from specstream_jax.checkpoints import (
  adapters,
  chat_format,
  eos,
  fitted,
  generation_config,
  loading,
  shipped,
  token_ids,
  tokenizer_errors,
  weights as weights_lib,
)

# The field `config` of `Model` hides the module in its annotations.
from specstream_jax.config import (
  DecodeConfig,
  LoraConfig,
  ModelConfig,
  StreamConfig,
  TreeConfig,
  checks,
  drafting as config_drafting,
)
from specstream_jax.decoding import (
  decoder as decoder_lib,
  stopping,
  transformer_fns,
  verifiers,
)
from specstream_jax.modeling import (
  fused,
  initialize,
  int8,
  lora,
  params as params_lib,
)
from specstream_jax.streaming import (
  loading as streamed_loading,
  weights as streamed_weights,
)
from specstream_jax.text import (
  completion as completion_lib,
  pieces as pieces_lib,
  stops as stops_lib,
)

DRAFTERS = config_drafting.DRAFTERS
DEFAULT_ADAPTER = 'e2e_nlg'
CHAT_ADAPTER = 'instruct_lossless'
AUTO, AUTO_CHAT = 'auto', 'auto_chat'
_OWN = {AUTO: DEFAULT_ADAPTER, AUTO_CHAT: CHAT_ADAPTER}


@dataclasses.dataclass
class Model:
  """A base model, and perhaps an adapter, on device.

  Attributes:
    config: sizes of the base model.
    base: nested weights that decode, LoRA folded in when fine-tuned; kernels
      lie as [out, in], and may be fused, as `layout` says.
    adapter: nested stream weights; empty without an adapter.
    stream: settings of the streams, or None.
    lora: LoRA left unfolded (lossless mode), or None.
    tree: the adapter's default tree.
    source: what was loaded, for reports: base and adapter by name or path.
    tokenizer: `tokenizers.Tokenizer`.
    chat_template: how it writes a chat, or None.
    is_chat: whether a prompt is meant as a turn of a chat: the model has a
      chat template, and its adapter, if any, was trained on chats.
    eos_ids: token ids that end a text: those of the base, and those at which
      the adapter was trained to end.
    bos_id: token id in front of every prompt, or None.
    layout: of the kernels, see `layers.Linear` and `fused`.
    adapter_dir: folder of the adapter, empty without.
    generation: fields of the checkpoint's generation_config.json.
    partitioner: where the weights lie, and batches go.
    streamed: the layers, where they pass through memory; `base` has none then.
  """

  config: ModelConfig
  base: dict[Any, Any]
  adapter: dict[Any, Any]
  stream: StreamConfig | None
  lora: LoraConfig | None
  tree: TreeConfig
  source: dict[str, str]
  tokenizer: Any
  chat_template: chat_format.Template | None
  eos_ids: tuple[int, ...]
  bos_id: int | None = None
  is_chat: bool = False
  layout: str = 'out_in'
  adapter_dir: str = ''
  generation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  partitioner: partitioning.Partitioner = dataclasses.field(
    default_factory=partitioning.local, repr=False
  )
  streamed: streamed_weights.LayerWeights | None = dataclasses.field(
    default=None, repr=False
  )
  _decoders: dict[Any, tuple[decoder_lib.Decoder, Any]] = dataclasses.field(
    default_factory=dict, repr=False
  )

  def decoder(
    self,
    drafter: str | config_drafting.DrafterConfig,
    decode: DecodeConfig,
    *,
    tree: TreeConfig | None = None,
  ) -> decoder_lib.Decoder:
    """The compiled decoder for these settings; made once.

    How tokens are drawn is not among them: it is said when it generates.

    Args:
      drafter: a name of `DRAFTERS`, perhaps with settings behind it, as
        `config.drafting.parse` reads them, or all settings.
      decode: sizes and stop conditions.
      tree: used where the drafter's settings name none.

    Raises:
      ValueError: unknown drafter, or one that does not fit the model, or an
        EOS id that the model does not have.
    """
    drafter = _settings(drafter, self.tree, tree)
    size = self.config.vocab_size
    for token in decode.eos_ids:
      checks.check(
        token < size,
        f'DecodeConfig.eos_ids holds {token}, which the model does not have; '
        f'accepted: 0 to {size - 1}',
      )
    # A copy by `dataclasses.replace` shares the dict: what it has in common is
    # compiled once, and other weights are others. They are kept with their
    # decoder, so that no id comes twice.
    weights = self.base, self.adapter, self.partitioner
    settings = self.stream, self.lora, self.adapter_dir
    key = (drafter, decode, *map(id, weights), *settings)
    if key not in self._decoders:
      self._decoders[key] = self._make_decoder(drafter, decode), weights
    return self._decoders[key][0]

  def params(
    self, drafter: str | config_drafting.DrafterConfig
  ) -> transformer_fns.Params:
    """Weights that any decoder of `drafter` takes; each has its own."""
    return self.decoder(drafter, DecodeConfig()).params

  def _make_decoder(self, drafter, decode):
    if self.streamed is not None:
      streamed_loading.check(drafter, self.partitioner.mesh.size)
    made = drafters.load(self, drafter, decode)
    if self.streamed is not None:
      most = self.config.most_positions
      return streamed_loading.make_decoder(
        made, drafter, decode, self.streamed, most
      )
    return decoder_lib.Decoder(
      made.model,
      made.drafter,
      decode,
      prompt_model=made.prompt_model,
      verifier=verifiers.make(drafter),
      partitioner=self.partitioner,
      params=made.params,
      most_positions=self.config.most_positions,
      pays_above=drafter.pays_above,
      budgets=drafter.sizes,
    )

  def wishes(self) -> generation_config.Wishes:
    """How the checkpoint wants tokens drawn.

    Raises:
      ValueError: its generation_config.json has a value out of range, or names
        tokens that it does not have.
    """
    return generation_config.parse(self.generation, self.config.vocab_size)

  def encode(self, text: str) -> list[int]:
    """Token ids of `text`, no special tokens added.

    Raises:
      ValueError: it is not text that UTF-8 can spell, or the tokenizer knows no
        way to spell it.
    """
    checks.text('the text', text)
    encode = self.tokenizer.encode
    with tokenizer_errors.naming(*tokenizer_errors.AT_USE):
      return encode(text, add_special_tokens=False).ids

  def encode_prompt(self, text: str) -> list[int]:
    """Token ids of a prompt: `encode`, after BOS if the model wants one.

    A chat that its template wrote is encoded as it is.
    """
    is_chat = isinstance(text, chat_format.Text)
    bos = [] if self.bos_id is None or is_chat else [self.bos_id]
    return bos + self.encode(text)

  def check_ids(self, tokens: Sequence[int], name: str) -> None:
    """Raises ValueError if `name` holds a token without an embedding."""
    token_ids.check(tokens, self.config.vocab_size, name, self.tokenizer)

  def warn_if_long(
    self, prompts: Sequence[Sequence[int]], max_new_tokens: int
  ) -> None:
    """Warns of texts that run past the positions the model was trained on.

    Raises:
      ValueError: the model has no such positions at all.
    """
    longest = max(map(len, prompts), default=0) + max_new_tokens
    decoder_lib.check_positions(longest, self.config.most_positions)
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
    self,
    prompt: Sequence[int] = (),
    stops: Sequence[str] = (),
    *,
    ignore_eos: bool = False,
  ) -> completion_lib.Completion:
    """The text of tokens that come after a prompt, up to EOS or a stop."""
    eos_ids = () if ignore_eos else self.eos_ids
    special = stops_lib.special_ids(self.pieces, stops)
    return completion_lib.Completion(
      self.pieces, prompt, eos_ids=(*eos_ids, *special), stops=stops
    )

  def decode_text(
    self,
    tokens: Sequence[int],
    prompt: Sequence[int] = (),
    stops: Sequence[str] = (),
    *,
    ignore_eos: bool = False,
  ) -> str:
    """Text that tokens add to a prompt.

    Args:
      tokens: new ids.
      prompt: ids before them; without, the text of the tokens alone, which for
        SentencePiece has no space in front of its first word.
      stops: texts of which the first to be whole ends the text.
      ignore_eos: EOS is a token like others.

    Returns:
      The text up to the first EOS, which is left out, or the end of a stop; a
      stop that is a special token is left out, too.
    """
    text = self.completion(prompt, stops, ignore_eos=ignore_eos)
    return text.add(tokens) + text.finish()

  def token_texts(
    self, tokens: Sequence[int], prompt: Sequence[int] = ()
  ) -> list[str]:
    """What each token adds to a prompt's text; EOS and its like by name."""
    return completion_lib.token_texts(self.pieces, tokens, prompt, self.eos_ids)

  def stop_texts(self, texts: Sequence[str]) -> stopping.StopTexts | None:
    """What a decoder takes to stop at texts; None for none.

    Raises:
      ValueError: a text is empty or too long, or has a special token and more,
        or there is no tokenizer.
    """
    return self._stop_table(tuple(texts)) if texts else None

  @functools.cached_property
  def _stop_table(self):
    """`stops.table` for this model's tokenizer, with the last few results."""
    make = functools.partial(
      stops_lib.table, self.pieces, self.config.vocab_size
    )
    return functools.lru_cache(maxsize=8)(make)


def _settings(drafter, adapter_tree, tree=None):
  """All settings of a drafter given by text or by settings."""
  if isinstance(drafter, str):
    drafter = config_drafting.parse(drafter, tree or adapter_tree)
  if drafter.tree is None and 'tree' in drafter.reads():
    drafter = dataclasses.replace(drafter, tree=tree)
  return drafter


def load(
  base: str,
  adapter: str | None = None,
  *,
  dtype: str = 'float32',
  weights_dtype: str = '',
  partitioner: partitioning.Partitioner | None = None,
  streams: bool = True,
  streamed: config.StreamedWeightsConfig | None = None,
  fuse: bool = False,
) -> Model:
  """Loads a base model and, if given, an adapter trained on it.

  Args:
    base: a known name, a Hugging Face folder or hub id, or a GGUF file.
    adapter: folder of an adapter of ours or a PEFT LoRA, which has no streams,
      or the name of one that ships; `AUTO` takes `DEFAULT_ADAPTER` with the
      model that it belongs to, none with others, `AUTO_CHAT` `CHAT_ADAPTER`.
    dtype: of weights and activations.
    weights_dtype: 'int8' stores the base's matrices in 8 bits, LoRA folded in
      before; another model, near this one. Empty is `dtype`.
    partitioner: devices; None takes `MeshConfig`'s, by default the first here.
    streams: False takes of the adapter only what is folded into the base.
    streamed: layers pass through memory instead of staying there, and how.
    fuse: on one CPU query, key and value become one kernel, see `fused`.

  Raises:
    ValueError: something cannot be read, or the adapter is of another base.
  """
  base = checks.path('the model', base)
  adapter = None if adapter is None else checks.path('the adapter', adapter)
  part = partitioner or partitioning.local()
  is_lazy = bool(weights_dtype or streamed) or not part.is_single
  loaded = loading.load_model(base, dtype=dtype, lazy=is_lazy)
  part.check_fits(loaded.config.num_heads, loaded.config.num_kv_heads)
  adapter = _own_adapter(loaded, _OWN[adapter]) if adapter in _OWN else adapter
  source = _source(loaded, dtype, weights_dtype, streamed, adapter)
  found = fitted.Fitted() if adapter is None else fitted.read(adapter, loaded)
  cfg = dataclasses.replace(loaded.config, weights_dtype=weights_dtype)
  rest = _float32(found.rest if streams else {})
  stays = lora.Folded(loaded.params, found.folded, found.folded_lora)
  layers = None
  is_fused = fuse and streamed is None and part.is_one_cpu
  stays = int8.stored(fused.Fused(stays) if is_fused else stays, cfg)
  if streamed is not None:
    stays, layers = streamed_loading.split(stays, loaded, found, rest, streamed)
  base_weights = part.put(stays, transposed=True)
  return _model(
    *(loaded, found, source),
    config=cfg,
    base=params_lib.unflatten(base_weights),
    adapter=params_lib.unflatten(part.put(rest)),
    stream=found.stream if streams else None,
    lora=found.lora if streams else None,
    partitioner=part,
    streamed=layers,
    layout=fused.LAYOUT if is_fused else 'out_in',
  )


def _source(loaded, dtype, weights_dtype, streamed, adapter) -> dict[str, str]:
  """What is loaded, for reports."""
  source = {'base': str(loaded.source), 'dtype': dtype}
  source |= {'weights_dtype': weights_dtype} if weights_dtype else {}
  source |= {'weights': 'streamed'} if streamed else {}
  return source | ({} if adapter is None else {'adapter': adapter})


def _float32(flat) -> dict[str, np.ndarray]:
  return {path: np.asarray(leaf, np.float32) for path, leaf in flat.items()}


def _model(loaded, found, source, **weights) -> Model:
  """The model with some weights, and what else was loaded with them."""
  template = loaded.chat_template or found.chat_template
  return Model(
    **weights,
    tree=found.tree or config.TreeConfig(),
    source=source,
    tokenizer=loaded.tokenizer,
    chat_template=template,
    eos_ids=eos.union(loaded.eos_ids, found.eos_ids),
    bos_id=loaded.bos_id,
    is_chat=found.is_chat and template is not None,
    adapter_dir=found.folder,
    generation=loaded.generation,
  )


def _own_adapter(loaded: loading.LoadedModel, name: str) -> str | None:
  """The name of one that ships, if it was trained on this model."""
  cfg = adapters.read_config(shipped.adapter_folder(name))
  return name if adapters.is_of(cfg, loaded) else None


def with_random_streams(
  model: Model, stream: config.StreamConfig = config.StreamConfig()
) -> Model:
  """The model with streams of random weights: right in cost, not in drafts."""
  given = jax.random.key(0), model.config, stream, config.LoraConfig(rank=0)
  flat = initialize.init_adapter(*given, hidden_rms=1.0)
  return dataclasses.replace(
    model,
    adapter=jax.tree.map(jnp.asarray, flat),
    stream=stream,
    tree=config.TreeConfig(depth=min(4, stream.num_streams)),
    source=model.source | {'adapter': 'random streams'},
  )


def fingerprint(model: Model) -> str:
  """A hash of the weights that decode, LoRA folded in, and of the adapter: all
  values, as what was begun with one model must not go on with another."""
  base, own = map(params_lib.flatten, (model.base, model.adapter))
  base = fused.split(base, model.config)
  parts = [weights_lib.fingerprint(flat, whole=True) for flat in (base, own)]
  if model.streamed is not None:
    parts.append(model.streamed.name)
  return hashlib.sha256(''.join(parts).encode()).hexdigest()[:16]
