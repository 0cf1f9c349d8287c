"""The commands of the command line, one file each. Torch is imported inside them, so that `--help` answers at once."""
