"""The audit's attacks on the product's own training steps. Called by `fedhealth site audit`."""
