"""Optimisers, their schedules, and which parameters they take."""
