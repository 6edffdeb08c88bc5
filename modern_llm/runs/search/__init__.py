"""A search with Optuna over the overrides of jobs: the study in a sweep's folder, and what its jobs ask of it."""
