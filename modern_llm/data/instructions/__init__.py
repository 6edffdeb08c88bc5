"""Instructions and conversations."""
