"""One local round: train and evaluate."""
