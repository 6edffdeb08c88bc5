"""Decoding: the loops and the choice of the next token."""
