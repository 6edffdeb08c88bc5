"""How a rule about a value is stated: one message with the key, the value, the rule and the way out."""

from __future__ import annotations

import re


def require(holds: bool, key: str, value: object, rule: str, remedy: str) -> None:
    """Raise `ValueError("key=value: rule. remedy.")` unless the rule holds."""
    if not holds:
        raise ValueError(f"{key}={value!r}: {rule}. {remedy}.")


def require_expression(key: str, pattern: str) -> None:
    """Raise `ValueError` unless a text is a regular expression."""
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as cause:
        raise ValueError(f"{key}={pattern!r}: no regular expression ({cause}). Mend it.") from cause
