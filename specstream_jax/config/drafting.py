# SPDX-License-Identifier: Apache-2.0
"""Which drafter decodes, and how its drafts are made and verified."""

import ast
import dataclasses
import importlib.metadata
from typing import Any

import gin

from specstream_jax import config
from specstream_jax.config import bounds, budgets as budgets_lib, checks

DRAFTERS = (
  'none',
  'streams',
  'draft_model',
  'medusa',
  'dart',
  'prompt_lookup',
  'lookahead',
  'mix',
)
# Those that grow a tree of an adapter's streams.
STREAMS = ('streams', 'mix')
DRAFTING = ('top_k', 'gumbel_top_k', 'beam', 'independent')
# Rules whose output does not follow the target's law.
LOSSY_VERIFIERS = ('typical',)
# Beyond any draft; building and compiling take time for each.
_MOST = {
  'window': config.MAX_STREAMS,
  'ngram': config.MAX_STREAMS,
  'num_guesses': config.MAX_NODES,
  'pool_size': config.MAX_NODES,
}
# The law that each way of drafting needs its verifier to know.
_PAIRS = {
  'gumbel_top_k': ('walk', 'recursive_rejection', 'typical'),
  'beam': ('walk', 'recursive_rejection', 'typical'),
  'independent': ('walk', 'multi_step', 'typical'),
  'top_k': ('walk', 'typical'),
}
# Who reads a field: these, or drafters that were registered (`_OTHERS`). What
# names nobody is a field that a registered drafter has added for itself.
_OTHERS = '*'
_SCORED = (*STREAMS, 'draft_model', 'medusa', 'dart', _OTHERS)
# Those whose tree an n-gram table and a vocabulary can be had for.
_TABLED = (*STREAMS, 'dart')
_VERIFIED = (*_SCORED, 'prompt_lookup', 'lookahead')
# Those that need not see every token as it comes.
_PAUSING = (*STREAMS, 'medusa', 'prompt_lookup')
# Those of them that say how likely their drafts are.
_SCORED_PAUSING = (*STREAMS, 'medusa')
# Of installed packages: a drafter's name, and the module that registers it.
ENTRY_POINTS = 'specstream_jax.drafters'


def _read_by(*names: str, default: Any) -> Any:
  """A field of `DrafterConfig` that only these drafters read."""
  return dataclasses.field(default=default, metadata={'read_by': names})


