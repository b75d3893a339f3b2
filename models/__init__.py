"""Float models and data for the demo and the tests, with the scripts that made them."""
