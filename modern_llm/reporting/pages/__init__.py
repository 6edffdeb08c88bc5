"""Pages as self-contained HTML."""
