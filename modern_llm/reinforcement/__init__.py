"""Learning from answers that are drawn and marked."""
