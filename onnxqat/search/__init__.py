"""Searches: what combines stages to find better parameters, or settings, than one stage alone."""
