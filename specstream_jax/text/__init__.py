# SPDX-License-Identifier: Apache-2.0
"""Between token ids and text: what tokens spell, where a text stops."""
