"""`python -m onnxqat`."""

from onnxqat.cli import main

main()
