"""The one door out: sole maker of outbound messages."""
