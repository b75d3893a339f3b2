"""Float model in, Q/DQ model out: prepare, match, calibrate, place."""
