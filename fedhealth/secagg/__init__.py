"""Secure aggregation: the server gets the sum of the sites' updates and none of them."""
