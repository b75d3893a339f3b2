"""What `tools/fuzz.py` is made of: good files, mutations of them, and the judge of what the commands do with them."""
