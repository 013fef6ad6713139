"""Was it worth it: the record of a comparison on held-out patients, its analysis, its words and its page."""
