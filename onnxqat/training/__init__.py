"""Q/DQ model in, Q/DQ model with trained weights and scales out."""
