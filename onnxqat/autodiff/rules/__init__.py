"""The gradient library: one file per operator family, joined to their operators in `table`."""
