"""Where the figures of a run go while it trains."""
