"""The budget ledger of a site's data: what was spent, durably, before anything is computed."""
