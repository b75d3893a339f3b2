"""Steps of training, from batches to updates, and the loop over them."""
