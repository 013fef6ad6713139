"""Contract suites that hospitals and authors run on their own packages."""