@checks.names_options
@gin.configurable
@dataclasses.dataclass(frozen=True)
class DrafterConfig:
  """One rival: a drafter, its tree, its verifier.

  Attributes:
    name: one of `DRAFTERS`, or registered; `none` is autoregressive decoding.
    tree: draft tree; None takes the drafter's own default.
    path: folder of the drafter's weights (`draft_model`, `medusa`, `dart`).
    drafting: how nodes are picked: `top_k` (deterministic), `gumbel_top_k`
      (siblings drawn without replacement, level by level), `beam` (stochastic
      beam search), `independent` (siblings drawn with replacement).
    verifier: `walk` (position-keyed, the default), `recursive_rejection` (for
      siblings without replacement), `multi_step` (for independent siblings),
      `typical` (lossy).
    couple_noise: at temperature > 0, `top_k` drafts use the target's
      position-keyed noise.
    noise_weight: of that noise in the drafts' scores; None takes 1 for a draft
      model and 0.5 for streams, Medusa heads and a DART layer, which know less
      than the target and hence of what its noise will do.
    coupling: an adapter's coupling, if it has one, ranks the nodes of
      `best_first` trees by their parents.
    ngram: longest n-gram to look up, or n of lookahead.
    window: columns of the lookahead branch.
    pool_size: n-grams that lookahead keeps per row.
    num_guesses: n-grams verified per call; None takes 2 for lookahead and 1
      for prompt look-up.
    ngram_table: file of an n-gram table that re-weights stream trees;
      'adapter' is the one in the adapter's folder.
    ngram_weight: its weight; 0 leaves stream scores as they are.
    vocabulary: file of the tokens that streams may draft, 'adapter' as above;
      all without.
    vocabulary_size: how many of the file, most frequent first; 0 takes all.
    schedule: when streams run, see `DecodeConfig`, which says so where this is
      empty.
    likely_nodes: nodes that carry streams under the schedule `likely`, 1 to 4.
    skip_streams: streams are not asked where a copy alone is expected to have
      such a share of its tokens right; 1 always asks.
    typical_epsilon: hard threshold of typical acceptance.
    typical_delta: factor of its entropy-dependent threshold.
    synthetic_acceptance: accept each draft with this chance whatever it is,
      to time a drafter that is not trained; 0 verifies.
    pays_above: tokens per call from which on drafts pay, which is what a call
      with them costs in plain ones. Where calls emit fewer, drafts pause for a
      while; 0 always drafts.
    budgets: sizes of tree to choose among call by call, and what a call with
      each costs in plain ones: '4:1.8/16:2.5'. The last is the whole tree.
      Where none promises to pay, drafts pause; empty always verifies the tree.
  """

  name: str = 'streams'
  tree: config.TreeConfig | None = _read_by(*_VERIFIED, default=None)
  path: str = _read_by('draft_model', 'medusa', 'dart', _OTHERS, default='')
  drafting: str = _read_by(*_VERIFIED, default='top_k')
  verifier: str = _read_by(*_VERIFIED, default='walk')
  couple_noise: bool = _read_by(*_SCORED, default=True)
  noise_weight: float | None = _read_by(*_SCORED, default=None)
  coupling: bool = _read_by(*STREAMS, default=True)
  ngram: int = _read_by('prompt_lookup', 'lookahead', default=3)
  window: int = _read_by('lookahead', default=2)
  pool_size: int = _read_by('lookahead', default=64)
  num_guesses: int | None = _read_by('prompt_lookup', 'lookahead', default=None)
  ngram_table: str = _read_by(*_TABLED, default='')
  ngram_weight: float = _read_by(*_TABLED, default=1.0)
  vocabulary: str = _read_by(*_TABLED, default='')
  vocabulary_size: int = _read_by(*_TABLED, default=0)
  schedule: str = _read_by(*STREAMS, default='')
  likely_nodes: int = _read_by(*STREAMS, default=2)
  skip_streams: float = _read_by('mix', default=0.7)
  typical_epsilon: float = _read_by(*_VERIFIED, default=0.1)
  typical_delta: float = _read_by(*_VERIFIED, default=0.3)
  synthetic_acceptance: float = _read_by(*_VERIFIED, default=0.0)
  pays_above: float = _read_by(*_PAUSING, default=0.0)
  budgets: str = _read_by(*_SCORED_PAUSING, default='')

  def __post_init__(self):
    checks.config_types(self)
    checks.one_of('DrafterConfig.name', self.name, _known(self.name))
    checks.one_of('DrafterConfig.drafting', self.drafting, DRAFTING)
    accepted = _PAIRS[self.drafting]
    checks.check(
      self.verifier in accepted,
      f'DrafterConfig.verifier is {self.verifier!r}; drafting '
      f'{self.drafting!r} can be verified by {", ".join(accepted)}',
    )
    for name in ('window', 'pool_size', 'num_guesses'):
      if (value := getattr(self, name)) is not None:
        checks.count(f'DrafterConfig.{name}', value, 1, _MOST[name])
    checks.count('DrafterConfig.ngram', self.ngram, 2, _MOST['ngram'])
    if self.noise_weight is not None:
      checks.at_least('DrafterConfig.noise_weight', self.noise_weight, 0.0)
    checks.count(
      'DrafterConfig.vocabulary_size', self.vocabulary_size, 0, bounds.COUNT
    )
    self._check_schedule()
    for name in (
      'ngram_weight',
      'typical_epsilon',
      'typical_delta',
      'pays_above',
    ):
      checks.at_least(f'DrafterConfig.{name}', getattr(self, name), 0.0)
    for name in ('synthetic_acceptance', 'skip_streams'):
      value = getattr(self, name)
      checks.check(
        0 <= value <= 1, f'DrafterConfig.{name} is {value}; accepted: 0 to 1'
      )
    self._check_pauses()
    reads = self.reads()
    checks.check(
      not self.path or 'path' in reads,
      f'DrafterConfig.path is {self.path!r}, but {self.name!r} has no folder; '
      'leave it out',
    )
    for name in ('ngram_table', 'vocabulary'):
      checks.check(
        not getattr(self, name) or name in reads,
        f'DrafterConfig.{name} is set for {self.name!r}; only the trees of '
        "'streams', 'mix' and 'dart' take one, leave it out",
      )

  def _check_pauses(self) -> None:
    for name in ('pays_above', 'budgets'):
      value = getattr(self, name)
      checks.check(
        not value or self.verifier == 'walk',
        f'DrafterConfig.{name} is {value} but the verifier is '
        f"{self.verifier!r}; drafts pause under 'walk' only, leave one out",
      )
    checks.check(
      not self.budgets or self.drafting == 'top_k',
      f'DrafterConfig.budgets goes by the chances of chosen drafts, but '
      f"drafting is {self.drafting!r}; use drafting='top_k' or leave it out",
    )
    checks.check(
      not (self.budgets and self.pays_above),
      'DrafterConfig.budgets has costs and pauses of its own; leave pays_above '
      'out',
    )
    budgets_lib.parse(self.budgets, config.MAX_NODES)

  def _check_schedule(self) -> None:
    checks.one_of(
      'DrafterConfig.schedule', self.schedule, ('', *config.SCHEDULES)
    )
    checks.check(
      1 <= self.likely_nodes <= 4,
      f'DrafterConfig.likely_nodes is {self.likely_nodes}; accepted: 1 to 4',
    )
    checks.check(
      self.schedule != 'likely' or self.drafting == 'top_k',
      "DrafterConfig.schedule is 'likely', which goes by the chances of chosen "
      f"drafts, but drafting is {self.drafting!r}; use drafting='top_k' or "
      "schedule='deferred'",
    )

  def reads(self) -> tuple[str, ...]:
    """Names of the fields that the drafter reads, `tree` among them."""
    name = self.name if self.name in DRAFTERS else _OTHERS
    return tuple(
      field.name
      for field in dataclasses.fields(self)
      if name in field.metadata.get('read_by', (name,)) and field.name != 'name'
    )

  def used_schedule(self, decode: config.DecodeConfig) -> 'DrafterConfig':
    """These settings with the schedule that a decoder asks for, if none is set.

    Raises:
      ValueError: the drafting cannot be had with that schedule.
    """
    if self.schedule:
      return self
    return dataclasses.replace(self, schedule=decode.schedule)

  def used_noise_weight(self, default: float) -> float:
    """What `couple_noise` and `noise_weight`, if it is not None, come to."""
    if not self.couple_noise:
      return 0.0
    return default if self.noise_weight is None else self.noise_weight

  @property
  def sizes(self) -> tuple[budgets_lib.Size, ...]:
    """What `budgets` names."""
    return budgets_lib.parse(self.budgets, config.MAX_NODES)

  @property
  def output(self) -> str:
    """'lossless', 'lossy' or 'synthetic': what a reader must know of it."""
    if self.synthetic_acceptance:
      return 'synthetic'
    return 'lossy' if self.is_lossy else 'lossless'

  @property
  def is_lossy(self) -> bool:
    """Whether the output may follow another law than the target's."""
    return self.verifier in LOSSY_VERIFIERS or self.synthetic_acceptance > 0


