"""From YAML to checked objects: building, overrides, names that changed, messages about mistakes."""
