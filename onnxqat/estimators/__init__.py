"""Range estimators: which part of the values the codes should cover."""
