"""Q/DQ model in, deployed model out."""
