"""Searches, and what they measure: stages are combined to find better parameters, or settings, than one stage alone."""
