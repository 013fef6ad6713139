"""Server aggregation algorithms: one file, one algorithm, one paper."""
