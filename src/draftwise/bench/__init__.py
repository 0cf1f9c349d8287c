"""The honest bench: every method and the peers over the same prompts in one run, and what can be read from the rows it leaves."""
