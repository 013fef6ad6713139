"""Start, watch and end child processes so that none is ever left behind."""
