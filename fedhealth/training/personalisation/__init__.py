"""What each site has of its own: one file a method (docs/explanation/personalisation.md)."""
