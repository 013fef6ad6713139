"""The adapter to Flower: the only room that imports flwr."""
