"""Around a task: run folders and their record, resuming, sweeps, messages. With `tasks`, what knows Hydra."""
