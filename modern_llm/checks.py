"""How a rule about a value is stated: one message with the key, the value, the rule and the way out."""

from __future__ import annotations


def require(holds: bool, key: str, value: object, rule: str, remedy: str) -> None:
    """Raise `ValueError("key=value: rule. remedy.")` unless the rule holds."""
    if not holds:
        raise ValueError(f"{key}={value!r}: {rule}. {remedy}.")
