"""What a run needs of the memory, planned and when there is not enough."""
