"""Round records: JSON first, then HTML."""
