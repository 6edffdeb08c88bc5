"""Ablations: a baseline and arms over paired seeds, tuned alike, with a verdict; statistics: `reporting/comparison`."""
