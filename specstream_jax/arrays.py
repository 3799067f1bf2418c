# SPDX-License-Identifier: Apache-2.0
"""Axis letters and array aliases used throughout the package.

Axis letters: B rows, T positions, S cache slots, M tree nodes including the
root, P path length, J speculative streams, A anchors (positions or nodes that
carry streams), N query heads, K key/value heads, G = N/K, H head dimension,
D model width, F MLP width, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import jax

Array = jax.Array
Params = Mapping[Any, Any]
FlatParams = Mapping[str, Any]