# The settings of each drafter that was registered.
_REGISTERED: dict[str, type[DrafterConfig]] = {}


def register(name: str, settings: type[DrafterConfig]) -> None:
  """Makes a name known, see `drafters.register`."""
  checks.check(
    name.isidentifier() and name not in DRAFTERS,
    f'a drafter cannot be registered as {name!r}; use a name of letters, digits '
    f'and underscores that is not one of {", ".join(DRAFTERS)}',
  )
  _REGISTERED[name] = settings


def _known(name: str) -> tuple[str, ...]:
  """All names, after the installed package that brings this one is asked."""
  if name not in (*DRAFTERS, *_REGISTERED):
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS, name=name):
      entry.load()
  return (*DRAFTERS, *_REGISTERED)


def known() -> dict[str, type[DrafterConfig]]:
  """Every drafter by name, also of installed packages, with its settings."""
  for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
    entry.load()
  return dict.fromkeys(DRAFTERS, DrafterConfig) | _REGISTERED


def parse(text: str, tree: config.TreeConfig | None = None) -> DrafterConfig:
  """A drafter from text such as `streams:num_nodes=8,depth=3`.

  Names before `=` are fields of DrafterConfig or TreeConfig; naming one of the
  latter gives the drafter a tree of its own, `kind` among them.

  Args:
    text: name and settings.
    tree: of the adapter. What of a tree of its kind the text leaves out is
      taken from it; of another kind the depth, as the adapter has so many
      streams.

  Raises:
    ValueError: a name is unknown, a value out of range or of another type, or
      a setting is one that the drafter does not read.
  """
  name, _, settings = text.partition(':')
  _known(name)
  cls = _REGISTERED.get(name, DrafterConfig)
  own = {f.name: f for f in dataclasses.fields(cls)}
  own = {key: own[key] for key in own.keys() - {'name', 'tree'}}
  of_tree = {f.name: f for f in dataclasses.fields(config.TreeConfig)}
  del of_tree['choices']  # no text of commas can hold them
  values: dict[str, Any] = {'name': name}
  shape: dict[str, Any] = {}
  for setting in filter(None, settings.split(',')):
    key, equals, value = setting.partition('=')
    checks.check(
      bool(equals) and key in own | of_tree,
      f'drafter {text!r}: {setting!r} is no setting; accepted: name=value with '
      f'a name of {sorted(own | of_tree)}',
    )
    target = values if key in own else shape
    target[key] = _value(value, (own | of_tree)[key])
  try:
    if shape:
      values['tree'] = _tree(shape, tree if name in STREAMS else None)
    drafter = cls(**values)
  except ValueError as error:
    raise ValueError(f'drafter {text!r}: {checks.message(error)}') from error
  _check_read(text, drafter, values.keys() - {'name', 'tree'}, shape)
  return drafter


