"""What a person asks for. Each task wires model, data, objective, trainer, evaluation and report; thin."""
