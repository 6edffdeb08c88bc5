"""A lab of its own: a block, an optimiser, a data set, a metric and a task, none of which the framework knows."""

from modern_llm.evaluation.metrics.registry import Metric, register

register(Metric("bracket_accuracy", better="higher"))
