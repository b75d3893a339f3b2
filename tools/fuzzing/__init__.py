"""Parts of `tools/fuzz.py`: good files, mutations of them, and the judge of what the commands do with them."""
