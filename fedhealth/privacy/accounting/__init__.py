"""What was released, and what it cost: events, accountants, plans. Imports neither torch nor Opacus."""
