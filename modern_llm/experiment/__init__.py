"""What tasks share: their contract, the way everything that trains goes, models by choice, answers and policies."""
