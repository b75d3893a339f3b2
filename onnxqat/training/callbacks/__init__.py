"""Callbacks of `Trainer.fit`, and how several processes call them."""
