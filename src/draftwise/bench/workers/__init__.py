"""Worker processes of the bench: one engine each, spoken to in JSON lines (see `lines`)."""
