"""Backward passes of LSTM, GRU and RNN: one file per operator, and the loop over time that they share."""