def _tree(
  shape: dict[str, Any], default: config.TreeConfig | None
) -> config.TreeConfig:
  """A tree of these settings, then gin's, then those of a default."""
  if default is None:
    return config.TreeConfig(**shape)
  asked = gin.get_bindings(config.TreeConfig) | shape
  values: dict[str, Any] = {'depth': default.max_depth}
  # The paths of a fixed tree leave nothing else to set.
  if default.kind != 'fixed' and asked.get('kind') in (None, default.kind):
    values = config.to_json(default)
  return config.TreeConfig(**values | asked)


def _check_read(text, drafter, own, shape) -> None:
  """Raises ValueError if a setting is one that the drafter does not read."""
  reads = drafter.reads()
  unread = sorted(own - set(reads))
  unread += [] if 'tree' in reads else sorted(shape)
  reads_own = [name for name in reads if name != 'tree']
  checks.check(
    not unread,
    f'drafter {text!r}: {drafter.name!r} does not read {", ".join(unread)}; it '
    f'reads {", ".join(reads_own) or "no settings"}'
    + (' and those of a tree' if 'tree' in reads else ''),
  )


def _value(text: str, field: dataclasses.Field) -> Any:
  """A number, bool or word; a folder called 7 is a word, too."""
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    return text
  is_word = isinstance(field.default, str) and not isinstance(value, str)
  return text if is_word else value
