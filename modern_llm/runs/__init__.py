"""Around a task: run folders and their record, resuming, sweeps, plans, the pipeline."""
